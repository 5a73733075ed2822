import { describe, expect, test } from 'bun:test'
import { dropReasons } from '../../../src/abi/drop-reason.ts'
import { DriverFault } from '../../../src/base/errors.ts'
import { AddressSpace } from '../../../src/memory/address-space.ts'
import { IovecArena } from '../../../src/memory/iovec-arena.ts'
import { ACCESS } from '../../../src/memory/region.ts'
import { PackedQueue } from '../../../src/virtqueue/packed.ts'
import { DIRECTION, POP } from '../../../src/virtqueue/virtqueue.ts'
import { TestMemory } from '../../support/memory.ts'
import { type PackedFixture, packedFixture } from '../../support/packed-fixture.ts'

const TX = DIRECTION.readable
const RX = DIRECTION.writable

/** Adds `count` good chains of `buffers` buffers and publishes them; their ids. */
const offer = ({ driver, memory }: PackedFixture, count: number, writable = false, buffers = 1): number[] => {
  const elements = Array.from({ length: buffers }, () => ({ address: memory.start, length: 64, writable }))
  const ids = Array.from({ length: count }, () => driver.add(elements))
  driver.publish()
  return ids
}

/** Adds one malformed chain (unmapped). */
const offerBad = ({ driver, memory }: PackedFixture, buffers = 1): number => {
  const id = driver.add([
    { address: 0, length: 1 },
    ...Array.from({ length: buffers - 1 }, () => ({ address: memory.start, length: 64 })),
  ])
  driver.publish()
  return id
}

const reapAll = ({ driver }: PackedFixture): { id: number; length: number }[] => {
  const used = []
  for (let one = driver.reap(); one !== undefined; one = driver.reap()) used.push(one)
  return used
}

const popAll = ({ queue, arena }: PackedFixture, direction: 0 | 1 = TX): number => {
  let chains = 0
  for (;;) {
    const result = queue.popInto(arena, direction)
    if (result === POP.empty) return chains
    if (result === POP.chain) chains++
  }
}

describe('popping', () => {
  test.each([
    [1, 0, 1],
    [2, 1, 0],
    [3, 2, 1],
    [5, 4, 0],
    [256, 100, 1],
    [1000, 999, 1],
    [32_767, 5, 0],
    [32_768, 32_767, 0],
  ] as const)('a ring of %i, full, from entry %i with wrap counter %i', (size, slot, wrap) => {
    const fixture = packedFixture({ size, start: { slot, wrap }, memoryBytes: 1 << 20 })
    const { queue } = fixture
    const arena = new IovecArena(size, Math.max(size, 1024))
    for (let round = 0; round < 3; round++) {
      const ids = offer(fixture, size)
      arena.clear()
      for (let count = 0; count < size; count++) expect(queue.popInto(arena, TX)).toBe(POP.chain)
      expect(queue.popInto(arena, TX)).toBe(POP.empty)
      for (let count = 0; count < size; count++) queue.stageUsed(count)
      queue.publishUsed()
      expect(reapAll(fixture)).toEqual(ids.map((id, length) => ({ id, length })))
    }
    expect(queue.nextUsed).toBe((3 * size) & 0xffff)
    expect(queue.nextAvail).toBe(queue.nextUsed)
  })

  test('chains go over the end of the ring', () => {
    const fixture = packedFixture({ size: 7 })
    const { queue, arena } = fixture
    for (let round = 0; round < 20; round++) {
      const ids = offer(fixture, 2, false, 3)
      arena.clear()
      expect(popAll(fixture)).toBe(2)
      expect(fixture.chains().map((pieces) => pieces.length)).toEqual([3, 3])
      queue.stageUsed(0)
      queue.stageUsed(0)
      queue.publishUsed()
      expect(reapAll(fixture).map(({ id }) => id)).toEqual(ids)
    }
  })

  test('an arena without room for the chain leaves it in the ring', () => {
    const fixture = packedFixture()
    const { queue } = fixture
    offer(fixture, 3)
    const records = new IovecArena(2, 1024)
    expect([1, 2, 3].map(() => queue.popInto(records, TX))).toEqual([POP.chain, POP.chain, POP.full])
    expect(queue.inFlight).toBe(2)
    records.clear()
    expect(queue.popInto(records, TX)).toBe(POP.chain)
    expect(queue.popInto(new IovecArena(0, 1024), TX)).toBe(POP.empty)
    expect(queue.inFlight).toBe(3)
  })

  test('an arena without room for all pieces of the chain leaves it in the ring, whole', () => {
    const fixture = packedFixture({ size: 16 })
    const { driver, queue, memory } = fixture
    const arena = new IovecArena(8, 3)
    const two = [1, 2].map((length) => ({ address: memory.start, length }))
    for (const options of [{}, { indirectFrom: 0 }]) {
      arena.clear()
      driver.add(two)
      driver.add(two, options)
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
    const fixture = packedFixture()
    const { driver, queue, memory } = fixture
    const ids = offer(fixture, 3, true)
    popAll(fixture, RX)
    const before = Bun.hash(memory.bytes)
    queue.stageUsed(100)
    queue.stageUsed(200)
    expect(Bun.hash(memory.bytes)).toBe(before)
    expect(queue.nextUsed).toBe(2)
    queue.publishUsed()
    expect(reapAll(fixture)).toEqual([
      { id: ids[0]!, length: 100 },
      { id: ids[1]!, length: 200 },
    ])
    queue.stageUsed(300)
    queue.publishUsed()
    expect(reapAll(fixture)).toEqual([{ id: ids[2]!, length: 300 }])
    expect(driver.reap()).toBeUndefined()
  })

  test('a chain that is not in flight cannot be used', () => {
    expect(() => packedFixture().queue.stageUsed(0)).toThrow('no chain is in flight')
  })

  test('publishing nothing writes nothing', () => {
    const { queue, memory } = packedFixture()
    const before = Bun.hash(memory.bytes)
    queue.publishUsed()
    expect(Bun.hash(memory.bytes)).toBe(before)
  })
})

describe('malformed chains', () => {
  test('go back in their turn, never before an older chain', () => {
    const fixture = packedFixture()
    const { queue } = fixture
    const [first] = offer(fixture, 1)
    const bad = offerBad(fixture, 3)
    const [second] = offer(fixture, 1)
    expect(popAll(fixture)).toBe(2)
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

  test('are counted once, though given back and popped again', () => {
    const fixture = packedFixture()
    const { queue, arena } = fixture
    offer(fixture, 1)
    offerBad(fixture, 2)
    offer(fixture, 1)
    for (let round = 0; round < 3; round++) {
      arena.clear()
      expect(popAll(fixture)).toBe(2)
      queue.unpop(2)
    }
    expect(fixture.dropped()).toEqual({})
    expect(popAll(fixture)).toBe(2)
    queue.stageUsed(0)
    queue.stageUsed(0)
    expect(fixture.dropped()).toEqual({ chain_address_unmapped: 1 })
  })
})

describe('giving back', () => {
  test('the last chains are popped again, in the same order', () => {
    const fixture = packedFixture({ start: { slot: 7, wrap: 1 } })
    const { queue, arena, memory, driver } = fixture
    const ids = [10, 20, 30].map((length) =>
      driver.add([
        { address: memory.start, length },
        { address: memory.start, length: 1 },
      ]),
    )
    driver.publish()
    popAll(fixture)
    queue.unpop(2)
    arena.removeLast(2)
    expect(queue.inFlight).toBe(1)
    expect(popAll(fixture)).toBe(2)
    expect(fixture.chains().map(([piece]) => piece!.length)).toEqual([10, 20, 30])
    for (let count = 0; count < 3; count++) queue.stageUsed(0)
    queue.publishUsed()
    expect(reapAll(fixture).map(({ id }) => id)).toEqual(ids)
  })

  test('nothing is given back by 0, not even a malformed chain', () => {
    const fixture = packedFixture()
    const { queue } = fixture
    offer(fixture, 1)
    offerBad(fixture)
    popAll(fixture)
    queue.unpop(0)
    expect(popAll(fixture)).toBe(0)
  })

  test('more than is in flight is our bug', () => {
    const fixture = packedFixture()
    offer(fixture, 2)
    fixture.queue.popInto(fixture.arena, TX)
    expect(() => fixture.queue.unpop(2)).toThrow('more chains than were popped')
  })
})

test('pending says whether there is a chain that nobody popped', () => {
  const fixture = packedFixture()
  const { queue } = fixture
  expect(queue.pending).toBe(0)
  offer(fixture, 2)
  expect(queue.pending).toBe(1)
  popAll(fixture)
  expect(queue.pending).toBe(0)
  queue.unpop(1)
  expect(queue.pending).toBe(1)
  queue[Symbol.dispose]()
  expect(queue.pending).toBe(0)
})

describe('kicks', () => {
  test.each([false, true])('enable says whether chains came meanwhile (EVENT_IDX %p)', (eventIdx) => {
    const fixture = packedFixture({ eventIdx })
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
    const fixture = packedFixture({ eventIdx, start: { slot: 6, wrap: 0 } })
    const { driver, queue, arena } = fixture
    offer(fixture, 3, true, 2)
    driver.needsKick()
    queue.disableNotification()
    popAll(fixture, RX)
    queue.unpop(3)
    // A packet that needs more buffers than there are: sleeping until there are more is not a spin.
    expect(queue.enableNotification()).toBe(false)
    // Some of them popped again make no difference.
    arena.clear()
    queue.popInto(arena, RX)
    expect(queue.enableNotification()).toBe(false)
    offer(fixture, 1, true)
    expect(driver.needsKick()).toBe(true)
    expect(queue.enableNotification()).toBe(true)
    expect(popAll(fixture, RX)).toBe(3)
    expect(queue.enableNotification()).toBe(false)
  })

  test.each([false, true])('while disabled the driver does not kick (EVENT_IDX %p)', (eventIdx) => {
    const fixture = packedFixture({ eventIdx, size: 64 })
    fixture.queue.enableNotification()
    offer(fixture, 1)
    expect(fixture.driver.needsKick()).toBe(true)
    fixture.queue.disableNotification()
    for (let count = 0; count < 20; count++) {
      offer(fixture, 1)
      expect(fixture.driver.needsKick()).toBe(false)
    }
  })

  test('a driver that disables calls is not called, whatever was negotiated', () => {
    for (const eventIdx of [false, true]) {
      const fixture = packedFixture({ eventIdx })
      fixture.driver.disableCalls()
      offer(fixture, 1)
      popAll(fixture)
      fixture.queue.stageUsed(0)
      fixture.queue.publishUsed()
      expect(fixture.queue.needsCall()).toBe(false)
    }
  })
})

describe('starting', () => {
  test.each([0, 1] as const)('the base is where the driver was shown the end (wrap counter %i)', (wrap) => {
    const fixture = packedFixture({ start: { slot: 5, wrap } })
    const { queue, arena } = fixture
    const ids = offer(fixture, 4, false, 2)
    popAll(fixture)
    queue.stageUsed(0)
    queue.publishUsed()
    queue.stageUsed(0)
    const half = 7 | (wrap << 15)
    expect(queue.base).toBe(half + half * 65_536)
    queue[Symbol.dispose]()
    const successor = fixture.newQueue(queue.base)
    expect(successor.base).toBe(queue.base)
    expect(successor.needsCall()).toBe(false)
    arena.clear()
    for (let count = 0; count < 3; count++) expect(successor.popInto(arena, TX)).toBe(POP.chain)
    for (let count = 0; count < 3; count++) successor.stageUsed(0)
    successor.publishUsed()
    expect(reapAll(fixture).map(({ id }) => id)).toEqual(ids)
  })

  test('the upper half of the base is not looked at', () => {
    const fixture = packedFixture({ start: { slot: 3, wrap: 1 } })
    const queue = fixture.newQueue(0x8003)
    offer(fixture, 1)
    expect(queue.popInto(fixture.arena, TX)).toBe(POP.chain)
  })

  test('base 0 is the start of a ring that was never used, and the second round of one that was', () => {
    const fresh = packedFixture({ size: 4 })
    expect(fresh.newQueue(0).base).toBe(0x8000_8000)
    offer(fresh, 1)
    expect(fresh.newQueue(0).popInto(fresh.arena, TX)).toBe(POP.chain)

    const gone = packedFixture({ size: 4 })
    offer(gone, 4)
    popAll(gone)
    for (let count = 0; count < 4; count++) gone.queue.stageUsed(0)
    gone.queue.publishUsed()
    expect(gone.queue.base).toBe(0)
    reapAll(gone)
    const ids = offer(gone, 1)
    gone.arena.clear()
    const successor = gone.newQueue(0)
    expect(successor.popInto(gone.arena, TX)).toBe(POP.chain)
    successor.stageUsed(0)
    successor.publishUsed()
    expect(reapAll(gone).map(({ id }) => id)).toEqual(ids)
  })

  const config = (memory: TestMemory, size: number) => ({
    size,
    descAddr: memory.start,
    availAddr: memory.start + 1024,
    usedAddr: memory.start + 2048,
    base: 0x8000,
    indirect: false,
    eventIdx: false,
    drops: new Uint32Array(dropReasons.length),
  })

  test.each([0, 1.5, 32_769, -8])('a ring of %p entries is our bug', (size) => {
    expect(() => new PackedQueue(new AddressSpace(), config(new TestMemory(4096), size))).toThrow('1 to 32768 entries')
  })

  test('rings that are misaligned, unmapped or not accessible are the driver fault of the queue, and leave no view', () => {
    const memory = new TestMemory(4096)
    const space = new AddressSpace()
    space.add(memory.region())
    const good = config(memory, 7)
    for (const [bad, code] of [
      [{ descAddr: memory.start + 8 }, 'RING_MISALIGNED'],
      [{ availAddr: memory.start + 1026 }, 'RING_MISALIGNED'],
      [{ usedAddr: memory.start + 2050 }, 'RING_MISALIGNED'],
      [{ descAddr: memory.end - 96 }, 'RING_UNMAPPED'],
      [{ availAddr: memory.end }, 'RING_UNMAPPED'],
      [{ usedAddr: 2 ** 52 }, 'RING_UNMAPPED'],
      [{ base: 0x8007 }, 'BASE_OUT_OF_RANGE'],
    ] as const) {
      const make = (): unknown => new PackedQueue(space, { ...good, ...bad })
      expect(make).toThrow(DriverFault)
      expect(make).toThrow(code)
    }
    expect(memory.buffers.every((buffer) => buffer.detached)).toBe(true)
    new PackedQueue(space, { ...good, descAddr: memory.end - 112, usedAddr: memory.start })[Symbol.dispose]()
    space.clear()
    for (const access of [ACCESS.read, ACCESS.write]) {
      space.add(memory.region(access))
      expect(() => new PackedQueue(space, good)).toThrow('RING_UNMAPPED')
      space.clear()
    }
  })
})

test('a disposed queue does nothing more, and its memory can be unmapped', () => {
  const fixture = packedFixture({ eventIdx: true })
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
