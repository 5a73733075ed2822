import { VIRTIO_F_RING_PACKED } from '../abi/virtio.ts'

/**
 * Where a queue is, as one number. Split ring: the free-running index of the next avail entry; the used index is in the
 * ring. Packed ring: next avail slot and wrap counter in bits 0..15, next used slot and wrap counter in bits 16..31,
 * each counter the highest bit. vhost-user calls this a ring's base.
 */
export type VqBase = number

/**
 * One virtqueue as its driver has set it up: the same from the transport to the ring. Addresses are the driver's, below
 * 2^53.
 */
export type VirtqueueConfig = {
  /** Entries: of a split ring a power of two, at most 32768. */
  readonly size: number
  /**
   * Split ring: descriptor table, avail ring, used ring. Packed ring: descriptor ring, driver and device event
   * suppression.
   */
  readonly descAddr: number
  readonly availAddr: number
  readonly usedAddr: number
  /**
   * Where to start, as far as the front-end knows: what the ring itself tells counts more. 'used': where the used ring
   * ends; a packed ring has none. docs/decisions/0010-where-a-ring-goes-on.md
   */
  readonly base: VqBase | 'used'
  /** What was negotiated: bit number n of VIRTIO is `1n << BigInt(n)`. */
  readonly features: bigint
}

/** True if the feature with this bit number is in the set. */
export const negotiated = (features: bigint, bit: number): boolean => ((features >> BigInt(bit)) & 1n) === 1n

/** True if the negotiated features make the queue a packed ring. */
export const isPacked = ({ features }: Pick<VirtqueueConfig, 'features'>): boolean =>
  negotiated(features, VIRTIO_F_RING_PACKED)
