import { expect, test } from 'bun:test'
import { constants } from 'node:os'
import { COUNTER, QueueBlock } from '../../../src/channel/queue-block.ts'
import { TapErrors } from '../../../src/dataplane/tap-errors.ts'

const { EAGAIN, EBADF, EFAULT, EIO, EISDIR, ENOMEM, EPERM } = constants.errno

test('what a TAP is known to answer is not told of', () => {
  const block = QueueBlock.private()
  const errors = new TapErrors(() => {
    throw new Error('told')
  })
  for (const errno of [0, EAGAIN, EBADF, 77, EFAULT, EIO, ENOMEM]) errors.note(block, errno)
  expect([block.tapErrno, block.counters[COUNTER.tapErrors]]).toEqual([0, 0])
})

test('another answer is counted each time, and told of once a second at most', () => {
  const block = QueueBlock.private()
  let told = 0
  let nowMs = 5_000
  const errors = new TapErrors(
    () => told++,
    () => nowMs,
  )
  for (let i = 0; i < 1_000; i++) errors.note(block, EPERM)
  expect([told, block.tapErrno, block.counters[COUNTER.tapErrors]]).toEqual([1, EPERM, 1_000])
  nowMs += 1_000
  errors.note(block, EISDIR)
  expect([told, block.tapErrno, block.counters[COUNTER.tapErrors]]).toEqual([2, EISDIR, 1_001])
})
