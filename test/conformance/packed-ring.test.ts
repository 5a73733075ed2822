import { describe, expect, spyOn, test } from 'bun:test'
import {
  VRING_DESC_F_INDIRECT,
  VRING_DESC_F_NEXT,
  VRING_DESC_F_WRITE,
  VRING_PACKED_EVENT_FLAG_DESC,
  VRING_PACKED_EVENT_FLAG_DISABLE,
  VRING_PACKED_EVENT_FLAG_ENABLE,
} from '../../src/abi/virtio-ring.ts'
import { IovecArena } from '../../src/memory/iovec-arena.ts'
import { BUFFER_DIRECTION, POP } from '../../src/virtqueue/virtqueue.ts'
import { RingPlace } from '../support/packed-driver.ts'
import { type PackedFixture, packedFixture } from '../support/packed-fixture.ts'
import { Random } from '../support/random.ts'

const NEXT = VRING_DESC_F_NEXT
const WRITE = VRING_DESC_F_WRITE
const AVAIL = 0x80
const USED = 0x8000
const TX = BUFFER_DIRECTION.readable
const RX = BUFFER_DIRECTION.writable

const add = ({ driver, memory }: PackedFixture, buffers = 1, writable = false): number =>
  driver.add(Array.from({ length: buffers }, () => ({ address: memory.start, length: 64, writable })))

/** Pops everything, uses it with `length`, publishes. */
const serve = ({ queue, arena }: PackedFixture, direction: 0 | 1 = TX, length = 0): void => {
  arena.clear()
  while (queue.popInto(arena, direction) !== POP.empty);
  while (queue.inFlight > 0) queue.stageUsed(length)
  queue.publishUsed()
}

const entry = ({ driver }: PackedFixture, slot: number): { length: number; id: number; flags: number } => ({
  length: driver.ring.getUint32(16 * slot + 8, true),
  id: driver.ring.getUint16(16 * slot + 12, true),
  flags: driver.ring.getUint16(16 * slot + 14, true),
})

const ringBytes = ({ driver, memory }: PackedFixture): Uint8Array =>
  memory.bytes.slice(driver.descAddr - memory.start, driver.descAddr - memory.start + 16 * driver.size)

test('conformance 14 only id, length and flags of entries where a chain began are written, and no table', () => {
  const fixture = packedFixture({ size: 8, eventIdx: true })
  const { driver, memory, queue } = fixture
  const table = memory.allocate(48)
  for (let round = 0; round < 20; round++) {
    const begin = driver.next.slot
    add(fixture, 3)
    driver.add([{ address: 0, length: 1 }])
    const elements = [10, 20, 30].map((length) => ({ address: memory.start, length }))
    driver.add(elements, { indirectFrom: 0, tableAddress: table })
    driver.publish()
    const before = ringBytes(fixture)
    const others = (): unknown => [
      memory.bytes.slice(table - memory.start, table - memory.start + 48),
      memory.bytes.slice(driver.availAddr - memory.start, driver.availAddr - memory.start + 4),
    ]
    const otherBytes = others()
    queue.disableNotification()
    serve(fixture)
    queue.enableNotification()
    queue.needsCall()
    const after = ringBytes(fixture)
    const began = [0, 3, 4].map((offset) => (begin + offset) % 8)
    for (let slot = 0; slot < 8; slot++) {
      const writable = began.includes(slot) ? 8 : 16
      const same = (bytes: Uint8Array): Uint8Array => bytes.slice(16 * slot, 16 * slot + writable)
      expect(same(after)).toEqual(same(before))
    }
    expect(others()).toEqual(otherBytes)
    while (driver.reap() !== undefined);
  }
})

describe('conformance 23 chains start where the ring order says', () => {
  test.each([0, 1, 4, 5, 9])('a device that starts after %i entries takes that one, and no other', (start) => {
    const fixture = packedFixture({ size: 5, start })
    const { driver, queue, arena } = fixture
    const elsewhere = packedFixture({ size: 5, start: (start + 1) % 10 })
    add(elsewhere)
    elsewhere.driver.publish()
    // An available descriptor one entry further is not looked at.
    new Uint8Array(driver.ring.buffer, driver.ring.byteOffset).set(ringBytes(elsewhere))
    expect(queue.popInto(arena, TX)).toBe(POP.empty)

    add(fixture)
    driver.publish()
    expect(queue.popInto(arena, TX)).toBe(POP.chain)
  })
})

describe('conformance 24 the wrap counter of the device', () => {
  test('starts at 1 and flips after the last entry', () => {
    const fixture = packedFixture({ size: 3 })
    const seen: number[] = []
    for (let chain = 0; chain < 12; chain++) {
      add(fixture)
      fixture.driver.publish()
      serve(fixture)
      seen.push(entry(fixture, chain % 3).flags)
      expect(fixture.driver.reap()).toBeDefined()
    }
    const used = AVAIL | USED
    expect(seen).toEqual([used, used, used, 0, 0, 0, used, used, used, 0, 0, 0])
  })

  test('flips in the middle of a chain that goes over the end', () => {
    const fixture = packedFixture({ size: 5 })
    for (const [begin, flags] of [
      [0, AVAIL | USED],
      [3, AVAIL | USED],
      [1, 0],
      [4, 0],
      [2, AVAIL | USED],
    ] as const) {
      const id = add(fixture, 3)
      fixture.driver.publish()
      serve(fixture)
      // Without WRITE the length is reserved. VIRTIO 1.2 §2.8.5.
      expect(entry(fixture, begin)).toEqual({ length: expect.any(Number), id, flags })
      expect(fixture.driver.reap()).toEqual({ id, length: 0 })
    }
  })
})

test('conformance 25 nothing is used before AVAIL changes', () => {
  const fixture = packedFixture({ size: 4 })
  const { driver, queue, arena } = fixture
  for (let round = 0; round < 6; round++) {
    const id = add(fixture, 2)
    // All is there but the flags of the first descriptor.
    expect(queue.popInto(arena, TX)).toBe(POP.empty)
    driver.publish()
    serve(fixture)
    expect(driver.reap()).toEqual({ id, length: 0 })
    // What was used in the round before is not taken for available.
    expect(queue.popInto(arena, TX)).toBe(POP.empty)
  }
})

describe('conformance 26 no change after marking used', () => {
  test('what is published stays as it is whatever the device does next', () => {
    const fixture = packedFixture({ size: 8 })
    const { driver, queue } = fixture
    for (let count = 0; count < 3; count++) add(fixture, 1, true)
    driver.publish()
    serve(fixture, RX, 60)
    const published = ringBytes(fixture).slice(0, 48)
    for (let round = 0; round < 3; round++) {
      queue.disableNotification()
      add(fixture, 1, true)
      driver.publish()
      serve(fixture, RX, 99)
      queue.enableNotification()
      queue.needsCall()
      expect(ringBytes(fixture).slice(0, 48)).toEqual(published)
    }
  })

  test('the flags of the first chain of a batch come last, when all else is in place', () => {
    const fixture = packedFixture({ size: 6, start: 4 })
    const { driver, queue, arena } = fixture
    const ids = [add(fixture, 1, true), add(fixture, 2, true), add(fixture, 1, true)]
    driver.publish()
    while (queue.popInto(arena, RX) !== POP.empty);
    for (const length of [100, 200, 300]) queue.stageUsed(length)
    const before = entry(fixture, 4).flags
    const { store } = Atomics
    const seen: unknown[] = []
    const spy = spyOn(Atomics, 'store').mockImplementation(((array: Int32Array, index: number, value: number) => {
      const first = entry(fixture, 4)
      seen.push([first.length, first.flags, entry(fixture, 5), entry(fixture, 1)])
      return store(array, index, value)
    }) as typeof store)
    queue.publishUsed()
    spy.mockRestore()
    expect(seen).toEqual([
      [
        100,
        before,
        { length: 200, id: ids[1]!, flags: AVAIL | USED | WRITE },
        { length: 300, id: ids[2]!, flags: WRITE },
      ],
    ])
    expect(entry(fixture, 4)).toEqual({ length: 100, id: ids[0]!, flags: AVAIL | USED | WRITE })
  })

  test('a driver that looks only at the chain in front sees all of a received packet or nothing', () => {
    const fixture = packedFixture({ size: 8 })
    const { driver, queue, arena } = fixture
    for (let count = 0; count < 4; count++) add(fixture, 1, true)
    driver.publish()
    while (queue.popInto(arena, RX) !== POP.empty);
    for (let count = 0; count < 4; count++) queue.stageUsed(64)
    const { store } = Atomics
    let reaped = -1
    const spy = spyOn(Atomics, 'store').mockImplementation(((array: Int32Array, index: number, value: number) => {
      reaped = driver.reap() === undefined ? 0 : 1
      return store(array, index, value)
    }) as typeof store)
    queue.publishUsed()
    spy.mockRestore()
    expect(reaped).toBe(0)
    for (let count = 0; count < 4; count++) expect(driver.reap()).toBeDefined()
  })
})

test('conformance 27 one used descriptor per chain, and the rest of the chain is skipped', () => {
  const random = new Random(27)
  const fixture = packedFixture({ size: 13 })
  const { driver } = fixture
  const place = new RingPlace(13, 0, 1)
  for (let round = 0; round < 300; round++) {
    const chains: { id: number; buffers: number }[] = []
    for (let buffers = random.between(1, 5); driver.freeDescriptors >= buffers; buffers = random.between(1, 5)) {
      chains.push({ id: add(fixture, buffers), buffers })
    }
    driver.publish()
    const before = Array.from({ length: 13 }, (_, slot) => entry(fixture, slot))
    serve(fixture)
    for (const { id, buffers } of chains) {
      expect(entry(fixture, place.slot)).toEqual({
        length: expect.any(Number),
        id,
        flags: place.wrap === 1 ? AVAIL | USED : 0,
      })
      place.step()
      for (let skipped = 1; skipped < buffers; skipped++, place.step()) {
        expect(entry(fixture, place.slot)).toEqual(before[place.slot]!)
      }
      expect(driver.reap()).toEqual({ id, length: 0 })
    }
  }
})

test('conformance 28 the id is that of the last descriptor', () => {
  const fixture = packedFixture({ size: 8 })
  const { driver, memory, queue, arena } = fixture
  driver.offerRaw([
    { addressLow: memory.start, length: 1, id: 11, flags: NEXT },
    { addressLow: memory.start, length: 1, id: 22, flags: NEXT },
    { addressLow: memory.start, length: 1, id: 33 },
  ])
  // Of a malformed chain too.
  driver.offerRaw([
    { addressLow: 0, length: 1, id: 44, flags: NEXT },
    { addressLow: memory.start, length: 1, id: 55 },
  ])
  expect([queue.popInto(arena, TX), queue.popInto(arena, TX)]).toEqual([POP.chain, POP.dropped])
  queue.stageUsed(0)
  queue.publishUsed()
  expect([entry(fixture, 0).id, entry(fixture, 3).id]).toEqual([33, 55])
})

test('conformance 29 WRITE in a used descriptor iff data was written', () => {
  const fixture = packedFixture({ size: 8 })
  const { driver, queue, arena } = fixture
  add(fixture, 1, true)
  driver.add([{ address: 0, length: 1, writable: true }])
  add(fixture, 1, true)
  add(fixture, 1, true)
  driver.publish()
  while (queue.popInto(arena, RX) !== POP.empty);
  for (const length of [60, 0, 0xffff_ffff]) queue.stageUsed(length)
  queue.publishUsed()
  expect([0, 1, 2, 3].map((slot) => entry(fixture, slot).flags & WRITE)).toEqual([WRITE, 0, 0, WRITE])
  expect([0, 1, 2, 3].map((slot) => entry(fixture, slot).length)).toEqual([60, 0, 0, 0xffff_ffff])
})

test.each([1, 2, 3, 7, 255, 257, 20_000, 32_767, 32_768])('conformance 30 a ring of %i', (size) => {
  const fixture = packedFixture({ size })
  const { driver, queue } = fixture
  const arena = new IovecArena(size, size)
  for (let round = 0; round < 3; round++) {
    const ids: number[] = []
    for (let id = add(fixture); id >= 0; id = add(fixture)) ids.push(id)
    driver.publish()
    arena.clear()
    while (queue.popInto(arena, TX) !== POP.empty);
    expect(queue.inFlight).toBe(size)
    while (queue.inFlight > 0) queue.stageUsed(0)
    queue.publishUsed()
    const used: number[] = []
    for (let one = driver.reap(); one !== undefined; one = driver.reap()) used.push(one.id)
    expect(used).toEqual(ids)
  }
})

describe('conformance 31 suppression', () => {
  test('ENABLE: a call for every publication; DISABLE: none; the entry is ignored', () => {
    for (const eventIdx of [false, true]) {
      const fixture = packedFixture({ eventIdx })
      const { driver, queue } = fixture
      for (let round = 0; round < 10; round++) {
        for (const offWrap of [driver.lastUsed.offWrap, 0, 0x8005]) {
          for (const [flags, expected] of [
            [VRING_PACKED_EVENT_FLAG_ENABLE, true],
            [VRING_PACKED_EVENT_FLAG_DISABLE, false],
          ] as const) {
            driver.setEvent(flags, offWrap)
            add(fixture, 2)
            driver.publish()
            serve(fixture)
            expect(queue.needsCall()).toBe(expected)
            expect(queue.needsCall()).toBe(false)
            driver.reap()
          }
        }
      }
    }
  })

  test.each([0, 3, 6, 9, 13])('DESC: a call exactly when the entry is passed (from %i on)', (start) => {
    const size = 7
    for (let event = 0; event < 2 * size; event++) {
      const fixture = packedFixture({ size, eventIdx: true, start })
      const { driver, queue } = fixture
      const place = driver.next.copy()
      place.step(event)
      driver.setEvent(VRING_PACKED_EVENT_FLAG_DESC, place.offWrap)
      let passed = 0
      for (const buffers of [[1], [2, 1], [3]]) {
        for (const count of buffers) add(fixture, count)
        const entries = buffers.reduce((sum, count) => sum + count, 0)
        driver.publish()
        serve(fixture)
        expect(queue.needsCall()).toBe(event >= passed && event < passed + entries)
        passed += entries
      }
    }
  })

  test('publications that nobody asked about count together', () => {
    const fixture = packedFixture({ eventIdx: true })
    fixture.driver.setEvent(VRING_PACKED_EVENT_FLAG_DESC, 1 | 0x8000)
    for (let count = 0; count < 3; count++) {
      add(fixture)
      fixture.driver.publish()
      serve(fixture)
    }
    expect(fixture.queue.needsCall()).toBe(true)
  })

  test.each([5, 16])('a driver that asks before it sleeps is always called, over 200,000 chains (size %i)', (size) => {
    const random = new Random(31)
    const fixture = packedFixture({ eventIdx: true, size })
    const { driver, queue } = fixture
    for (let used = 0; used < 200_000; ) {
      driver.enableCalls()
      const batch = random.between(1, size)
      for (let left = batch; left > 0; ) {
        const buffers = random.between(1, Math.min(left, 3))
        add(fixture, buffers)
        left -= buffers
      }
      driver.publish()
      serve(fixture)
      if (!queue.needsCall()) throw new Error(`no call for chain ${used}`)
      while (driver.reap() !== undefined) used++
    }
    expect(fixture.dropped()).toEqual({})
  })

  test.each([5, 16])('a device that asks before it sleeps is always kicked, over 100,000 chains (size %i)', (size) => {
    const random = new Random(32)
    const fixture = packedFixture({ eventIdx: true, size })
    const { driver, queue } = fixture
    for (let used = 0; used < 100_000; ) {
      if (queue.enableNotification()) throw new Error(`more than was there after chain ${used}`)
      for (let left = random.between(1, size); left > 0; ) {
        const buffers = random.between(1, Math.min(left, 3))
        add(fixture, buffers)
        left -= buffers
      }
      driver.publish()
      if (!driver.needsKick()) throw new Error(`no kick for chain ${used}`)
      serve(fixture)
      while (driver.reap() !== undefined) used++
    }
    expect(fixture.dropped()).toEqual({})
  })

  test('what the device writes: DISABLE, ENABLE, and DESC with entry and wrap counter', () => {
    const eventOf = ({ driver }: PackedFixture): [number, number] => [
      driver.deviceEvent.getUint16(2, true),
      driver.deviceEvent.getUint16(0, true),
    ]
    const plain = packedFixture({ eventIdx: false })
    plain.queue.enableNotification()
    expect(eventOf(plain)[0]).toBe(VRING_PACKED_EVENT_FLAG_ENABLE)
    plain.queue.disableNotification()
    expect(eventOf(plain)[0]).toBe(VRING_PACKED_EVENT_FLAG_DISABLE)

    const event = packedFixture({ eventIdx: true, size: 3 })
    for (const offWrap of [0x8000, 0x8001, 0x8002, 0, 1, 2, 0x8000]) {
      event.queue.enableNotification()
      expect(eventOf(event)).toEqual([VRING_PACKED_EVENT_FLAG_DESC, offWrap])
      event.queue.disableNotification()
      expect(eventOf(event)[0]).toBe(VRING_PACKED_EVENT_FLAG_DISABLE)
      add(event)
      event.driver.publish()
      serve(event)
      event.driver.reap()
    }
  })
})

test('conformance 32 the order of a chain’s buffers is kept, direct and over the end of the ring', () => {
  for (let start = 0; start < 10; start++) {
    const fixture = packedFixture({ size: 5, start })
    const { driver, memory } = fixture
    driver.add([10, 20, 30, 40, 50].map((length, index) => ({ address: memory.start + 100 * index, length })))
    driver.publish()
    expect(fixture.queue.popInto(fixture.arena, TX)).toBe(POP.chain)
    expect(fixture.chains()[0]).toEqual([10, 20, 30, 40, 50].map((length, index) => ({ offset: 100 * index, length })))
  }
})

test('conformance 33 an indirect table is taken in order, reserved flags ignored', () => {
  for (const flags of [0, NEXT, VRING_DESC_F_INDIRECT, 0xfffd]) {
    const fixture = packedFixture()
    const { driver, memory } = fixture
    const table = memory.allocate(160)
    const lengths = Array.from({ length: 10 }, (_, index) => index + 1)
    driver.writeTable(
      table,
      lengths.map((length, index) => ({ addressLow: memory.start + 100 * index, length, flags, id: 9 - index })),
    )
    driver.offerRaw([{ addressLow: table, length: 160, flags: VRING_DESC_F_INDIRECT }])
    expect(fixture.queue.popInto(fixture.arena, TX)).toBe(POP.chain)
    expect(fixture.chains()[0]).toEqual(lengths.map((length, index) => ({ offset: 100 * index, length })))
  }
})
