import { describe, expect, test } from 'bun:test'
import { CallCoalescing, NEVER } from '../../../src/dataplane/call-coalescing.ts'

const RING = 256

const coalescing = (packets: number, usecs: number): CallCoalescing => {
  const made = new CallCoalescing()
  made.set(packets, usecs)
  return made
}

describe('calls', () => {
  test('do not wait at first, nor if either number is 0', () => {
    expect(new CallCoalescing().active).toBeFalse()
    for (const [packets, usecs] of [
      [0, 0],
      [0, 50],
      [8, 0],
    ] as const) {
      expect(coalescing(packets, usecs).active).toBeFalse()
    }
    expect(coalescing(8, 50).active).toBeTrue()
  })

  test('wait for so many packets, again and again', () => {
    const calls = coalescing(3, 50)
    expect(Array.from({ length: 7 }, () => calls.delays(1, RING))).toEqual([true, true, false, true, true, false, true])
    expect(calls.delays(2, RING)).toBeFalse()
    expect(calls.delays(100, RING)).toBeFalse()
  })

  test('are due so long after the first packet, whatever follows', () => {
    const calls = coalescing(8, 2_000)
    expect(calls.dueMs).toBe(NEVER)
    const before = performance.now()
    calls.delays(1, RING)
    const due = calls.dueMs
    expect(due).toBeGreaterThanOrEqual(before + 2)
    expect(due).toBeLessThanOrEqual(performance.now() + 2)
    calls.delays(1, RING)
    expect(calls.dueMs).toBe(due)
  })

  test('are due no more once they are made', () => {
    const calls = coalescing(2, 50)
    calls.delays(1, RING)
    calls.delays(1, RING)
    expect(calls.dueMs).toBe(NEVER)
    calls.delays(1, RING)
    calls.clear()
    expect(calls.dueMs).toBe(NEVER)
    expect(calls.delays(1, RING)).toBeTrue()
  })

  test('wait for half of the ring at most', () => {
    const calls = coalescing(0xffff_ffff, 50)
    expect(calls.delays(127, RING)).toBeTrue()
    expect(calls.delays(1, RING)).toBeFalse()
    expect(coalescing(8, 50).delays(1, 1)).toBeFalse()
  })
})
