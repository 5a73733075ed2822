import { describe, expect, test } from 'bun:test'
import { array, flatten, packedStruct, struct, u8, u16, u32, u64, union } from '../../../src/abi/layout.ts'

describe('struct', () => {
  test('aligns fields and the end as C does', () => {
    const layout = struct('s', { a: u8, b: u32, c: u8, d: u16, e: u64, f: u8 })
    expect({ ...layout, asField: undefined }).toEqual({
      a: 0,
      b: 4,
      c: 8,
      d: 10,
      e: 16,
      f: 24,
      sizeBytes: 32,
      cName: 's',
      asField: undefined,
    })
  })

  test('packs on request', () => {
    const layout = packedStruct('s', { a: u8, b: u32, c: u16 })
    expect([layout.a, layout.b, layout.c, layout.sizeBytes]).toEqual([0, 1, 5, 7])
  })

  test('an array has its element alignment, and a flexible one no size', () => {
    const layout = struct('s', { a: u8, b: array(u16, 3), c: u32, d: array(u8, 0) })
    expect([layout.b, layout.c, layout.d, layout.sizeBytes]).toEqual([2, 8, 12, 12])
  })

  test('nests structs and unions', () => {
    const inner = struct('inner', { x: u8, y: u32 })
    const layout = struct('outer', { a: u8, inner: inner.asField, u: union({ s: u16, big: inner.asField }), z: u8 })
    expect(layout.inner.y).toBe(8)
    expect([layout.u.s, layout.u.big.x, layout.u.big.y, layout.z, layout.sizeBytes]).toEqual([12, 12, 16, 20, 24])
    expect([...flatten(layout)]).toEqual([
      ['a', 0],
      ['inner.x', 4],
      ['inner.y', 8],
      ['s', 12],
      ['big.x', 12],
      ['big.y', 16],
      ['z', 20],
    ])
  })
})
