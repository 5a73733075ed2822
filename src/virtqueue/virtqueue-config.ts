import { VIRTIO_F_RING_PACKED } from '../abi/virtio.ts'

/**
 * The position of a queue as one number, as vhost-user defines a ring's base. Split: the free-running index of the next
 * avail entry; used.idx is in the ring. Packed: next avail slot in bits 0 to 14 with its wrap counter in bit 15, next
 * used slot in bits 16 to 30 with its wrap counter in bit 31.
 */
export type VqBase = number

/**
 * One virtqueue as its driver has set it up, the same type from transport to ring. Addresses are driver addresses below
 * 2^53.
 */
export type VirtqueueConfig = {
  /** Entries, at most 32768; in a split ring a power of two. */
  readonly size: number
  /**
   * Split ring: descriptor table, avail ring, used ring. Packed ring: descriptor ring, driver and device event
   * suppression.
   */
  readonly descAddr: number
  readonly availAddr: number
  readonly usedAddr: number
  /**
   * The front-end's base. What the ring itself tells takes precedence. 'used': start at used.idx (split rings only).
   * docs/decisions/0010-where-a-ring-goes-on.md
   */
  readonly base: VqBase | 'used'
  /** The negotiated features: feature bit n is `1n << BigInt(n)`. */
  readonly features: bigint
}

/** True if the feature with this bit number is in the set. */
export const negotiated = (features: bigint, bit: number): boolean => ((features >> BigInt(bit)) & 1n) === 1n

/** The base of a ring of which nothing was used yet. */
export const firstBase = (packed: boolean): VqBase => (packed ? 0x8000_8000 : 0)

/** True if the negotiated features make the queue a packed ring. */
export const isPacked = ({ features }: Pick<VirtqueueConfig, 'features'>): boolean =>
  negotiated(features, VIRTIO_F_RING_PACKED)
