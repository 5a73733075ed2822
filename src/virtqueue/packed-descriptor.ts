import {
  VRING_PACKED_DESC_F_AVAIL,
  VRING_PACKED_DESC_F_USED,
  VRING_PACKED_EVENT_F_WRAP_CTR,
} from '../abi/virtio-ring.ts'

/**
 * The word of a packed descriptor that holds buffer id (low half) and flags (high half), and the shift of the flags.
 */
export const ID_AND_FLAGS = 3
export const FLAGS_SHIFT = 16

/** The two wrap bits of that word. VIRTIO 1.2 §2.8.1. */
const AVAIL = 1 << (VRING_PACKED_DESC_F_AVAIL + FLAGS_SHIFT)
export const USED = 1 << (VRING_PACKED_DESC_F_USED + FLAGS_SHIFT)

export const WRAP_BITS = AVAIL | USED

/**
 * An entry of a packed ring with its wrap counter, as one number from 0 to 2 * size - 1: below `size` the counter is 1,
 * from there on it is 0. Driver and device both start at 0. VIRTIO 1.2 §2.8.1.
 */
export type Position = number

/** The entry of a position. */
export const slotOf = (position: Position, size: number): number => (position < size ? position : position - size)

/** The wrap bits of an available descriptor at `position`: AVAIL is the counter, USED its inverse. */
export const availableBits = (position: Position, size: number): number => (position < size ? AVAIL : USED)

/** The wrap bits of a used descriptor at `position`: both are the counter. */
export const usedBits = (position: Position, size: number): number => (position < size ? WRAP_BITS : 0)

/** The position `count` entries (at most 2 * size) after `position`. */
export const advance = (position: Position, count: number, size: number): Position => {
  const next = position + count
  return next < 2 * size ? next : next - 2 * size
}

/** Entries from `from` to `to`. */
export const distance = (from: Position, to: Position, size: number): number =>
  to >= from ? to - from : to - from + 2 * size

/** The parts of `off_wrap` in event suppression structures and of a ring's base: wrap counter and entry. */
export const WRAP = 1 << VRING_PACKED_EVENT_F_WRAP_CTR
export const OFFSET_MASK = WRAP - 1

/** A position as `off_wrap`. */
export const offWrapOf = (position: Position, size: number): number =>
  position < size ? position | WRAP : position - size

/** The position of an `off_wrap`. */
export const positionOf = (offWrap: number, size: number): Position =>
  (offWrap & WRAP) !== 0 ? offWrap & OFFSET_MASK : (offWrap & OFFSET_MASK) + size
