import { describe, expect, test } from 'bun:test'
import { AddressSpace } from '../../../src/memory/address-space.ts'
import { TableReader } from '../../../src/memory/table-reader.ts'
import { OwnedMapping } from '../../../src/sys/mapping.ts'
import { addressOf, cString, native } from '../../../src/sys/native.ts'
import { TestMemory } from '../../support/memory.ts'

/** Adjacent memories filled with a pattern that tells every byte apart. */
const memoriesOf = (lengths: readonly number[], start: number, misalignBy = 0): TestMemory[] => {
  let at = start
  return lengths.map((length) => {
    const memory = new TestMemory(length, at, misalignBy)
    for (let index = 0; index < length; index++) memory.bytes[index] = pattern(at + index)
    at += length
    return memory
  })
}

const pattern = (address: number): number => (address * 7 + (address >>> 8) * 13) & 0xff

const readerOf = (memories: readonly TestMemory[]) => {
  const space = new AddressSpace()
  for (const memory of memories) space.add(memory.region())
  return { space, reader: new TableReader(space) }
}

const expectBytes = (reader: TableReader, address: number): void => {
  expect(reader.read(address)).toBe(true)
  expect([...new Uint8Array(reader.words.buffer)]).toEqual(
    Array.from({ length: 16 }, (_, index) => pattern(address + index)),
  )
}

describe.each([
  ['aligned', [256, 256, 256], 0x1000, 0],
  ['of odd lengths', [100, 3, 1, 250], 0x1001, 0],
  ['at odd host addresses', [256, 256], 0x1000, 3],
] as const)('regions %s', (_, lengths, start, misalignBy) => {
  test('a table is located where it lies in one piece, aligned, and nowhere else', () => {
    const memories = memoriesOf(lengths, start, misalignBy)
    const { reader } = readerOf(memories)
    const end = memories.at(-1)!.end
    for (let address = start - 20; address < end; address++) {
      const holder = memories.find((memory) => address >= memory.start && address + 32 <= memory.end)
      const whole = holder !== undefined && holder.address % 4 === 0 && (address - holder.start) % 4 === 0
      const at = reader.locate(address, 32)
      expect(at >= 0).toBe(whole)
      if (at < 0) continue
      const located = new Uint8Array(reader.windowWords.slice(at, at + 8).buffer)
      expect([...located]).toEqual(Array.from({ length: 32 }, (_, index) => pattern(address + index)))
    }
  })

  test('every address reads its 16 bytes', () => {
    const memories = memoriesOf(lengths, start, misalignBy)
    const { reader } = readerOf(memories)
    const end = memories.at(-1)!.end
    for (let address = start; address <= end - 16; address++) expectBytes(reader, address)
    for (let address = end - 15; address <= end; address++) expect(reader.read(address)).toBe(false)
    expect(reader.read(start - 1)).toBe(false)
    // A failure is no obstacle to what follows.
    expectBytes(reader, start)
  })
})

test('reads across the border of two windows of one region', () => {
  const border = 16 * 1024 * 1024
  const [memory] = memoriesOf([border + 4096], 0)
  const { reader } = readerOf([memory!])
  for (const before of [32, 16, 12, 8, 4, 1, 0]) expectBytes(reader, border - before)
  expectBytes(reader, border + 4096 - 16)
  expect(reader.read(border + 4096 - 15)).toBe(false)
})

test('sees what the driver wrote since, and not what is no longer mapped', () => {
  const [memory] = memoriesOf([256], 0x1000)
  const { space, reader } = readerOf([memory!])
  expectBytes(reader, 0x1000)
  memory!.bytes[0] = 0xee
  expect(reader.read(0x1000)).toBe(true)
  expect(reader.words[0]! & 0xff).toBe(0xee)
  space.clear()
  expect(reader.read(0x1000)).toBe(false)
  const other = new TestMemory(256, 0x1000)
  other.bytes[0] = 0x55
  space.add(other.region())
  expect(reader.read(0x1000)).toBe(true)
  expect(reader.words[0]).toBe(0x55)
})

test('tables all over a large memory are read through a bounded number of windows, and none is made for most', () => {
  const WINDOW = 16 << 20
  const count = 4096
  const fd = native.vn_memfd(cString('vn-windows'), count * WINDOW)
  const mapping = new OwnedMapping(fd, count * WINDOW)
  native.vn_close(fd)
  const space = new AddressSpace()
  const made: ArrayBuffer[] = []
  const buffer = mapping.buffer.bind(mapping)
  mapping.buffer = (offset, length) => {
    const view = buffer(offset, length)
    made.push(view)
    return view
  }
  space.add({ start: 0, lengthBytes: count * WINDOW, access: 3, mapping, mappingOffset: 0 })
  const reader = new TableReader(space)
  const other = new TableReader(space)
  for (let which = 0; which < count; which++) {
    const piece = new Uint32Array([
      (mapping.address + which * WINDOW) >>> 0,
      (mapping.address + which * WINDOW) / 2 ** 32,
      16,
      0,
    ])
    native.vn_guest_write(addressOf(piece), 1, new Uint8Array(new Uint32Array([which, 1, 2, 3]).buffer), 16)
  }
  for (let round = 0; round < 8; round++) {
    const before = made.length
    for (let which = 0; which < count; which++) {
      expect(reader.read(which * WINDOW)).toBeTrue()
      expect([...reader.words]).toEqual([which, 1, 2, 3])
      // A second reader, whose window goes away meanwhile.
      if (which % 16 === 0) expect(other.read(0)).toBeTrue()
      expect(other.words[0]).toBe(0)
      const at = reader.locate(which * WINDOW, 16)
      if (at >= 0) expect(reader.windowWords[at]).toBe(which)
    }
    expect(made.filter((view) => !view.detached).length).toBeLessThanOrEqual(256)
    expect(made.length - before).toBeLessThanOrEqual(round === 0 ? 256 + 160 : 160)
  }
  // What stays where it is gets a window, and keeps it.
  for (let read = 0; read < 64; read++) reader.read(5 * WINDOW)
  const before = made.length
  for (let read = 0; read < 1000; read++) expect(reader.locate(5 * WINDOW, 16)).toBe(0)
  expect(made.length).toBe(before)
  space.clear()
  expect(made.every((view) => view.detached)).toBeTrue()
})
