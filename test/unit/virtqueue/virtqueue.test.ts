import { describe, expect, test } from 'bun:test'
import { IovecArena } from '../../../src/memory/iovec-arena.ts'
import { popBatch } from '../../../src/virtqueue/pop-batch.ts'
import { BUFFER_DIRECTION, POP } from '../../../src/virtqueue/virtqueue.ts'
import type { AddOptions } from '../../support/driver-model.ts'
import { type RingFixture, ringLayouts } from '../../support/ring-fixture.ts'

const TX = BUFFER_DIRECTION.readable
const RX = BUFFER_DIRECTION.writable

/** Adds `count` good chains of `buffers` buffers and publishes them; their ids. */
const offer = ({ driver, memory }: RingFixture, count: number, writable = false, buffers = 1): number[] => {
  const elements = Array.from({ length: buffers }, () => ({ address: memory.start, length: 64, writable }))
  const ids = Array.from({ length: count }, () => driver.add(elements))
  driver.publish()
  return ids
}

/** Adds one malformed chain (its first buffer is unmapped). */
const offerBad = ({ driver, memory }: RingFixture, buffers = 1): number => {
  const good = Array.from({ length: buffers - 1 }, () => ({ address: memory.start, length: 64 }))
  const id = driver.add([{ address: 0, length: 1 }, ...good])
  driver.publish()
  return id
}

const reapAll = ({ driver }: RingFixture): { id: number; length: number }[] => {
  const used = []
  for (let one = driver.reap(); one !== undefined; one = driver.reap()) used.push(one)
  return used
}

const idsOf = (used: readonly { id: number }[]): number[] => used.map(({ id }) => id)

/** Pops until the ring is empty; how many chains. */
const popAll = ({ queue, arena }: RingFixture, direction: 0 | 1 = TX): number => {
  for (let chains = 0; ; ) {
    const result = queue.popInto(arena, direction)
    if (result === POP.empty) return chains
    if (result === POP.chain) chains++
  }
}

describe.each(ringLayouts)('%s ring%s', (layout, _way, newFixture) => {
  describe('popping', () => {
    test('an empty ring', () => {
      const { queue, arena } = newFixture()
      expect(queue.popInto(arena, TX)).toBe(POP.empty)
      expect(queue.inFlight).toBe(0)
    })

    test('chains come in the order in which they were made available', () => {
      const fixture = newFixture()
      const { driver, queue, memory } = fixture
      for (const length of [10, 20, 30]) driver.add([{ address: memory.start, length }])
      driver.publish()
      expect(popAll(fixture)).toBe(3)
      expect(fixture.chains().map(([piece]) => piece!.length)).toEqual([10, 20, 30])
      expect(queue.inFlight).toBe(3)
    })

    test('a prepared chain that is not published is not seen', () => {
      const { driver, queue, arena, memory } = newFixture()
      driver.add([
        { address: memory.start, length: 10 },
        { address: memory.start, length: 10 },
      ])
      expect(queue.popInto(arena, TX)).toBe(POP.empty)
      driver.publish()
      expect(queue.popInto(arena, TX)).toBe(POP.chain)
    })

    test.each([
      [1, 0],
      [1, 1],
      [2, 3],
      [8, 13],
      [256, 500],
      [32_768, 40_000],
    ])('a ring of %i, full, from %i on', (size, start) => {
      const fixture = newFixture({ size, start, memoryBytes: 1 << 21 })
      const { queue } = fixture
      const arena = new IovecArena(size, Math.max(size, 1024))
      const usedAtFirst = queue.nextUsed
      for (let round = 0; round < 3; round++) {
        const ids = offer(fixture, size)
        arena.clear()
        for (let count = 0; count < size; count++) expect(queue.popInto(arena, TX)).toBe(POP.chain)
        expect(queue.popInto(arena, TX)).toBe(POP.empty)
        for (let count = 0; count < size; count++) queue.stageUsed(count)
        queue.publishUsed()
        expect(reapAll(fixture)).toEqual(ids.map((id, length) => ({ id, length })))
      }
      expect(queue.nextUsed).toBe((usedAtFirst + 3 * size) & 0xffff)
      expect(queue.nextAvail).toBe(queue.nextUsed)
    })

    test('an arena without room for the chain leaves it in the ring', () => {
      const fixture = newFixture()
      const { queue } = fixture
      offer(fixture, 3)
      const { nextAvail } = queue
      const records = new IovecArena(2, 1024)
      expect([1, 2, 3].map(() => queue.popInto(records, TX))).toEqual([POP.chain, POP.chain, POP.full])
      expect(queue.inFlight).toBe(2)
      expect(queue.nextAvail).toBe(nextAvail)
      records.clear()
      expect(queue.popInto(records, TX)).toBe(POP.chain)
      expect(queue.popInto(new IovecArena(0, 0), TX)).toBe(POP.empty)
      expect(queue.inFlight).toBe(3)
    })

    test('an arena without room for all pieces of the chain leaves it in the ring, whole', () => {
      const fixture = newFixture({ size: 16 })
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

  describe('popping a batch', () => {
    const everything = Number.POSITIVE_INFINITY
    const lengthsOf = (fixture: RingFixture): number[] => fixture.chains().map(([piece]) => piece!.length)
    const offerLengths = (
      { driver, memory }: RingFixture,
      lengths: readonly number[],
      options: AddOptions = {},
    ): void => {
      for (const length of lengths) driver.add([{ address: memory.start, length }], options)
      driver.publish()
    }

    test.each([
      ['direct', {}],
      ['indirect', { indirectFrom: 0 }],
    ])('of chains that are %s, until there are no more', (_, options) => {
      const fixture = newFixture({ start: 6 })
      const { queue, arena } = fixture
      for (let round = 0; round < 10; round++) {
        arena.clear()
        offerLengths(fixture, [10, 20, 30, 40, 50], options)
        expect(popBatch(queue, arena, TX, 100, everything)).toBe(POP.empty)
        expect(lengthsOf(fixture)).toEqual([10, 20, 30, 40, 50])
        expect(arena.bytes).toBe(150)
        expect(queue.inFlight).toBe(5)
        while (queue.inFlight > 0) queue.stageUsed(0)
        queue.publishUsed()
        expect(reapAll(fixture)).toHaveLength(5)
      }
    })

    test('ends after as many chains as asked, malformed ones counted', () => {
      for (let chainsMax = 0; chainsMax <= 4; chainsMax++) {
        const fixture = newFixture()
        const { queue, arena } = fixture
        offerLengths(fixture, [10])
        offerBad(fixture)
        offerLengths(fixture, [30, 40, 50])
        expect(popBatch(queue, arena, TX, chainsMax, everything)).toBe(POP.chain)
        expect(lengthsOf(fixture)).toEqual([10, 30, 40].slice(0, chainsMax < 2 ? chainsMax : chainsMax - 1))
        expect(popBatch(queue, arena, TX, 100, everything)).toBe(POP.empty)
        expect(lengthsOf(fixture)).toEqual([10, 30, 40, 50])
      }
    })

    test('ends with the chain that has as many bytes as asked', () => {
      const fixture = newFixture()
      const { queue, arena } = fixture
      offerLengths(fixture, [10, 20, 30, 40])
      // The first chain tells where the driver's memory is; from then on chains come in bursts.
      expect(popBatch(queue, arena, TX, 100, 10)).toBe(POP.chain)
      expect(lengthsOf(fixture)).toEqual([10])
      expect(popBatch(queue, arena, TX, 100, 31)).toBe(POP.chain)
      expect(lengthsOf(fixture)).toEqual([10, 20, 30])
      expect(popBatch(queue, arena, TX, 100, 60)).toBe(POP.chain)
      expect(queue.inFlight).toBe(3)
    })

    test('ends where the arena is full', () => {
      for (const [records, iovecs, expected] of [
        [2, 100, 2],
        [100, 3, 3],
      ] as const) {
        const fixture = newFixture()
        const arena = new IovecArena(records, iovecs)
        offerLengths(fixture, [10, 20, 30, 40])
        expect(popBatch(fixture.queue, arena, TX, 100, everything)).toBe(POP.full)
        expect(arena.chainCount).toBe(expected)
        expect(fixture.queue.inFlight).toBe(expected)
        expect(fixture.dropped()).toEqual({})
      }
    })

    test('with unusual chains among the others', () => {
      const fixture = newFixture({ size: 32 })
      const { queue, arena, driver, memory } = fixture
      const two = [
        { address: memory.start, length: 0 },
        { address: memory.start, length: 7 },
      ]
      const ids = [0, 1, 2, 3, 4, 5].map((chain) => {
        if (chain % 3 === 1) return driver.add(two)
        return chain % 3 === 2 ? offerBad(fixture, 2) : driver.add([{ address: memory.start, length: 5 }])
      })
      driver.publish()
      expect(popBatch(queue, arena, TX, 100, everything)).toBe(POP.empty)
      expect(lengthsOf(fixture)).toEqual([5, 7, 5, 7])
      while (queue.inFlight > 0) queue.stageUsed(0)
      queue.publishUsed()
      expect(idsOf(reapAll(fixture))).toEqual(ids)
      expect(fixture.dropped()).toEqual({ chain_address_unmapped: 2 })
    })

    test('and giving part of it back', () => {
      const fixture = newFixture({ start: 5, eventIdx: true })
      const { queue, arena } = fixture
      offerLengths(fixture, [10, 20, 30, 40, 50, 60])
      popBatch(queue, arena, TX, 4, everything)
      queue.unpop(3)
      arena.removeLast(3)
      expect(popBatch(queue, arena, TX, 2, everything)).toBe(POP.chain)
      expect(lengthsOf(fixture)).toEqual([10, 20, 30])
      expect(popBatch(queue, arena, TX, 100, everything)).toBe(POP.empty)
      expect(lengthsOf(fixture)).toEqual([10, 20, 30, 40, 50, 60])
      expect(queue.enableNotification()).toBe(false)
      queue.unpop(6)
      expect(queue.enableNotification()).toBe(false)
      queue.quarantine()
      arena.clear()
      expect(popBatch(queue, arena, TX, 100, everything)).toBe(POP.empty)
    })
  })

  describe('using', () => {
    test('nothing is seen before it is published, and then all at once', () => {
      const fixture = newFixture()
      const { queue, memory } = fixture
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
    })

    test('a chain that is not in flight cannot be used', () => {
      expect(() => newFixture().queue.stageUsed(0)).toThrow('no chain is in flight')
    })

    test('publishing nothing writes nothing', () => {
      const { queue, memory } = newFixture()
      const before = Bun.hash(memory.bytes)
      queue.publishUsed()
      expect(Bun.hash(memory.bytes)).toBe(before)
    })
  })

  describe('malformed chains', () => {
    test('go back in their turn, never before an older chain', () => {
      const fixture = newFixture()
      const { queue, arena } = fixture
      const [first] = offer(fixture, 1)
      const bad = offerBad(fixture, 3)
      const [second] = offer(fixture, 1)
      expect([1, 2, 3].map(() => queue.popInto(arena, TX))).toEqual([POP.chain, POP.dropped, POP.chain])
      queue.publishUsed()
      expect(reapAll(fixture)).toEqual([])
      expect(fixture.dropped()).toEqual({})
      queue.stageUsed(0)
      queue.publishUsed()
      expect(idsOf(reapAll(fixture))).toEqual([first!, bad])
      expect(fixture.dropped()).toEqual({ chain_address_unmapped: 1 })
      queue.stageUsed(0)
      queue.publishUsed()
      expect(idsOf(reapAll(fixture))).toEqual([second!])
    })

    test('at the front are staged at once', () => {
      const fixture = newFixture()
      const { queue } = fixture
      const bad = [offerBad(fixture), offerBad(fixture, 2)]
      expect(popAll(fixture)).toBe(0)
      expect(queue.inFlight).toBe(0)
      queue.publishUsed()
      expect(reapAll(fixture)).toEqual(bad.map((id) => ({ id, length: 0 })))
    })

    test('are counted once, though given back and popped again', () => {
      const fixture = newFixture()
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
    test.each([0, 6, 15])('the last chains are popped again, in the same order (from %i on)', (start) => {
      const fixture = newFixture({ start })
      const { queue, arena, memory, driver } = fixture
      const ids = [10, 20, 30].map((length) =>
        driver.add([
          { address: memory.start, length },
          { address: memory.start, length: 1 },
        ]),
      )
      driver.publish()
      const { nextAvail } = queue
      popAll(fixture)
      queue.unpop(2)
      arena.removeLast(2)
      expect(queue.inFlight).toBe(1)
      expect(queue.nextAvail).toBe(nextAvail)
      expect(popAll(fixture)).toBe(2)
      expect(fixture.chains().map(([piece]) => piece!.length)).toEqual([10, 20, 30])
      for (let count = 0; count < 3; count++) queue.stageUsed(0)
      queue.publishUsed()
      expect(idsOf(reapAll(fixture))).toEqual(ids)
    })

    test('nothing is given back by 0, not even a malformed chain', () => {
      const fixture = newFixture()
      offer(fixture, 1)
      offerBad(fixture)
      popAll(fixture)
      fixture.queue.unpop(0)
      expect(popAll(fixture)).toBe(0)
      fixture.queue.stageUsed(0)
      expect(fixture.dropped()).toEqual({ chain_address_unmapped: 1 })
    })

    test('more than is in flight is our bug', () => {
      const fixture = newFixture()
      offer(fixture, 2)
      fixture.queue.popInto(fixture.arena, TX)
      expect(() => fixture.queue.unpop(2)).toThrow('more chains than were popped')
    })

    test('with some used before, over the end of the ring', () => {
      const fixture = newFixture({ start: 15 })
      const { queue } = fixture
      const ids = offer(fixture, 3)
      popAll(fixture)
      queue.stageUsed(0)
      queue.unpop(2)
      expect(popAll(fixture)).toBe(2)
      queue.stageUsed(0)
      queue.stageUsed(0)
      queue.publishUsed()
      expect(idsOf(reapAll(fixture))).toEqual(ids)
    })
  })

  test('pending is what the driver made available and nobody popped yet', () => {
    const fixture = newFixture({ start: 7 })
    const { queue, arena } = fixture
    const shown = (chains: number): number => (layout === 'split' ? chains : Math.min(chains, 1))
    expect(queue.pending).toBe(0)
    offer(fixture, 5)
    expect(queue.pending).toBe(shown(5))
    for (let count = 0; count < 5; count++) queue.popInto(arena, TX)
    expect(queue.pending).toBe(0)
    queue.unpop(2)
    expect(queue.pending).toBe(shown(2))
    queue[Symbol.dispose]()
    expect(queue.pending).toBe(0)
  })

  describe('kicks', () => {
    test.each([false, true])('enable says whether chains came meanwhile (EVENT_IDX %p)', (eventIdx) => {
      const fixture = newFixture({ eventIdx })
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
      const fixture = newFixture({ eventIdx, start: 14, size: 16 })
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
      const fixture = newFixture({ eventIdx, size: 64 })
      fixture.queue.enableNotification()
      offer(fixture, 1)
      expect(fixture.driver.needsKick()).toBe(true)
      fixture.queue.disableNotification()
      for (let count = 0; count < 20; count++) {
        offer(fixture, 1)
        expect(fixture.driver.needsKick()).toBe(false)
      }
    })
  })

  test.each([0, 5, 13])('a successor goes on where the driver was shown the end (from %i on)', (start) => {
    const fixture = newFixture({ start })
    const { queue, arena } = fixture
    const ids = offer(fixture, 4, false, 2)
    for (let count = 0; count < 3; count++) queue.popInto(arena, TX)
    queue.stageUsed(1)
    queue.publishUsed()
    queue.stageUsed(2)
    queue[Symbol.dispose]()
    const successor = fixture.successor(queue.base)
    expect(successor.base).toBe(queue.base)
    expect(successor.needsCall()).toBe(false)
    arena.clear()
    for (let count = 0; count < 3; count++) expect(successor.popInto(arena, TX)).toBe(POP.chain)
    for (let count = 0; count < 3; count++) successor.stageUsed(3)
    successor.publishUsed()
    expect(reapAll(fixture)).toEqual(ids.map((id, index) => ({ id, length: index === 0 ? 1 : 3 })))
  })

  test('a disposed queue does nothing more, and its memory can be unmapped', () => {
    const fixture = newFixture({ eventIdx: true })
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
    expect(memory.buffers.every((buffer) => buffer.detached)).toBe(true)
  })
})
