import type { DropReason } from '../../src/abi/drop-reason.ts'
import type { AddressSpace } from '../../src/memory/address-space.ts'
import type { IovecArena } from '../../src/memory/iovec-arena.ts'
import { POP, type Virtqueue } from '../../src/virtqueue/virtqueue.ts'
import type { DriverModel } from './driver-model.ts'
import type { TestMemory } from './memory.ts'
import { packedFixture } from './packed-fixture.ts'
import type { Piece } from './pieces.ts'
import { splitFixture } from './split-fixture.ts'

export type RingOptions = {
  readonly size?: number
  readonly eventIdx?: boolean
  readonly indirect?: boolean
  /** How far the ring had come before: entries of a packed one, the indices of a split one. */
  readonly start?: number
  readonly memoryBytes?: number
}

/** A queue of either layout, its driver, and memory between them. */
export type RingFixture = {
  readonly memory: TestMemory
  readonly driver: DriverModel
  readonly space: AddressSpace
  readonly queue: Virtqueue
  readonly arena: IovecArena
  /** A queue over the same ring that starts at `base`. */
  readonly successor: (base: number) => Virtqueue
  readonly chains: () => Piece[][]
  readonly dropped: () => Partial<Record<DropReason, number>>
}

type NewRing = (options?: RingOptions) => RingFixture

const newSplit: NewRing = (options) => {
  const fixture = splitFixture(options)
  return { ...fixture, successor: fixture.newQueue }
}

const newPacked: NewRing = (options) => {
  const fixture = packedFixture(options)
  return { ...fixture, successor: fixture.newQueue }
}

/** Its queue takes a chain in a burst if it can: what it pops must be the same. */
const inBursts =
  (newRing: NewRing): NewRing =>
  (options) => {
    const fixture = newRing(options)
    const { queue } = fixture
    const popInto = queue.popInto.bind(queue)
    queue.popInto = (arena, direction) =>
      queue.popBurst(arena, direction, 1, Number.POSITIVE_INFINITY) === 1 ? POP.chain : popInto(arena, direction)
    return fixture
  }

/** The two layouts, and both ways to pop, for describe.each. */
export const ringLayouts: readonly (readonly ['split' | 'packed', string, NewRing])[] = [
  ['split', '', newSplit],
  ['packed', '', newPacked],
  ['split', ' in bursts', inBursts(newSplit)],
  ['packed', ' in bursts', inBursts(newPacked)],
]
