/** A ring whose device died, taken up with a base that is not where it was left. */
import { describe, expect, spyOn, test } from 'bun:test'
import { DriverFault } from '../../../src/base/errors.ts'
import { BUFFER_DIRECTION, type BufferDirection, POP, type Virtqueue } from '../../../src/virtqueue/virtqueue.ts'
import { PackedDriver } from '../../support/packed-driver.ts'
import { packedFixture } from '../../support/packed-fixture.ts'
import { type RingFixture, ringLayouts } from '../../support/ring-fixture.ts'
import { splitFixture } from '../../support/split-fixture.ts'

const layouts = ringLayouts.filter(([, ways]) => ways === '')

/** Makes chains of `buffers` available until the ring has room for none. */
const fill = ({ driver, memory }: RingFixture, address: number, buffers: number, writable: boolean): void => {
  while (driver.freeDescriptors >= buffers) {
    // The bytes do not matter, and memory is not endless.
    driver.add(Array.from({ length: buffers }, () => ({ address, length: 64, writable })))
  }
  expect(address).toBeGreaterThanOrEqual(memory.start)
  driver.publish()
}

/** The device uses one chain, all of which the driver reaps: it throws for one that the device does not have. */
const useOne = (
  { driver, arena }: Pick<RingFixture, 'driver' | 'arena'>,
  queue: Virtqueue,
  direction: BufferDirection,
): void => {
  arena.clear()
  expect(queue.popInto(arena, direction)).toBe(POP.chain)
  queue.stageUsed(direction === BUFFER_DIRECTION.writable ? 64 : 0)
  queue.publishUsed()
  expect(driver.reap()).toBeDefined()
}

/**
 * The queue of a successor. A packed ring where the driver was asked to kick for a place can be given up, if `said` is
 * less than a chain away, and chains are long or the ring is tiny: the base of a good end is said then.
 */
const resume = ({ successor, driver }: RingFixture, said: number, left: number, buffers: number): Virtqueue => {
  try {
    return successor(said)
  } catch (error) {
    if (!(driver instanceof PackedDriver) || driver.deviceEvent.getUint16(2, true) !== 2) throw error
    expect(buffers > 1 || driver.size <= 8).toBeTrue()
    expect(error).toMatchObject({ code: 'BASE_UNKNOWN' })
    return successor(left)
  }
}

describe.each(layouts)('%s ring%s, no record of chains in flight', (layout, _, newRing) => {
  const cases = [1, 2, 4, 8, 64].flatMap((size) =>
    [1, 2, 3]
      .filter((buffers) => buffers <= size)
      .flatMap((buffers) => [true, false].map((eventIdx) => [size, buffers, eventIdx] as const)),
  )

  test.each(cases)(
    'of %i entries, chains of %i, EVENT_IDX %p: goes on where it was left, after any number of chains',
    (size, buffers, eventIdx) => {
      for (const direction of [BUFFER_DIRECTION.writable, BUFFER_DIRECTION.readable]) {
        const fixture = newRing({ size, eventIdx, start: 0 })
        const address = fixture.memory.allocate(64)
        const said = fixture.queue.base
        let queue = fixture.queue
        for (let count = 0; count < 5 * size + 3; count++) {
          const waits = direction === BUFFER_DIRECTION.writable || count % 2 === 0
          if (waits) fill(fixture, address, buffers, direction === BUFFER_DIRECTION.writable)
          // Nobody disposes of a queue whose process is killed. What it has popped by then does not matter.
          if (waits) queue.popInto(fixture.arena, direction)
          const successor = resume(fixture, said, queue.base, buffers)
          expect(successor.base).toBe(queue.base)
          expect(successor.nextUsed & 0x7fff).toBe(successor.nextAvail & 0x7fff)
          queue = successor
          if (!waits) fill(fixture, address, buffers, false)
          if (count % 3 === 0) queue.disableNotification()
          // A driver is asked to kick when nothing more waits.
          while (count % 3 === 1 && fixture.driver.outstanding > 0) useOne(fixture, queue, direction)
          if (count % 3 === 1) expect(queue.enableNotification()).toBeFalse()
          if (count % 3 !== 1) useOne(fixture, queue, direction)
        }
      }
    },
  )

  test('calls the driver, unless the ring is new', () => {
    const fixture = newRing({ size: 4 })
    const said = fixture.queue.base
    expect(fixture.queue.resumed).toBeFalse()
    fill(fixture, fixture.memory.allocate(64), 1, false)
    useOne(fixture, fixture.queue, BUFFER_DIRECTION.readable)
    expect(fixture.successor(said).resumed).toBeTrue()
    expect(layout).toBeString()
  })
})

describe('split ring', () => {
  test.each([0, 1, 2, 7, 8, 9, 100, 32_768, 65_535])(
    'used.idx counts, however far behind or ahead the base is: %i',
    (away) => {
      for (const start of [0, 5, 65_530, 65_535]) {
        for (const waiting of [0, 1, 8]) {
          const fixture = splitFixture({ size: 8, start })
          for (let count = 0; count < waiting; count++)
            fixture.driver.add([{ address: fixture.memory.allocate(64), length: 64 }])
          fixture.driver.publish()
          for (const base of [(start + away) & 0xffff, (start - away) & 0xffff]) {
            const queue = fixture.newQueue(base)
            expect([queue.base, queue.nextAvail, queue.nextUsed]).toEqual([start, start, start])
            expect(queue.pending).toBe(waiting)
          }
        }
      }
    },
  )

  test('a used.idx from which the driver cannot have come is nobody’s: the base counts', () => {
    const fixture = splitFixture({ size: 8, start: 3 })
    fixture.driver.used.setUint16(2, 40_000, true)
    fixture.driver.add([{ address: fixture.memory.allocate(64), length: 64 }])
    fixture.driver.publish()
    const queue = fixture.newQueue(3)
    expect(queue.popInto(fixture.arena, BUFFER_DIRECTION.readable)).toBe(POP.chain)
    queue.stageUsed(0)
    queue.publishUsed()
    expect(fixture.driver.usedIdx).toBe(4)
  })

  test('where neither fits the ring is quarantined before anything of it is used', () => {
    const fixture = splitFixture({ size: 8, start: 3 })
    fixture.driver.used.setUint16(2, 40_000, true)
    const queue = fixture.newQueue(20_000)
    expect(() => queue.popInto(fixture.arena, BUFFER_DIRECTION.readable)).toThrow('AVAIL_OVERRUN')
  })
})

describe('packed ring', () => {
  test.each([false, true])(
    'a death between any two marks of what was sent loses nothing (note overwritten: %p)',
    (over) => {
      for (let marks = 0; marks <= 4; marks++) {
        const fixture = packedFixture({ size: 8 })
        const { driver, queue, arena, memory } = fixture
        const said = queue.base
        for (let count = 0; count < 13; count++) {
          driver.add([{ address: memory.start, length: 64 }])
          driver.publish()
          useOne(fixture, queue, BUFFER_DIRECTION.readable)
        }
        for (const buffers of [1, 2, 1, 2])
          driver.add(Array.from({ length: buffers }, () => ({ address: memory.start, length: 64 })))
        driver.publish()
        arena.clear()
        for (let count = 0; count < 4; count++) {
          expect(queue.popInto(arena, BUFFER_DIRECTION.readable)).toBe(POP.chain)
          queue.stageUsed(0)
        }
        const { store } = Atomics
        let left = marks
        const dies = spyOn(Atomics, 'store').mockImplementation(((array: Int32Array, index: number, value: number) => {
          if (left-- === 0) throw new Error('death')
          return store(array, index, value)
        }) as typeof store)
        try {
          if (marks < 4) expect(() => queue.publishUsed()).toThrow('death')
          else queue.publishUsed()
        } finally {
          dies.mockRestore()
        }
        // As QEMU does; with nothing marked since, what waits tells no end.
        if (over && marks > 0) driver.deviceEvent.setUint32(0, 0)
        const next = fixture.newQueue(said)
        let used = 0
        while (driver.reap() !== undefined) used++
        expect(used).toBe(marks)
        // The chain that was about to be marked may have a mark's length already: it was sent, and is dropped now.
        while (next.popInto(arena, BUFFER_DIRECTION.readable) !== POP.empty);
        while (next.inFlight > 0) next.stageUsed(0)
        next.publishUsed()
        while (driver.reap() !== undefined) used++
        expect(used).toBe(4)
        expect(driver.outstanding).toBe(0)
      }
    },
  )

  test('what another back-end has used is not taken up at a base that it refutes', () => {
    for (let used = 1; used <= 8; used++) {
      const fixture = packedFixture({ size: 8 })
      const said = fixture.driver.base
      for (let count = 0; count < used; count++) {
        fixture.driver.add([{ address: fixture.memory.allocate(64), length: 64, writable: true }])
        fixture.driver.publish()
        fixture.arena.clear()
        fixture.queue.popInto(fixture.arena, BUFFER_DIRECTION.writable)
        fixture.queue.stageUsed(64)
        fixture.queue.publishUsed()
        fixture.driver.reap()
      }
      const { base } = fixture.queue
      // Another one leaves no note. (It has written to the buffers, so that no length says more.)
      fixture.driver.deviceEvent.setUint32(0, 0, true)
      expect(() => fixture.newQueue(said)).toThrow(DriverFault)
      expect(() => fixture.newQueue(said)).toThrow('BASE_UNKNOWN')
      expect(fixture.newQueue(base).base).toBe(base)
    }
  })

  test.each([1, 2, 3])('transmits on though QEMU has written over the note, with chains of %i', (buffers) => {
    for (const size of [32, 64, 100]) {
      const fixture = packedFixture({ size, eventIdx: true })
      const address = fixture.memory.allocate(64)
      const said = fixture.driver.base
      let queue = fixture.queue
      let givenUp = 0
      for (let count = 0; count < 5 * size; count++) {
        const elements = Array.from({ length: buffers }, () => ({ address, length: 64 }))
        for (let chains = 1 + (count % 2); chains > 0; chains--) fixture.driver.add(elements)
        fixture.driver.publish()
        fixture.arena.clear()
        while (queue.popInto(fixture.arena, BUFFER_DIRECTION.readable) === POP.chain) queue.stageUsed(0)
        queue.publishUsed()
        while (fixture.driver.reap() !== undefined);
        // One more waits, and QEMU asks for a kick where it believes the ring to be.
        fixture.driver.add(elements)
        fixture.driver.publish()
        fixture.driver.deviceEvent.setUint16(0, said & 0xffff, true)
        fixture.driver.deviceEvent.setUint16(2, 2, true)
        const left = queue.base
        try {
          queue = fixture.newQueue(said)
        } catch (error) {
          expect(error).toMatchObject({ code: 'BASE_UNKNOWN' })
          givenUp++
          queue = fixture.newQueue(left)
        }
        expect(queue.base).toBe(left)
      }
      expect(givenUp).toBe(0)
    }
  })

  test('a queue that stops takes its note away, so that a ring which is set up anew is not taken up there', () => {
    const fixture = packedFixture({ size: 8 })
    fixture.queue.disableNotification()
    expect(fixture.driver.deviceEvent.getUint16(0, true)).not.toBe(0)
    fixture.queue[Symbol.dispose]()
    expect(fixture.driver.deviceEvent.getUint32(0, true)).toBe(1 << 16)
  })
})
