import { describe, expect, test } from 'bun:test'
import type { DropReason } from '../../src/abi/drop-reason.ts'
import { VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT } from '../../src/abi/virtio-ring.ts'
import type { DriverFaultCode } from '../../src/base/driver-faults.ts'
import { DriverFault } from '../../src/base/errors.ts'
import { AddressSpace } from '../../src/memory/address-space.ts'
import { IovecArena } from '../../src/memory/iovec-arena.ts'
import { ChainFifo } from '../../src/virtqueue/chain-fifo.ts'
import { CHAIN_OK, CHAIN_SEGMENTS_MAX } from '../../src/virtqueue/descriptor-chain.ts'
import { SplitQueue } from '../../src/virtqueue/split.ts'
import { SplitBurst } from '../../src/virtqueue/split-burst.ts'
import { SplitChainWalker } from '../../src/virtqueue/split-chain.ts'
import { BUFFER_DIRECTION, type BufferDirection, POP } from '../../src/virtqueue/virtqueue.ts'
import type { RawDescriptor } from '../support/driver-model.ts'
import { TestMemory } from '../support/memory.ts'
import { ringFeatures } from '../support/ring-features.ts'
import { type Fixture, type FixtureOptions, splitFixture } from '../support/split-fixture.ts'

const NEXT = VRING_DESC_F_NEXT
const INDIRECT = VRING_DESC_F_INDIRECT
const TX = BUFFER_DIRECTION.readable
const RX = BUFFER_DIRECTION.writable

/** A descriptor's fields at a driver address. */
const at = (address: number, length: number, flags = 0, next = 0): RawDescriptor => ({
  addressLow: address % 2 ** 32,
  addressHigh: Math.floor(address / 2 ** 32),
  length,
  flags,
  next,
})

/** A good chain still passes: what came before did no lasting harm. */
const expectRingGoesOn = (fixture: Fixture, direction: BufferDirection): void => {
  const { driver, queue, arena, memory } = fixture
  arena.clear()
  const address = memory.allocate(64)
  const id = driver.add([{ address, length: 64, writable: direction === RX }])
  expect(id).toBeGreaterThanOrEqual(0)
  driver.publish()
  expect(queue.popInto(arena, direction)).toBe(POP.chain)
  expect(fixture.chains()).toEqual([[{ offset: address - memory.start, length: 64 }]])
  queue.stageUsed(7)
  queue.publishUsed()
  expect(driver.reap()).toEqual({ id, length: 7 })
}

/** Reaction D: the chain at head 0 goes back with length 0, counted by reason, and the ring goes on. */
const expectDropped = (fixture: Fixture, reason: DropReason, direction: BufferDirection = TX): void => {
  const { driver, queue, arena } = fixture
  expect(queue.popInto(arena, direction)).toBe(POP.dropped)
  expect(arena.chainCount).toBe(0)
  expect(arena.openIovecs).toBe(0)
  queue.publishUsed()
  expect(driver.reap()).toEqual({ id: 0, length: 0 })
  expect(driver.reap()).toBeUndefined()
  expect(fixture.dropped()).toEqual({ [reason]: 1 })
  expect(queue.popInto(arena, direction)).toBe(POP.empty)
}

/** Offers a chain of raw descriptors to a fresh queue: it must be dropped for `reason`. */
const expectRawDropped = (
  reason: DropReason,
  descriptors: (fixture: Fixture) => RawDescriptor[],
  options: FixtureOptions = {},
  direction: BufferDirection = TX,
): void => {
  const fixture = splitFixture(options)
  fixture.driver.offerRaw(descriptors(fixture))
  expectDropped(fixture, reason, direction)
}

/** Offers an indirect table: it must be dropped for `reason`. */
const expectTableDropped = (reason: DropReason, table: (buffer: number) => RawDescriptor[]): void => {
  expectRawDropped(reason, ({ driver, memory }) => {
    const descriptors = table(memory.allocate(4096))
    const address = memory.allocate(16 * descriptors.length)
    driver.writeTable(address, descriptors)
    return [at(address, 16 * descriptors.length, INDIRECT)]
  })
}

/** Reaction Q: one fault, and from then on the ring is neither read nor written. */
const expectQuarantined = (fixture: Fixture, code: DriverFaultCode): void => {
  const { driver, queue, arena, memory } = fixture
  let fault: unknown
  try {
    for (let pops = 0; pops <= queue.size; pops++) queue.popInto(arena, TX)
  } catch (error) {
    fault = error
  }
  expect(fault).toBeInstanceOf(DriverFault)
  expect((fault as DriverFault).code).toBe(code)
  expect(queue.quarantined).toBe(true)
  const before = Bun.hash(memory.bytes)
  expect(queue.popInto(arena, TX)).toBe(POP.empty)
  while (queue.inFlight > 0) queue.stageUsed(1)
  queue.publishUsed()
  queue.disableNotification()
  expect(queue.enableNotification()).toBe(false)
  expect(queue.needsCall()).toBe(false)
  expect(Bun.hash(memory.bytes)).toBe(before)
  driver.availIdx = queue.nextAvail + 1
  expect(queue.popInto(arena, TX)).toBe(POP.empty)
}

const addGood = ({ driver, memory }: Fixture, writable = false): number =>
  driver.add([{ address: memory.allocate(64), length: 64, writable }])

describe('ring indices', () => {
  test('1 avail.idx jumps more than num', () => {
    const exact = splitFixture({ size: 8 })
    for (let count = 0; count < 8; count++) addGood(exact)
    exact.driver.publish()
    for (let count = 0; count < 8; count++) expect(exact.queue.popInto(exact.arena, TX)).toBe(POP.chain)

    const fixture = splitFixture({ size: 8 })
    fixture.driver.availIdx = 9
    expectQuarantined(fixture, 'AVAIL_OVERRUN')
  })

  test('1 avail.idx jumps more than num, counting what the device still holds', () => {
    const fixture = splitFixture({ size: 8 })
    for (let count = 0; count < 3; count++) addGood(fixture)
    fixture.driver.publish()
    for (let count = 0; count < 3; count++) fixture.queue.popInto(fixture.arena, TX)
    // Staged is not given back as long as it is not published.
    fixture.queue.stageUsed(0)
    fixture.driver.availIdx = 3 + 6
    expectQuarantined(fixture, 'AVAIL_OVERRUN')
  })

  test.each([0, 65_534])('2 avail.idx goes back (from start %i)', (start) => {
    const fixture = splitFixture({ size: 8, start })
    for (let count = 0; count < 3; count++) addGood(fixture)
    fixture.driver.publish()
    for (let count = 0; count < 3; count++) fixture.queue.popInto(fixture.arena, TX)
    fixture.driver.availIdx = start + 2
    expectQuarantined(fixture, 'AVAIL_OVERRUN')
  })

  test.each([8, 9, 0xffff])('3 head %i of a ring of 8', (head) => {
    const fixture = splitFixture({ size: 8 })
    fixture.driver.exposeHead(head)
    fixture.driver.publish()
    expectQuarantined(fixture, 'HEAD_OUT_OF_RANGE')
  })

  test('4 head already in flight', () => {
    const fixture = splitFixture()
    const head = addGood(fixture)
    fixture.driver.exposeHead(head)
    fixture.driver.publish()
    expectQuarantined(fixture, 'HEAD_IN_FLIGHT')
  })

  test('4 head of a malformed chain that waits for an older one', () => {
    const fixture = splitFixture()
    addGood(fixture)
    fixture.driver.setDescriptor(5, at(0, 0))
    fixture.driver.exposeHead(5)
    fixture.driver.exposeHead(5)
    fixture.driver.publish()
    expectQuarantined(fixture, 'HEAD_IN_FLIGHT')
  })

  test('4 a head comes again after it was used: fine once the driver could see that', () => {
    for (const published of [false, true]) {
      const fixture = splitFixture()
      const { queue, arena } = fixture
      const head = addGood(fixture)
      fixture.driver.exposeHead(head)
      fixture.driver.publish()
      expect(queue.popInto(arena, TX)).toBe(POP.chain)
      queue.stageUsed(0)
      if (published) {
        queue.publishUsed()
        expect(queue.popInto(arena, TX)).toBe(POP.chain)
      } else {
        expectQuarantined(fixture, 'HEAD_IN_FLIGHT')
      }
    }
  })
})

describe('direct chains', () => {
  test.each([8, 0xffff])('5 next %i of a ring of 8', (next) => {
    expectRawDropped('chain_next_out_of_range', ({ memory }) => [at(memory.start, 64, NEXT, next)], { size: 8 })
  })

  test('6 loop', () => {
    expectRawDropped('chain_loop', ({ memory }) => [at(memory.start, 64, NEXT, 0)])
    expectRawDropped('chain_loop', ({ memory }) => [at(memory.start, 64, NEXT, 1), at(memory.start, 64, NEXT, 0)])
    expectRawDropped('chain_loop', () => [at(0, 0, NEXT, 1), at(0, 0, NEXT, 1)])
  })

  test('6 a chain of num descriptors is no loop', () => {
    const fixture = splitFixture({ size: 8 })
    const address = fixture.memory.allocate(8)
    fixture.driver.add(Array.from({ length: 8 }, (_, index) => ({ address: address + index, length: 1 })))
    fixture.driver.publish()
    expect(fixture.queue.popInto(fixture.arena, TX)).toBe(POP.chain)
    expect(fixture.chains()[0]).toHaveLength(8)
  })
})

describe('indirect tables', () => {
  test('17 nested indirect', () => {
    expectTableDropped('indirect_malformed', (buffer) => [at(buffer, 64, NEXT, 1), at(buffer, 16, INDIRECT)])
  })

  test('22 next inside a table out of range', () => {
    expectTableDropped('chain_next_out_of_range', (buffer) => [at(buffer, 64, NEXT, 2), at(buffer, 64)])
    expectTableDropped('chain_next_out_of_range', (buffer) => [at(buffer, 64, NEXT, 0xffff)])
  })

  test('22 loop inside a table', () => {
    expectTableDropped('chain_loop', (buffer) => [at(buffer, 64, NEXT, 0)])
    expectTableDropped('chain_loop', (buffer) => [at(buffer, 64, NEXT, 1), at(buffer, 64, NEXT, 0)])
  })

  test('24 direct descriptors, then indirect', () => {
    for (const indirectFrom of [0, 1, 2]) {
      const fixture = splitFixture()
      const { driver, memory } = fixture
      const address = memory.allocate(600)
      const elements = [10, 20, 30].map((length, index) => ({ address: address + 100 * index, length }))
      driver.add(elements, { indirectFrom })
      driver.publish()
      expect(fixture.queue.popInto(fixture.arena, TX)).toBe(POP.chain)
      expect(fixture.chains()[0]!.map(({ length }) => length)).toEqual([10, 20, 30])
    }
  })
})

describe('memory that changes', () => {
  /** `words`, counting how often each was loaded, and turning into garbage at the first load. */
  const treacherous = (words: Uint32Array, loads: number[]): Uint32Array =>
    new Proxy(words, {
      get: (target, property) => {
        const index = typeof property === 'string' ? Number(property) : Number.NaN
        if (!Number.isInteger(index)) return Reflect.get(target, property, target)
        loads[index] = (loads[index] ?? 0) + 1
        const value = target[index]
        target[index] = 0xdead_beef
        return value
      },
    })

  /**
   * Lets `pop` take a chain of two buffers from a table that changes whatever has been loaded: all of it may be loaded
   * once.
   */
  const expectLoadedOnce = (pop: (space: AddressSpace, table: Uint32Array, arena: IovecArena) => void): void => {
    const memory = new TestMemory(4096)
    const space = new AddressSpace()
    space.add(memory.region())
    const arena = new IovecArena(4, CHAIN_SEGMENTS_MAX)
    const loads: number[] = []
    const table = new Uint32Array([memory.start, 0, 100, NEXT | (1 << 16), memory.start, 0, 50, 0])
    pop(space, treacherous(table, loads), arena)
    expect(loads).toEqual([1, 1, 1, 1, 1, 1, 1, 1])
    expect([...arena.iovecs.subarray(0, 8)].filter((_, index) => index % 4 === 2)).toEqual([100, 50])
  }

  test('29 descriptor changed between reads: each word is loaded once', () => {
    expectLoadedOnce((space, table, arena) => {
      expect(new SplitChainWalker(space, true).walk(table, 2, 0, TX, arena)).toBe(CHAIN_OK)
    })
  })

  test('29 descriptor changed between reads: in a burst each word is loaded once too', () => {
    expectLoadedOnce((space, table, arena) => {
      const held = new ChainFifo(2, 0, new Uint32Array(64))
      const burst = new SplitBurst(space, true, table, new Uint16Array(2), held, new Uint8Array(2))
      expect(burst.take(1, arena, TX, 9, 1e9)).toBe(1)
    })
  })

  test('29 descriptor of an indirect table changed between reads: each word is loaded once', () => {
    const memory = new TestMemory(4096)
    const space = new AddressSpace()
    space.add(memory.region())
    const arena = new IovecArena(4, CHAIN_SEGMENTS_MAX)
    const loads: number[] = []
    const window = space.tableWindow(memory.start)!
    window.words.set([memory.start + 512, 0, 100, NEXT | (1 << 16), memory.start + 512, 0, 50, 0])
    const words = treacherous(window.words, loads)
    space.tableWindow = () => ({ start: window.start, end: window.end, words }) as typeof window
    const direct = new Uint32Array([memory.start, 0, 32, INDIRECT])
    expect(new SplitChainWalker(space, true).walk(direct, 1, 0, TX, arena)).toBe(CHAIN_OK)
    expect(loads).toEqual([1, 1, 1, 1, 1, 1, 1, 1])
  })

  test('31 a buffer aliases the rings', () => {
    const fixture = splitFixture()
    const { driver, queue, arena, memory } = fixture
    const heads = [driver.usedAddr, driver.availAddr, driver.descAddr].map((address) =>
      driver.add([{ address, length: 32, writable: true }]),
    )
    driver.publish()
    for (const _ of heads) expect(queue.popInto(arena, RX)).toBe(POP.chain)
    // The device writes its packets where it was told to: over the rings.
    for (const address of [driver.usedAddr, driver.availAddr, driver.descAddr]) {
      memory.bytes.fill(0xaa, address - memory.start, address - memory.start + 32)
    }
    for (const _ of heads) queue.stageUsed(32)
    queue.publishUsed()
    expect(driver.usedIdx).toBe(3)
    expect(heads.map(() => driver.reap())).toEqual(heads.map((id) => ({ id, length: 32 })))
    expect(() => queue.popInto(arena, RX)).toThrow('AVAIL_OVERRUN')
  })

  test('32 the driver edits used.idx', () => {
    const fixture = splitFixture()
    addGood(fixture)
    addGood(fixture)
    fixture.driver.publish()
    fixture.queue.popInto(fixture.arena, TX)
    fixture.queue.popInto(fixture.arena, TX)
    fixture.driver.used.setUint16(2, 0x1234, true)
    fixture.queue.stageUsed(0)
    fixture.queue.publishUsed()
    expect(fixture.driver.usedIdx).toBe(1)
    fixture.driver.used.setUint16(2, 0xffff, true)
    fixture.queue.stageUsed(0)
    fixture.queue.publishUsed()
    expect(fixture.driver.usedIdx).toBe(2)
  })

  test('32 the driver edits an avail slot of a chain in flight', () => {
    const fixture = splitFixture()
    const head = addGood(fixture)
    fixture.driver.publish()
    fixture.queue.popInto(fixture.arena, TX)
    fixture.driver.avail.setUint16(4, 0xffff, true)
    fixture.queue.stageUsed(0)
    fixture.queue.publishUsed()
    expect(fixture.driver.reap()).toEqual({ id: head, length: 0 })
  })

  test('33 garbage used_event: a call too many or too few, and nothing else', () => {
    for (const garbage of [0, 1, 0x7fff, 0x8000, 0xffff]) {
      const fixture = splitFixture({ eventIdx: true })
      fixture.driver.usedEvent = garbage
      const head = addGood(fixture)
      fixture.driver.publish()
      fixture.queue.popInto(fixture.arena, TX)
      fixture.queue.stageUsed(0)
      fixture.queue.publishUsed()
      expect(fixture.queue.needsCall()).toBe(garbage === 0)
      expect(fixture.driver.reap()).toEqual({ id: head, length: 0 })
      expectRingGoesOn(fixture, TX)
    }
  })
})

test('a malformed chain does no lasting harm', () => {
  const fixture = splitFixture({ size: 8 })
  fixture.driver.setDescriptor(7, at(0, 64))
  fixture.driver.exposeHead(7)
  fixture.driver.publish()
  expect(fixture.queue.popInto(fixture.arena, TX)).toBe(POP.dropped)
  fixture.queue.publishUsed()
  expect(fixture.driver.usedIdx).toBe(1)
  expect(fixture.driver.used.getUint32(4, true)).toBe(7)
  fixture.driver.skipUsed()
  expectRingGoesOn(fixture, TX)
})

test('41 ring addresses overlap', () => {
  const memory = new TestMemory(1 << 16)
  for (const [descAddr, availAddr, usedAddr] of [
    [0, 0, 0],
    [0, 64, 64],
    [64, 0, 32],
  ]) {
    const space = new AddressSpace()
    space.add(memory.region())
    const queue = new SplitQueue(space, {
      size: 8,
      descAddr: memory.start + descAddr!,
      availAddr: memory.start + availAddr!,
      usedAddr: memory.start + usedAddr!,
      base: 0,
      features: ringFeatures({ indirect: true, eventIdx: true }),
      drops: new Uint32Array(64),
    })
    const arena = new IovecArena(16, CHAIN_SEGMENTS_MAX)
    let faulted = false
    for (let round = 0; round < 200; round++) {
      for (let index = 0; index < 256; index++) memory.bytes[index] = (index * 31 + round * 17) & 0xff
      memory.dataView(memory.start + availAddr!, 4).setUint16(2, queue.nextAvail + 1, true)
      try {
        arena.clear()
        while (queue.popInto(arena, TX) !== POP.empty);
        while (queue.inFlight > 0) queue.stageUsed(0)
        queue.publishUsed()
        queue.enableNotification()
      } catch (error) {
        expect(error).toBeInstanceOf(DriverFault)
        faulted = true
        break
      }
    }
    expect(queue.quarantined).toBe(faulted)
    queue[Symbol.dispose]()
    space.clear()
    expect(memory.buffers.every((buffer) => buffer.detached)).toBe(true)
  }
})
