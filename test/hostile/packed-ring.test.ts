import { describe, expect, spyOn, test } from 'bun:test'
import {
  VRING_DESC_F_INDIRECT,
  VRING_DESC_F_NEXT,
  VRING_DESC_F_WRITE,
  VRING_PACKED_EVENT_FLAG_DESC,
  VRING_PACKED_EVENT_FLAG_DISABLE,
} from '../../src/abi/virtio-ring.ts'
import type { DriverFaultCode } from '../../src/base/driver-faults.ts'
import { DriverFault } from '../../src/base/errors.ts'
import { AddressSpace } from '../../src/memory/address-space.ts'
import { IovecArena } from '../../src/memory/iovec-arena.ts'
import type { RingView } from '../../src/memory/ring-view.ts'
import { ChainFifo } from '../../src/virtqueue/chain-fifo.ts'
import { CHAIN_OK, CHAIN_SEGMENTS_MAX } from '../../src/virtqueue/descriptor-chain.ts'
import { PackedQueue } from '../../src/virtqueue/packed.ts'
import { PackedBurst } from '../../src/virtqueue/packed-burst.ts'
import { PackedChainWalker } from '../../src/virtqueue/packed-chain.ts'
import { popBatch } from '../../src/virtqueue/pop-batch.ts'
import { BUFFER_DIRECTION, POP } from '../../src/virtqueue/virtqueue.ts'
import { TestMemory } from '../support/memory.ts'
import type { RawPackedDescriptor } from '../support/packed-driver.ts'
import { type PackedFixture, packedFixture } from '../support/packed-fixture.ts'
import { ringFeatures } from '../support/ring-features.ts'

const NEXT = VRING_DESC_F_NEXT
const WRITE = VRING_DESC_F_WRITE
const INDIRECT = VRING_DESC_F_INDIRECT
const AVAIL = 0x80
const USED = 0x8000
const TX = BUFFER_DIRECTION.readable
const RX = BUFFER_DIRECTION.writable

/** A descriptor's fields at a driver address. */
const at = (address: number, length: number, flags = 0, id = 0): RawPackedDescriptor => ({
  addressLow: address % 2 ** 32,
  addressHigh: Math.floor(address / 2 ** 32),
  length,
  flags,
  id,
})

const addGood = ({ driver, memory }: PackedFixture, buffers = 1, writable = false): number =>
  driver.add(Array.from({ length: buffers }, () => ({ address: memory.start, length: 64, writable })))

const rawFlags = ({ driver }: PackedFixture, slot: number): number => driver.ring.getUint16(16 * slot + 14, true)
const setRawFlags = ({ driver }: PackedFixture, slot: number, flags: number): void =>
  driver.ring.setUint16(16 * slot + 14, flags, true)

const reapAll = ({ driver }: PackedFixture): { id: number; length: number }[] => {
  const used = []
  for (let one = driver.reap(); one !== undefined; one = driver.reap()) used.push(one)
  return used
}

/** Pops all, uses it with `length`, publishes. */
const serve = ({ queue, arena }: PackedFixture, direction: 0 | 1 = TX, length = 0): void => {
  arena.clear()
  while (queue.popInto(arena, direction) !== POP.empty);
  while (queue.inFlight > 0) queue.stageUsed(length)
  queue.publishUsed()
}

/** Reaction Q: one fault, and from then on the ring is neither read nor written. */
const expectQuarantined = (fixture: PackedFixture, code: DriverFaultCode, batch = false): void => {
  const { driver, queue, arena, memory } = fixture
  let fault: unknown
  try {
    if (batch) popBatch(queue, arena, TX, queue.size + 1, Number.POSITIVE_INFINITY)
    else for (let pops = 0; pops <= queue.size; pops++) queue.popInto(arena, TX)
  } catch (error) {
    fault = error
  }
  expect(fault).toBeInstanceOf(DriverFault)
  expect((fault as DriverFault).code).toBe(code)
  expect(queue.quarantined).toBe(true)
  expect(arena.openIovecs).toBe(0)
  addGood(fixture)
  driver.publish()
  const before = Bun.hash(memory.bytes)
  expect(queue.popInto(arena, TX)).toBe(POP.empty)
  while (queue.inFlight > 0) queue.stageUsed(1)
  queue.publishUsed()
  queue.disableNotification()
  expect(queue.enableNotification()).toBe(false)
  expect(queue.needsCall()).toBe(false)
  expect(Bun.hash(memory.bytes)).toBe(before)
}

describe('42 AVAIL/USED bits inconsistent', () => {
  test.each([
    [0, 0],
    [0, AVAIL | USED],
    [0, USED],
    [8, 0],
    [8, AVAIL | USED],
    [8, AVAIL],
  ])('from entry %i on, flags %i: unavailable, and no spin', (start, flags) => {
    for (const eventIdx of [false, true]) {
      const fixture = packedFixture({ size: 8, start, eventIdx })
      const { driver, queue, arena, memory } = fixture
      driver.write([at(memory.start, 64)])
      driver.publish()
      setRawFlags(fixture, 0, flags)
      for (let looks = 0; looks < 100; looks++) {
        expect(queue.popInto(arena, TX)).toBe(POP.empty)
        expect(queue.enableNotification()).toBe(false)
      }
      expect(queue.pending).toBe(0)
      // Once it is made available properly it is taken.
      setRawFlags(fixture, 0, start === 0 ? AVAIL : USED)
      expect(queue.enableNotification()).toBe(true)
      expect(queue.popInto(arena, TX)).toBe(POP.chain)
    }
  })

  test('a chain that was given back and made unavailable meanwhile does not make the device spin', () => {
    const fixture = packedFixture({ size: 8 })
    const { driver, queue, arena } = fixture
    for (let count = 0; count < 3; count++) addGood(fixture)
    driver.publish()
    while (queue.popInto(arena, TX) !== POP.empty);
    queue.unpop(2)
    setRawFlags(fixture, 1, 0)
    expect(queue.popInto(arena, TX)).toBe(POP.empty)
    expect(queue.enableNotification()).toBe(false)
    setRawFlags(fixture, 1, AVAIL)
    expect(queue.enableNotification()).toBe(true)
  })
})

describe('43 a ring of NEXT only', () => {
  test.each([1, 2, 8, 1000])('of %i entries', (size) => {
    for (const batch of [false, true]) {
      const fixture = packedFixture({ size })
      const { driver, memory } = fixture
      driver.write(Array.from({ length: size }, () => at(memory.start, 1, NEXT)))
      driver.publish()
      expectQuarantined(fixture, 'TAIL_NOT_AVAILABLE', batch)
    }
  })

  test('whose wrap bits change under the device so that it never ends', () => {
    const fixture = packedFixture({ size: 8 })
    for (let slot = 0; slot < 8; slot++) setRawFlags(fixture, slot, NEXT | AVAIL)
    const { load } = Atomics
    let loads = 0
    const spy = spyOn(Atomics, 'load').mockImplementation(((array: Int32Array, index: number) => {
      const word = load(array, index)
      // Each entry is made available again for the next round as soon as it has been seen.
      array[index] = word ^ ((AVAIL | USED) << 16)
      if (++loads > 1000) throw new Error('endless')
      return word
    }) as typeof load)
    try {
      expect(() => fixture.queue.popInto(fixture.arena, TX)).toThrow('AVAIL_OVERRUN')
      expect(loads).toBe(9)
    } finally {
      spy.mockRestore()
    }
    expect(fixture.queue.quarantined).toBe(true)
  })

  test.each([false, true])('a chain into entries that the device still holds (batch: %p)', (batch) => {
    const fixture = packedFixture({ size: 8 })
    const { driver, queue, arena, memory } = fixture
    addGood(fixture, 3)
    driver.publish()
    expect(queue.popInto(arena, TX)).toBe(POP.chain)
    // The driver does not know that, or does not care.
    driver.write(Array.from({ length: 6 }, (_, index) => at(memory.start, 1, index < 5 ? NEXT : 0)))
    driver.publish()
    expectQuarantined(fixture, 'AVAIL_OVERRUN', batch)
  })

  test.each([false, true])('an entry that the device holds, made available again (batch: %p)', (batch) => {
    for (const used of [false, true]) {
      const fixture = packedFixture({ size: 4 })
      const { driver, queue, arena } = fixture
      for (let count = 0; count < 4; count++) addGood(fixture)
      driver.publish()
      for (let count = 0; count < 4; count++) expect(queue.popInto(arena, TX)).toBe(POP.chain)
      // Used is not given back as long as it is not published.
      if (used) queue.stageUsed(0)
      expect(queue.popInto(arena, TX)).toBe(POP.empty)
      driver.write([at(driver.memory.allocate(64), 64)])
      driver.publish()
      expectQuarantined(fixture, 'AVAIL_OVERRUN', batch)
    }
  })

  test('entries that were published are the driver’s again', () => {
    const fixture = packedFixture({ size: 4 })
    for (let round = 0; round < 10; round++) {
      const ids = Array.from({ length: 4 }, () => addGood(fixture))
      fixture.driver.publish()
      serve(fixture)
      expect(reapAll(fixture).map(({ id }) => id)).toEqual(ids)
    }
  })
})

describe('44 tail unpublished', () => {
  test.each([
    [0, 0],
    [0, AVAIL | USED],
    [0, USED],
    [6, 0],
    [14, AVAIL],
  ])('from entry %i on, flags %i of the second descriptor', (start, flags) => {
    for (const batch of [false, true]) {
      const fixture = packedFixture({ size: 8, start })
      const { driver, memory } = fixture
      driver.write([at(memory.start, 64, NEXT), at(memory.start, 64, NEXT), at(memory.start, 64)])
      driver.publish()
      setRawFlags(fixture, (start + 1) % 8, flags)
      expectQuarantined(fixture, 'TAIL_NOT_AVAILABLE', batch)
    }
  })

  test('of a chain that is malformed besides', () => {
    const fixture = packedFixture({ size: 8 })
    fixture.driver.write([at(0, 64, NEXT), at(0, 64)])
    fixture.driver.publish()
    setRawFlags(fixture, 1, 0)
    expectQuarantined(fixture, 'TAIL_NOT_AVAILABLE')
  })
})

describe('45 NEXT and INDIRECT', () => {
  const offer = (before: number, flags: number, after: number): PackedFixture => {
    const fixture = packedFixture({ size: 8 })
    const { driver, memory } = fixture
    const table = memory.allocate(16)
    driver.writeTable(table, [at(memory.start, 64)])
    driver.offerRaw([
      ...Array.from({ length: before }, () => at(memory.start, 1, NEXT)),
      at(table, 16, flags, 7),
      ...Array.from({ length: after }, (_, index) => at(memory.start, 1, index + 1 < after ? NEXT : 0, 7)),
    ])
    return fixture
  }

  test.each([
    ['on the same descriptor', 0, INDIRECT | NEXT, 1],
    ['on the same descriptor, in a longer chain', 1, INDIRECT | NEXT, 3],
    ['a table at the end of direct descriptors', 2, INDIRECT, 0],
  ])('%s: dropped, and the whole chain is skipped', (_, before, flags, after) => {
    const fixture = offer(before, flags, after)
    const { driver, queue, arena } = fixture
    expect(queue.popInto(arena, TX)).toBe(POP.dropped)
    queue.publishUsed()
    expect(driver.reap()).toEqual({ id: 7, length: 0 })
    expect(fixture.dropped()).toEqual({ indirect_malformed: 1 })
    const id = addGood(fixture)
    driver.publish()
    serve(fixture)
    expect(reapAll(fixture)).toEqual([{ id, length: 0 }])
  })
})

describe('46 an indirect table', () => {
  test('flags other than WRITE and ids inside it are ignored', () => {
    for (const flags of [NEXT, INDIRECT, NEXT | INDIRECT, AVAIL, USED, 0xffff & ~WRITE]) {
      const fixture = packedFixture()
      const { driver, queue, arena, memory } = fixture
      const table = memory.allocate(48)
      driver.writeTable(table, [
        at(memory.start, 10, flags, 0xffff),
        at(memory.start + 10, 20, flags, 3),
        at(memory.start + 30, 30, flags, 0xffff),
      ])
      driver.offerRaw([at(table, 48, INDIRECT, 9)])
      expect(queue.popInto(arena, TX)).toBe(POP.chain)
      expect(fixture.chains()).toEqual([
        [
          { offset: 0, length: 10 },
          { offset: 10, length: 20 },
          { offset: 30, length: 30 },
        ],
      ])
      queue.stageUsed(0)
      queue.publishUsed()
      expect(driver.reap()).toEqual({ id: 9, length: 0 })
    }
  })

  test('WRITE inside it is not', () => {
    const fixture = packedFixture()
    const { driver, memory } = fixture
    const table = memory.allocate(16)
    driver.writeTable(table, [at(memory.start, 10, WRITE)])
    driver.offerRaw([at(table, 16, INDIRECT)])
    expect(fixture.queue.popInto(fixture.arena, TX)).toBe(POP.dropped)
    fixture.queue.publishUsed()
    expect(fixture.dropped()).toEqual({ chain_wrong_direction: 1 })
  })
})

test('47 arbitrary and duplicate ids are echoed', () => {
  const fixture = packedFixture({ size: 8 })
  const { driver, queue, arena, memory } = fixture
  const ids = [0xffff, 0, 0xffff, 8, 0x8000, 0xffff, 12_345, 0]
  for (const id of ids) driver.write([at(memory.start, 64, WRITE, id)])
  driver.publish()
  for (const _ of ids) expect(queue.popInto(arena, RX)).toBe(POP.chain)
  for (const [index] of ids.entries()) queue.stageUsed(100 + index)
  queue.publishUsed()
  const used = ids.map((_, slot) => [
    driver.ring.getUint16(16 * slot + 12, true),
    driver.ring.getUint32(16 * slot + 8, true),
  ])
  expect(used).toEqual(ids.map((id, index) => [id, 100 + index]))
})

describe('48 the driver’s event suppression', () => {
  const callsFor = (eventIdx: boolean, flags: number, offWrap: number): boolean => {
    const fixture = packedFixture({ size: 8, eventIdx })
    addGood(fixture)
    fixture.driver.publish()
    fixture.driver.setEvent(flags, offWrap)
    serve(fixture)
    return fixture.queue.needsCall()
  }

  test('reserved flags: a call', () => {
    for (const eventIdx of [false, true]) {
      for (const offWrap of [0, 3, 0x8003, 0xffff]) expect(callsFor(eventIdx, 3, offWrap)).toBe(true)
    }
  })

  test('an entry beyond the ring: a call', () => {
    for (const offWrap of [8, 9, 0x7fff, 0x8008, 0xffff])
      expect(callsFor(true, VRING_PACKED_EVENT_FLAG_DESC, offWrap)).toBe(true)
  })

  test('DESC without EVENT_IDX: a call', () => {
    for (const offWrap of [0, 3, 0x8003]) expect(callsFor(false, VRING_PACKED_EVENT_FLAG_DESC, offWrap)).toBe(true)
  })

  test('bits of flags that nobody has defined are ignored', () => {
    expect(callsFor(true, 0xfffc | VRING_PACKED_EVENT_FLAG_DISABLE, 0)).toBe(false)
    expect(callsFor(true, 0xfffc | VRING_PACKED_EVENT_FLAG_DESC, 0x8003)).toBe(false)
    expect(callsFor(true, 0xfffc | VRING_PACKED_EVENT_FLAG_DESC, 0x8000)).toBe(true)
  })
})

test.each([1, 3, 5, 6, 7, 100, 999, 12_345])('49 size %i, a power of two or not', (size) => {
  const fixture = packedFixture({ size, eventIdx: true, start: size })
  for (let round = 0; round < 5; round++) {
    const ids: number[] = []
    for (let id = addGood(fixture, 1); id >= 0; id = addGood(fixture, 1)) ids.push(id)
    expect(ids).toHaveLength(size)
    fixture.driver.publish()
    const { queue, driver } = fixture
    const arena = new IovecArena(size, size)
    while (queue.popInto(arena, TX) !== POP.empty);
    expect(queue.inFlight).toBe(size)
    driver.enableCalls()
    while (queue.inFlight > 0) queue.stageUsed(0)
    queue.publishUsed()
    expect(queue.needsCall()).toBe(true)
    expect(reapAll(fixture).map(({ id }) => id)).toEqual(ids)
  }
})

describe('50 the driver writes where it must not', () => {
  test('over descriptors of chains in flight: ids, lengths and counts are the device’s own', () => {
    const fixture = packedFixture({ size: 8 })
    const { driver, queue, arena } = fixture
    const ids = [addGood(fixture, 2), addGood(fixture, 3), addGood(fixture, 1)]
    driver.publish()
    while (queue.popInto(arena, TX) !== POP.empty);
    for (let slot = 0; slot < 6; slot++) {
      driver.ring.setUint16(16 * slot + 12, 0x4242, true)
      setRawFlags(fixture, slot, [0, NEXT | AVAIL, AVAIL | USED, 0xffff][slot % 4]!)
    }
    for (let chain = 0; chain < 3; chain++) queue.stageUsed(0)
    queue.publishUsed()
    // Entry 1 and those behind the second chain's first one are skipped, whatever they say.
    expect([0, 2, 5].map((slot) => driver.ring.getUint16(16 * slot + 12, true))).toEqual(ids)
    expect([0, 2, 5].map((slot) => rawFlags(fixture, slot))).toEqual([AVAIL | USED, AVAIL | USED, AVAIL | USED])
    expect(queue.base).toBe(0x8006_8006)
  })

  test('over a used descriptor: the device does not look at it again', () => {
    const fixture = packedFixture({ size: 4 })
    const { driver, queue, arena } = fixture
    addGood(fixture)
    driver.publish()
    serve(fixture)
    for (const flags of [0, AVAIL, USED, 0xffff]) {
      setRawFlags(fixture, 0, flags)
      driver.ring.setUint16(12, 0x9999, true)
      expect(queue.popInto(arena, TX)).toBe(POP.empty)
      queue.publishUsed()
      expect(rawFlags(fixture, 0)).toBe(flags)
      expect(queue.base).toBe(0x8001_8001)
    }
  })

  test('31 a buffer aliases the ring and its event suppression structures', () => {
    const fixture = packedFixture({ size: 8 })
    const { driver, queue, arena, memory } = fixture
    const targets = [driver.descAddr, driver.descAddr + 16, driver.usedAddr]
    const ids = targets.map((address) => driver.add([{ address, length: 32, writable: true }]))
    driver.publish()
    for (const _ of ids) expect(queue.popInto(arena, RX)).toBe(POP.chain)
    // The device writes its packets where it was told to.
    for (const address of targets) {
      memory.bytes.fill(0xaa, address - memory.start, address - memory.start + 32)
    }
    for (const _ of ids) queue.stageUsed(32)
    queue.publishUsed()
    expect(reapAll(fixture)).toEqual(ids.map((id) => ({ id, length: 32 })))
    expect(queue.popInto(arena, RX)).toBe(POP.empty)
  })

  test('over the device’s event suppression structure: it is never read', () => {
    const fixture = packedFixture({ eventIdx: true })
    const { driver, queue } = fixture
    driver.deviceEvent.setUint32(0, 0xffff_ffff, true)
    expect(queue.enableNotification()).toBe(false)
    addGood(fixture)
    driver.publish()
    expect(driver.needsKick()).toBe(true)
  })
})

test('51 base index beyond the ring', () => {
  const { newQueue } = packedFixture({ size: 5 })
  for (const base of [5, 0x8005, 0x7fff, 0xffff]) {
    expect(() => newQueue(base)).toThrow(DriverFault)
    expect(() => newQueue(base)).toThrow('BASE_OUT_OF_RANGE')
  }
  expect(packedFixture({ size: 5, start: 4 }).newQueue(0x8004).base).toBe(0x8004_8004)
})

describe('29 a descriptor changed between reads', () => {
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
   * Lets `pop` take a chain of two buffers from a ring that changes whatever has been loaded: all of it may be loaded
   * once.
   */
  const expectLoadedOnce = (pop: (space: AddressSpace, ring: RingView, arena: IovecArena) => void): void => {
    const memory = new TestMemory(4096)
    const space = new AddressSpace()
    space.add(memory.region())
    const arena = new IovecArena(4, CHAIN_SEGMENTS_MAX)
    const loads: number[] = []
    const words = new Uint32Array([memory.start, 0, 100, 0, memory.start, 0, 50, 0])
    const signed = new Int32Array(8)
    signed[3] = (NEXT | AVAIL) << 16
    signed[7] = (AVAIL << 16) | 0x77
    const { load } = Atomics
    const spy = spyOn(Atomics, 'load').mockImplementation(((array: Int32Array, index: number) => {
      loads[index] = (loads[index] ?? 0) + 1
      const word = load(array, index)
      array[index] = 0x7ead_beef
      return word
    }) as typeof load)
    try {
      pop(space, { u32: treacherous(words, loads), i32: signed } as unknown as RingView, arena)
    } finally {
      spy.mockRestore()
    }
    expect(loads).toEqual([1, 1, 1, 1, 1, 1, 1, 1])
    expect([...arena.iovecs.subarray(0, 8)].filter((_, index) => index % 4 === 2)).toEqual([100, 50])
  }

  test('each word is loaded once, id and flags together', () => {
    expectLoadedOnce((space, ring, arena) => {
      const walker = new PackedChainWalker(space, ring, 2, true)
      expect(walker.walk(0, 2, TX, arena)).toBe(CHAIN_OK)
      expect([walker.id, walker.descriptors]).toEqual([0x77, 2])
    })
  })

  test('in a burst each word is loaded once too', () => {
    expectLoadedOnce((space, ring, arena) => {
      const held = new ChainFifo(2, 0, new Uint32Array(64))
      expect(new PackedBurst(space, true, ring, 2, held).take(0, 2, arena, TX, 9, 1e9)).toBe(1)
      expect([held.ids[0], held.inFlight]).toEqual([0x77, 1])
    })
  })

  test('each word of an indirect table is loaded once', () => {
    const memory = new TestMemory(4096)
    const space = new AddressSpace()
    space.add(memory.region())
    const arena = new IovecArena(4, CHAIN_SEGMENTS_MAX)
    const loads: number[] = []
    const window = space.tableWindow(memory.start)!
    window.words.set([memory.start + 512, 0, 100, 0, memory.start + 512, 0, 50, 0])
    const words = treacherous(window.words, loads)
    space.tableWindow = () => ({ start: window.start, end: window.end, words }) as typeof window
    const direct = new Uint32Array([memory.start, 0, 32, (INDIRECT | AVAIL) << 16])
    const ring = { u32: direct, i32: new Int32Array(direct.buffer) } as unknown as RingView
    expect(new PackedChainWalker(space, ring, 1, true).walk(0, 1, TX, arena)).toBe(CHAIN_OK)
    expect(loads).toEqual([1, 1, 1, 1, 1, 1, 1, 1])
  })
})

test('41 ring addresses overlap', () => {
  const memory = new TestMemory(1 << 16)
  for (const [descAddr, availAddr, usedAddr] of [
    [0, 0, 0],
    [0, 12, 28],
    [0, 64, 12],
  ]) {
    const space = new AddressSpace()
    space.add(memory.region())
    memory.bytes.fill(0)
    const queue = new PackedQueue(space, {
      size: 7,
      descAddr: memory.start + descAddr!,
      availAddr: memory.start + availAddr!,
      usedAddr: memory.start + usedAddr!,
      base: 0x8000,
      features: ringFeatures({ indirect: true, eventIdx: true, packed: true }),
      drops: new Uint32Array(64),
    })
    const arena = new IovecArena(16, CHAIN_SEGMENTS_MAX)
    let faulted = false
    for (let round = 0; round < 200 && !faulted; round++) {
      for (let index = 0; index < 256; index++) memory.bytes[index] = (index * 31 + round * 17) & 0xff
      try {
        arena.clear()
        while (queue.popInto(arena, TX) !== POP.empty);
        while (queue.inFlight > 0) queue.stageUsed(0)
        queue.publishUsed()
        queue.needsCall()
        queue.enableNotification()
      } catch (error) {
        expect(error).toBeInstanceOf(DriverFault)
        faulted = true
      }
    }
    expect(queue.quarantined).toBe(faulted)
    queue[Symbol.dispose]()
    space.clear()
    expect(memory.buffers.every((buffer) => buffer.detached)).toBe(true)
  }
})
