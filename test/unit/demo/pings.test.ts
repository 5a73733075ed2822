import { expect, test } from 'bun:test'
import { receivedPings } from '../../../scripts/demo/steps.ts'

const summary = (text: string): string[] => [
  '--- 10.0.0.1 ping statistics ---',
  text,
  'rtt min/avg/max/mdev = 1/2/3/4 ms',
]

test.each([
  ['5 packets transmitted, 5 received, 0% packet loss, time 808ms', 5],
  ['6 packets transmitted, 6 received, 0% packet loss, time 1110ms', 6],
  ['5 packets transmitted, 4 received, 20% packet loss, time 30000ms', 0],
  ['6 packets transmitted, 5 received, 16.6667% packet loss, time 1110ms', 0],
  ['5 packets transmitted, 0 received, +3 errors, 100% packet loss, time 30000ms', 0],
])('%s', (text, received) => {
  expect(receivedPings(summary(text))).toBe(received)
})

test('no summary is no answer', () => {
  expect(receivedPings(['ping: connect: Network is unreachable'])).toBe(0)
})
