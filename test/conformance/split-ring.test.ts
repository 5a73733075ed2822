import { describe, expect, spyOn, test } from 'bun:test'
import { BUFFER_DIRECTION, POP } from '../../src/virtqueue/virtqueue.ts'
import { Random } from '../support/random.ts'
import { type Fixture, splitFixture } from '../support/split-fixture.ts'

const TX = BUFFER_DIRECTION.readable
const RX = BUFFER_DIRECTION.writable

const addOne = ({ driver, memory }: Fixture, writable = false): number =>
  driver.add([{ address: memory.start, length: 64, writable }])

/** Pops everything, uses it with `length`, publishes. */
const serve = ({ queue, arena }: Fixture, direction: 0 | 1 = TX, length = 0): void => {
  arena.clear()
  while (queue.popInto(arena, direction) !== POP.empty);
  while (queue.inFlight > 0) queue.stageUsed(length)
  queue.publishUsed()
}

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
