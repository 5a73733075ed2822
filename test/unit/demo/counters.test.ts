import { describe, expect, test } from 'bun:test'
import { addUp, type Counters, countedSince, formatCounters } from '../../../scripts/demo/counters.ts'

const out = { packets: 12, bytes: 3400 }
const back = { packets: 7, bytes: 900 }

const ends = { driver: 'eth0', tap: 'tap0' }

const agreeing: Counters = {
  driver: { tx: out, rx: back },
  card: { tx: { ...out, gsoPackets: 2 }, rx: { ...back, gsoPackets: 0 }, drops: { tap_down: 0, link_down: 0 } },
  tap: { rx: out, tx: back },
}

describe('counters of the demonstration', () => {
  test('add up when all three have counted the same', () => {
    expect(addUp(agreeing)).toBe(true)
    expect(formatCounters(agreeing, ends).join('\n')).not.toContain('NOT')
  })

  const wrong: readonly [string, Counters][] = [
    ['a packet that the TAP has not seen', { ...agreeing, tap: { rx: { ...out, packets: 11 }, tx: back } }],
    ['a byte that the driver has not seen', { ...agreeing, driver: { tx: out, rx: { ...back, bytes: 899 } } }],
    [
      'a packet that the card has not counted',
      { ...agreeing, card: { ...agreeing.card, tx: { packets: 11, bytes: 3400, gsoPackets: 2 } } },
    ],
  ]
  test.each(wrong)('do not add up with %s', (_, counters) => {
    expect(addUp(counters)).toBe(false)
    expect(formatCounters(counters, ends).filter((line) => line.includes('NOT the same'))).toHaveLength(1)
  })

  test('do not add up with a dropped packet, and the reason is named', () => {
    const counters = { ...agreeing, card: { ...agreeing.card, drops: { tap_down: 3, link_down: 0 } } }
    expect(addUp(counters)).toBe(false)
    expect(formatCounters(counters, ends).at(-1)).toBe('dropped by the card: tap_down 3')
  })

  test('since a time before are what came after it, dropped packets too', () => {
    const later: Counters = {
      driver: { tx: { packets: 15, bytes: 3700 }, rx: back },
      card: {
        tx: { packets: 14, bytes: 3600, gsoPackets: 3 },
        rx: { ...back, gsoPackets: 0 },
        drops: { tap_down: 1, link_down: 0 },
      },
      tap: { rx: { packets: 14, bytes: 3600 }, tx: back },
    }
    const none = { packets: 0, bytes: 0 }
    expect(countedSince(agreeing, later)).toEqual({
      driver: { tx: { packets: 3, bytes: 300 }, rx: none },
      card: {
        tx: { packets: 2, bytes: 200, gsoPackets: 1 },
        rx: { ...none, gsoPackets: 0 },
        drops: { tap_down: 1, link_down: 0 },
      },
      tap: { rx: { packets: 2, bytes: 200 }, tx: none },
    })
  })
})
