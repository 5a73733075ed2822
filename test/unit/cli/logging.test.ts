import { describe, expect, test } from 'bun:test'
import { spawn } from 'node:child_process'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { LogRecord } from '@logtape/logtape'
import { chooseFormatter } from '../../../src/cli/logging.ts'

const record: LogRecord = {
  category: ['vduse-net', 'queue'],
  level: 'warning',
  message: ['queue ', 1, ' quarantined'],
  rawMessage: 'queue {index} quarantined',
  properties: { index: 1 },
  timestamp: 0,
}

describe('how a line looks', () => {
  const terminal = { isTerminal: true, noColor: false }
  const pipe = { isTerminal: false, noColor: false }

  test('JSON when nobody watches', () => {
    const line = chooseFormatter('auto', pipe)(record)
    expect(line).toEndWith('\n')
    expect(JSON.parse(line)).toMatchObject({ level: 'WARN', message: 'queue 1 quarantined', data: { index: 1 } })
    expect(chooseFormatter('json', terminal)(record)).toBe(line)
  })

  test('coloured on a terminal, unless NO_COLOR says no', () => {
    expect(chooseFormatter('auto', terminal)(record)).toContain('\x1b[')
    const plain = chooseFormatter('auto', { ...terminal, noColor: true })(record)
    expect(plain).not.toContain('\x1b')
    expect(plain).toContain('quarantined')
    expect(chooseFormatter('pretty', pipe)(record)).not.toContain('\x1b')
  })

  test('a message from outside stays one line without escape sequences', () => {
    const hostile = { ...record, message: ['driver says ', 'a\nb\x1b[31m', ''] }
    for (const [format, target] of [
      ['auto', pipe],
      ['pretty', pipe],
    ] as const) {
      const line = chooseFormatter(format, target)(hostile)
      expect(line.trimEnd()).not.toContain('\n')
      expect(line).not.toContain('\x1b')
    }
  })
})

describe('stderr of a process', () => {
  const program = join(import.meta.dir, 'logging-program.ts')

  test('one JSON object a line, of the level asked for', () => {
    const { stderr } = Bun.spawnSync([process.execPath, program, 'info', '3'])
    const lines = stderr.toString().trimEnd().split('\n')
    expect(lines.map((line) => (JSON.parse(line) as { message: string }).message)).toEqual([
      'line 0',
      'line 1',
      'line 2',
    ])
    expect(Bun.spawnSync([process.execPath, program, 'error', '3']).stderr.toString()).toBe('')
  })

  test('a pipe that nobody reads never holds the process up', () => {
    const folder = mkdtempSync(join(tmpdir(), 'vduse-net-log-'))
    const path = join(folder, 'pipe')
    Bun.spawnSync(['mkfifo', path])
    // Open for reading, so that the pipe has a reader, and for writing as a shell would hand it on: blocking.
    const fd = openSync(path, 'r+')
    try {
      const child = Bun.spawnSync([process.execPath, program, 'info', '5000', 'x'.repeat(200)], {
        stderr: fd,
        timeout: 15_000,
      })
      expect(child.exitCode).toBe(0)
      const { dropped } = JSON.parse(child.stdout.toString()) as { dropped: number }
      expect(dropped).toBeGreaterThan(1000)
      // The pipe that others share still blocks: O_NONBLOCK would be theirs too.
      expect(
        Number.parseInt(/^flags:\s*([0-7]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1] ?? '', 8) &
          0o4000,
      ).toBe(0)
    } finally {
      closeSync(fd)
      rmSync(folder, { recursive: true })
    }
  })

  test('a reader that has gone is no failure', async () => {
    const child = spawn(process.execPath, [program, 'info', '500'], { stdio: ['ignore', 'pipe', 'pipe'] })
    child.stderr.destroy()
    let out = ''
    child.stdout.on('data', (part: Buffer) => {
      out += part
    })
    const code = await new Promise((resolve) => child.once('close', resolve))
    expect(code).toBe(0)
    expect((JSON.parse(out) as { dropped: number }).dropped).toBeGreaterThan(0)
  })

  test('a file gets every line behind what others wrote there', () => {
    const folder = mkdtempSync(join(tmpdir(), 'vduse-net-log-'))
    const path = join(folder, 'log')
    const fd = openSync(path, 'a')
    try {
      Bun.spawnSync([process.execPath, program, 'info', '2'], { stderr: fd })
      Bun.spawnSync([process.execPath, program, 'info', '2'], { stderr: fd })
      expect(readFileSync(path, 'utf8').trimEnd().split('\n')).toHaveLength(4)
    } finally {
      closeSync(fd)
      rmSync(folder, { recursive: true })
    }
  })
})
