import { expect, test } from 'bun:test'
import { CLOCK_TOO_FAST, clockSpeed } from '../../../scripts/lab/lab.ts'

test('a guest whose clock is right has been up for less than the time since its start', () => {
  expect(clockSpeed('6.04 10.11\n', 15_200)).toBeLessThan(1)
})

test('one with a clock that runs away has been up for longer', () => {
  const speed = clockSpeed('427.31 800.02\n', 24_800)
  expect(speed).toBeCloseTo(17.2, 1)
  expect(speed).toBeGreaterThan(CLOCK_TOO_FAST)
})
