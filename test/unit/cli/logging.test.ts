import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { spawn } from 'node:child_process'
import { chmodSync, closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { LogRecord } from '@logtape/logtape'
import { chooseFormatter } from '../../../src/cli/logging.ts'
import { TEST_MS } from '../../support/patience.ts'
import { PseudoTerminal } from '../../support/pseudo-terminal.ts'
import { socketPair } from '../../support/socket-pair.ts'

setDefaultTimeout(TEST_MS)

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

/** O_NONBLOCK: asm-generic/fcntl.h. */
const isNonblocking = (fd: number): boolean => {
  const flags = /^flags:\s*([0-7]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1]
  if (flags === undefined) throw new Error(`descriptor ${fd} has no flags`)
  return (Number.parseInt(flags, 8) & 0o4000) !== 0
}

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

  test('what a client of the admin API can cause is limited, and not what the operator does', () => {
    const linesOf = (area: string): string[] => {
      const { stderr } = Bun.spawnSync([process.execPath, program, 'info', '500', 'line', '', area])
      return stderr.toString().trimEnd().split('\n')
    }
    expect(linesOf('main')).toHaveLength(500)
    const limited = linesOf('admin')
    expect(limited).toHaveLength(11)
    expect(JSON.parse(limited[10]!)).toMatchObject({ message: 'line 499 (489 more lines of this kind left out)' })
  })

  /** Runs the program on a descriptor that takes nothing: it ends, and says that lines were lost. */
  const expectNotHeldUp = (command: readonly string[], stderr: number): void => {
    const child = Bun.spawnSync([...command, process.execPath, program, 'info', '5000', 'x'.repeat(200)], {
      stderr,
      timeout: 120_000,
    })
    expect(child.exitCode).toBe(0)
    expect((JSON.parse(child.stdout.toString()) as { dropped: number }).dropped).toBeGreaterThan(1000)
  }

  test('a pipe that nobody reads never holds the process up', () => {
    const folder = mkdtempSync(join(tmpdir(), 'vduse-net-log-'))
    const path = join(folder, 'pipe')
    Bun.spawnSync(['mkfifo', path])
    // Open for reading, so that the pipe has a reader, and for writing as a shell would hand it on: blocking.
    const fd = openSync(path, 'r+')
    try {
      expectNotHeldUp([], fd)
      // The pipe that others share still blocks: O_NONBLOCK would be theirs too.
      expect(isNonblocking(fd)).toBeFalse()
    } finally {
      closeSync(fd)
      rmSync(folder, { recursive: true })
    }
  })

  for (const kind of ['stream', 'datagram'] as const) {
    test(`nor does a ${kind} socket that nobody reads`, () => {
      const [ours, theirs] = socketPair(kind, true)
      try {
        expectNotHeldUp([], theirs)
        expect(isNonblocking(theirs)).toBeFalse()
      } finally {
        for (const fd of [ours, theirs]) closeSync(fd)
      }
    })
  }

  test('nor does a terminal that Ctrl-S has stopped', () => {
    using terminal = new PseudoTerminal()
    writeSync(terminal.fd, '\x13')
    expectNotHeldUp([], terminal.openEnd())
  })

  test('nor does a file that lets its writer wait: only a thread of its own waits', () => {
    const folder = mkdtempSync(join(tmpdir(), 'vduse-net-log-'))
    const path = join(folder, 'pipe')
    Bun.spawnSync(['mkfifo', path])
    const fd = openSync(path, 'r+')
    try {
      // A pipe that may not be opened a second time is written to like a file.
      chmodSync(path, 0)
      const asNobodySpecial = ['setpriv', '--bounding-set', '-dac_override,-dac_read_search']
      expectNotHeldUp(process.getuid?.() === 0 ? asNobodySpecial : [], fd)
    } finally {
      closeSync(fd)
      rmSync(folder, { recursive: true })
    }
  })

  test('a full disk loses lines, and no line is cut: they are counted, and told when there is room again', async () => {
    const script = `mount -t tmpfs -o size=16k none "$1" && head -c 12288 /dev/zero > "$1/fill" && shift &&
      exec "$@" 2> "$0/log"`
    const folder = mkdtempSync(join(tmpdir(), 'vduse-net-log-'))
    const child = Bun.spawn(
      ['unshare', '-m', 'sh', '-c', script, folder, folder, process.execPath, program, 'info', '100', 'x', 'wait'],
      { stdin: 'pipe', stdout: 'pipe', stderr: 'inherit' },
    )
    const seen = `/proc/${child.pid}/root${folder}`
    const reader = child.stdout.getReader()
    await reader.read()
    rmSync(`${seen}/fill`)
    child.stdin.write('\n')
    child.stdin.flush()
    const text = new TextDecoder().decode((await reader.read()).value)
    const lines = readFileSync(`${seen}/log`, 'utf8').trimEnd().split('\n')
    child.stdin.end()
    expect(await child.exited).toBe(0)
    rmSync(folder, { recursive: true })
    const { dropped } = JSON.parse(text) as { dropped: number }
    expect(dropped).toBeGreaterThan(50)
    const readable = lines.filter((line) => line.endsWith('}}')).map((line) => JSON.parse(line) as { message: string })
    const told = readable.filter(({ message }) => message.startsWith(`${dropped} log lines dropped`))
    expect(told).toHaveLength(1)
    // One line may have been begun when the disk was full.
    expect(readable.length - 1 + dropped).toBe(200)
    expect(lines.length - readable.length).toBeLessThanOrEqual(1)
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
