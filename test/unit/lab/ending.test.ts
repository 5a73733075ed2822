import { describe, expect, test } from 'bun:test'
import { describeEnding, exitCodeOf } from '../../../scripts/lab/ending.ts'

describe('how a program ended', () => {
  test.each([
    [1, null, 'ended with exit code 1'],
    [null, 'SIGSEGV', 'crashed (SIGSEGV)'],
    [null, 'SIGABRT', 'crashed (SIGABRT)'],
    [null, 'SIGBUS', 'crashed (SIGBUS)'],
    [null, 'SIGKILL', 'was ended by SIGKILL'],
    [null, 'SIGTERM', 'was ended by SIGTERM'],
    [134, null, 'crashed (SIGABRT)'],
    [255, null, 'ended with exit code 255'],
  ] as const)('exit code %p, signal %p: %s', (code, signal, words) => {
    expect(describeEnding(exitCodeOf(code, signal))).toBe(words)
  })

  test.each(['SEGV', 'ABRT', 'KILL'])('the runtime says it of a process ended by %s', async (name) => {
    const child = Bun.spawn(['sh', '-c', `ulimit -c 0; kill -${name} $$`])
    expect(describeEnding(await child.exited)).toContain(`SIG${name}`)
  })
})
