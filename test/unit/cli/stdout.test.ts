import { describe, expect, test } from 'bun:test'
import { resolve } from 'node:path'

const program = resolve(import.meta.dir, '../../../src/main.ts')

/** The program with its stdout as the shell's words have it. */
const run = (redirection: string, ...words: string[]) => {
  const script = `"$@" ${redirection}`
  const child = Bun.spawnSync(['bash', '-c', script, 'bash', process.execPath, program, ...words])
  return { out: child.stdout.toString(), said: child.stderr.toString(), exitCode: child.exitCode }
}

describe('what the user asked for on stdout', () => {
  test.each(['--help', '--tap tap0 --print-config', 'completion bash'])(
    'is an error where it cannot be written: %s',
    (words) => {
      const { said, exitCode } = run('>/dev/full', ...words.split(' '))
      expect(said).toStartWith('vduse-net: stdout: ENOSPC\nhint: ')
      expect(exitCode).toBe(1)
    },
  )

  test('need not be read to its end', () => {
    // The reader is gone before the program writes.
    const { said, exitCode } = run('> >(exec true); exit $?', '--help')
    expect({ said, exitCode }).toEqual({ said: '', exitCode: 0 })
  })

  test('comes whole through a pipe', () => {
    const { out, exitCode } = run('| cat', '--help')
    expect(out).toEndWith('not permitted\n')
    expect(exitCode).toBe(0)
  })
})
