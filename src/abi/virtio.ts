/**
 * Feature and status bits of virtio devices and the net device: linux/virtio_config.h, virtio_ring.h, virtio_net.h,
 * virtio_ids.h. A `_F_` constant is a bit number, as in the specification, never a mask. VIRTIO 1.2 §2.1, §2.2, §5.1.3,
 * §6.
 */

/** linux/virtio_ids.h. */
export const VIRTIO_ID_NET = 1

/** Bits of the device status. VIRTIO 1.2 §2.1. */
export const VIRTIO_CONFIG_S_ACKNOWLEDGE = 1
export const VIRTIO_CONFIG_S_DRIVER = 2
export const VIRTIO_CONFIG_S_DRIVER_OK = 4
export const VIRTIO_CONFIG_S_FEATURES_OK = 8
export const VIRTIO_CONFIG_S_NEEDS_RESET = 0x40
export const VIRTIO_CONFIG_S_FAILED = 0x80

/** Features of rings. VIRTIO 1.2 §6. */
export const VIRTIO_RING_F_INDIRECT_DESC = 28
export const VIRTIO_RING_F_EVENT_IDX = 29

/** Features of any device. VIRTIO 1.2 §6. */
export const VIRTIO_F_NOTIFY_ON_EMPTY = 24
export const VIRTIO_F_ANY_LAYOUT = 27
export const VIRTIO_F_VERSION_1 = 32
export const VIRTIO_F_ACCESS_PLATFORM = 33
export const VIRTIO_F_RING_PACKED = 34
export const VIRTIO_F_IN_ORDER = 35
export const VIRTIO_F_ORDER_PLATFORM = 36
export const VIRTIO_F_SR_IOV = 37
export const VIRTIO_F_NOTIFICATION_DATA = 38
export const VIRTIO_F_NOTIF_CONFIG_DATA = 39
export const VIRTIO_F_RING_RESET = 40
export const VIRTIO_F_ADMIN_VQ = 41

/** Features of the net device. VIRTIO 1.2 §5.1.3. */
export const VIRTIO_NET_F_CSUM = 0
export const VIRTIO_NET_F_GUEST_CSUM = 1
export const VIRTIO_NET_F_CTRL_GUEST_OFFLOADS = 2
export const VIRTIO_NET_F_MTU = 3
export const VIRTIO_NET_F_MAC = 5
export const VIRTIO_NET_F_GUEST_TSO4 = 7
export const VIRTIO_NET_F_GUEST_TSO6 = 8
export const VIRTIO_NET_F_GUEST_ECN = 9
export const VIRTIO_NET_F_GUEST_UFO = 10
export const VIRTIO_NET_F_HOST_TSO4 = 11
export const VIRTIO_NET_F_HOST_TSO6 = 12
export const VIRTIO_NET_F_HOST_ECN = 13
export const VIRTIO_NET_F_HOST_UFO = 14
export const VIRTIO_NET_F_MRG_RXBUF = 15
export const VIRTIO_NET_F_STATUS = 16
export const VIRTIO_NET_F_CTRL_VQ = 17
export const VIRTIO_NET_F_CTRL_RX = 18
export const VIRTIO_NET_F_CTRL_VLAN = 19
export const VIRTIO_NET_F_CTRL_RX_EXTRA = 20
export const VIRTIO_NET_F_GUEST_ANNOUNCE = 21
export const VIRTIO_NET_F_MQ = 22
export const VIRTIO_NET_F_CTRL_MAC_ADDR = 23
export const VIRTIO_NET_F_DEVICE_STATS = 50
export const VIRTIO_NET_F_VQ_NOTF_COAL = 52
export const VIRTIO_NET_F_NOTF_COAL = 53
export const VIRTIO_NET_F_GUEST_USO4 = 54
export const VIRTIO_NET_F_GUEST_USO6 = 55
export const VIRTIO_NET_F_HOST_USO = 56
export const VIRTIO_NET_F_HASH_REPORT = 57
export const VIRTIO_NET_F_GUEST_HDRLEN = 59
export const VIRTIO_NET_F_RSS = 60
export const VIRTIO_NET_F_RSC_EXT = 61
export const VIRTIO_NET_F_STANDBY = 62
export const VIRTIO_NET_F_SPEED_DUPLEX = 63
