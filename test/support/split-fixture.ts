import { type DropReason, dropReasons } from '../../src/abi/drop-reason.ts'
import { AddressSpace } from '../../src/memory/address-space.ts'
import { IovecArena } from '../../src/memory/iovec-arena.ts'
import { CHAIN_SEGMENTS_MAX } from '../../src/virtqueue/descriptor-chain.ts'
import { SplitQueue } from '../../src/virtqueue/split.ts'
import type { VqBase } from '../../src/virtqueue/virtqueue-config.ts'
import { SplitDriver } from './driver-model.ts'
import { TestMemory } from './memory.ts'
import { countsOf, type Piece, piecesOf } from './pieces.ts'
import { ringFeatures } from './ring-features.ts'

export type FixtureOptions = {
  readonly size?: number
  readonly eventIdx?: boolean
  readonly indirect?: boolean
  readonly start?: number
  readonly memoryBytes?: number
  readonly memory?: TestMemory
}

/** A split queue, its driver, and memory between them. */
export const splitFixture = (options: FixtureOptions = {}) => {
  const { size = 8, eventIdx = false, indirect = true, start = 0, memoryBytes = 1 << 20 } = options
  const memory = options.memory ?? new TestMemory(memoryBytes)
  const driver = new SplitDriver(memory, { size, eventIdx, start })
  const space = new AddressSpace()
  space.add(memory.region())
  const drops = new Uint32Array(dropReasons.length)
  const newQueue = (base: VqBase | 'used'): SplitQueue =>
    new SplitQueue(space, {
      size,
      descAddr: driver.descAddr,
      availAddr: driver.availAddr,
      usedAddr: driver.usedAddr,
      base,
      features: ringFeatures({ indirect, eventIdx }),
      drops,
    })
  const queue = newQueue(start)
  const arena = new IovecArena(256, 2 * CHAIN_SEGMENTS_MAX)
  return {
    memory,
    driver,
    space,
    queue,
    arena,
    drops,
    newQueue,
    /** The chains in the arena. */
    chains: (): Piece[][] => piecesOf(arena, memory),
    /** Reasons counted, with how often. */
    dropped: (): Partial<Record<DropReason, number>> => countsOf(drops),
  }
}

export type Fixture = ReturnType<typeof splitFixture>
