/**
 * What pops chains in bursts, and what judges one chain at a time, take the same out of a ring:
 * docs/decisions/0009-two-walkers.md.
 */
import { expect, test } from 'bun:test'
import { dropReasons } from '../../../src/abi/drop-reason.ts'
import {
  VRING_DESC_F_INDIRECT,
  VRING_DESC_F_NEXT,
  VRING_DESC_F_WRITE,
  VRING_PACKED_DESC_F_AVAIL,
  VRING_PACKED_DESC_F_USED,
} from '../../../src/abi/virtio-ring.ts'
import { AddressSpace } from '../../../src/memory/address-space.ts'
import { IovecArena } from '../../../src/memory/iovec-arena.ts'
import { ACCESS, type Access } from '../../../src/memory/region.ts'
import { PackedQueue } from '../../../src/virtqueue/packed.ts'
import { popBatch } from '../../../src/virtqueue/pop-batch.ts'
import { SplitQueue } from '../../../src/virtqueue/split.ts'
import { BUFFER_DIRECTION, type BufferDirection, POP, type Virtqueue } from '../../../src/virtqueue/virtqueue.ts'
import { TestMemory } from '../../support/memory.ts'
import { runSeed } from '../../support/random.ts'
import { ringFeatures } from '../../support/ring-features.ts'

const CHAINS = 1_000_000
const SIZE = 256
const TABLES = 64
const TABLE_ENTRIES = 8

/** A xorshift generator: as many numbers are needed as a class with methods would take seconds for. */
const randomOf = (seed: number): ((below: number) => number) => {
  let state = seed | 1
  return (below) => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) % below
  }
}

type Below = ReturnType<typeof randomOf>

/** Regions as drivers have them and as they should not: rings and tables, buffers, one for each access, and a hole. */
const memories = () => {
  const rings = new TestMemory(1 << 17, 0x1_0000)
  const buffers = new TestMemory(1 << 16, rings.end)
  const readOnly = new TestMemory(4096, buffers.end)
  const writeOnly = new TestMemory(4096, readOnly.end)
  const far = new TestMemory(4096, 2 ** 40 + 1)
  const all: readonly (readonly [TestMemory, Access])[] = [
    [rings, ACCESS.readWrite],
    [buffers, ACCESS.readWrite],
    [readOnly, ACCESS.read],
    [writeOnly, ACCESS.write],
    [far, ACCESS.readWrite],
  ]
  return { rings, buffers, far, end: writeOnly.end, all }
}

/**
 * Writes a buffer's address, length and flags; now and then one that is unusual in some way. The flags are without
 * NEXT.
 */
const anyBuffer = (
  words: Uint32Array,
  at: number,
  below: Below,
  world: ReturnType<typeof memories>,
  write: number,
): number => {
  const kind = below(64)
  let address = world.buffers.start + below(60_000)
  let length = 1 + below(2000)
  let flags = write
  if (kind === 0) address = world.end - below(9000)
  else if (kind === 1) address = world.far.start + below(4200)
  else if (kind === 2) address = below(2 ** 31) * 2 ** 22
  else if (kind === 3) length = 0
  else if (kind === 4) length = 2 ** 32 - 1 - below(100)
  else if (kind === 5) flags ^= VRING_DESC_F_WRITE
  else if (kind === 6) flags |= 0xff00 & below(65_536) & ~0x8080
  else if (kind === 7) address = world.buffers.end - below(2000)
  words[at] = address
  words[at + 1] = address / 2 ** 32
  words[at + 2] = length
  return flags
}

/** Writes tables anew. */
const fillTables = (
  words: Uint32Array,
  first: number,
  below: Below,
  world: ReturnType<typeof memories>,
  write: number,
): void => {
  for (let entry = 0; entry < TABLES * TABLE_ENTRIES; entry++) {
    const at = first + 4 * entry
    let flags = anyBuffer(words, at, below, world, write)
    if (entry % TABLE_ENTRIES < below(TABLE_ENTRIES)) flags |= VRING_DESC_F_NEXT
    if (below(100) === 0) flags |= VRING_DESC_F_INDIRECT
    // In a split ring the next one, mostly; in a packed ring that is no field but the id, which means nothing there.
    const next = below(50) === 0 ? below(TABLE_ENTRIES + 2) : (entry % TABLE_ENTRIES) + 1
    words[at + 3] = flags | (next << 16)
  }
}

/** Makes a descriptor one of a table, mostly whole. The flags are without NEXT. */
const anyTable = (words: Uint32Array, at: number, below: Below, tables: number): number => {
  const address = tables + 16 * (below(TABLES) * TABLE_ENTRIES) + (below(30) === 0 ? below(16) : 0)
  words[at] = address
  words[at + 1] = below(200) === 0 ? 1 : 0
  words[at + 2] = below(30) === 0 ? below(300) : 16 * (1 + below(TABLE_ENTRIES))
  return VRING_DESC_F_INDIRECT | (below(8) === 0 ? VRING_DESC_F_WRITE : 0)
}

type Popper = { readonly queue: Virtqueue; readonly arena: IovecArena; readonly drops: Uint32Array }

/** A ring over these memories, with counters of its own. */
const newPopper = (
  { all }: ReturnType<typeof memories>,
  makeQueue: (space: AddressSpace, drops: Uint32Array) => Virtqueue,
): Popper => {
  const space = new AddressSpace()
  for (const [memory, access] of all) space.add(memory.region(access))
  const drops = new Uint32Array(dropReasons.length)
  return { queue: makeQueue(space, drops), arena: new IovecArena(32, 128), drops }
}

/** Pops at most `count` chains, one after the other. */
const popOneByOne = ({ queue, arena }: Popper, direction: BufferDirection, count: number): number => {
  for (let left = count; left > 0; left--) {
    const result = queue.popInto(arena, direction)
    if (result === POP.empty || result === POP.full) return result
  }
  return POP.chain
}

const sameWords = (a: Uint32Array, b: Uint32Array, count: number): boolean => {
  for (let word = 0; word < count; word++) if (a[word] !== b[word]) return false
  return true
}

/** All of both rings, in batches of any size, compared. How many chains. */
const popAll = (inBursts: Popper, oneByOne: Popper, direction: BufferDirection, below: Below): number => {
  let chains = 0
  for (;;) {
    const count = 1 + below(40)
    const both = [inBursts, oneByOne] as const
    for (const { arena } of both) arena.clear()
    const result = popBatch(inBursts.queue, inBursts.arena, direction, count, Number.POSITIVE_INFINITY)
    const expected = popOneByOne(oneByOne, direction, count)
    const [a, b] = [inBursts.arena, oneByOne.arena]
    const same =
      result === expected &&
      a.chainCount === b.chainCount &&
      a.iovecCount === b.iovecCount &&
      a.openIovecs === 0 &&
      sameWords(a.chains, b.chains, 2 * a.chainCount) &&
      sameWords(a.iovecs, b.iovecs, 4 * a.iovecCount)
    if (!same) expect([result, a.chainCount, a.chains, a.iovecs]).toEqual([expected, b.chainCount, b.chains, b.iovecs])
    chains += a.chainCount
    for (const { queue } of both) while (queue.inFlight > 0) queue.stageUsed(0)
    for (const { queue } of both) queue.publishUsed()
    if (result === POP.empty) return chains
  }
}

/** Where the descriptors at `descAddr` and the indirect tables lie in words, and the WRITE flag of usual buffers. */
const layOut = (rings: TestMemory, descAddr: number, direction: BufferDirection) => {
  const tables = rings.allocate(16 * TABLES * TABLE_ENTRIES)
  return {
    tables,
    words: new Uint32Array(rings.bytes.buffer, rings.bytes.byteOffset, rings.lengthBytes / 4),
    write: direction === BUFFER_DIRECTION.writable ? VRING_DESC_F_WRITE : 0,
    first: (descAddr - rings.start) / 4,
    firstTable: (tables - rings.start) / 4,
  }
}

/** `chains` chains popped by two queues over the same split ring. */
const agreeOnSplit = (
  below: Below,
  chains: number,
  direction: BufferDirection,
  newQueue: typeof realSplit,
): Uint32Array => {
  const world = memories()
  const { rings } = world
  const [descAddr, availAddr, usedAddr] = [
    rings.allocate(16 * SIZE),
    rings.allocate(6 + 2 * SIZE),
    rings.allocate(6 + 8 * SIZE),
  ]
  const { tables, words, write, first, firstTable } = layOut(rings, descAddr, direction)
  const avail = rings.dataView(availAddr, 6 + 2 * SIZE)
  const features = ringFeatures({ indirect: true, eventIdx: false, packed: false })
  const popper = (make: typeof realSplit): Popper =>
    newPopper(world, (space, drops) =>
      make(space, { size: SIZE, descAddr, availAddr, usedAddr, base: 0, features, drops }),
    )
  const [inBursts, oneByOne] = [popper(newQueue), popper(realSplit)]
  let idx = 0
  for (let popped = 0; popped < chains; ) {
    fillTables(words, firstTable, below, world, write)
    const from = below(SIZE)
    for (let index = 0; index < SIZE; index++) {
      const at = first + 4 * index
      const isTable = below(4) === 0
      let flags = isTable ? anyTable(words, at, below, tables) : anyBuffer(words, at, below, world, write)
      if (below(isTable ? 20 : 3) === 0) flags |= VRING_DESC_F_NEXT
      words[at + 3] = flags | ((below(100) === 0 ? below(65_536) : below(SIZE)) << 16)
      avail.setUint16(4 + 2 * ((idx + index) % SIZE), (from + index) % SIZE, true)
    }
    idx += SIZE
    avail.setUint16(2, idx & 0xffff, true)
    popped += SIZE
    popAll(inBursts, oneByOne, direction, below)
  }
  expect(inBursts.drops).toEqual(oneByOne.drops)
  return inBursts.drops
}

const realSplit = (...args: ConstructorParameters<typeof SplitQueue>): Virtqueue => new SplitQueue(...args)
const realPacked = (...args: ConstructorParameters<typeof PackedQueue>): Virtqueue => new PackedQueue(...args)

/** The same of a packed ring. */
const agreeOnPacked = (
  below: Below,
  chains: number,
  direction: BufferDirection,
  newQueue: typeof realPacked,
): Uint32Array => {
  const world = memories()
  const { rings } = world
  const [descAddr, availAddr, usedAddr] = [rings.allocate(16 * SIZE), rings.allocate(4), rings.allocate(4)]
  const { tables, words, write, first, firstTable } = layOut(rings, descAddr, direction)
  const features = ringFeatures({ indirect: true, eventIdx: false, packed: true })
  const popper = (make: typeof realPacked): Popper =>
    newPopper(world, (space, drops) =>
      make(space, { size: SIZE, descAddr, availAddr, usedAddr, base: 0x8000, features, drops }),
    )
  const [inBursts, oneByOne] = [popper(newQueue), popper(realPacked)]
  let wrap = 1
  for (let popped = 0; popped < chains; ) {
    fillTables(words, firstTable, below, world, write)
    const available = wrap === 1 ? 1 << VRING_PACKED_DESC_F_AVAIL : 1 << VRING_PACKED_DESC_F_USED
    for (let index = 0; index < SIZE; index++) {
      const at = first + 4 * index
      const isTable = below(4) === 0
      let flags = isTable ? anyTable(words, at, below, tables) : anyBuffer(words, at, below, world, write)
      if (below(isTable ? 20 : 4) === 0 && index + 1 < SIZE) flags |= VRING_DESC_F_NEXT
      else popped++
      words[at + 3] = (((flags & ~0x8080) | available) << 16) | below(65_536)
    }
    wrap ^= 1
    popAll(inBursts, oneByOne, direction, below)
  }
  expect(inBursts.drops).toEqual(oneByOne.drops)
  return inBursts.drops
}

const directions = [BUFFER_DIRECTION.readable, BUFFER_DIRECTION.writable] as const

test('both walkers agree on a million random chains, of each layout and direction', () => {
  const seed = runSeed()
  console.log(`two walkers: VDUSE_NET_SEED=${seed}`)
  const below = randomOf(seed)
  for (const direction of directions) {
    const dropped = [
      agreeOnSplit(below, CHAINS / 4, direction, realSplit),
      agreeOnPacked(below, CHAINS / 4, direction, realPacked),
    ]
    // Every way to be malformed came by that either layout has, but 4 GiB of mapped memory.
    for (const [layout, drops] of dropped.entries()) {
      for (const reason of [
        'chain_wrong_direction',
        'chain_address_unmapped',
        'chain_empty',
        'indirect_malformed',
      ] as const)
        expect({ layout, reason, count: drops[dropReasons.indexOf(reason)] }).not.toMatchObject({ count: 0 })
    }
  }
}, 120_000)

test('canary: a walker that takes a buffer too many is caught', () => {
  const below = randomOf(7)
  const greedy = <T extends Virtqueue>(queue: T): T => {
    const popBurst = queue.popBurst.bind(queue)
    queue.popBurst = (arena, direction, chainsMax, bytesMax) => {
      const taken = popBurst(arena, direction, chainsMax, bytesMax)
      if (taken > 0) arena.iovecs[4 * arena.iovecCount - 2]! += 1
      return taken
    }
    return queue
  }
  expect(() => agreeOnSplit(below, 1000, BUFFER_DIRECTION.readable, (...args) => greedy(realSplit(...args)))).toThrow()
  expect(() =>
    agreeOnPacked(below, 1000, BUFFER_DIRECTION.readable, (...args) => greedy(realPacked(...args))),
  ).toThrow()
})
