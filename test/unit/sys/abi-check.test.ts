import { describe, expect, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import { resolve } from 'node:path'
import { type AbiTable, checkAbi, compareAbi, headerModules, nativeAbi } from '../../../src/sys/abi-check.ts'

const table = nativeAbi()

describe('src/abi and the native library', () => {
  test('agree', () => {
    expect(compareAbi(table)).toEqual({ mismatches: [], unmatched: [] })
    checkAbi()
  })

  test('every module of src/abi that has header constants is compared', () => {
    const others = [
      'drop-reason.ts',
      'layout.ts',
      'receive-filter.ts',
      'receive-scaling.ts',
      'vhost-user-inflight.ts',
      'vhost-user.ts',
      'vn-io.ts',
    ]
    const modules = readdirSync(resolve(import.meta.dir, '../../../src/abi')).filter((name) => !others.includes(name))
    expect(modules.length).toBe(headerModules.length)
    expect(Object.keys(table.constants).length).toBeGreaterThan(150)
    expect(Object.keys(table.structs).length).toBeGreaterThan(15)
  })

  test('the library is built with safety checks', () => {
    expect(table.mode).toBe('ReleaseSafe')
  })
})

describe('compareAbi', () => {
  const changed = (change: (copy: Mutable<AbiTable>) => void): readonly string[] => {
    const copy = structuredClone(table) as Mutable<AbiTable>
    change(copy)
    const { mismatches, unmatched } = compareAbi(copy)
    return [...mismatches, ...unmatched]
  }

  test('names a constant, an offset, a size and a list that differ', () => {
    expect(changed((copy) => (copy.constants.VDUSE_CREATE_DEV = 1))).toEqual([
      'VDUSE_CREATE_DEV is 1095794946 in TypeScript and 1 in the library',
    ])
    expect(changed((copy) => (copy.structs.vduse_vq_info!.fields.ready = 41))).toEqual([
      'vduse_vq_info.ready is 40 in TypeScript and 41 in the library',
    ])
    expect(changed((copy) => (copy.structs.virtio_net_config!.size = 23))).toEqual([
      'virtio_net_config is 24 in TypeScript and 23 in the library',
    ])
    expect(changed((copy) => (copy.structs.vn_io!.fields.tx_packets = 0))).toHaveLength(1)
    expect(changed((copy) => copy.dropReasons.reverse())[0]).toStartWith('drop reasons is ')
    expect(changed((copy) => copy.rxStops.push('more'))[0]).toStartWith('rx stops is ')
  })

  test('names what only one side has', () => {
    expect(changed((copy) => (copy.constants.VDUSE_NEW = 1))).toEqual(['VDUSE_NEW'])
    expect(changed((copy) => delete copy.constants.TUNSETIFF)).toEqual(['TUNSETIFF'])
    expect(changed((copy) => delete copy.structs.ifreq)[0]).toBe('ifreq')
  })
})

type Mutable<T> = { -readonly [Key in keyof T]: Mutable<T[Key]> }
