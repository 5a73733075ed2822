import { beforeEach, describe, expect, test } from 'bun:test'
import { kindOfText, LogLimit, leftOutNote } from '../../../src/base/log-limit.ts'

let now = 0
let written: string[] = []
let limit: LogLimit<string>

beforeEach(() => {
  now = 0
  written = []
  limit = new LogLimit<string>(
    kindOfText,
    (line, leftOut) => written.push(line + leftOutNote(leftOut)),
    () => now,
  )
})

/** Logs for `forMs`, one line each `everyMs`; the owner's timer runs, too. */
const flood = (line: (index: number) => string, forMs: number, everyMs: number): void => {
  const end = now + forMs
  for (let index = 0; now < end; index++, now += everyMs) {
    limit.log(line(index))
    limit.tick()
  }
}

describe('LogLimit', () => {
  test('a few lines of a kind pass as they are', () => {
    for (let index = 0; index < 10; index++) limit.log(`refused: ${index}`)
    expect(written).toEqual(Array.from({ length: 10 }, (_, index) => `refused: ${index}`))
    expect(limit.tick()).toBe(-1)
    expect(limit.leftOut).toBe(0)
  })

  test('of a flood the newest line of each gap is written, and every other line is counted', () => {
    flood((index) => `driver has reset the device: ${index}`, 3_000, 0.125)
    // 10 at first, then after 1 s and after 2 s more.
    expect(written.length).toBe(12 - 1)
    expect(written[10]).toMatch(/^driver has reset the device: 8\d\d\d \(\d+ more lines of this kind left out\)$/)
    now += 60_000
    limit.tick()
    const told = written.map((line) => Number(/\((\d+) more/.exec(line)?.[1] ?? 0)).reduce((a, b) => a + b)
    expect(told + written.length).toBe(24_000)
    expect(limit.leftOut).toBe(told)
    expect(limit.tick()).toBe(-1)
  })

  test('lines that repeat all day back off to one a minute', () => {
    flood(() => 'front-end connected', 24 * 3_600_000, 200)
    expect(written.length).toBeLessThan(10 + 10 + 24 * 60)
    expect(written.length).toBeGreaterThan(24 * 60 - 10)
  })

  test('a flood of one kind silences no other: not a text, not a level, not another queue', () => {
    flood((index) => `queue 0 quarantined: ${index}`, 10_000, 1)
    for (const line of ['queue 1 quarantined: x', 'tap0 was deleted', 'link is down']) {
      limit.log(line)
      expect(written.at(-1)).toBe(line)
    }
  })

  test('kinds that a peer invents share one budget once there are many, and those known keep their own', () => {
    limit.log('link is down')
    flood((index) => `request ${String.fromCharCode(0x100 + index)} refused`, 60_000, 20)
    expect(written.length).toBeLessThan(300)
    limit.log('link is down')
    expect(written.at(-1)).toBe('link is down')
  })

  test('a kind that has been quiet starts afresh, and its place is given to a new one', () => {
    flood((index) => `kind ${String.fromCharCode(0x100 + index)}`, 60_000, 20)
    now += 300_000
    limit.tick()
    written = []
    for (let index = 0; index < 10; index++) limit.log('a new kind')
    expect(written).toHaveLength(10)
  })

  test('a held line is written when it is due, at the latest at the end', () => {
    for (let index = 0; index < 12; index++) limit.log(`line: ${index}`)
    expect(written).toHaveLength(10)
    expect(limit.tick()).toBe(1_000)
    now = 999
    expect(limit.tick()).toBe(1)
    now = 1_000
    expect(limit.tick()).toBe(-1)
    expect(written.at(-1)).toBe('line: 11 (1 more line of this kind left out)')
    limit.log('line: 12')
    limit.flush()
    expect(written.at(-1)).toBe('line: 12')
  })
})

test('the kind of a text: without what a peer can vary', () => {
  expect(kindOfText('SET_VRING_ADDR refused: 0x1000 is not mapped')).toBe('SET_VRING_ADDR refused')
  expect(kindOfText('request 4711 refused')).toBe(kindOfText('request 815 refused'))
  expect(kindOfText('address 0xdeadbeef')).toBe(kindOfText('address 0x1'))
  expect(kindOfText('queue 1 quarantined')).not.toBe(kindOfText('queue 2 quarantined'))
})
