import { describe, expect, test } from 'bun:test'
import { existsSync } from 'node:fs'
import { SysError } from '../../../src/base/errors.ts'
import { OwnedMapping } from '../../../src/sys/mapping.ts'
import { addressOf, check, cString, native } from '../../../src/sys/native.ts'
import { symbols } from '../../../src/sys/symbols.ts'
import { workerUrl } from '../../../src/sys/worker.ts'
import { ScratchFile } from '../../support/scratch-file.ts'

describe('native', () => {
  test('has every function of the contract', () => {
    expect(Object.keys(native).sort()).toEqual(Object.keys(symbols).sort())
  })
})

describe('addressOf', () => {
  test("stays the array's own when somebody asks for its buffer", () => {
    for (const length of [1, 8, 100, 5000]) {
      const array = new Uint8Array(length)
      const address = addressOf(array)
      // The kernel writes through the address; the array must see it.
      using file = new ScratchFile(4096)
      using mapping = new OwnedMapping(file.fd, 4096)
      new Uint8Array(mapping.buffer(0, 4096)).fill(9)
      const count = Math.min(length, 4096)
      expect(native.vn_read(file.fd, address, count)).toBe(count)
      expect(new Uint8Array(array.buffer)[0]).toBe(9)
      expect(addressOf(array)).toBe(address)
    }
  })

  test('of a part of an array is that of its first element', () => {
    const array = new Uint32Array(10)
    expect(addressOf(array.subarray(3))).toBe(addressOf(array) + 12)
  })
})

test('check throws the errno by name, and passes results on', () => {
  expect(check('poll', 3)).toBe(3)
  expect(() => check('poll', -22)).toThrow(new SysError('poll', 22))
})

test('cString ends in NUL and has none inside', () => {
  expect([...cString('tap0')]).toEqual([116, 97, 112, 48, 0])
  expect(() => cString('a\0b')).toThrow('NUL')
})

test('workerUrl finds a module of src/', () => {
  expect(existsSync(workerUrl('dataplane/queue-worker.ts'))).toBe(true)
})
