import { expect, test } from 'bun:test'
import { IovecArena } from '../../../src/memory/iovec-arena.ts'

const iovec = (arena: IovecArena, index: number): number[] => [...arena.iovecs.subarray(4 * index, 4 * index + 4)]
const chain = (arena: IovecArena, index: number): number[] => [...arena.chains.subarray(2 * index, 2 * index + 2)]

test('keeps an address in two words, exact up to 2^53', () => {
  const arena = new IovecArena(1, 4)
  arena.append(0xffff_ffff, 1)
  arena.append(0x1_0000_0000, 2)
  arena.append(0x7fff_ffff_f123, 0xffff_ffff)
  arena.append(Number.MAX_SAFE_INTEGER, 3)
  expect(iovec(arena, 0)).toEqual([0xffff_ffff, 0, 1, 0])
  expect(iovec(arena, 1)).toEqual([0, 1, 2, 0])
  expect(iovec(arena, 2)).toEqual([0xffff_f123, 0x7fff, 0xffff_ffff, 0])
  expect(iovec(arena, 3)).toEqual([0xffff_ffff, 0x1f_ffff, 3, 0])
})

test('chains are records of first iovec and count', () => {
  const arena = new IovecArena(3, 8)
  arena.append(4096, 1)
  arena.close()
  arena.append(4096, 2)
  arena.append(8192, 3)
  expect(arena.openIovecs).toBe(2)
  arena.close()
  expect(arena.chainCount).toBe(2)
  expect([chain(arena, 0), chain(arena, 1)]).toEqual([
    [0, 1],
    [1, 2],
  ])
})

test('commit takes over what was written behind the others', () => {
  const arena = new IovecArena(3, 8)
  arena.append(4096, 100)
  arena.close()
  arena.chains.set([1, 2, 3, 1], 2)
  arena.commit(2, 3, 600)
  expect([arena.chainCount, arena.iovecCount, arena.openIovecs, arena.bytes]).toEqual([3, 4, 0, 700])
  expect(arena.hasChainRoom).toBe(false)
  arena.removeLast(1)
  arena.append(8192, 1)
  arena.close()
  expect([0, 1, 2].map((index) => chain(arena, index))).toEqual([
    [0, 1],
    [1, 2],
    [3, 1],
  ])
})

test('abandon forgets the open chain only', () => {
  const arena = new IovecArena(3, 8)
  arena.append(4096, 1)
  arena.close()
  arena.append(8192, 2)
  arena.abandon()
  arena.append(12_288, 3)
  arena.close()
  expect(chain(arena, 1)).toEqual([1, 1])
  expect(iovec(arena, 1)).toEqual([12_288, 0, 3, 0])
})

test('says when there is no room', () => {
  const arena = new IovecArena(1, 2)
  expect(arena.append(0, 1)).toBe(true)
  expect(arena.openChainIsAlone).toBe(true)
  arena.close()
  expect(arena.hasChainRoom).toBe(false)
  expect(arena.openChainIsAlone).toBe(false)
  expect(arena.append(0, 1)).toBe(true)
  expect(arena.append(0, 1)).toBe(false)
  arena.clear()
  expect(arena.hasChainRoom).toBe(true)
  expect(arena.append(0, 1)).toBe(true)
})

test('removeLast takes whole chains and their iovecs back', () => {
  const arena = new IovecArena(4, 8)
  for (let length = 1; length <= 3; length++) {
    for (let iovecs = 0; iovecs < length; iovecs++) arena.append(4096, length)
    arena.close()
  }
  arena.removeLast(0)
  expect(arena.chainCount).toBe(3)
  arena.removeLast(2)
  expect(arena.chainCount).toBe(1)
  arena.append(8192, 9)
  arena.close()
  expect(chain(arena, 1)).toEqual([1, 1])
  expect(() => arena.removeLast(3)).toThrow()
})

test('bytes measures the work since clear, also what came to nothing', () => {
  const arena = new IovecArena(2, 2)
  arena.append(4096, 100)
  arena.abandon()
  arena.append(4096, 0xffff_ffff)
  arena.close()
  expect(arena.bytes).toBe(100 + 0xffff_ffff)
  arena.append(4096, 1)
  arena.append(4096, 1)
  expect(arena.bytes).toBe(101 + 0xffff_ffff)
  arena.clear()
  expect(arena.bytes).toBe(0)
})
