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
 * Turns a position into a note and back. It has the highest bit of a slot, so that in a ring of up to 16384 entries no
 * offset that another back-end has left behind is taken for a note.
 */
const SIGNATURE = 0x5a5a

/**
 * The device's event suppression structure as one word. Its offset has a meaning for the driver with
 * RING_EVENT_FLAGS_DESC only: otherwise the device notes there where it stands, for whoever goes on after its death.
 * VIRTIO 1.2 §2.8.10.
 */
export const deviceEventWord = (flags: number, position: Position, size: number): number =>
  (offWrapOf(position, size) ^ (flags === VRING_PACKED_EVENT_FLAG_DESC ? 0 : SIGNATURE)) | (flags << FLAGS_SHIFT)

/** Beside the end of a batch, in the length of its first used descriptor. */
const BATCH_SIGNATURE = 0x766e

/**
 * The length of a used descriptor to which nothing was written: reserved then, and ignored by drivers (VIRTIO 1.2
 * §2.8.5). Of the first one of a batch it tells where the batch ended, for whoever goes on after a death: QEMU writes
 * to the event suppression structure while no back-end is connected.
 */
export const batchLength = (end: Position): number => (end | (BATCH_SIGNATURE << 16)) >>> 0

/** A packed ring as it is found. */
export type FoundRing = {
  readonly size: number
  /** The descriptor ring, to which the driver may be writing. */
  readonly words: Int32Array
  /** The device's event suppression structure as one word. */
  readonly deviceEvent: number
  /** VIRTIO_F_IN_ORDER was negotiated: a device may use many chains with one used descriptor. */
  readonly inOrder: boolean
}

/**
 * Where a packed ring is taken up. The base may be that of an earlier start: QEMU says so after a back-end has died. A
 * predecessor of this program has noted where it stood; both are held against the wrap bits of all descriptors, and
 * what these refute is not believed. docs/decisions/0010-where-a-ring-goes-on.md
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
  // A signed note is of a predecessor that has died: one that stops takes it away.
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
 * The descriptors as they all stood at one moment: the driver may be adding chains, and then an entry that is read
 * early says less than one behind it. Two copies that are alike had such a moment between them. Without a device a
 * driver writes each entry once; one that does otherwise gets what comes of it.
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

/** Where the last batch that a predecessor of this program has shown ended; -1 if no descriptor tells. */
const recordedEnd = (ring: FoundRing): Position => {
  const { size, words } = ring
  for (let slot = 0; slot < size; slot++) {
    const at = slot * DESC_WORDS
    const idAndFlags = words[at + ID_AND_FLAGS]!
    if (words[at + 2]! >>> 16 !== BATCH_SIGNATURE || (idAndFlags & WRITE) !== 0) continue
    const end = words[at + 2]! & 0xffff
    // The first one of a batch is marked last. An older batch ended in front of entries that are marked.
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
 * Is this a ring of which nothing was used yet? Some front-ends say base 0 of it. Then all is untouched but what waits,
 * and one entry that the driver may be writing just now. Not the first or the last one: these look the same when a
 * chain that began there was used in the round before.
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

/** What an entry may be after the one before it. */
const AFTER = { anything: 0, head: 1, tail: 2, notTail: 3 } as const

/**
 * Can a device that uses chains in order stand at `position`? From there on each entry is either made available in this
 * round, or still as the round before has left it: used, if a chain began there, else as the driver has made it
 * available, since a device writes to the first entry of a chain only. So none is used in this round, and what is left
 * of chains are their ends. With `batches` a chain may be used without a trace.
 */
const isPossible = ({ size, words }: FoundRing, position: Position, batches: boolean): boolean => {
  let after: number = AFTER.anything
  let tails = 0
  /**
   * Entries that do not wait; whether others behind the first of them do, and the last of those is linked to a next
   * one.
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
      // The driver makes the first entry of a chain available last: behind it may be others of a chain that it is
      // adding.
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
  // A chain cannot go on where another begins, and has no more entries than the ring.
  return after !== AFTER.tail && tails < size
}
