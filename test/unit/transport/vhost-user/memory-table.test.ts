import { describe, expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { ProtocolError } from '../../../../src/base/errors.ts'
import { native } from '../../../../src/sys/native.ts'
import {
  MEMORY_BLOCK_BYTES,
  MEMORY_SLOTS,
  type MemoryRegionMessage,
  MemoryTable,
  memoryTableSource,
} from '../../../../src/transport/vhost-user/memory-table.ts'

const MIB = 1 << 20
const NAME = 'vn-table-test'

/** A file for regions; its number is the descriptor. */
const file = (bytes: number): { fd: number; [Symbol.dispose]: () => void } => {
  const fd = native.vn_memfd(new TextEncoder().encode(`${NAME}\0`), bytes)
  return { fd, [Symbol.dispose]: () => void native.vn_close(fd) }
}

const mappings = (): number =>
  readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .filter((line) => line.includes(NAME)).length

const region = (fd: number, guestAddress: number, options: Partial<MemoryRegionMessage> = {}): MemoryRegionMessage => ({
  guestAddress,
  lengthBytes: MIB,
  userAddress: guestAddress + 0x1000_0000,
  mmapOffset: 0,
  fd,
  ...options,
})

const newTable = () => {
  const block = new SharedArrayBuffer(MEMORY_BLOCK_BYTES)
  return { table: new MemoryTable(block), source: memoryTableSource(block) }
}

const nothing = (): void => {}

describe('MemoryTable', () => {
  test('what is put in can be found by the workers, at the same bytes, until it is taken away', () => {
    using memory = file(4 * MIB)
    const { table, source } = newTable()
    const regions = [region(memory.fd, 0), region(memory.fd, 16 * MIB, { mmapOffset: MIB + 512, lengthBytes: 8192 })]
    expect(table.replace(regions, nothing)).toBeNull()
    expect(source.resolve(MIB)).toBeUndefined()
    const found = source.resolve(16 * MIB + 5)!
    expect([found.start, found.lengthBytes, found.mappingOffset]).toEqual([16 * MIB, 8192, 0])
    native.vn_write(memory.fd, new Uint8Array(2 * MIB).fill(7, MIB + 512, MIB + 513), 2 * MIB)
    const bytes = new Uint8Array(found.mapping.buffer(0, 2))
    expect([...bytes]).toEqual([7, 0])
    found.mapping[Symbol.dispose]()
    expect(mappings()).toBe(2)
    table.clear(nothing)
    expect(mappings()).toBe(0)
    expect(source.resolve(0)).toBeUndefined()
  })

  test('the workers have let go before anything is unmapped', () => {
    using memory = file(MIB)
    const { table, source } = newTable()
    table.replace([region(memory.fd, 0)], nothing)
    let seen: readonly [number, boolean] | null = null
    table.clear(() => {
      seen = [mappings(), source.resolve(0) === undefined]
    })
    // The table is empty already, the memory still there.
    expect(seen as unknown).toEqual([1, true])
    expect(mappings()).toBe(0)
  })

  test('a refusal leaves the table as it was', () => {
    using memory = file(MIB)
    const { table, source } = newTable()
    table.replace([region(memory.fd, 0)], nothing)
    const tooLong = region(memory.fd, 32 * MIB, { lengthBytes: MIB + 1 })
    expect(table.replace([region(memory.fd, 64 * MIB), tooLong], nothing)).toContain('of a file of')
    expect(table.add(tooLong, nothing)).toContain('of a file of')
    expect(table.add(region(memory.fd, 4096), nothing)).toBe('guest addresses overlap')
    expect(table.add(region(memory.fd, 64 * MIB, { userAddress: 0x1000_0000 }), nothing)).toBe('user addresses overlap')
    expect(() => table.replace([region(memory.fd, 0), region(memory.fd, 4096)], nothing)).toThrow(ProtocolError)
    expect(mappings()).toBe(1)
    expect(source.resolve(0)?.start).toBe(0)
    table.clear(nothing)
  })

  test('a region goes only by all three of its numbers', () => {
    using memory = file(MIB)
    const { table } = newTable()
    const here = region(memory.fd, 0)
    table.add(here, nothing)
    for (const wrong of [{ guestAddress: 1 }, { lengthBytes: 1 }, { userAddress: 1 }])
      expect(table.remove({ ...here, ...wrong }, nothing)).toBe('no such memory region')
    expect(table.remove({ ...here, mmapOffset: 4096 } as MemoryRegionMessage, nothing)).toBeNull()
    expect(mappings()).toBe(0)
  })

  test('as many regions as are told, and not one more', () => {
    using memory = file(MIB)
    const { table } = newTable()
    const tiny = (index: number): MemoryRegionMessage => region(memory.fd, index * MIB, { lengthBytes: 4096 })
    for (let index = 0; index < MEMORY_SLOTS; index++) expect(table.add(tiny(index), nothing)).toBeNull()
    expect(table.add(tiny(MEMORY_SLOTS), nothing)).toBe(`more than ${MEMORY_SLOTS} memory regions`)
    expect(table.guestEnd).toBe((MEMORY_SLOTS - 1) * MIB + 4096)
    table.clear(nothing)
    expect(mappings()).toBe(0)
  })

  test('a front-end address means something only with all of its bytes in one region', () => {
    using memory = file(2 * MIB)
    const { table } = newTable()
    const first = region(memory.fd, 0)
    table.replace([first, region(memory.fd, MIB, { userAddress: first.userAddress + MIB, mmapOffset: MIB })], nothing)
    expect(table.toGuest(first.userAddress + 5, 10)).toBe(5)
    expect(table.toGuest(first.userAddress + MIB, 10)).toBe(MIB)
    expect(table.toGuest(first.userAddress + MIB - 5, 10)).toBeNull()
    expect(table.toGuest(first.userAddress - 1, 1)).toBeNull()
    table.clear(nothing)
  })
})
