import { VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC } from '../../src/abi/virtio.ts'

const bits = {
  indirect: 1n << BigInt(VIRTIO_RING_F_INDIRECT_DESC),
  eventIdx: 1n << BigInt(VIRTIO_RING_F_EVENT_IDX),
  packed: 1n << BigInt(VIRTIO_F_RING_PACKED),
}

/** Negotiated features that a ring looks at: those that are true. */
export const ringFeatures = (wanted: { readonly [Name in keyof typeof bits]?: boolean }): bigint =>
  Object.entries(bits).reduce((set, [name, bit]) => (wanted[name as keyof typeof bits] ? set | bit : set), 0n)
