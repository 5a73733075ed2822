/** Whoever reads the log may stand still: the card serves, answers and ends all the same. */

import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { chmodSync, closeSync, existsSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { until } from '../../scripts/frontends/native-process.ts'
import { nonblockingSink } from '../../src/cli/line-sink.ts'
import { NetworkNamespace, noRealTaps } from '../support/network-namespace.ts'
import { TEST_MS } from '../support/patience.ts'
import { PseudoTerminal } from '../support/pseudo-terminal.ts'
import { socketPair } from '../support/socket-pair.ts'
import { Frontend } from '../support/vhost-user-client.ts'

setDefaultTimeout(TEST_MS)

const main = resolve(import.meta.dir, '../../src/main.ts')

/** Writes until nothing more is taken. */
const fill = (fd: number): void => {
  using sink = nonblockingSink(fd)
  if (sink === null) throw new Error('cannot be filled')
  for (const bytes of [4096, 1]) while (sink.write(new Uint8Array(bytes).fill(0x2e)) > 0);
}

type StuckReader = { readonly fd: number; readonly command?: readonly string[] }

/** Descriptors of which each write would wait for ever, by kind. What they need is left on `undo`. */
const stuckReaders: Readonly<Record<string, (folder: string, undo: DisposableStack) => StuckReader>> = {
  'a stream socket, as under systemd': (_, undo) => {
    const ends = socketPair('stream', true)
    undo.defer(() => ends.forEach(closeSync))
    fill(ends[1])
    return { fd: ends[1] }
  },
  'a datagram socket': (_, undo) => {
    const ends = socketPair('datagram', true)
    undo.defer(() => ends.forEach(closeSync))
    fill(ends[1])
    return { fd: ends[1] }
  },
  'a pipe': (folder, undo) => {
    Bun.spawnSync(['mkfifo', join(folder, 'pipe')])
    const fd = openSync(join(folder, 'pipe'), 'r+')
    undo.defer(() => closeSync(fd))
    fill(fd)
    return { fd }
  },
  'a terminal that Ctrl-S has stopped': (_, undo) => {
    const terminal = undo.use(new PseudoTerminal())
    writeSync(terminal.fd, '\x13')
    return { fd: terminal.openEnd() }
  },
  // A pipe that may not be opened a second time is written to like a file: by a thread that waits.
  'a file on a disk that hangs': (folder, undo) => {
    const path = join(folder, 'pipe')
    Bun.spawnSync(['mkfifo', path])
    const fd = openSync(path, 'r+')
    undo.defer(() => closeSync(fd))
    fill(fd)
    chmodSync(path, 0)
    const command = ['setpriv', '--bounding-set', '-dac_override,-dac_read_search']
    return { fd, command: process.getuid?.() === 0 ? command : [] }
  },
}

describe.skipIf(noRealTaps !== null)('a stuck reader of stderr', () => {
  for (const [kind, open] of Object.entries(stuckReaders)) {
    test(`${kind}: front-ends, the admin API and SIGTERM go on`, async () => {
      using undo = new DisposableStack()
      const folder = mkdtempSync(join(tmpdir(), 'vduse-net-stderr-'))
      undo.defer(() => rmSync(folder, { recursive: true }))
      const namespace = undo.use(new NetworkNamespace())
      const [socket, admin] = [join(folder, 'card.sock'), join(folder, 'admin.sock')]
      const { fd, command = [] } = open(folder, undo)
      const card = ['--tap', 'tap0', '--netns', namespace.name, '-s', socket, '--admin', `unix:${admin}`]
      const child = Bun.spawn([...command, process.execPath, main, ...card], { stdio: ['ignore', 'ignore', fd] })
      undo.defer(() => child.kill('SIGKILL'))
      const ask = async (path: string): Promise<unknown> =>
        (await fetch(`http://localhost${path}`, { unix: admin, signal: AbortSignal.timeout(60_000) })).json()

      await until('the card to start', () => child.exitCode !== null || existsSync(admin), 60_000)
      for (let round = 0; round < 100; round++) {
        using frontend = Frontend.start(socket)
        frontend.settle()
      }
      expect(await ask('/healthz')).toEqual({ status: 'ok' })
      expect(child.exitCode).toBeNull()
      child.kill('SIGTERM')
      await until('the card to end', () => child.exitCode !== null, 60_000)
      expect([child.exitCode, existsSync(socket), existsSync(admin)]).toEqual([0, false, false])
    })
  }

  test('an error of the command line ends the program, even if nobody reads it', async () => {
    for (const kind of ['stream', 'datagram'] as const) {
      const ends = socketPair(kind, true)
      fill(ends[1])
      const child = Bun.spawn([process.execPath, main, '--mtu', '5', '--tap', 'x'], {
        stdio: ['ignore', 'ignore', ends[1]],
      })
      await until('the program to end', () => child.exitCode !== null, 60_000)
      expect(child.exitCode).toBe(2)
      for (const end of ends) closeSync(end)
    }
  })
})
