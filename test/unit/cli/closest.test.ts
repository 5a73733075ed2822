import { expect, test } from 'bun:test'
import { closest } from '../../../src/cli/closest.ts'

test('finds what was probably meant, and nothing for what was not', () => {
  const words = ['host_tso4', 'host_tso6', 'mtu', 'mrg_rxbuf']
  expect(closest('hots_tso6', words)).toBe('host_tso6')
  expect(closest('mrgrxbuf', words)).toBe('mrg_rxbuf')
  expect(closest('mut', words)).toBeNull()
  expect(closest('mtuu', words)).toBe('mtu')
  expect(closest('warp', words)).toBeNull()
  expect(closest('', words)).toBeNull()
  expect(closest('mtu', [])).toBeNull()
})
