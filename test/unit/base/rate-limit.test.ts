import { expect, test } from 'bun:test'
import { RateLimit } from '../../../src/base/rate-limit.ts'

test('so many in each stretch of time, the others counted once', () => {
  let now = 0
  const limit = new RateLimit(3, 1000, () => now)
  const tries = (count: number): number => Array.from({ length: count }, () => limit.allows()).filter(Boolean).length
  expect(tries(3)).toBe(3)
  expect(limit.takeSuppressed()).toBe(0)
  expect(tries(5)).toBe(0)
  now = 999
  expect(tries(1)).toBe(0)
  now = 1000
  expect(tries(2)).toBe(2)
  expect(limit.takeSuppressed()).toBe(6)
  expect(limit.takeSuppressed()).toBe(0)
})
