import { describe, expect, test } from 'bun:test'
import { dropReasons } from '../../../src/abi/drop-reason.ts'
import { DriverFault } from '../../../src/base/errors.ts'
import { AddressSpace } from '../../../src/memory/address-space.ts'
import { ACCESS } from '../../../src/memory/region.ts'
import { SplitQueue } from '../../../src/virtqueue/split.ts'
import { BUFFER_DIRECTION, POP } from '../../../src/virtqueue/virtqueue.ts'
import { TestMemory } from '../../support/memory.ts'
import { type Fixture, splitFixture } from '../../support/split-fixture.ts'

const TX = BUFFER_DIRECTION.readable

/** Adds `count` good chains of one buffer and publishes them; their heads. */
const offer = ({ driver, memory }: Fixture, count: number): number[] => {
  const address = memory.start
  const heads = Array.from({ length: count }, () => driver.add([{ address, length: 64 }]))
  driver.publish()
  return heads
}

const reapAll = ({ driver }: Fixture): { id: number; length: number }[] => {
  const used = []
  for (let one = driver.reap(); one !== undefined; one = driver.reap()) used.push(one)
  return used
}

test('publishing nothing leaves an index that the driver wrote', () => {
  const { driver, queue } = splitFixture()
  driver.used.setUint16(2, 0x5555, true)
  queue.publishUsed()
  expect(driver.usedIdx).toBe(0x5555)
})

test('with EVENT_IDX an event left behind suppresses kicks by itself', () => {
  const { driver, queue, memory } = splitFixture({ eventIdx: true, size: 64 })
  queue.enableNotification()
  queue.disableNotification()
  expect(driver.usedFlags).toBe(0)
  const kicks = Array.from({ length: 20 }, () => {
    driver.add([{ address: memory.start, length: 64 }])
    driver.publish()
    return driver.needsKick()
  })
  expect(kicks.filter((kick) => kick)).toHaveLength(1)
  expect(kicks[0]).toBe(true)
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
    const successor = fixture.newQueue(state.nextAvail)
    expect(successor.needsCall()).toBe(false)
    arena.clear()
    for (let count = 0; count < 3; count++) expect(successor.popInto(arena, TX)).toBe(POP.chain)
    for (let count = 0; count < 3; count++) successor.stageUsed(0)
    successor.publishUsed()
    expect(reapAll(fixture).map(({ id }) => id)).toEqual(heads)
  })

  const config = (memory: TestMemory, size: number) => ({
    size,
    descAddr: memory.start,
    availAddr: memory.start + 1024,
    usedAddr: memory.start + 2048,
    base: 0,
    features: 0n,
    drops: new Uint32Array(dropReasons.length),
  })

  test.each([0, 3, 65_536, -8])('a ring of %i entries is our bug', (size) => {
    expect(() => new SplitQueue(new AddressSpace(), config(new TestMemory(4096), size))).toThrow('2^n entries')
  })

  test('rings that are misaligned, unmapped or not writable are a fault of the driver, and leave no view', () => {
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
