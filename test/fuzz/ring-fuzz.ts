import { isDeepStrictEqual } from 'node:util'
import type { DropReason } from '../../src/abi/drop-reason.ts'
import { dropReasons } from '../../src/abi/drop-reason.ts'
import { VRING_DESC_F_INDIRECT, VRING_DESC_F_WRITE } from '../../src/abi/virtio-ring.ts'
import { DriverFault } from '../../src/base/errors.ts'
import { AddressSpace, TRANSLATED } from '../../src/memory/address-space.ts'
import { IovecArena } from '../../src/memory/iovec-arena.ts'
import { ACCESS, type Access } from '../../src/memory/region.ts'
import { popBatch } from '../../src/virtqueue/pop-batch.ts'
import { type BufferDirection, POP, type Virtqueue } from '../../src/virtqueue/virtqueue.ts'
import type { RawBuffer } from '../support/driver-model.ts'
import { TestMemory } from '../support/memory.ts'
import { Random } from '../support/random.ts'
import type { ExpectedPop, HostPiece, ReferenceRegion, Room } from '../support/reference-chain.ts'

/** The real queue and the reference did not do the same. */
export class Mismatch extends Error {
  override name = 'Mismatch'
}

/** How often what happened, to see that a run reached everything. */
export type Coverage = Map<string, number>

export const agree = (what: string, actual: unknown, expected: unknown): void => {
  if (isDeepStrictEqual(actual, expected)) return
  throw new Mismatch(`${what}: ${JSON.stringify(actual)} instead of ${JSON.stringify(expected)}`)
}

/** What is fuzzed: a canary puts something broken here. */
export type Subject<Config> = {
  readonly newSpace: () => AddressSpace
  readonly newQueue: (space: AddressSpace, config: Config) => Virtqueue
}

/** A reference, as far as popping goes. */
export type ReferencePops = {
  readonly drops: Partial<Record<DropReason, number>>
  pop(writable: boolean, room: Room): ExpectedPop
}

/**
 * The driver's memory: the ring's region, then adjacent ones of every permission and odd lengths, a hole, and ones far
 * away.
 */
export class FuzzMemory {
  readonly ring = new TestMemory(16_384, 0x1_0000)
  readonly regions: readonly ReferenceRegion[]
  readonly #random: Random
  readonly #end: number
  /** Where most buffers lie, as those of a real driver do. */
  readonly #favourite: TestMemory

  constructor(random: Random) {
    this.#random = random
    const regions: ReferenceRegion[] = [{ memory: this.ring, access: 3 }]
    let at = this.ring.end
    for (let count = random.below(4); count > 0; count--) {
      const length = random.between(1, 300)
      regions.push({ memory: new TestMemory(length, at), access: random.pick([1, 2, 3, 3, 3]) })
      at += length
    }
    regions.push({ memory: new TestMemory(4096, at + 100), access: 3 })
    regions.push({ memory: new TestMemory(4096, 2 ** 52 + 1), access: 3 })
    this.regions = regions
    this.#end = at
    this.#favourite = random.pick(regions).memory
  }

  addTo(space: AddressSpace): void {
    for (const { memory, access } of this.regions) space.add(memory.region(access as Access))
  }

  /**
   * A buffer somewhere, mostly in memory; its flags say the direction mostly right, and sometimes anything else but
   * INDIRECT.
   */
  anyBuffer(direction: BufferDirection): RawBuffer & { flags: number } {
    const random = this.#random
    const memory = random.chance(0.6) ? this.#favourite : random.pick(this.regions).memory
    const length = random.chance(0.03) ? random.u32() : random.chance(0.1) ? 0 : random.between(1, 200)
    const address = random.chance(0.05)
      ? random.pick([0, this.#end + 50, 2 ** 32 + 0x1_0000])
      : random.chance(0.1)
        ? Math.max(0, memory.end - length + random.between(-1, 1))
        : memory.start + random.between(-8, memory.lengthBytes)
    const odd = random.chance(0.03)
    return {
      addressLow: address % 2 ** 32,
      addressHigh: odd ? random.u32() : Math.floor(address / 2 ** 32),
      length,
      flags:
        (random.chance(0.95) === (direction === 1) ? VRING_DESC_F_WRITE : 0) |
        (random.chance(0.05) ? random.below(65_536) & ~VRING_DESC_F_INDIRECT : 0),
    }
  }

  /**
   * The descriptor of a table somewhere, mostly whole. `write` gets each descriptor's place to write to: those that
   * straddle regions or lie below `from` (the rings, since this driver wants to get somewhere) are left as they are.
   */
  anyTable(
    from: number,
    write: (address: number, entries: number, memory: TestMemory) => void,
  ): RawBuffer & { flags: number } {
    const random = this.#random
    const entries = random.between(1, 6)
    const target = random.pick(this.regions).memory
    const table = target.start + random.below(target.lengthBytes) - (random.chance(0.7) ? target.start % 16 : 0)
    for (let entry = 0; entry < entries; entry++) {
      const address = table + 16 * entry
      const holder = this.regions.find(({ memory }) => address >= memory.start && address + 16 <= memory.end)
      if (holder !== undefined && address >= from) write(address, entries, holder.memory)
    }
    return {
      addressLow: table % 2 ** 32,
      addressHigh: Math.floor(table / 2 ** 32),
      length: random.chance(0.1) ? random.pick([0, 8, 16 * 1025, 0xffff_fff0, random.u32()]) : 16 * entries,
      flags: VRING_DESC_F_INDIRECT | (random.chance(0.3) ? VRING_DESC_F_WRITE : 0),
    }
  }

  /** A fingerprint of all but the ring's region. */
  outside(): unknown[] {
    return this.regions.slice(1).map(({ memory }) => Bun.hash(memory.bytes))
  }

  /** After the queue and the space are gone no view may be left. */
  checkViews(): void {
    for (const { memory } of this.regions) {
      agree('views left', memory.buffers.filter((buffer) => !buffer.detached).length, 0)
    }
  }
}

/** Pops once from both, which must do the same; false at the fault that ends the ring. */
export const popBoth = (
  queue: Virtqueue,
  reference: ReferencePops,
  arena: IovecArena,
  direction: BufferDirection,
  coverage: Coverage,
): boolean => {
  const before = arena.chainCount
  const expected = reference.pop(direction === 1, roomIn(arena, []))
  const ended = noteOutcome(expected, coverage)
  const actual = outcomeOf(() => queue.popInto(arena, direction))
  agree('popInto', actual, expected.kind === 'fault' ? expected.code : POP[expected.kind])
  agree('chains in the arena', piecesFrom(arena, before), expected.kind === 'chain' ? [expected.pieces] : [])
  agree('open iovecs', arena.openIovecs, 0)
  return !ended
}

/**
 * Pops up to `count` chains at once from the queue, and one by one from the reference; false at the fault that ends the
 * ring.
 */
export const popBatchBoth = (
  queue: Virtqueue,
  reference: ReferencePops,
  arena: IovecArena,
  direction: BufferDirection,
  coverage: Coverage,
  count: number,
): boolean => {
  const before = arena.chainCount
  const chains: (readonly HostPiece[])[] = []
  let result: number | string = POP.chain
  for (let left = count; left > 0 && result === POP.chain; left--) {
    const expected = reference.pop(direction === 1, roomIn(arena, chains))
    noteOutcome(expected, coverage)
    if (expected.kind === 'chain') chains.push(expected.pieces)
    else if (expected.kind === 'fault') result = expected.code
    else if (expected.kind !== 'dropped') result = POP[expected.kind]
  }
  const popped = outcomeOf(() => popBatch(queue, arena, direction, count, Number.POSITIVE_INFINITY))
  agree('popBatch', popped, result)
  agree('chains in the arena', piecesFrom(arena, before), chains)
  agree('open iovecs', arena.openIovecs, 0)
  return typeof result === 'number'
}

/** Room left in the arena, with `chains` besides. */
const roomIn = (arena: IovecArena, chains: readonly (readonly HostPiece[])[]): Room => {
  const iovecs = chains.reduce((sum, pieces) => sum + pieces.length, iovecsOf(arena))
  return {
    chains: arena.chainCapacity - arena.chainCount - chains.length,
    iovecs: arena.iovecCapacity - iovecs,
    empty: iovecs === 0,
  }
}

/** Counts an outcome. Was it the fault that ends the ring? */
const noteOutcome = (expected: ExpectedPop, coverage: Coverage): boolean => {
  const outcome = expected.kind === 'fault' ? expected.code : expected.kind
  coverage.set(outcome, (coverage.get(outcome) ?? 0) + 1)
  return expected.kind === 'fault'
}

/** The answer, or the code of the fault. */
const outcomeOf = (pop: () => number): number | string => {
  try {
    return pop()
  } catch (error) {
    if (!(error instanceof DriverFault)) throw error
    return error.code
  }
}

/** What was dropped for which reason must be the same. */
export const checkDrops = (drops: Uint32Array, reference: ReferencePops, coverage: Coverage): void => {
  const counted = dropReasons.flatMap((reason, index) => (drops[index] === 0 ? [] : [[reason, drops[index]]]))
  agree('drops', Object.fromEntries(counted), reference.drops)
  for (const [reason, count] of Object.entries(reference.drops)) {
    coverage.set(reason, (coverage.get(reason) ?? 0) + count)
  }
}

const iovecsOf = (arena: IovecArena): number => {
  const last = 2 * (arena.chainCount - 1)
  return arena.chainCount === 0 ? 0 : arena.chains[last]! + arena.chains[last + 1]!
}

/** The chains from record `first` on. */
const piecesFrom = (arena: IovecArena, first: number): HostPiece[][] =>
  Array.from({ length: arena.chainCount - first }, (_, index) => {
    const chain = 2 * (first + index)
    return Array.from({ length: arena.chains[chain + 1]! }, (_, piece) => {
      const [low, high, length, zero] = arena.iovecs.subarray(4 * (arena.chains[chain]! + piece))
      if (zero !== 0) throw new Mismatch('the fourth word of an iovec is not 0')
      return { address: high! * 2 ** 32 + low!, length: length! }
    })
  })

/** An arena of one of the sizes that matter. */
export const anyArena = (random: Random): IovecArena =>
  new IovecArena(random.pick([1, 3, 64]), random.pick([2, 8, 512]))

const STEPS = 30

/** Fuzzes one ring after the other, each with a seed of its own; the first mismatch names the one to repeat. */
export const fuzzRings = (
  seed: number,
  rings: number,
  one: (random: Random, steps: number, coverage: Coverage) => void,
): Coverage => {
  const coverage: Coverage = new Map()
  for (let ring = 0; ring < rings; ring++) {
    const ringSeed = (seed + ring) >>> 0
    try {
      one(new Random(ringSeed), STEPS, coverage)
    } catch (error) {
      if (error instanceof Error) error.message = `VDUSE_NET_SEED=${ringSeed} repeats this: ${error.message}`
      throw error
    }
  }
  return coverage
}

/** Reasons to drop a chain that a run comes by; only 4 GiB of mapped memory make one too long. */
export const fuzzedReasons: readonly string[] = dropReasons
  .slice(0, dropReasons.indexOf('header_short'))
  .filter((reason) => reason !== 'chain_too_long')

/** Broken address spaces. */
export const brokenSpaces: Readonly<Record<string, { readonly newSpace: () => AddressSpace }>> = {
  'a buffer may end one byte beyond its region': {
    newSpace: () =>
      new (class extends AddressSpace {
        override translate(address: number, length: number, access: Access, arena: IovecArena): 0 | 1 | 2 {
          const result = super.translate(address, length, access, arena)
          if (result !== TRANSLATED.fault || length === 1) return result
          arena.abandon()
          return super.translate(address, length - 1, access, arena)
        }
      })(),
  },
  'permissions are not looked at': {
    newSpace: () =>
      new (class extends AddressSpace {
        override add(region: Parameters<AddressSpace['add']>[0]): boolean {
          return super.add({ ...region, access: ACCESS.readWrite })
        }
      })(),
  },
}
