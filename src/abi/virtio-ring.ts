/** Ring constants of linux/virtio_ring.h, by the kernel's names. */

/** Descriptor flags. VIRTIO 1.2 §2.7.5. */
export const VRING_DESC_F_NEXT = 1
export const VRING_DESC_F_WRITE = 2
export const VRING_DESC_F_INDIRECT = 4

/** In used.flags: the device asks for no kicks. */
export const VRING_USED_F_NO_NOTIFY = 1
/** In avail.flags: the driver asks for no calls. */
export const VRING_AVAIL_F_NO_INTERRUPT = 1

/** Alignment of the three parts, in bytes. VIRTIO 1.2 §2.7. */
export const VRING_DESC_ALIGN_SIZE = 16
export const VRING_AVAIL_ALIGN_SIZE = 2
export const VRING_USED_ALIGN_SIZE = 4

/** sizeof(struct vring_desc). */
export const VRING_DESC_BYTES = 16
/** Flag bits of a descriptor in a packed ring, as bit numbers. VIRTIO 1.2 §2.8.13. */
export const VRING_PACKED_DESC_F_AVAIL = 7
export const VRING_PACKED_DESC_F_USED = 15

/** Values of `flags` in struct vring_packed_desc_event. VIRTIO 1.2 §2.8.14. */
export const VRING_PACKED_EVENT_FLAG_ENABLE = 0
export const VRING_PACKED_EVENT_FLAG_DISABLE = 1
export const VRING_PACKED_EVENT_FLAG_DESC = 2
/** The wrap counter in `off_wrap` of that struct, as a bit number. */
export const VRING_PACKED_EVENT_F_WRAP_CTR = 15

/** sizeof(struct vring_packed_desc), sizeof(struct vring_packed_desc_event). */
export const VRING_PACKED_DESC_BYTES = 16
export const VRING_PACKED_DESC_EVENT_BYTES = 4

/** Most entries of a split ring. VIRTIO 1.2 §2.7. */
export const VRING_SPLIT_SIZE_MAX = 32768
/** Most entries of a packed ring. VIRTIO 1.2 §2.8.10.1. */
export const VRING_PACKED_SIZE_MAX = 32768
