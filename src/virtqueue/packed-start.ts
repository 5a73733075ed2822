import { VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_PACKED_EVENT_FLAG_DESC } from '../abi/virtio-ring.ts'
import { DriverFault } from '../base/errors.ts'
import { DESC_WORDS } from './descriptor-chain.ts'
import {
  advance,
  availableBits,
  distance,
  FLAGS_SHIFT,
  ID_AND_FLAGS,
  OFFSET_MASK,
  offWrapOf,
  type Position,
  positionOf,
  slotOf,
  usedBits,
  WRAP,
  WRAP_BITS,
} from './packed-descriptor.ts'

const NEXT = VRING_DESC_F_NEXT << FLAGS_SHIFT
const WRITE = VRING_DESC_F_WRITE << FLAGS_SHIFT

/**
 * XORed with a position it makes a signed note. It has the highest bit of a slot set, so in a ring of up to 16384
 * entries the offset that another back-end has left is never taken for a note.
 */
const SIGNATURE = 0x5a5a

/**
 * The device's event suppression structure as one word. The driver reads its offset only with RING_EVENT_FLAGS_DESC.
 * Otherwise the device notes its position there, for a successor after its death. VIRTIO 1.2 §2.8.10.
 */
export const deviceEventWord = (flags: number, position: Position, size: number): number =>
  (offWrapOf(position, size) ^ (flags === VRING_PACKED_EVENT_FLAG_DESC ? 0 : SIGNATURE)) | (flags << FLAGS_SHIFT)

/** High half of {@link endLength}. */
const END_SIGNATURE = 0x766e

/**
 * The length field of a used descriptor in a transmitq: it notes the end of the chain, or of the batch whose first
 * chain it is, for a successor after a death. The field is reserved where nothing was written, and a driver does not
 * look at it for what it has sent (VIRTIO 1.2 §2.8.5). In a receiveq it would: a used length of 0 stays 0 there. The
 * note of {@link deviceEventWord} is not enough: QEMU writes to the event suppression structure while no back-end is
 * connected.
 */
export const endLength = (end: Position): number => (end | (END_SIGNATURE << 16)) >>> 0

/** A packed ring before the start. */
export type FoundRing = {
  readonly size: number
  /** The descriptor ring, to which the driver may be writing. */
  readonly words: Int32Array
  /** The device's event suppression structure as one word. */
  readonly deviceEvent: number
  /** VIRTIO_F_IN_ORDER was negotiated: one used descriptor may stand for many chains. */
  readonly inOrder: boolean
}

/**
 * The position at which a packed ring starts. The base may be that of an earlier start: QEMU sends that after a
 * back-end has died. A predecessor of this program has noted its position. Both are checked against the wrap bits of
 * all descriptors, and a position that these contradict is rejected. docs/decisions/0010-where-a-ring-goes-on.md
 * @throws DriverFault BASE_OUT_OF_RANGE, or BASE_UNKNOWN if neither or each of two positions is possible
 */
export const packedStart = (found: FoundRing, base: number): Position => {
  const { size, deviceEvent, inOrder } = found
  const ring = { ...found, words: atOneMoment(found) }
  const slot = base & OFFSET_MASK
  if (slot >= size) throw new DriverFault('BASE_OUT_OF_RANGE', `entry ${slot} of a ring of ${size}`)
  const said = base === 0 && isNew(ring) ? 0 : positionOf(base & (OFFSET_MASK | WRAP), size)
  const signed = ((deviceEvent >>> FLAGS_SHIFT) & 3) !== VRING_PACKED_EVENT_FLAG_DESC
  const offWrap = (deviceEvent & (OFFSET_MASK | WRAP)) ^ (signed ? SIGNATURE : 0)
  const noted = positionOf(offWrap, size)
  const byNote = (offWrap & OFFSET_MASK) < size && isPossible(ring, noted, false)
  const byBase = isPossible(ring, said, inOrder && !(byNote && signed))
  // A signed note means that the predecessor died: one that stops removes it.
  const recorded = recordedEnd(ring)
  if (recorded >= 0 && (!byNote || !signed)) return recorded
  if (byNote && byBase && noted !== said && !signed)
    throw new DriverFault(
      'BASE_UNKNOWN',
      `${nameOf(said, size)} as said and ${nameOf(noted, size)} as noted are possible`,
    )
  if (byNote) return noted
  if (byBase) return said
  throw new DriverFault('BASE_UNKNOWN', `the ring is not at ${nameOf(said, size)}, and does not tell where it was left`)
}

/**
 * A consistent copy of the descriptors. The driver may be adding chains, so a single pass can read an early entry
 * before and a later one after a change. Two equal copies in a row are consistent. While no device runs, a driver
 * writes each entry once; one that keeps writing gets an arbitrary result.
 */
const atOneMoment = ({ size, words }: FoundRing): Int32Array => {
  let before = words.slice()
  for (let writes = 0; writes < size; writes++) {
    const now = words.slice()
    if (now.every((word, index) => word === before[index])) break
    before = now
  }
  return before
}

/** End of the last chain that a predecessor of this program marked; -1 if no descriptor has it. */
const recordedEnd = (ring: FoundRing): Position => {
  const { size, words } = ring
  for (let slot = 0; slot < size; slot++) {
    const at = slot * DESC_WORDS
    const idAndFlags = words[at + ID_AND_FLAGS]!
    if (words[at + 2]! >>> 16 !== END_SIGNATURE || (idAndFlags & WRITE) !== 0) continue
    const end = words[at + 2]! & 0xffff
    // Behind the end of an older chain there are used entries, so isPossible() refuses it.
    const isMarked = [slot, slot + size].some(
      (first) => (idAndFlags & WRAP_BITS) === usedBits(first, size) && distance(first, end, size) <= size,
    )
    if (end < 2 * size && isMarked && isPossible(ring, end, false)) return end
  }
  return -1
}

const nameOf = (position: Position, size: number): string =>
  `entry ${slotOf(position, size)} with wrap counter ${position < size ? 1 : 0}`

/**
 * True for a ring of which nothing was used yet; some front-ends give it base 0. All entries are then zero except
 * available ones and one that the driver may be writing at this moment. That one is not the first or the last entry:
 * there it looks like the start of a chain that was used in the previous round.
 */
const isNew = (ring: FoundRing): boolean => {
  const { size, words } = ring
  let written = 0
  for (let slot = 0; slot < size; slot++) {
    const at = slot * DESC_WORDS
    const bits = words[at + ID_AND_FLAGS]! & WRAP_BITS
    if (bits === availableBits(0, size)) continue
    if (bits !== 0) return false
    if ((words[at]! | words[at + 1]! | words[at + 2]! | words[at + 3]!) === 0) continue
    if (slot === 0 || slot === size - 1) return false
    written++
  }
  return written <= 1 && isPossible(ring, 0, false)
}

/** What an entry may be, given the previous entry. */
const AFTER = { anything: 0, head: 1, tail: 2, notTail: 3 } as const

/**
 * True if a device that uses chains in order can be at `position`. From there on each entry is either available in this
 * round, or unchanged since the previous round: used if a chain began there, else still available, since a device
 * writes to a chain's first entry only. No entry is used in this round, and of old chains only tails remain. With
 * `batches` a chain may be used without a mark of its own.
 */
const isPossible = ({ size, words }: FoundRing, position: Position, batches: boolean): boolean => {
  let after: number = AFTER.anything
  let tails = 0
  /**
   * Entries that are not available; whether available ones follow the first of them, and whether the last of those has
   * NEXT.
   */
  let others = 0
  let adding = false
  let linked = false
  for (let count = 0; count < size; count++) {
    const at = advance(position, count, size)
    const word = words[slotOf(at, size) * DESC_WORDS + ID_AND_FLAGS]!
    const bits = word & WRAP_BITS
    if (bits === usedBits(at, size)) return false
    if (bits === availableBits(at, size)) {
      // A driver makes the first entry of a chain available last, and the others in order: these may follow it.
      if (others > 1 || (adding && !linked)) return false
      adding = others === 1
      linked = (word & NEXT) !== 0
      after = AFTER.anything
      continue
    }
    others += adding ? 2 : 1
    if ((bits ^ WRAP_BITS) === usedBits(at, size)) {
      if (after === AFTER.tail) return false
      after = AFTER.head
    } else {
      tails++
      if (after === AFTER.notTail && !batches) return false
      after = (word & NEXT) !== 0 ? AFTER.tail : AFTER.notTail
    }
  }
  // A chain cannot continue where another begins, and has fewer entries than the ring.
  return after !== AFTER.tail && tails < size
}
