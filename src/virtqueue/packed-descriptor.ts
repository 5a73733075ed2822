import {
  VRING_PACKED_DESC_F_AVAIL,
  VRING_PACKED_DESC_F_USED,
  VRING_PACKED_EVENT_F_WRAP_CTR,
} from '../abi/virtio-ring.ts'

/**
 * Word of a packed descriptor that holds buffer id (low half) and flags (high half), and where the flags begin in it.
 */
export const ID_AND_FLAGS = 3
export const FLAGS_SHIFT = 16

/** The two wrap bits of that word. VIRTIO 1.2 §2.8.1. */
const AVAIL = 1 << (VRING_PACKED_DESC_F_AVAIL + FLAGS_SHIFT)
export const USED = 1 << (VRING_PACKED_DESC_F_USED + FLAGS_SHIFT)

export const WRAP_BITS = AVAIL | USED

/**
 * A place in a packed ring of `size` entries, in the order in which it is gone through: 0 to 2 * size - 1, the first
 * half with wrap counter 1, the second with 0. Both counters start at 1. VIRTIO 1.2 §2.8.1.
 */
export type Position = number

/** The entry of a position. */
export const slotOf = (position: Position, size: number): number => (position < size ? position : position - size)

/** The wrap bits of a descriptor that the driver has made available there: AVAIL is the counter, USED its inverse. */
export const availableBits = (position: Position, size: number): number => (position < size ? AVAIL : USED)

/** The wrap bits of a descriptor that the device has used there: both are the counter. */
export const usedBits = (position: Position, size: number): number => (position < size ? WRAP_BITS : 0)

/** `position` and `count` entries (at most 2 * size) further. */
export const advance = (position: Position, count: number, size: number): Position => {
  const next = position + count
  return next < 2 * size ? next : next - 2 * size
}

/** Entries from one position to another. */
export const distance = (from: Position, to: Position, size: number): number =>
  to >= from ? to - from : to - from + 2 * size

/** The parts of a position as event suppression structures and a ring's base have it: wrap counter, and entry. */
export const WRAP = 1 << VRING_PACKED_EVENT_F_WRAP_CTR
export const OFFSET_MASK = WRAP - 1

/** A position as those have it. */
export const offWrapOf = (position: Position, size: number): number =>
  position < size ? position | WRAP : position - size

/** The position that they mean. */
export const positionOf = (offWrap: number, size: number): Position =>
  (offWrap & WRAP) !== 0 ? offWrap & OFFSET_MASK : (offWrap & OFFSET_MASK) + size
