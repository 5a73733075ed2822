/** No signal that a terminal, a supervisor or an operator sends ends a card in any other way than SIGTERM does. */

import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, readFileSync } from 'node:fs'
import { constants } from 'node:os'
import { join, resolve } from 'node:path'
import { until } from '../../scripts/frontends/native-process.ts'
import { noRealTaps } from '../support/network-namespace.ts'
import { TEST_MS } from '../support/patience.ts'
import { Backend } from '../support/vhost-user-backend.ts'
import { Frontend } from '../support/vhost-user-client.ts'

setDefaultTimeout(TEST_MS)

const { SIGKILL, SIGSTOP, SIGCONT } = constants.signals
const main = resolve(import.meta.dir, '../../src/main.ts')

const number = (name: string): number => constants.signals[name as NodeJS.Signals]
const ending = ['SIGTERM', 'SIGINT', 'SIGQUIT', 'SIGHUP', 'SIGXCPU'].map(number)
/** A fault of the program raises them; here another process sends them. */
const crashes = ['SIGILL', 'SIGTRAP', 'SIGABRT', 'SIGBUS', 'SIGFPE', 'SIGSEGV', 'SIGSYS'].map(number)
/** glibc keeps these for itself: it lets no program send or catch them. */
const OF_GLIBC = [32, 33]
const ignored = Array.from({ length: 64 }, (_, index) => index + 1).filter(
  (signal) => ![...ending, ...crashes, ...OF_GLIBC, SIGKILL, SIGSTOP].includes(signal),
)

const send = (pid: number, signal: number): void => {
  expect(Bun.spawnSync(['kill', `-${signal}`, String(pid)]).exitCode).toBe(0)
}

const startWithPid = async (): Promise<{ backend: Backend; files: readonly string[] }> => {
  const pid = `/tmp/vduse-net-signals-${process.pid}.pid`
  const backend = await Backend.start({ args: ['--pid', pid] })
  expect(readFileSync(pid, 'utf8')).toBe(`${backend.pid}\n`)
  return { backend, files: [pid, backend.socketPath, backend.adminPath] }
}

const left = (files: readonly string[]): string[] => files.filter((file) => existsSync(file))

describe.skipIf(noRealTaps !== null)('signals', () => {
  for (const signal of [...ending, ...crashes]) {
    const name = Object.entries(constants.signals).find(([, value]) => value === signal)?.[0]
    test(`${name} ends the card as SIGTERM does: exit code 0, and nothing left`, async () => {
      const { backend, files } = await startWithPid()
      await using _ = backend
      using frontend = Frontend.start(backend.socketPath)
      send(backend.pid, signal)
      expect(await backend.ended()).toBe(0)
      expect(left(files)).toEqual([])
      expect(frontend.client.isClosed()).toBeTrue()
    })
  }

  test('every other signal changes nothing, a stop and its end included', async () => {
    await using backend = await Backend.start()
    for (const signal of [...ignored, SIGSTOP, SIGCONT]) {
      send(backend.pid, signal)
      if (signal === SIGSTOP) continue
      expect([signal, await backend.ask('/healthz')]).toEqual([signal, { status: 'ok' }])
      expect([signal, backend.exitCode]).toEqual([signal, null])
    }
    await backend.logged(/SIGUSR1: ignored/)
    await backend.logged(/SIGTSTP: ignored/)
  })

  test('nohup: the card outlives its terminal', async () => {
    await using backend = await Backend.start({ by: ['nohup'] })
    send(backend.pid, constants.signals.SIGHUP)
    expect(await backend.ask('/healthz')).toEqual({ status: 'ok' })
    expect(backend.exitCode).toBeNull()
  })

  test('a signal while the card starts ends it, and leaves nothing', async () => {
    await using backend = await Backend.start()
    const folder = backend.folder
    const files = ['p', 's', 'a'].map((name) => join(folder, name))
    const [pid, socket, admin] = files as [string, string, string]
    const args = ['--tap', 'other', '--netns', backend.namespace.name, '-s', socket, '--admin', `unix:${admin}`]
    for (const sign of [null, ...files]) {
      for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT'] as const) {
        const child = Bun.spawn([process.execPath, main, ...args, '--pid', pid], {
          stdio: ['ignore', 'ignore', 'ignore'],
        })
        // Each is made later than the one before.
        if (sign !== null) await until('the card to begin', () => existsSync(sign) || child.exitCode !== null, 60_000)
        child.kill(signal)
        const code = await child.exited
        expect([sign, signal, left(files)]).toEqual([sign, signal, []])
        expect(backend.namespace.interfaces()).toEqual(['lo', 'tap0'])
        // Before the first sign nothing takes the signal yet, and the kernel ends the process.
        if (sign !== null) expect([sign, signal, code]).toEqual([sign, signal, 0])
      }
    }
  })

  test('a signal while the card starts in vain ends it with 0: who ends it does not ask whether it would', async () => {
    await using backend = await Backend.start()
    const pid = join(backend.folder, 'p')
    // The socket is another card's. That one may be about to end, so the start waits for a moment before it fails.
    const args = ['--tap', 'other', '--netns', backend.namespace.name, '-s', backend.socketPath, '--admin', 'off']
    const child = Bun.spawn([process.execPath, main, ...args, '--pid', pid], {
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    await until('the card to begin', () => existsSync(pid) || child.exitCode !== null)
    child.kill('SIGTERM')
    expect(await child.exited).toBe(0)
    expect(await child.stderr.text()).toContain(`not started: --socket-path ${backend.socketPath}: another process`)
    expect(left([pid])).toEqual([])
    expect(await backend.ask('/healthz')).toEqual({ status: 'ok' })
  })
})
