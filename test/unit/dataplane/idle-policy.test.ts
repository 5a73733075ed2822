import { describe, expect, test } from 'bun:test'
import { IdlePolicy } from '../../../src/dataplane/idle-policy.ts'

describe('adapting', () => {
  test('looks for nothing at first', () => {
    expect(new IdlePolicy(null).spinMs).toBe(0)
  })

  test('looks longer after each short sleep, up to a limit', () => {
    const idle = new IdlePolicy(null)
    const spins = Array.from({ length: 5 }, () => {
      idle.slept(0.02)
      return idle.spinMs
    })
    expect(spins).toEqual([0.01, 0.02, 0.04, 0.05, 0.05])
  })

  test('stops looking after a sleep that it could not have spared', () => {
    const idle = new IdlePolicy(null)
    idle.slept(0.02)
    idle.slept(5)
    expect(idle.spinMs).toBe(0)
  })
})

describe('a fixed time', () => {
  test.each([0, 50])('of %p us stays, whatever the sleeps', (us) => {
    const idle = new IdlePolicy(us)
    for (const ms of [0.001, 100]) {
      idle.slept(ms)
      expect(idle.spinMs).toBe(us / 1000)
    }
  })
})
