import { describe, expect, test } from 'bun:test'
import { join } from 'node:path'
import {
  VRING_DESC_F_NEXT,
  VRING_PACKED_EVENT_FLAG_DESC,
  VRING_PACKED_EVENT_FLAG_DISABLE,
  VRING_PACKED_EVENT_FLAG_ENABLE,
} from '../../../src/abi/virtio-ring.ts'
import { DriverFault } from '../../../src/base/errors.ts'
import { DESC_WORDS } from '../../../src/virtqueue/descriptor-chain.ts'
import {
  advance,
  availableBits,
  distance,
  ID_AND_FLAGS,
  offWrapOf,
  slotOf,
  usedBits,
} from '../../../src/virtqueue/packed-descriptor.ts'
import { deviceEventWord, packedStart } from '../../../src/virtqueue/packed-start.ts'
import { type Adding, STEP } from '../../support/packed-adder.ts'

const NEXT = VRING_DESC_F_NEXT << 16
/** What the structure holds before any device has written to it. */
const UNTOUCHED = 0
const FAULT = -1
/** Of every chain: an entry that is 0 was never written to. */
const ID = 1

/** A ring, as the driver's and the device's rules make it: ids and flags of each entry, and who stands where. */
type State = {
  readonly entries: readonly number[]
  /** Where the device stands, and where the driver adds. */
  readonly device: number
  readonly driver: number
  /** Lengths of the chains that wait, oldest first. */
  readonly waiting: readonly number[]
}

const with_ = (entries: readonly number[], changes: readonly (readonly [number, number])[]): number[] => {
  const changed = [...entries]
  for (const [slot, word] of changes) changed[slot] = word
  return changed
}

/** The entries of a chain of `length` that the driver adds at `position`, from entry `first` on. */
const added = (size: number, position: number, length: number, first = 0): (readonly [number, number])[] =>
  Array.from({ length }, (_, index) => {
    const at = advance(position, index, size)
    const next = index + 1 < length ? NEXT : 0
    return [slotOf(at, size), availableBits(at, size) | next | ID] as const
  }).slice(first)

const add = (size: number, state: State, length: number): State => ({
  entries: with_(state.entries, added(size, state.driver, length)),
  device: state.device,
  driver: advance(state.driver, length, size),
  waiting: [...state.waiting, length],
})

/** Where the first `count` chains that wait begin, and where the last of them ends. */
const places = (size: number, state: State, count: number): { heads: number[]; end: number } => {
  const heads: number[] = []
  let end = state.device
  for (const length of state.waiting.slice(0, count)) {
    heads.push(end)
    end = advance(end, length, size)
  }
  return { heads, end }
}

const mark = (size: number, position: number): readonly [number, number] => [
  slotOf(position, size),
  usedBits(position, size) | ID,
]

/** `count` chains used, each marked; or, as IN_ORDER allows, the last one for all of them, where the first began. */
const use = (size: number, state: State, count: number, asBatch = false): State => {
  const { heads, end } = places(size, state, count)
  const marked = (asBatch ? heads.slice(0, 1) : heads).map((head) => mark(size, head))
  return { ...state, entries: with_(state.entries, marked), device: end, waiting: state.waiting.slice(count) }
}

/** Every state that can be reached from a new ring. */
const reachable = (size: number, batches: boolean): State[] => {
  const fresh: State = { entries: Array(size).fill(0), device: 0, driver: 0, waiting: [] }
  const known = new Map<string, State>()
  const open = [fresh]
  for (let state = open.pop(); state !== undefined; state = open.pop()) {
    const key = JSON.stringify(state)
    if (known.has(key)) continue
    known.set(key, state)
    const free = size - distance(state.device, state.driver, size)
    for (let length = 1; length <= free; length++) open.push(add(size, state, length))
    for (let count = 1; count <= state.waiting.length; count++) {
      open.push(use(size, state, count))
      if (batches) open.push(use(size, state, count, true))
    }
  }
  return [...known.values()]
}

const baseOf = (position: number, size: number): number => (offWrapOf(position, size) * 65_537) >>> 0

/**
 * Where the ring is taken up, or FAULT. The words in front of ids and flags hold an address, as a driver has written
 * them.
 */
const startOf = (
  size: number,
  entries: readonly number[],
  said: number,
  deviceEvent: number,
  options: { readonly inOrder?: boolean; readonly base?: number } = {},
): number => {
  const words = new Int32Array(4 * size)
  for (const [slot, word] of entries.entries()) {
    words[4 * slot] = word === 0 ? 0 : 0x1000
    words[4 * slot + 3] = word
  }
  try {
    const found = { size, words, deviceEvent, inOrder: options.inOrder ?? false }
    return packedStart(found, options.base ?? baseOf(said, size))
  } catch (error) {
    if (!(error instanceof DriverFault) || error.code !== 'BASE_UNKNOWN') throw error
    return FAULT
  }
}

const modes = [
  ['not to kick', VRING_PACKED_EVENT_FLAG_DISABLE],
  ['to kick', VRING_PACKED_EVENT_FLAG_ENABLE],
  ['to kick for the next chain', VRING_PACKED_EVENT_FLAG_DESC],
] as const

describe.each([1, 2, 3, 4])('every state of a ring of %i', (size) => {
  const positions = Array.from({ length: 2 * size }, (_, position) => position)
  const states = reachable(size, false)

  test('goes on at the base of a device that stopped in good order, whichever program that was', () => {
    for (const { entries, device } of states) expect(startOf(size, entries, device, UNTOUCHED)).toBe(device)
  })

  test('and of one that has used chains in batches, as IN_ORDER allows', () => {
    for (const { entries, device } of reachable(size, true))
      expect(startOf(size, entries, device, UNTOUCHED, { inOrder: true })).toBe(device)
  })

  test.each(modes)('goes on where a predecessor that had asked %s died, whatever base is said', (_, flags) => {
    let faults = 0
    for (const { entries, device } of states) {
      const event = deviceEventWord(flags, device, size)
      expect(startOf(size, entries, device, event)).toBe(device)
      for (const said of positions) {
        const start = startOf(size, entries, said, event)
        if (start !== device) expect({ entries, said, start }).toEqual({ entries, said, start: FAULT })
        if (start === FAULT) faults++
      }
    }
    // A place to be kicked for may be one that another back-end has left behind: two answers, then, are none.
    const few = flags === VRING_PACKED_EVENT_FLAG_DESC ? (states.length * positions.length) / 3 : 0
    expect(faults).toBeLessThanOrEqual(few)
  })

  test('is not taken up anywhere else when the predecessor died while it showed a batch', () => {
    for (const state of states) {
      const event = deviceEventWord(VRING_PACKED_EVENT_FLAG_DISABLE, state.device, size)
      for (let count = 1; count <= state.waiting.length; count++) {
        const { heads, end } = places(size, state, count)
        // All but the first marked from some chain on: what they were is lost. All marked: only the note is missing.
        for (let from = 0; from < count; from++) {
          const entries = with_(
            state.entries,
            heads.slice(from).map((head) => mark(size, head)),
          )
          for (const said of positions) {
            const start = startOf(size, entries, said, event)
            if (from === 0 && start === end) continue
            // A base that was said cannot be told from the right one where nothing refutes it; no buffer that the
            // driver has back lies there.
            if (start !== FAULT) expect({ state, entries, said, start }).toEqual({ state, entries, said, start: said })
          }
        }
      }
    }
  })

  test('is taken up at the same place while the driver adds a chain', () => {
    for (const state of states) {
      const free = size - distance(state.device, state.driver, size)
      for (let length = 2; length <= free; length++) {
        for (let from = 1; from < length; from++) {
          const entries = with_(state.entries, added(size, state.driver, length, 1).slice(0, from))
          for (const event of [UNTOUCHED, deviceEventWord(VRING_PACKED_EVENT_FLAG_DISABLE, state.device, size)])
            expect(startOf(size, entries, state.device, event)).toBe(state.device)
        }
      }
    }
  })

  test('a new ring of which base 0 is said starts at its beginning, and a used one does not', () => {
    for (const { entries, device } of states) {
      const start = startOf(size, entries, 0, UNTOUCHED, { base: 0 })
      const waits = (word: number): boolean => (word & 0x8080_0000) === availableBits(0, size)
      const isNew = entries.every((word) => word === 0 || waits(word))
      // All waits: nothing distinguishes the first entry of a new ring from the end of a chain that another back-end
      // has used.
      if (entries.every(waits) && start === 0) continue
      const isDoubtful = [0, size - 1].some((slot) => entries[slot] !== 0 && (entries[slot]! & 0x8080_0000) === 0)
      if (isNew && !isDoubtful && device === 0) expect(start).toBe(0)
      else expect([FAULT, size, device]).toContain(start)
    }
  })
})

test('an offset that another back-end has left behind is not taken for a note', () => {
  const size = 256
  const entries = Array(size).fill(usedBits(0, size))
  // A whole round was used, and this base is right; 5 would be possible only if chains waited from there on.
  for (let slot = 0; slot < size; slot++)
    expect(startOf(size, entries, size, offWrapOf(slot, size) | (VRING_PACKED_EVENT_FLAG_DISABLE << 16))).toBe(size)
})

describe('a ring to which the driver adds chains meanwhile', () => {
  const SIZE = 256
  const ROUNDS = 2_000

  test('is taken up where it stands', () => {
    const ring = new SharedArrayBuffer(SIZE * DESC_WORDS * 4)
    const steps = new SharedArrayBuffer(Object.keys(STEP).length * 4)
    const words = new Int32Array(ring)
    const step = new Int32Array(steps)
    const rounds = Array.from({ length: ROUNDS }, (_, round) => ({
      from: (round * 37) % (2 * SIZE),
      descriptors: 1 + (round % 3),
      rest: (round * 7) % 64,
    }))
    const worker = new Worker(join(import.meta.dir, '../../support/packed-adder.ts'))
    worker.postMessage({ size: SIZE, ring, steps, rounds } satisfies Adding)
    for (const [round, { from }] of rounds.entries()) {
      // All was used in the round before.
      for (let back = 1; back <= SIZE; back++) {
        const position = advance(from, 2 * SIZE - back, SIZE)
        words[slotOf(position, SIZE) * DESC_WORDS + ID_AND_FLAGS] = usedBits(position, SIZE) | ID
      }
      Atomics.store(step, STEP.asked, round + 1)
      Atomics.notify(step, STEP.asked)
      while (Atomics.load(step, STEP.adding) !== round + 1);
      const noted = round % 2 === 0
      const found = {
        size: SIZE,
        words,
        deviceEvent: noted ? deviceEventWord(VRING_PACKED_EVENT_FLAG_ENABLE, from, SIZE) : UNTOUCHED,
        inOrder: false,
      }
      expect(packedStart(found, offWrapOf(noted ? 0 : from, SIZE))).toBe(from)
      Atomics.wait(step, STEP.done, round)
    }
    worker.terminate()
  })
})
