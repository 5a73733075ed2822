import { describe, expect, test } from 'bun:test'
import { AddressSpace, TRANSLATED } from '../../../src/memory/address-space.ts'
import { IovecArena } from '../../../src/memory/iovec-arena.ts'
import { ACCESS, type Access, type Region } from '../../../src/memory/region.ts'
import { RingView } from '../../../src/memory/ring-view.ts'
import { emptyMapping, TestMemory } from '../../support/memory.ts'
import { Random } from '../../support/random.ts'

const HOST = 2 ** 44

const region = (start: number, lengthBytes: number, host = HOST + start, access: Access = ACCESS.readWrite) => ({
  start,
  lengthBytes,
  access,
  mapping: emptyMapping(host, lengthBytes),
  mappingOffset: 0,
})

/** Pieces as [host address, length], or how it failed. */
const translate = (space: AddressSpace, address: number, length: number, access: Access = ACCESS.read) => {
  const arena = new IovecArena(1, 64)
  const result = space.translate(address, length, access, arena)
  if (result !== TRANSLATED.ok) return result
  return Array.from({ length: arena.openIovecs }, (_, at) => {
    const [low, high, bytes] = arena.iovecs.subarray(4 * at)
    return [high! * 2 ** 32 + low!, bytes]
  })
}

describe('add', () => {
  test('keeps regions sorted, whatever the order', () => {
    const space = new AddressSpace()
    for (const start of [0x3000, 0x1000, 0x5000, 0x0, 0x4000]) expect(space.add(region(start, 0x800))).toBe(true)
    for (const start of [0x0, 0x1000, 0x3000, 0x4000, 0x5000]) {
      expect(translate(space, start + 0x10, 0x20)).toEqual([[HOST + start + 0x10, 0x20]])
      expect(translate(space, start + 0x800, 1)).toBe(TRANSLATED.fault)
    }
  })

  test('refuses overlap, and leaves the mapping to the caller', () => {
    const space = new AddressSpace()
    space.add(region(0x1000, 0x1000))
    for (const [start, length] of [
      [0x1000, 0x1000],
      [0x800, 0x801],
      [0x1fff, 1],
      [0x1800, 0x100],
      [0, 0x10_000],
    ]) {
      const overlapping = region(start!, length!)
      expect(space.add(overlapping)).toBe(false)
      expect(overlapping.mapping.disposed).toBe(0)
    }
    expect(space.add(region(0x800, 0x800))).toBe(true)
    expect(space.add(region(0x2000, 0x800))).toBe(true)
    expect(space.regionCount).toBe(3)
  })

  test('refuses what is empty, beyond 2^53, or more than its mapping', () => {
    const space = new AddressSpace()
    expect(space.add(region(0x1000, 0))).toBe(false)
    expect(space.add(region(-1, 0x1000))).toBe(false)
    expect(space.add(region(2 ** 53 - 4096, 8192))).toBe(false)
    expect(space.add({ ...region(0x1000, 0x1000), mappingOffset: 1 })).toBe(false)
    expect(space.add({ ...region(0x1000, 0x1000), mappingOffset: -1 })).toBe(false)
    expect(space.regionCount).toBe(0)
  })

  test('holds 2048 regions and no more', () => {
    const space = new AddressSpace()
    for (let index = 0; index < 2048; index++) expect(space.add(region(index * 0x1000, 0x1000))).toBe(true)
    expect(space.add(region(2048 * 0x1000, 0x1000))).toBe(false)
    expect(translate(space, 2047 * 0x1000, 1)).toEqual([[HOST + 2047 * 0x1000, 1]])
  })

  test('a region may lie inside its mapping', () => {
    const space = new AddressSpace()
    const mapping = emptyMapping(HOST, 0x3000)
    space.add({ start: 0x9000, lengthBytes: 0x1000, access: ACCESS.readWrite, mapping, mappingOffset: 0x2000 })
    expect(translate(space, 0x9010, 4)).toEqual([[HOST + 0x2010, 4]])
  })
})

describe('translate', () => {
  test('pieces of adjacent regions, each where it is mapped', () => {
    const space = new AddressSpace()
    space.add(region(0x1000, 0x1000, HOST + 0x70_0000))
    space.add(region(0x2000, 0x1000, HOST))
    space.add(region(0x3000, 0x1000, HOST + 0x50_0000))
    expect(translate(space, 0x1ff0, 0x1020)).toEqual([
      [HOST + 0x70_0ff0, 0x10],
      [HOST, 0x1000],
      [HOST + 0x50_0000, 0x10],
    ])
    expect(translate(space, 0x1000, 0x1000)).toEqual([[HOST + 0x70_0000, 0x1000]])
    expect(translate(space, 0x3ff0, 0x11)).toBe(TRANSLATED.fault)
  })

  test('every piece needs the permission', () => {
    const space = new AddressSpace()
    space.add(region(0x1000, 0x1000, HOST, ACCESS.readWrite))
    space.add(region(0x2000, 0x1000, HOST + 0x1000, ACCESS.read))
    space.add(region(0x3000, 0x1000, HOST + 0x2000, ACCESS.write))
    expect(translate(space, 0x1800, 0x1000, ACCESS.read)).toHaveLength(2)
    expect(translate(space, 0x1800, 0x1000, ACCESS.write)).toBe(TRANSLATED.fault)
    expect(translate(space, 0x3000, 1, ACCESS.write)).toHaveLength(1)
    expect(translate(space, 0x3000, 1, ACCESS.read)).toBe(TRANSLATED.fault)
  })

  test('says when the arena is full', () => {
    const space = new AddressSpace()
    space.add(region(0x1000, 0x1000))
    space.add(region(0x2000, 0x1000))
    expect(space.translate(0x1800, 0x1000, ACCESS.read, new IovecArena(1, 1))).toBe(TRANSLATED.noRoom)
  })

  test('agrees with a plain search over random regions', () => {
    const random = new Random(7)
    for (let round = 0; round < 50; round++) {
      const space = new AddressSpace()
      const host = new Map<number, number>()
      for (let index = 0; index < 20; index++) {
        const start = random.below(400)
        const length = random.between(1, 30)
        const at = HOST + index * 4096
        const free = Array.from({ length }, (_, byte) => !host.has(start + byte)).every(Boolean)
        expect(space.add(region(start, length, at))).toBe(free)
        if (free) for (let byte = 0; byte < length; byte++) host.set(start + byte, at + byte)
      }
      for (let query = 0; query < 200; query++) {
        const address = random.below(430)
        const length = random.between(1, 40)
        const expected = Array.from({ length }, (_, byte) => host.get(address + byte))
        const pieces = translate(space, address, length)
        if (expected.includes(undefined)) expect(pieces).toBe(TRANSLATED.fault)
        else
          expect((pieces as number[][]).flatMap(([at, n]) => Array.from({ length: n! }, (_, i) => at! + i))).toEqual(
            expected as number[],
          )
      }
    }
  })
})

describe('the last region', () => {
  const contains = (space: AddressSpace, address: number): boolean =>
    address >= space.lastRegion.start && address < space.lastRegion.end

  test('is that of the last address found', () => {
    const space = new AddressSpace()
    expect(contains(space, 0)).toBe(false)
    space.add(region(0x1000, 0x1000))
    space.add(region(0x4000, 0x1000, HOST, ACCESS.read))
    for (const [address, delta, access] of [
      [0x1800, HOST, ACCESS.readWrite],
      [0x4800, HOST - 0x4000, ACCESS.read],
      [0x1800, HOST, ACCESS.readWrite],
    ] as const) {
      expect(translate(space, address, 1)).toEqual([[address + delta, 1]])
      expect(contains(space, address)).toBe(true)
      expect([space.lastRegion.delta, space.lastRegion.access]).toEqual([delta, access])
      expect(translate(space, 0x3000, 1)).toBe(TRANSLATED.fault)
    }
  })

  test('is never one that was forgotten', () => {
    const space = new AddressSpace()
    space.add(region(0x1000, 0x1000))
    space.add(region(0x4000, 0x1000))
    translate(space, 0x4800, 1)
    space.forget(0x4000, 0x4fff)
    expect(contains(space, 0x4800)).toBe(false)
    translate(space, 0x1800, 1)
    space.clear()
    expect(contains(space, 0x1800)).toBe(false)
  })
})

describe('the source', () => {
  /** Knows regions, and counts what it is asked. */
  const sourceOf = (regions: Region[]) => {
    const asked: number[] = []
    return {
      asked,
      resolve: (address: number) => {
        asked.push(address)
        return regions.find(({ start, lengthBytes }) => address >= start && address < start + lengthBytes)
      },
    }
  }

  test('is asked once for each region, and only for what is missing', () => {
    const source = sourceOf([region(0x1000, 0x1000), region(0x2000, 0x1000, HOST)])
    const space = new AddressSpace(source)
    expect(translate(space, 0x1ff0, 0x20)).toEqual([
      [HOST + 0x1ff0, 0x10],
      [HOST, 0x10],
    ])
    expect(source.asked).toEqual([0x1ff0, 0x2000])
    expect(translate(space, 0x2ff0, 0x10)).toEqual([[HOST + 0xff0, 0x10]])
    expect(translate(space, 0x1000, 0x10)).toHaveLength(1)
    expect(source.asked).toHaveLength(2)
    expect(translate(space, 0x3000, 1)).toBe(TRANSLATED.fault)
    expect(source.asked).toEqual([0x1ff0, 0x2000, 0x3000])
  })

  test('an answer that does not hold the address is unmapped and not used', () => {
    const elsewhere = region(0x8000, 0x1000)
    const space = new AddressSpace({ resolve: () => elsewhere })
    expect(translate(space, 0x1000, 1)).toBe(TRANSLATED.fault)
    expect(elsewhere.mapping.disposed).toBe(1)
    expect(space.regionCount).toBe(0)
  })

  test('an answer that overlaps what is still mapped is unmapped and not used', () => {
    const replaced = region(0x1000, 0x3000)
    const space = new AddressSpace({ resolve: () => replaced })
    space.add(region(0x1000, 0x1000))
    expect(translate(space, 0x2000, 1)).toBe(TRANSLATED.fault)
    expect(replaced.mapping.disposed).toBe(1)
    expect(translate(space, 0x1000, 1)).toEqual([[HOST + 0x1000, 1]])
  })
})

describe('forget', () => {
  test('unmaps what overlaps the range, once, and finds the rest', () => {
    const space = new AddressSpace()
    const regions = [0x1000, 0x2000, 0x3000, 0x4000].map((start) => region(start, 0x1000))
    for (const one of regions) space.add(one)
    const generation = space.generation
    space.forget(0x2fff, 0x3000)
    expect(regions.map(({ mapping }) => mapping.disposed)).toEqual([0, 1, 1, 0])
    expect(space.generation).toBe(generation + 1)
    expect(translate(space, 0x2800, 1)).toBe(TRANSLATED.fault)
    expect(translate(space, 0x3800, 1)).toBe(TRANSLATED.fault)
    expect(translate(space, 0x1800, 1)).toEqual([[HOST + 0x1800, 1]])
    expect(translate(space, 0x4800, 1)).toEqual([[HOST + 0x4800, 1]])
    expect(space.add(region(0x2000, 0x2000))).toBe(true)
  })

  test('a range beside every region changes nothing', () => {
    const space = new AddressSpace()
    space.add(region(0x1000, 0x1000))
    const generation = space.generation
    space.forget(0, 0xfff)
    space.forget(0x2000, 0xffff)
    expect(space.regionCount).toBe(1)
    expect(space.generation).toBe(generation)
  })

  test('detaches table windows before it unmaps', () => {
    const memory = new TestMemory(4096)
    const space = new AddressSpace()
    space.add(memory.region())
    const window = space.tableWindow(memory.start)!
    expect(window.words).toHaveLength(1024)
    space.clear()
    expect(window.words).toHaveLength(0)
    expect(memory.disposed).toBe(1)
  })

  test('refuses to unmap memory under a ring', () => {
    const memory = new TestMemory(4096)
    const space = new AddressSpace()
    space.add(memory.region())
    const view = new RingView(space, memory.start, 64, 16, ACCESS.read)
    expect(() => space.clear()).toThrow('under a ring')
    expect(memory.disposed).toBe(0)
    view[Symbol.dispose]()
    space.clear()
    expect(memory.disposed).toBe(1)
  })

  test('counts vanished pages of what is mapped', () => {
    const memories = [new TestMemory(4096, 0x1000), new TestMemory(4096, 0x2000)]
    const space = new AddressSpace()
    for (const memory of memories) space.add(memory.region())
    expect(space.guardHits()).toBe(0)
    memories[0]!.vanished = 2
    memories[1]!.vanished = 3
    expect(space.guardHits()).toBe(5)
  })
})
