import { expect, test } from 'bun:test'
import { DriverFault } from '../../../src/base/errors.ts'
import { AddressSpace } from '../../../src/memory/address-space.ts'
import { ACCESS, type Access } from '../../../src/memory/region.ts'
import { RingView } from '../../../src/memory/ring-view.ts'
import { TestMemory } from '../../support/memory.ts'

const spaceOf = (...memories: TestMemory[]): AddressSpace => {
  const space = new AddressSpace()
  for (const memory of memories) space.add(memory.region())
  return space
}

const codeOf = (make: () => unknown): string => {
  try {
    make()
  } catch (error) {
    if (error instanceof DriverFault) return error.code
    throw error
  }
  return 'no fault'
}

const viewCode = (
  space: AddressSpace,
  address: number,
  length: number,
  alignment: 2 | 4 | 16,
  access: Access = ACCESS.read,
): string => codeOf(() => new RingView(space, address, length, alignment, access))

test('shows the bytes at the address, both ways', () => {
  const memory = new TestMemory(4096)
  const view = new RingView(spaceOf(memory), memory.start + 64, 22, 4, ACCESS.readWrite)
  memory.bytes.set([1, 2, 3, 4], 64)
  expect(view.u16[0]).toBe(0x0201)
  expect(view.u32[0]).toBe(0x04030201)
  view.u16[10] = 0xbbaa
  expect([...memory.bytes.subarray(84, 86)]).toEqual([0xaa, 0xbb])
  expect(view.u16).toHaveLength(11)
  expect(view.u32).toHaveLength(5)
})

test('alignment is 16, 4 or 2 as asked', () => {
  const memory = new TestMemory(4096)
  const space = spaceOf(memory)
  for (const alignment of [2, 4, 16] as const) {
    expect(viewCode(space, memory.start + alignment, 64, alignment)).toBe('no fault')
    expect(viewCode(space, memory.start + alignment / 2, 64, alignment)).toBe('RING_MISALIGNED')
    expect(viewCode(space, memory.start + alignment - 1, 64, alignment)).toBe('RING_MISALIGNED')
  }
})

test('alignment in this process counts too', () => {
  const memory = new TestMemory(4096, 0x1000, 1)
  expect(viewCode(spaceOf(memory), memory.start, 64, 2)).toBe('RING_MISALIGNED')
})

test('the whole extent lies in one mapping', () => {
  const memory = new TestMemory(4096, 0x1000)
  const next = new TestMemory(4096, 0x2000)
  const space = spaceOf(memory, next)
  expect(viewCode(space, 0x1fc0, 64, 16)).toBe('no fault')
  expect(viewCode(space, 0x1fc0, 66, 16)).toBe('RING_UNMAPPED')
  expect(viewCode(space, 0x1fd0, 64, 16)).toBe('RING_UNMAPPED')
  expect(viewCode(space, 0x3000, 64, 16)).toBe('RING_UNMAPPED')
  expect(viewCode(space, 0x0ff0, 64, 16)).toBe('RING_UNMAPPED')
  expect(viewCode(space, 2 ** 63, 64, 16)).toBe('RING_UNMAPPED')
})

test('the permission fits', () => {
  const readOnly = new TestMemory(4096, 0x1000)
  const writeOnly = new TestMemory(4096, 0x2000)
  const space = new AddressSpace()
  space.add(readOnly.region(ACCESS.read))
  space.add(writeOnly.region(ACCESS.write))
  expect(viewCode(space, 0x1000, 64, 16, ACCESS.read)).toBe('no fault')
  expect(viewCode(space, 0x1000, 64, 16, ACCESS.write)).toBe('RING_UNMAPPED')
  expect(viewCode(space, 0x2000, 64, 16, ACCESS.write)).toBe('no fault')
  expect(viewCode(space, 0x2000, 64, 16, ACCESS.read)).toBe('RING_UNMAPPED')
})

test('detached by disposal, any number of times', () => {
  const memory = new TestMemory(4096)
  const space = spaceOf(memory)
  const view = new RingView(space, memory.start, 64, 16, ACCESS.read)
  const other = new RingView(space, memory.start, 64, 16, ACCESS.read)
  view[Symbol.dispose]()
  view[Symbol.dispose]()
  expect(view.u16).toHaveLength(0)
  expect(view.u32[0]).toBeUndefined()
  expect(() => space.clear()).toThrow('under a ring')
  other[Symbol.dispose]()
  space.clear()
  expect(memory.buffers.map(({ detached }) => detached)).toEqual([true, true])
})
