import { expect, test } from 'bun:test'
import { needEvent } from '../../../src/virtqueue/event-index.ts'
import { Random } from '../../support/random.ts'

test('an event is needed exactly if the chain at `event` is among those from prev up to next', () => {
  const random = new Random(1)
  for (let round = 0; round < 2000; round++) {
    const prev = random.below(65_536)
    const step = random.between(0, 300)
    const event = (prev + random.between(-310, 310)) & 0xffff
    const passed = Array.from({ length: step }, (_, index) => (prev + index) & 0xffff)
    expect(needEvent(event, (prev + step) & 0xffff, prev)).toBe(passed.includes(event))
  }
})

test('crossing from 65535 to 0', () => {
  expect(needEvent(0xffff, 0, 0xffff)).toBe(true)
  expect(needEvent(0, 0, 0xffff)).toBe(false)
  expect(needEvent(0, 1, 0xffff)).toBe(true)
  expect(needEvent(0xfffe, 0, 0xffff)).toBe(false)
})
