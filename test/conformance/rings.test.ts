import { describe, expect, test } from 'bun:test'
import { VRING_DESC_F_INDIRECT, VRING_DESC_F_WRITE } from '../../src/abi/virtio-ring.ts'
import { BUFFER_DIRECTION, POP } from '../../src/virtqueue/virtqueue.ts'
import type { AddOptions, Element } from '../support/driver-model.ts'
import { Random } from '../support/random.ts'
import { type RingFixture, ringLayouts } from '../support/ring-fixture.ts'

const TX = BUFFER_DIRECTION.readable
const RX = BUFFER_DIRECTION.writable

const addOne = ({ driver, memory }: RingFixture, writable = false): number =>
  driver.add([{ address: memory.start, length: 64, writable }])

/** Pops everything, uses it, publishes. */
const serve = ({ queue, arena }: RingFixture): void => {
  arena.clear()
  while (queue.popInto(arena, TX) !== POP.empty);
  while (queue.inFlight > 0) queue.stageUsed(0)
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

describe.each(ringLayouts)('%s ring%s', (layout, _way, newFixture) => {
  test('conformance 10 chains are used in the order in which they were made available', () => {
    const random = new Random(10)
    const fixture = newFixture({ size: 32 })
    const { driver, queue, arena, memory } = fixture
    const offered: number[] = []
    const returned: number[] = []
    for (let round = 0; round < 2000; round++) {
      for (let count = random.below(8); count > 0 && driver.freeDescriptors >= 3; count--) {
        const buffer = { address: memory.start, length: 64 }
        // Malformed ones keep their place too.
        const chain = random.chance(0.3) ? [buffer, { address: 0, length: 1 }] : [buffer, buffer, buffer]
        offered.push(driver.add(chain.slice(-random.between(1, 3))))
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
    const framings: [string, (random: Random, count: number) => AddOptions][] = [
      ['direct', () => ({})],
      ['indirect', () => ({ indirectFrom: 0 })],
    ]
    // A packed ring has no such chains. VIRTIO 1.2 §2.8.19.
    if (layout === 'split') {
      framings.push(['direct, then indirect', (random, count) => ({ indirectFrom: random.below(count) })])
    }
    test.each(framings)('%s: 1 to 40 pieces give the same bytes', (_, optionsFor) => {
      const random = new Random(12)
      for (let count = 1; count <= 40; count++) {
        const fixture = newFixture({ size: 64 })
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
    const fixture = newFixture()
    addOne(fixture, false)
    fixture.driver.publish()
    expect(fixture.queue.popInto(fixture.arena, RX)).toBe(POP.dropped)
    expect(fixture.arena.chainCount).toBe(0)
  })

  test('conformance 15 WRITE on an indirect descriptor is ignored', () => {
    for (const writable of [false, true]) {
      for (const flags of [0, VRING_DESC_F_WRITE]) {
        const fixture = newFixture()
        const { driver, memory } = fixture
        const table = memory.allocate(16)
        const buffer = { addressLow: memory.start, length: 64, flags: writable ? VRING_DESC_F_WRITE : 0 }
        driver.writeTableOf(table, [buffer])
        driver.offerBuffers([{ addressLow: table, length: 16, flags: flags | VRING_DESC_F_INDIRECT }])
        expect(fixture.queue.popInto(fixture.arena, writable ? RX : TX)).toBe(POP.chain)
      }
    }
  })

  test('conformance 21 len is what was written, 0 for a chain that was not', () => {
    const fixture = newFixture()
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
    const fixture = newFixture({ eventIdx: true })
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
})
