import { describe, expect, test } from 'bun:test'
import { dropReasons } from '../../../src/abi/drop-reason.ts'
import { DriverFault } from '../../../src/base/errors.ts'
import { AddressSpace } from '../../../src/memory/address-space.ts'
import { IovecArena } from '../../../src/memory/iovec-arena.ts'
import { ACCESS } from '../../../src/memory/region.ts'
import { SplitQueue } from '../../../src/virtqueue/split.ts'
import { DIRECTION, POP } from '../../../src/virtqueue/virtqueue.ts'
import { TestMemory } from '../../support/memory.ts'
import { type Fixture, splitFixture } from '../../support/split-fixture.ts'

const TX = DIRECTION.readable
const RX = DIRECTION.writable

/** Adds `count` good chains of one buffer and publishes them; their heads. */
const offer = ({ driver, memory }: Fixture, count: number, writable = false): number[] => {
  const address = memory.start
  const heads = Array.from({ length: count }, () => driver.add([{ address, length: 64, writable }]))
  driver.publish()
  return heads
}

/** Adds one malformed chain (unmapped). */
const offerBad = ({ driver }: Fixture): number => {
  const head = driver.add([{ address: 0, length: 1 }])
  driver.publish()
  return head
}

const reapAll = ({ driver }: Fixture): { id: number; length: number }[] => {
  const used = []
  for (let one = driver.reap(); one !== undefined; one = driver.reap()) used.push(one)
  return used
}

describe('popping', () => {
  test('an empty ring', () => {
    const { queue, arena } = splitFixture()
    expect(queue.popInto(arena, TX)).toBe(POP.empty)
    expect(queue.inFlight).toBe(0)
  })

  test('chains come in the order in which they were made available', () => {
    const fixture = splitFixture()
    const { driver, queue, arena, memory } = fixture
    for (const length of [10, 20, 30]) driver.add([{ address: memory.start, length }])
    driver.publish()
    for (let count = 0; count < 3; count++) expect(queue.popInto(arena, TX)).toBe(POP.chain)
    expect(queue.popInto(arena, TX)).toBe(POP.empty)
    expect(fixture.chains().map(([piece]) => piece!.length)).toEqual([10, 20, 30])
    expect(queue.inFlight).toBe(3)
  })

  test('a prepared chain that is not published is not seen', () => {
    const { driver, queue, arena, memory } = splitFixture()
    driver.add([{ address: memory.start, length: 10 }])
    expect(queue.popInto(arena, TX)).toBe(POP.empty)
    driver.publish()
    expect(queue.popInto(arena, TX)).toBe(POP.chain)
  })

  test.each([
    [1, 0],
    [2, 65_535],
    [8, 65_530],
    [256, 65_500],
    [32_768, 40_000],
  ])('a ring of %i, full, from index %i', (size, start) => {
    const fixture = splitFixture({ size, start, memoryBytes: 1 << 21 })
    const { queue } = fixture
    const arena = new IovecArena(size, Math.max(size, 1024))
    for (let round = 0; round < 3; round++) {
      const heads = offer(fixture, size)
      arena.clear()
      for (let count = 0; count < size; count++) expect(queue.popInto(arena, TX)).toBe(POP.chain)
      expect(queue.popInto(arena, TX)).toBe(POP.empty)
      for (let count = 0; count < size; count++) queue.stageUsed(count)
      queue.publishUsed()
      expect(reapAll(fixture)).toEqual(heads.map((id, length) => ({ id, length })))
    }
    expect(queue.nextUsed).toBe((start + 3 * size) & 0xffff)
    expect(queue.nextAvail).toBe(queue.nextUsed)
  })

  test('an arena without room for the chain leaves it in the ring', () => {
    const fixture = splitFixture()
    const { queue } = fixture
    offer(fixture, 3)
    const records = new IovecArena(2, 1024)
    expect([1, 2, 3].map(() => queue.popInto(records, TX))).toEqual([POP.chain, POP.chain, POP.full])
    expect(queue.inFlight).toBe(2)
    expect(queue.nextAvail).toBe(0)
    records.clear()
    expect(queue.popInto(records, TX)).toBe(POP.chain)
    expect(queue.inFlight).toBe(3)
  })

  test('an arena without room for all pieces of the chain leaves it in the ring, whole', () => {
    const fixture = splitFixture({ size: 16 })
    const { driver, queue, memory } = fixture
    const arena = new IovecArena(8, 3)
    const two = [1, 2].map((length) => ({ address: memory.start, length }))
    for (const indirect of [false, true]) {
      arena.clear()
      driver.add(two)
      driver.add(two, indirect ? { indirectFrom: 0 } : {})
      driver.publish()
      expect(queue.popInto(arena, TX)).toBe(POP.chain)
      expect(queue.popInto(arena, TX)).toBe(POP.full)
      expect(arena.openIovecs).toBe(0)
      arena.clear()
      expect(queue.popInto(arena, TX)).toBe(POP.chain)
      expect(arena.chains[1]).toBe(2)
    }
    expect(fixture.dropped()).toEqual({})
  })
})

describe('using', () => {
  test('nothing is seen before it is published, and then all at once', () => {
    const fixture = splitFixture()
    const { driver, queue, arena } = fixture
    const heads = offer(fixture, 3, true)
    for (const _ of heads) queue.popInto(arena, RX)
    queue.stageUsed(100)
    queue.stageUsed(200)
    expect(driver.usedIdx).toBe(0)
    expect(queue.nextUsed).toBe(2)
    queue.publishUsed()
    expect(reapAll(fixture)).toEqual([
      { id: heads[0]!, length: 100 },
      { id: heads[1]!, length: 200 },
    ])
    queue.stageUsed(300)
    queue.publishUsed()
    expect(reapAll(fixture)).toEqual([{ id: heads[2]!, length: 300 }])
  })

  test('a chain that is not in flight cannot be used', () => {
    const { queue } = splitFixture()
    expect(() => queue.stageUsed(0)).toThrow('no chain is in flight')
  })

  test('publishing nothing writes nothing', () => {
    const { driver, queue } = splitFixture()
    driver.used.setUint16(2, 0x5555, true)
    queue.publishUsed()
    expect(driver.usedIdx).toBe(0x5555)
  })
})

describe('malformed chains', () => {
  test('go back in their turn, never before an older chain', () => {
    const fixture = splitFixture()
    const { queue, arena } = fixture
    const [first] = offer(fixture, 1)
    const bad = offerBad(fixture)
    const [second] = offer(fixture, 1)
    expect([1, 2, 3].map(() => queue.popInto(arena, TX))).toEqual([POP.chain, POP.dropped, POP.chain])
    queue.publishUsed()
    expect(reapAll(fixture)).toEqual([])
    expect(fixture.dropped()).toEqual({})
    queue.stageUsed(0)
    queue.publishUsed()
    expect(reapAll(fixture).map(({ id }) => id)).toEqual([first!, bad])
    expect(fixture.dropped()).toEqual({ chain_address_unmapped: 1 })
    queue.stageUsed(0)
    queue.publishUsed()
    expect(reapAll(fixture).map(({ id }) => id)).toEqual([second!])
  })

  test('at the front are staged at once', () => {
    const fixture = splitFixture()
    const { queue, arena } = fixture
    const bad = [offerBad(fixture), offerBad(fixture)]
    expect(bad.map(() => queue.popInto(arena, TX))).toEqual([POP.dropped, POP.dropped])
    expect(queue.inFlight).toBe(0)
    queue.publishUsed()
    expect(reapAll(fixture)).toEqual(bad.map((id) => ({ id, length: 0 })))
  })

  test('are counted once, though given back and popped again', () => {
    const fixture = splitFixture()
    const { queue, arena } = fixture
    offer(fixture, 1)
    offerBad(fixture)
    offer(fixture, 1)
    for (let round = 0; round < 3; round++) {
      arena.clear()
      for (let count = 0; count < 3; count++) queue.popInto(arena, TX)
      queue.unpop(2)
    }
    expect(fixture.dropped()).toEqual({})
    for (let count = 0; count < 3; count++) queue.popInto(arena, TX)
    queue.stageUsed(0)
    queue.stageUsed(0)
    expect(fixture.dropped()).toEqual({ chain_address_unmapped: 1 })
  })
})

describe('giving back', () => {
  test('the last chains are popped again, in the same order', () => {
    const fixture = splitFixture()
    const { queue, arena, memory, driver } = fixture
    for (const length of [10, 20, 30]) driver.add([{ address: memory.start, length }])
    driver.publish()
    for (let count = 0; count < 3; count++) queue.popInto(arena, TX)
    queue.unpop(2)
    arena.removeLast(2)
    expect(queue.inFlight).toBe(1)
    expect(queue.nextAvail).toBe(0)
    expect([1, 2, 3].map(() => queue.popInto(arena, TX))).toEqual([POP.chain, POP.chain, POP.empty])
    expect(fixture.chains().map(([piece]) => piece!.length)).toEqual([10, 20, 30])
  })

  test('nothing is given back by 0, not even a malformed chain', () => {
    const fixture = splitFixture()
    const { queue, arena } = fixture
    offer(fixture, 1)
    offerBad(fixture)
    queue.popInto(arena, TX)
    queue.popInto(arena, TX)
    queue.unpop(0)
    expect(queue.popInto(arena, TX)).toBe(POP.empty)
  })

  test('more than is in flight is our bug', () => {
    const fixture = splitFixture()
    offer(fixture, 2)
    fixture.queue.popInto(fixture.arena, TX)
    expect(() => fixture.queue.unpop(2)).toThrow('more chains than were popped')
  })

  test('works over the wrap of the index', () => {
    const fixture = splitFixture({ start: 65_535 })
    const { queue, arena } = fixture
    const heads = offer(fixture, 3)
    for (const _ of heads) queue.popInto(arena, TX)
    queue.stageUsed(0)
    queue.unpop(2)
    expect(queue.nextAvail).toBe(0)
    for (let count = 0; count < 2; count++) expect(queue.popInto(arena, TX)).toBe(POP.chain)
    queue.stageUsed(0)
    queue.stageUsed(0)
    queue.publishUsed()
    expect(reapAll(fixture).map(({ id }) => id)).toEqual(heads)
  })
})

test('pending is what the driver made available and nobody popped yet', () => {
  const fixture = splitFixture({ start: 65_534 })
  const { queue, arena } = fixture
  expect(queue.pending).toBe(0)
  offer(fixture, 5)
  expect(queue.pending).toBe(5)
  queue.popInto(arena, TX)
  queue.popInto(arena, TX)
  expect(queue.pending).toBe(3)
  queue.unpop(1)
  expect(queue.pending).toBe(4)
  queue[Symbol.dispose]()
  expect(queue.pending).toBe(0)
})

describe('kicks', () => {
  test.each([false, true])('enable says whether chains came meanwhile (EVENT_IDX %p)', (eventIdx) => {
    const fixture = splitFixture({ eventIdx })
    const { driver, queue, arena } = fixture
    queue.disableNotification()
    expect(queue.enableNotification()).toBe(false)
    offer(fixture, 1)
    expect(driver.needsKick()).toBe(true)
    queue.disableNotification()
    expect(queue.popInto(arena, TX)).toBe(POP.chain)
    offer(fixture, 1)
    expect(queue.enableNotification()).toBe(true)
  })

  test.each([false, true])('given-back chains do not count as new (EVENT_IDX %p)', (eventIdx) => {
    const fixture = splitFixture({ eventIdx })
    const { driver, queue, arena } = fixture
    offer(fixture, 3, true)
    driver.needsKick()
    queue.disableNotification()
    while (queue.popInto(arena, RX) !== POP.empty);
    queue.unpop(3)
    // A packet that needs more buffers than there are: sleeping until there are more is not a spin.
    expect(queue.enableNotification()).toBe(false)
    offer(fixture, 1, true)
    expect(driver.needsKick()).toBe(true)
    arena.clear()
    for (let count = 0; count < 4; count++) expect(queue.popInto(arena, RX)).toBe(POP.chain)
  })

  test('while disabled the driver does not kick', () => {
    const flags = splitFixture()
    flags.queue.disableNotification()
    offer(flags, 1)
    expect(flags.driver.needsKick()).toBe(false)

    const event = splitFixture({ eventIdx: true, size: 64 })
    event.queue.enableNotification()
    offer(event, 1)
    expect(event.driver.needsKick()).toBe(true)
    event.queue.disableNotification()
    for (let count = 0; count < 20; count++) {
      offer(event, 1)
      expect(event.driver.needsKick()).toBe(false)
    }
  })
})

describe('starting', () => {
  test("'used' goes on from the used ring, and calls once", () => {
    for (const eventIdx of [false, true]) {
      const fixture = splitFixture({ eventIdx, start: 65_530 })
      const { driver, queue, arena } = fixture
      const heads = offer(fixture, 5)
      for (const _ of heads) queue.popInto(arena, TX)
      queue.stageUsed(0)
      queue.stageUsed(0)
      queue.publishUsed()
      // Died before it called, with three chains popped and not used. Nobody wants calls now.
      driver.disableCalls()
      const successor = fixture.newQueue('used')
      expect(successor.nextAvail).toBe(65_532)
      expect(successor.needsCall()).toBe(true)
      expect(successor.needsCall()).toBe(false)
      arena.clear()
      for (let count = 0; count < 3; count++) expect(successor.popInto(arena, TX)).toBe(POP.chain)
      for (let count = 0; count < 3; count++) successor.stageUsed(0)
      successor.publishUsed()
      expect(successor.needsCall()).toBe(false)
      expect(reapAll(fixture).map(({ id }) => id)).toEqual(heads)
    }
  })

  test('a state given is taken as it is, and is what a stopped queue says', () => {
    const fixture = splitFixture({ start: 65_534 })
    const { queue, arena } = fixture
    const heads = offer(fixture, 4)
    for (const _ of heads) queue.popInto(arena, TX)
    queue.stageUsed(0)
    queue.publishUsed()
    const state = { nextAvail: queue.nextAvail, nextUsed: queue.nextUsed }
    expect(state).toEqual({ nextAvail: 65_535, nextUsed: 65_535 })
    queue[Symbol.dispose]()
    const successor = fixture.newQueue(state)
    expect(successor.needsCall()).toBe(false)
    arena.clear()
    for (let count = 0; count < 3; count++) expect(successor.popInto(arena, TX)).toBe(POP.chain)
    for (let count = 0; count < 3; count++) successor.stageUsed(0)
    successor.publishUsed()
    expect(reapAll(fixture).map(({ id }) => id)).toEqual(heads)
  })

  test('the base is where the driver was shown the end: what is only staged is popped again', () => {
    const fixture = splitFixture({ start: 65_534 })
    const { queue, arena } = fixture
    const heads = offer(fixture, 4)
    for (let count = 0; count < 3; count++) queue.popInto(arena, TX)
    queue.stageUsed(0)
    queue.publishUsed()
    queue.stageUsed(0)
    expect(queue.nextAvail).toBe(0)
    expect(queue.base).toBe(65_535)
    queue[Symbol.dispose]()
    const successor = fixture.newQueue({ nextAvail: queue.base })
    arena.clear()
    for (let count = 0; count < 3; count++) expect(successor.popInto(arena, TX)).toBe(POP.chain)
    for (let count = 0; count < 3; count++) successor.stageUsed(0)
    successor.publishUsed()
    expect(reapAll(fixture).map(({ id }) => id)).toEqual(heads)
  })

  test('nextAvail and nextUsed need not be the same', () => {
    const fixture = splitFixture({ start: 100, state: { nextAvail: 100, nextUsed: 7 } })
    const [head] = offer(fixture, 1)
    expect(fixture.queue.popInto(fixture.arena, TX)).toBe(POP.chain)
    fixture.queue.stageUsed(3)
    fixture.queue.publishUsed()
    expect(fixture.driver.usedIdx).toBe(8)
    expect(fixture.driver.used.getUint32(4 + 8 * 7, true)).toBe(head!)
  })

  const config = (memory: TestMemory, size: number) => ({
    size,
    descAddr: memory.start,
    availAddr: memory.start + 1024,
    usedAddr: memory.start + 2048,
    state: { nextAvail: 0, nextUsed: 0 },
    indirect: false,
    eventIdx: false,
    drops: new Uint32Array(dropReasons.length),
  })

  test.each([0, 3, 65_536, -8])('a ring of %i entries is our bug', (size) => {
    expect(() => new SplitQueue(new AddressSpace(), config(new TestMemory(4096), size))).toThrow('2^n entries')
  })

  test('rings that are misaligned, unmapped or not writable are the driver fault of the queue, and leave no view', () => {
    const memory = new TestMemory(4096)
    const space = new AddressSpace()
    space.add(memory.region())
    const good = config(memory, 8)
    for (const [bad, code] of [
      [{ descAddr: memory.start + 8 }, 'RING_MISALIGNED'],
      [{ availAddr: memory.start + 1025 }, 'RING_MISALIGNED'],
      [{ usedAddr: memory.start + 2050 }, 'RING_MISALIGNED'],
      [{ descAddr: memory.end - 112 }, 'RING_UNMAPPED'],
      [{ availAddr: memory.end - 20 }, 'RING_UNMAPPED'],
      [{ usedAddr: memory.end - 68 }, 'RING_UNMAPPED'],
      [{ usedAddr: 2 ** 60 }, 'RING_UNMAPPED'],
    ] as const) {
      const make = (): unknown => new SplitQueue(space, { ...good, ...bad })
      expect(make).toThrow(DriverFault)
      expect(make).toThrow(code)
    }
    expect(memory.buffers.every((buffer) => buffer.detached)).toBe(true)
    new SplitQueue(space, { ...good, availAddr: memory.end - 22, usedAddr: memory.end - 96 })[Symbol.dispose]()
    space.clear()
    space.add(memory.region(ACCESS.read))
    expect(() => new SplitQueue(space, good)).toThrow('RING_UNMAPPED')
  })
})

test('a disposed queue does nothing more, and its memory can be unmapped', () => {
  const fixture = splitFixture({ eventIdx: true })
  const { queue, arena, space, memory } = fixture
  offer(fixture, 3)
  queue.popInto(arena, TX)
  queue.popInto(arena, TX)
  queue[Symbol.dispose]()
  queue[Symbol.dispose]()
  space.clear()
  const before = Bun.hash(memory.bytes)
  expect(queue.popInto(arena, TX)).toBe(POP.empty)
  queue.stageUsed(1)
  queue.unpop(1)
  queue.publishUsed()
  queue.disableNotification()
  expect(queue.enableNotification()).toBe(false)
  expect(queue.needsCall()).toBe(false)
  expect(Bun.hash(memory.bytes)).toBe(before)
})
