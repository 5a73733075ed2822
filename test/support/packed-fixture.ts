import { type DropReason, dropReasons } from '../../src/abi/drop-reason.ts'
import { AddressSpace } from '../../src/memory/address-space.ts'
import { IovecArena } from '../../src/memory/iovec-arena.ts'
import { CHAIN_SEGMENTS_MAX } from '../../src/virtqueue/descriptor-chain.ts'
import { PackedQueue } from '../../src/virtqueue/packed.ts'
import { TestMemory } from './memory.ts'
import { PackedDriver } from './packed-driver.ts'
import { countsOf, type Piece, piecesOf } from './pieces.ts'
import { ringFeatures } from './ring-features.ts'

export type PackedFixtureOptions = {
  readonly size?: number
  readonly eventIdx?: boolean
  readonly indirect?: boolean
  readonly start?: number
  readonly memoryBytes?: number
}

/** A packed queue, its driver, and memory between them. */
export const packedFixture = (options: PackedFixtureOptions = {}) => {
  const { size = 8, eventIdx = false, indirect = true, start = 0, memoryBytes = 1 << 20 } = options
  const memory = new TestMemory(memoryBytes)
  const driver = new PackedDriver(memory, { size, eventIdx, start })
  const space = new AddressSpace()
  space.add(memory.region())
  const drops = new Uint32Array(dropReasons.length)
  const newQueue = (base: number): PackedQueue =>
    new PackedQueue(space, {
      size,
      descAddr: driver.descAddr,
      availAddr: driver.availAddr,
      usedAddr: driver.usedAddr,
      base,
      features: ringFeatures({ indirect, eventIdx, packed: true }),
      drops,
    })
  const queue = newQueue(driver.base)
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

export type PackedFixture = ReturnType<typeof packedFixture>
