import { describe, expect, test } from 'bun:test'
import type { DropReason } from '../../src/abi/drop-reason.ts'
import { VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE } from '../../src/abi/virtio-ring.ts'
import { IovecArena } from '../../src/memory/iovec-arena.ts'
import { ACCESS } from '../../src/memory/region.ts'
import { CHAIN_SEGMENTS_MAX } from '../../src/virtqueue/descriptor-chain.ts'
import { BUFFER_DIRECTION, type BufferDirection, POP } from '../../src/virtqueue/virtqueue.ts'
import type { RawBuffer } from '../support/driver-model.ts'
import { emptyMapping, TestMemory } from '../support/memory.ts'
import { type RingFixture, type RingOptions, ringLayouts } from '../support/ring-fixture.ts'

const WRITE = VRING_DESC_F_WRITE
const INDIRECT = VRING_DESC_F_INDIRECT
const TX = BUFFER_DIRECTION.readable
const RX = BUFFER_DIRECTION.writable
const HUGE = 2 ** 40

/** What a descriptor says of a buffer at a driver address. */
const at = (address: number, length: number, flags = 0): RawBuffer => ({
  addressLow: address % 2 ** 32,
  addressHigh: Math.floor(address / 2 ** 32),
  length,
  flags,
})

/** A good chain still passes: what came before did no lasting harm. */
const expectRingGoesOn = (fixture: RingFixture, direction: BufferDirection): void => {
  const { driver, queue, arena, memory } = fixture
  arena.clear()
  const address = memory.allocate(64)
  const id = driver.add([{ address, length: 64, writable: direction === RX }])
  driver.publish()
  expect(queue.popInto(arena, direction)).toBe(POP.chain)
  expect(fixture.chains()).toEqual([[{ offset: address - memory.start, length: 64 }]])
  queue.stageUsed(7)
  queue.publishUsed()
  expect(driver.reap()).toEqual({ id, length: 7 })
}

/** Reaction D: the one chain in the ring goes back with length 0, counted by reason, and the ring goes on. */
const expectDropped = (fixture: RingFixture, id: number, reason: DropReason, direction: BufferDirection = TX): void => {
  const { driver, queue, arena } = fixture
  expect(queue.popInto(arena, direction)).toBe(POP.dropped)
  expect(arena.chainCount).toBe(0)
  expect(arena.openIovecs).toBe(0)
  queue.publishUsed()
  expect(driver.reap()).toEqual({ id, length: 0 })
  expect(driver.reap()).toBeUndefined()
  expect(fixture.dropped()).toEqual({ [reason]: 1 })
  expect(queue.popInto(arena, direction)).toBe(POP.empty)
  expectRingGoesOn(fixture, direction)
}

describe.each(ringLayouts)('%s ring%s', (layout, _way, newFixture) => {
  /** A fresh queue that is offered one chain of raw buffers must drop it for `reason`. */
  const expectBuffersDropped = (
    reason: DropReason,
    buffers: (fixture: RingFixture) => RawBuffer[],
    options: RingOptions = {},
    direction: BufferDirection = TX,
  ): void => {
    const fixture = newFixture({ size: 16, ...options })
    expectDropped(fixture, fixture.driver.offerBuffers(buffers(fixture)), reason, direction)
  }

  /** The same for an indirect table. */
  const expectTableDropped = (reason: DropReason, table: (buffer: number) => RawBuffer[]): void => {
    expectBuffersDropped(reason, ({ driver, memory }) => {
      const buffers = table(memory.allocate(4096))
      const address = memory.allocate(16 * buffers.length)
      driver.writeTableOf(address, buffers)
      return [at(address, 16 * buffers.length, INDIRECT)]
    })
  }

  describe('lengths', () => {
    const withHugeRegion = (): RingFixture => {
      const fixture = newFixture()
      const mapping = emptyMapping(2 ** 44, 2 ** 33)
      const region = { start: HUGE, lengthBytes: 2 ** 33, access: ACCESS.readWrite, mapping, mappingOffset: 0 }
      expect(fixture.space.add(region)).toBe(true)
      return fixture
    }

    test('7 chain over 2^32 bytes', () => {
      const fixture = withHugeRegion()
      const id = fixture.driver.offerBuffers([at(HUGE, 2 ** 31), at(HUGE, 2 ** 31), at(HUGE, 1)])
      expectDropped(fixture, id, 'chain_too_long')
    })

    test('7 a chain of 2^32 bytes keeps its length', () => {
      const fixture = withHugeRegion()
      fixture.driver.offerBuffers([at(HUGE, 2 ** 32 - 1), at(HUGE + 2 ** 32 - 1, 1)])
      expect(fixture.queue.popInto(fixture.arena, TX)).toBe(POP.chain)
      const base = 2 ** 44 - fixture.memory.address
      expect(fixture.chains()).toEqual([
        [
          { offset: base, length: 2 ** 32 - 1 },
          { offset: base + 2 ** 32 - 1, length: 1 },
        ],
      ])
    })

    test('8 more than 1024 segments', () => {
      const segments = (count: number) => (fixture: RingFixture) => {
        const address = fixture.memory.allocate(count)
        return Array.from({ length: count }, (_, index) => at(address + index, 1))
      }
      const most = newFixture({ size: 2048 })
      most.driver.offerBuffers(segments(CHAIN_SEGMENTS_MAX)(most))
      expect(most.queue.popInto(most.arena, TX)).toBe(POP.chain)
      expect(most.chains()[0]).toHaveLength(CHAIN_SEGMENTS_MAX)
      expectBuffersDropped('chain_too_many_segments', segments(CHAIN_SEGMENTS_MAX + 1), { size: 2048 })
    })

    test('8 more than 1024 segments by crossing regions', () => {
      const fixture = newFixture()
      for (let index = 0; index < 1025; index++) {
        const mapping = emptyMapping(2 ** 44 + index * 8192, 4096)
        const start = HUGE + index * 4096
        fixture.space.add({ start, lengthBytes: 4096, access: ACCESS.readWrite, mapping, mappingOffset: 0 })
      }
      expectDropped(fixture, fixture.driver.offerBuffers([at(HUGE, 1025 * 4096)]), 'chain_too_many_segments')
    })

    test('8 an arena that can never hold the chain does not stop the ring', () => {
      const fixture = newFixture()
      const address = fixture.memory.allocate(8)
      const id = fixture.driver.offerBuffers([at(address, 1), at(address, 1), at(address, 1)])
      const arena = new IovecArena(4, 2)
      expect(fixture.queue.popInto(arena, TX)).toBe(POP.dropped)
      fixture.queue.publishUsed()
      expect(fixture.driver.reap()).toEqual({ id, length: 0 })
      expect(fixture.dropped()).toEqual({ chain_too_many_segments: 1 })
    })

    test('9, 52 zero-length element is skipped, wherever it points', () => {
      const fixture = newFixture()
      const address = fixture.memory.allocate(100)
      fixture.driver.offerBuffers([
        at(2 ** 50, 0),
        at(address, 12),
        at(0, 0, WRITE),
        { addressLow: 0xffff_ffff, addressHigh: 0xffff_ffff, length: 0 },
        at(address + 12, 88),
        at(2 ** 63, 0),
      ])
      expect(fixture.queue.popInto(fixture.arena, TX)).toBe(POP.chain)
      const offset = address - fixture.memory.start
      expect(fixture.chains()).toEqual([
        [
          { offset, length: 12 },
          { offset: offset + 12, length: 88 },
        ],
      ])
      expect(fixture.dropped()).toEqual({})
    })

    test('10 all-zero chain', () => {
      expectBuffersDropped('chain_empty', () => [{}])
      expectBuffersDropped('chain_empty', ({ memory }) => [at(memory.start, 0), at(memory.start, 0)])
      expectBuffersDropped('chain_empty', () => [{}], {}, RX)
      expectTableDropped('chain_empty', () => [{}])
    })
  })

  describe('addresses', () => {
    test('11 addr+len overflow', () => {
      const max = 0xffff_ffff
      const from = (addressHigh: number, addressLow: number, length: number) => () => [
        { addressHigh, addressLow, length },
      ]
      expectBuffersDropped('chain_address_unmapped', from(max, max, 2))
      expectBuffersDropped('chain_address_unmapped', from(max, max - 4095, 4096))
      // Beyond 2^53 neighbours are one number: refused before any arithmetic could round.
      expectBuffersDropped('chain_address_unmapped', from(2 ** 21, 0, 64))
      expectBuffersDropped('chain_address_unmapped', from(2 ** 21 - 1, max, 64))
    })

    test('11 an address whose low half is mapped and whose high half is not ignored', () => {
      for (const addressHigh of [1, 0x8000_0000]) {
        expectBuffersDropped('chain_address_unmapped', ({ memory }) => [
          { addressLow: memory.start, addressHigh, length: 64 },
        ])
      }
    })

    test('12 outside every region', () => {
      expectBuffersDropped('chain_address_unmapped', () => [at(0, 64)])
      expectBuffersDropped('chain_address_unmapped', ({ memory }) => [at(memory.end, 1)])
      expectBuffersDropped('chain_address_unmapped', ({ memory }) => [at(memory.start - 1, 1)])
    })

    test('12 a region of the other direction', () => {
      for (const [access, direction] of [
        [ACCESS.read, RX],
        [ACCESS.write, TX],
      ] as const) {
        expectBuffersDropped(
          'chain_address_unmapped',
          ({ space }) => {
            const mapping = emptyMapping(2 ** 44, 4096)
            space.add({ start: HUGE, lengthBytes: 4096, access, mapping, mappingOffset: 0 })
            return [at(HUGE, 64, direction === RX ? WRITE : 0)]
          },
          {},
          direction,
        )
      }
    })

    test('13 crosses adjacent regions', () => {
      const fixture = newFixture()
      const next = new TestMemory(4096, fixture.memory.end)
      fixture.space.add(next.region())
      fixture.driver.offerBuffers([at(next.start - 10, 30)])
      expect(fixture.queue.popInto(fixture.arena, TX)).toBe(POP.chain)
      expect(fixture.chains()).toEqual([
        [
          { offset: fixture.memory.lengthBytes - 10, length: 10 },
          { offset: next.address - fixture.memory.address, length: 20 },
        ],
      ])
    })

    test('14 crosses into a hole', () => {
      expectBuffersDropped('chain_address_unmapped', ({ memory }) => [at(memory.end - 10, 11)])
      expectBuffersDropped('chain_address_unmapped', ({ memory, space }) => {
        space.add(new TestMemory(4096, memory.end + 1).region())
        return [at(memory.end - 10, 100)]
      })
      expectBuffersDropped('chain_address_unmapped', ({ memory }) => [at(memory.start, 64), at(memory.end - 10, 11)])
    })
  })

  describe('indirect tables', () => {
    test('15 INDIRECT not negotiated', () => {
      expectBuffersDropped(
        'indirect_not_negotiated',
        ({ driver, memory }) => {
          const table = memory.allocate(16)
          driver.writeTableOf(table, [at(memory.start, 64)])
          return [at(table, 16, INDIRECT)]
        },
        { indirect: false },
      )
    })

    test('16, 45 INDIRECT|NEXT', () => {
      expectBuffersDropped('indirect_malformed', ({ driver, memory }) => {
        const table = memory.allocate(16)
        driver.writeTableOf(table, [at(memory.start, 64)])
        return [at(table, 16, INDIRECT), at(memory.start, 64)]
      })
    })

    test('18 table len 0', () => {
      expectBuffersDropped('indirect_malformed', ({ memory }) => [at(memory.start, 0, INDIRECT)])
    })

    test.each([1, 15, 17, 40])('19 table len %i', (length) => {
      expectBuffersDropped('indirect_malformed', ({ memory }) => [at(memory.start, length, INDIRECT)])
    })

    test('20 huge table', () => {
      for (const length of [0xffff_fff0, 16 * 65_536, 16 * (CHAIN_SEGMENTS_MAX + 1)]) {
        expectBuffersDropped('chain_too_many_segments', ({ memory }) => [at(memory.start, length, INDIRECT)])
      }
    })

    test('20 a table of 1024 descriptors passes', () => {
      const fixture = newFixture()
      const address = fixture.memory.allocate(CHAIN_SEGMENTS_MAX)
      const elements = Array.from({ length: CHAIN_SEGMENTS_MAX }, (_, index) => ({
        address: address + index,
        length: 1,
      }))
      fixture.driver.add(elements, { indirectFrom: 0 })
      fixture.driver.publish()
      expect(fixture.queue.popInto(fixture.arena, TX)).toBe(POP.chain)
      expect(fixture.chains()[0]).toHaveLength(CHAIN_SEGMENTS_MAX)
    })

    test.each([1, 4, 8, 15, 16, 20, 32, 33])('21 table crossing regions after %i bytes', (before) => {
      const fixture = newFixture()
      const { driver, memory, space } = fixture
      const next = new TestMemory(4096, memory.end)
      space.add(next.region())
      const buffer = memory.allocate(300)
      const table = new TestMemory(48, memory.end - before)
      driver.writeTableOf(table.start, [at(buffer, 100), at(buffer + 100, 70), at(buffer + 200, 50)], table)
      memory.bytes.set(table.bytes.subarray(0, before), memory.lengthBytes - before)
      next.bytes.set(table.bytes.subarray(before))
      driver.offerBuffers([at(table.start, 48, INDIRECT)])
      expect(fixture.queue.popInto(fixture.arena, TX)).toBe(POP.chain)
      expect(fixture.chains()[0]!.map(({ length }) => length)).toEqual([100, 70, 50])
    })

    test.each([1, 2, 4, 7, 8])('21 table unaligned by %i', (shift) => {
      const fixture = newFixture()
      const { driver, memory } = fixture
      const address = memory.allocate(200)
      const elements = [
        { address, length: 100 },
        { address: address + 100, length: 50 },
      ]
      driver.add(elements, { indirectFrom: 0, tableAddress: memory.allocate(64) + shift })
      driver.publish()
      expect(fixture.queue.popInto(fixture.arena, TX)).toBe(POP.chain)
      expect(fixture.chains()[0]!.map(({ length }) => length)).toEqual([100, 50])
    })

    test('21 a table that runs into a hole is dropped', () => {
      expectBuffersDropped('chain_address_unmapped', ({ driver, memory }) => {
        // Only the first of two descriptors is mapped.
        const table = new TestMemory(32, memory.end - 16)
        driver.writeTableOf(table.start, [at(memory.start, 64), at(memory.start, 64)], table)
        memory.bytes.set(table.bytes.subarray(0, 16), memory.lengthBytes - 16)
        return [at(table.start, 32, INDIRECT)]
      })
      expectBuffersDropped('chain_address_unmapped', ({ memory }) => [at(memory.end - 8, 16, INDIRECT)])
      expectBuffersDropped('chain_address_unmapped', () => [{ addressHigh: 0xffff_ffff, length: 16, flags: INDIRECT }])
    })

    test('21 a table in memory the device may only write is dropped', () => {
      expectBuffersDropped('chain_address_unmapped', ({ space }) => {
        const memory = new TestMemory(4096, HUGE)
        space.add(memory.region(ACCESS.write))
        return [at(memory.start, 16, INDIRECT)]
      })
    })

    test.each([TX, RX])('23 WRITE on the indirect descriptor is ignored (direction %i)', (direction) => {
      for (const flags of [INDIRECT, INDIRECT | WRITE]) {
        const fixture = newFixture()
        const { driver, memory } = fixture
        const table = memory.allocate(16)
        driver.writeTableOf(table, [at(memory.allocate(64), 64, direction === RX ? WRITE : 0)])
        driver.offerBuffers([at(table, 16, flags)])
        expect(fixture.queue.popInto(fixture.arena, direction)).toBe(POP.chain)
      }
    })
  })

  describe('directions and flags', () => {
    test('25 writable in TX', () => {
      expectBuffersDropped('chain_wrong_direction', ({ memory }) => [at(memory.start, 64, WRITE)])
      expectBuffersDropped('chain_wrong_direction', ({ memory }) => [
        at(memory.start, 64),
        at(memory.start, 1, WRITE),
        at(memory.start, 1),
      ])
      expectTableDropped('chain_wrong_direction', (buffer) => [at(buffer, 64), at(buffer, 1, WRITE)])
    })

    test('26 readable in RX', () => {
      expectBuffersDropped('chain_wrong_direction', ({ memory }) => [at(memory.start, 64)], {}, RX)
      const mixed = ({ memory }: RingFixture) => [at(memory.start, 12), at(memory.start, 64, WRITE)]
      expectBuffersDropped('chain_wrong_direction', mixed, {}, RX)
    })

    test.each([TX, RX])('27 readable after writable (direction %i)', (direction) => {
      const chain = ({ memory }: RingFixture) => [at(memory.start, 64, WRITE), at(memory.start, 64)]
      expectBuffersDropped('chain_wrong_direction', chain, {}, direction)
    })

    test('28 unknown flags', () => {
      const fixture = newFixture()
      // In a packed ring bits 7 and 15 say whose a descriptor is.
      const unknown = 0xffff & ~(VRING_DESC_F_NEXT | WRITE | INDIRECT | (layout === 'packed' ? 0x8080 : 0))
      fixture.driver.offerBuffers([at(fixture.memory.start, 12, unknown), at(fixture.memory.start, 52, unknown)])
      expect(fixture.queue.popInto(fixture.arena, TX)).toBe(POP.chain)
      expect(fixture.chains()[0]!.map(({ length }) => length)).toEqual([12, 52])
    })
  })

  test('30 header fetched twice: the ring fetches nothing of a buffer', () => {
    const fixture = newFixture()
    const mapping = emptyMapping(2 ** 44, 4096)
    fixture.space.add({ start: HUGE, lengthBytes: 4096, access: ACCESS.readWrite, mapping, mappingOffset: 0 })
    fixture.driver.offerBuffers([at(HUGE, 12), at(HUGE + 12, 60)])
    // Reading any byte there would throw.
    expect(fixture.queue.popInto(fixture.arena, TX)).toBe(POP.chain)
  })

  test('34 kick storm, empty kick', () => {
    const fixture = newFixture()
    const { queue, arena, memory } = fixture
    const before = Bun.hash(memory.bytes)
    for (let kicks = 0; kicks < 10_000; kicks++) {
      expect(queue.popInto(arena, TX)).toBe(POP.empty)
      queue.publishUsed()
      expect(queue.needsCall()).toBe(false)
    }
    expect(Bun.hash(memory.bytes)).toBe(before)
    expectRingGoesOn(fixture, TX)
  })
})
