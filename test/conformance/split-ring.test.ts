import { describe, expect, spyOn, test } from 'bun:test'
import { DIRECTION, POP } from '../../src/virtqueue/virtqueue.ts'
import type { Element } from '../support/driver-model.ts'
import { Random } from '../support/random.ts'
import { type Fixture, splitFixture } from '../support/split-fixture.ts'

const TX = DIRECTION.readable
const RX = DIRECTION.writable

const addOne = ({ driver, memory }: Fixture, writable = false): number =>
  driver.add([{ address: memory.start, length: 64, writable }])

/** Pops everything, uses it with `length`, publishes. */
const serve = ({ queue, arena }: Fixture, direction: 0 | 1 = TX, length = 0): void => {
  arena.clear()
  while (queue.popInto(arena, direction) !== POP.empty);
  while (queue.inFlight > 0) queue.stageUsed(length)
  queue.publishUsed()
}

/** Splits [address, address + length) into `count` elements at random places; some are empty. */
const split = (random: Random, address: number, length: number, count: number): Element[] => {
  const cuts = Array.from({ length: count - 1 }, () => random.between(0, length)).sort((a, b) => a - b)
  return [...cuts, length].map((cut, index) => {
    const from = index === 0 ? 0 : cuts[index - 1]!
    return { address: address + from, length: cut - from }
  })
}

test('conformance 10 chains are used in the order in which they were made available', () => {
  const random = new Random(10)
  const fixture = splitFixture({ size: 32 })
  const { driver, queue, arena } = fixture
  const offered: number[] = []
  const returned: number[] = []
  for (let round = 0; round < 2000; round++) {
    for (let count = random.below(8); count > 0 && driver.freeDescriptors > 0; count--) {
      // Malformed ones keep their place too.
      offered.push(random.chance(0.3) ? driver.add([{ address: 0, length: 1 }]) : addOne(fixture))
    }
    driver.publish()
    arena.clear()
    for (let count = random.below(8); count > 0; count--) queue.popInto(arena, TX)
    queue.unpop(random.between(0, queue.inFlight))
    for (let count = random.between(0, queue.inFlight); count > 0; count--) queue.stageUsed(0)
    queue.unpop(queue.inFlight)
    queue.publishUsed()
    for (let used = driver.reap(); used !== undefined; used = driver.reap()) returned.push(used.id)
  }
  expect(returned.length).toBeGreaterThan(500)
  expect(returned).toEqual(offered.slice(0, returned.length))
})

describe('conformance 12 no framing assumptions', () => {
  test.each([
    ['direct', (_: Random, __: number) => ({})],
    ['indirect', () => ({ indirectFrom: 0 })],
    ['direct, then indirect', (random: Random, count: number) => ({ indirectFrom: random.below(count) })],
  ] as const)('%s: 1 to 40 pieces give the same bytes', (_, optionsFor) => {
    const random = new Random(12)
    for (let count = 1; count <= 40; count++) {
      const fixture = splitFixture({ size: 64 })
      const { driver, queue, arena, memory } = fixture
      const address = memory.allocate(1526)
      for (let index = 0; index < 1526; index++) memory.bytes[address - memory.start + index] = random.below(256)
      driver.add(split(random, address, 1526, count), optionsFor(random, count))
      driver.publish()
      expect(queue.popInto(arena, TX)).toBe(POP.chain)
      const [pieces] = fixture.chains()
      const bytes = pieces!.flatMap(({ offset, length }) => [...memory.bytes.subarray(offset, offset + length)])
      expect(bytes).toEqual([...memory.bytes.subarray(address - memory.start, address - memory.start + 1526)])
    }
  })
})

test('conformance 13 a readable buffer is never handed out for writing', () => {
  const fixture = splitFixture()
  addOne(fixture, false)
  fixture.driver.publish()
  expect(fixture.queue.popInto(fixture.arena, RX)).toBe(POP.dropped)
  expect(fixture.arena.chainCount).toBe(0)
})

test('conformance 14 descriptor table and avail ring are never written', () => {
  const fixture = splitFixture({ size: 8, eventIdx: true })
  const { driver, memory, queue } = fixture
  const table = memory.allocate(48)
  const snapshot = (): unknown => [
    memory.bytes.slice(driver.descAddr - memory.start, driver.descAddr - memory.start + 128),
    memory.bytes.slice(driver.availAddr - memory.start, driver.availAddr - memory.start + 22),
    memory.bytes.slice(table - memory.start, table - memory.start + 48),
  ]
  for (let round = 0; round < 20; round++) {
    addOne(fixture)
    driver.add([{ address: 0, length: 1 }])
    const elements = [10, 20, 30].map((length) => ({ address: memory.start, length }))
    driver.add(elements, { indirectFrom: 0, tableAddress: table })
    driver.publish()
    const before = snapshot()
    queue.disableNotification()
    serve(fixture)
    queue.enableNotification()
    queue.needsCall()
    expect(snapshot()).toEqual(before)
    for (let used = driver.reap(); used !== undefined; used = driver.reap());
  }
})

test('conformance 15 WRITE on an indirect descriptor is ignored', () => {
  for (const writable of [false, true]) {
    const fixture = splitFixture()
    const { driver, memory } = fixture
    driver.add([{ address: memory.start, length: 64, writable }], { indirectFrom: 0 })
    const flags = driver.descriptors.getUint16(12, true)
    driver.descriptors.setUint16(12, flags ^ 2, true)
    driver.publish()
    expect(fixture.queue.popInto(fixture.arena, writable ? RX : TX)).toBe(POP.chain)
  }
})

test('conformance 16 direct descriptors, then an indirect one', () => {
  for (let direct = 0; direct < 4; direct++) {
    const fixture = splitFixture()
    const { driver, memory } = fixture
    const elements = [10, 20, 30, 40].map((length, index) => ({ address: memory.start + 100 * index, length }))
    driver.add(elements, { indirectFrom: direct })
    driver.publish()
    expect(fixture.queue.popInto(fixture.arena, TX)).toBe(POP.chain)
    expect(fixture.chains()[0]).toEqual([10, 20, 30, 40].map((length, index) => ({ offset: 100 * index, length })))
  }
})

describe('conformance 17 without EVENT_IDX', () => {
  test('flags 0: a call for every publication; flags 1: none; used_event is ignored', () => {
    const fixture = splitFixture({ eventIdx: false })
    const { driver, queue } = fixture
    for (let round = 0; round < 10; round++) {
      for (const [flags, usedEvent, expected] of [
        [0, queue.nextUsed, true],
        [0, queue.nextUsed - 3, true],
        [1, queue.nextUsed, false],
        [1, queue.nextUsed - 3, false],
      ] as const) {
        driver.availFlags = flags
        driver.usedEvent = usedEvent
        addOne(fixture)
        driver.publish()
        serve(fixture)
        expect(queue.needsCall()).toBe(expected)
        expect(queue.needsCall()).toBe(false)
        driver.reap()
      }
    }
  })
})

describe('conformance 18 with EVENT_IDX', () => {
  test.each([0, 65_533])('a call exactly when used_event is crossed, flags ignored (from %i)', (start) => {
    for (const flags of [0, 1]) {
      for (let event = -4; event < 8; event++) {
        const fixture = splitFixture({ eventIdx: true, start })
        const { driver, queue } = fixture
        driver.availFlags = flags
        driver.usedEvent = start + event
        let before = 0
        for (const batch of [1, 2, 3]) {
          for (let count = 0; count < batch; count++) addOne(fixture)
          driver.publish()
          serve(fixture)
          expect(queue.needsCall()).toBe(event >= before && event < before + batch)
          before += batch
        }
      }
    }
  })

  test('publications that nobody asked about count together', () => {
    const fixture = splitFixture({ eventIdx: true })
    fixture.driver.usedEvent = 1
    for (let count = 0; count < 3; count++) {
      addOne(fixture)
      fixture.driver.publish()
      serve(fixture)
    }
    expect(fixture.queue.needsCall()).toBe(true)
  })

  test('a driver that asks before it sleeps is always called, over 200,000 chains', () => {
    const random = new Random(18)
    const fixture = splitFixture({ eventIdx: true, size: 16, start: 60_000 })
    const { driver, queue } = fixture
    for (let used = 0; used < 200_000; ) {
      driver.enableCalls()
      const batch = random.between(1, 16)
      for (let count = 0; count < batch; count++) addOne(fixture)
      driver.publish()
      serve(fixture)
      if (!queue.needsCall()) throw new Error(`no call for chain ${used}`)
      while (driver.reap() !== undefined) used++
    }
    expect(fixture.dropped()).toEqual({})
  })
})

describe('conformance 19 used.flags', () => {
  test('0 or 1 without EVENT_IDX', () => {
    const { driver, queue } = splitFixture()
    expect(driver.usedFlags).toBe(0)
    queue.disableNotification()
    expect(driver.usedFlags).toBe(1)
    queue.enableNotification()
    expect(driver.usedFlags).toBe(0)
  })

  test('always 0 with EVENT_IDX', () => {
    const fixture = splitFixture({ eventIdx: true })
    const { driver, queue } = fixture
    for (let round = 0; round < 3; round++) {
      addOne(fixture)
      driver.publish()
      queue.disableNotification()
      expect(driver.usedFlags).toBe(0)
      serve(fixture)
      queue.enableNotification()
      expect(driver.usedFlags).toBe(0)
      expect(driver.availEvent).toBe(round + 1)
      driver.reap()
    }
  })
})

test('conformance 20 id and len are in place before idx', () => {
  const fixture = splitFixture({ size: 4, start: 65_535 })
  const { driver, queue, arena, memory } = fixture
  const heads = Array.from({ length: 3 }, () => addOne(fixture, true))
  driver.publish()
  memory.bytes.fill(0xee, driver.usedAddr - memory.start + 4, driver.usedAddr - memory.start + 4 + 32)
  for (const _ of heads) queue.popInto(arena, RX)
  for (let count = 1; count <= 3; count++) queue.stageUsed(100 * count)
  const element = (slot: number) => [
    driver.used.getUint32(4 + 8 * slot, true),
    driver.used.getUint32(8 + 8 * slot, true),
  ]
  const { store } = Atomics
  const seen: unknown[] = []
  const spy = spyOn(Atomics, 'store').mockImplementation(((array: Uint16Array, index: number, value: number) => {
    seen.push([driver.usedIdx, ...[3, 0, 1].map(element)])
    return store(array, index, value)
  }) as typeof store)
  queue.publishUsed()
  spy.mockRestore()
  expect(seen).toEqual([[65_535, [heads[0]!, 100], [heads[1]!, 200], [heads[2]!, 300]]])
  expect(driver.usedIdx).toBe(2)
  // The slot that was not used is as it was.
  expect(element(2)).toEqual([0xeeee_eeee, 0xeeee_eeee])
})

test('conformance 21 len is what was written, 0 for a chain that was not', () => {
  const fixture = splitFixture()
  const { driver, queue, arena } = fixture
  addOne(fixture, true)
  driver.add([{ address: 0, length: 1, writable: true }])
  addOne(fixture, true)
  driver.publish()
  while (queue.popInto(arena, RX) !== POP.empty);
  queue.stageUsed(60)
  queue.stageUsed(1526)
  queue.publishUsed()
  expect([driver.reap()?.length, driver.reap()?.length, driver.reap()?.length]).toEqual([60, 0, 1526])
})

test('conformance 22 spurious kicks are harmless', () => {
  const fixture = splitFixture({ eventIdx: true })
  const { driver, queue, memory } = fixture
  addOne(fixture)
  driver.publish()
  serve(fixture)
  queue.needsCall()
  queue.enableNotification()
  const before = memory.bytes.slice()
  for (let kicks = 0; kicks < 100; kicks++) {
    queue.disableNotification()
    serve(fixture)
    expect(queue.needsCall()).toBe(false)
    expect(queue.enableNotification()).toBe(false)
  }
  expect(memory.bytes).toEqual(before)
})
