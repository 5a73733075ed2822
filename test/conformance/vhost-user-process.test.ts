/**
 * How the program is started and ended as a vhost-user back-end: docs/interop/vhost-user.rst, "Backend program
 * conventions".
 */

import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { once } from 'node:events'
import { existsSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { until } from '../../scripts/frontends/native-process.ts'
import { POLLIN } from '../../src/abi/linux.ts'
import { check, native } from '../../src/sys/native.ts'
import { listenUnix } from '../../src/sys/unix-socket.ts'
import { noRealTaps } from '../support/network-namespace.ts'
import { HANG_MS, TEST_MS } from '../support/patience.ts'
import { socketPair } from '../support/socket-pair.ts'
import { Backend } from '../support/vhost-user-backend.ts'
import { Frontend, poll, VhostUserClient } from '../support/vhost-user-client.ts'
import { Traffic } from '../support/vhost-user-traffic.ts'

setDefaultTimeout(TEST_MS)

const main = resolve(import.meta.dir, '../../src/main.ts')

/** Sets a device up over a connection, and passes packets both ways. */
const serve = (traffic: Traffic, fd: number): Frontend => {
  const frontend = new Frontend(new VhostUserClient(fd))
  frontend.negotiate()
  frontend.shareMemory()
  for (const ring of frontend.rings) frontend.startRing(ring)
  frontend.settle()
  traffic.pass(frontend)
  return frontend
}

describe.skipIf(noRealTaps !== null)('the program as a vhost-user back-end', () => {
  test('conformance 56: --socket-path: it ends promptly at SIGTERM while it serves, with nothing left', async () => {
    await using backend = await Backend.start()
    using frontend = Frontend.start(backend.socketPath)
    new Traffic(backend).pass(frontend)
    const began = performance.now()
    backend.signal('SIGTERM')
    expect(await backend.ended()).toBe(0)
    expect(performance.now() - began).toBeLessThan(20_000)
    expect(existsSync(backend.socketPath)).toBeFalse()
    expect(frontend.client.isClosed()).toBeTrue()
  })

  test('conformance 56: --fd: it serves an inherited connection, and ends with 0 when that does', async () => {
    const [ours, theirs] = socketPair()
    await using backend = await Backend.start({ fd: theirs })
    native.vn_close(theirs)
    {
      using _frontend = serve(new Traffic(backend), ours)
    }
    expect(await backend.ended()).toBe(0)
    await backend.logged(/the front-end has gone/)
  })

  test('--one-off: it ends with 0 when the first front-end has gone, however it has', async () => {
    for (const goodbye of ['hang-up', 'nonsense'] as const) {
      await using backend = await Backend.start({ args: ['--one-off'] })
      {
        using frontend = Frontend.start(backend.socketPath)
        new Traffic(backend).pass(frontend)
        if (goodbye === 'nonsense') {
          frontend.client.sendBytes(new Uint8Array(64).fill(0xff))
          expect(frontend.client.isClosed()).toBeTrue()
        }
      }
      expect(await backend.ended()).toBe(0)
      expect(existsSync(backend.socketPath)).toBeFalse()
    }
  })

  test('--client: it connects, waits for a front-end that does not listen yet, and connects again', async () => {
    await using backend = await Backend.start({ client: true })
    const traffic = new Traffic(backend)
    await backend.logged(/waiting for the front-end to listen/)
    const listener = check('listen', listenUnix(backend.socketPath))
    for (let round = 0; round < 3; round++) {
      expect(poll(listener, POLLIN, HANG_MS)).toBe(POLLIN)
      using _frontend = serve(traffic, check('accept', native.vn_accept(listener)))
    }
    native.vn_close(listener)
    rmSync(backend.socketPath)
    // The front-end is started anew.
    const again = check('listen', listenUnix(backend.socketPath))
    expect(poll(again, POLLIN, HANG_MS)).toBe(POLLIN)
    using _frontend = serve(traffic, check('accept', native.vn_accept(again)))
    native.vn_close(again)
    expect(backend.exitCode).toBeNull()
  })

  test('a socket that a killed process has left is taken over', async () => {
    await using backend = await Backend.start()
    await backend.restart()
    new Traffic(backend).serveNext()
  })

  test('a card that starts while the one before ends has all its names, 20 times', async () => {
    await using backend = await Backend.start()
    const names = ['pid', 'sock', 'admin'].map((name) => join(backend.folder, name)) as [string, string, string]
    const [pid, socket, admin] = names
    const args = ['--tap', 'other', '--netns', backend.namespace.name, '-s', socket, '--admin', `unix:${admin}`]
    const start = () =>
      Bun.spawn([process.execPath, main, ...args, '--pid', pid], { stdio: ['ignore', 'ignore', 'ignore'] })
    const isUp = (child: { readonly pid: number }): boolean =>
      existsSync(admin) && existsSync(pid) && readFileSync(pid, 'utf8') === `${child.pid}\n`
    let before = start()
    await until('the first card', () => isUp(before), 60_000)
    for (let round = 0; round < 20; round++) {
      before.kill('SIGTERM')
      const next = start()
      expect(await before.exited).toBe(0)
      await until('the next card', () => next.exitCode !== null || isUp(next), 60_000)
      expect([round, names.filter((name) => !existsSync(name)), next.exitCode]).toEqual([round, [], null])
      before = next
    }
    // One that is refused leaves the names of the one that runs.
    const refused = start()
    expect(await refused.exited).toBe(1)
    expect(names.every((name) => existsSync(name))).toBeTrue()
    expect(isUp(before)).toBeTrue()
    before.kill('SIGTERM')
    expect(await before.exited).toBe(0)
    expect(names.filter((name) => existsSync(name))).toEqual([])
  }, 300_000)

  test('a process that may not have what the card needs says so in two lines, and ends', async () => {
    await using backend = await Backend.start()
    const args = [
      '--tap',
      'other',
      '--netns',
      backend.namespace.name,
      '-s',
      join(backend.folder, 's'),
      '--admin',
      'off',
    ]
    const cases: readonly (readonly [string, readonly string[], RegExp])[] = [
      [
        'ulimit -n 32',
        ['--queue-pairs', '8'],
        /^vduse-net: a card with 8 queue pairs needs 224 open files, .* have 32$/,
      ],
      ['ulimit -n 40', [], /^vduse-net: a card with 1 queue pair needs 112 open files, and this process may have 40$/],
      ['true', ['--cpus', '7999'], /^vduse-net: --cpus 7999: this process cannot run on 7999$/],
    ]
    for (const [limit, more, message] of cases) {
      const command = ['sh', '-c', `${limit} && exec "$@"`, 'sh', process.execPath, main, ...args, ...more]
      const child = Bun.spawn(command, { stdio: ['ignore', 'ignore', 'pipe'] })
      const text = await new Response(child.stderr).text()
      expect(await child.exited).toBeGreaterThan(0)
      const [first, second, ...rest] = text.split('\n')
      expect(first).toMatch(message)
      expect(second).toStartWith('hint: ')
      expect(rest).toEqual([''])
    }
    expect(backend.namespace.interfaces()).toEqual(['lo', 'tap0'])
  }, 120_000)

  test('it says whether a front-end is connected, and its answers end with a line feed', async () => {
    await using backend = await Backend.start()
    const attached = async (): Promise<boolean> => ((await backend.ask('/v1/device')) as { attached: boolean }).attached
    expect(await attached()).toBeFalse()
    {
      using frontend = Frontend.start(backend.socketPath)
      frontend.settle()
      // The state is shown after the answers to the front-end.
      await until('the front-end to be seen', attached)
    }
    await until('the front-end to be gone', async () => !(await attached()))
    for (const path of ['/healthz', '/v1/device', '/openapi.json', '/nowhere']) {
      const response = await fetch(`http://localhost${path}`, { unix: backend.adminPath })
      expect([path, (await response.text()).at(-1)]).toEqual([path, '\n'])
    }
  }, 60_000)

  test('an abstract socket is served and connected to, and makes no file', async () => {
    const name = `@vduse-net-test-${process.pid}`
    await using backend = await Backend.start({ args: ['-s', name] })
    expect(existsSync(backend.socketPath)).toBeFalse()
    {
      using frontend = Frontend.start(name)
      new Traffic(backend).pass(frontend)
    }
    backend.signal('SIGTERM')
    expect(await backend.ended()).toBe(0)
    const listener = check('listen', listenUnix(name))
    await using client = await Backend.start({ client: true, args: ['-s', name] })
    expect(poll(listener, POLLIN, 60_000)).toBe(POLLIN)
    using _frontend = serve(new Traffic(client), check('accept', native.vn_accept(listener)))
    native.vn_close(listener)
  }, 60_000)

  test('--socket-mode and --socket-group decide who may connect', async () => {
    await using backend = await Backend.start({ args: ['--socket-mode', '660', '--socket-group', '7'] })
    const { mode, gid } = statSync(backend.socketPath)
    expect([mode & 0o777, gid]).toEqual([0o660, 7])
    new Traffic(backend).serveNext()
  }, 60_000)

  test('a second card of one name is refused before it makes a TAP, and names no command for a VM', async () => {
    await using backend = await Backend.start()
    const folder = mkdtempSync(join(tmpdir(), 'vduse-net-second-'))
    const start = async (...args: string[]) => {
      const words = ['--tap', 'other', '--netns', backend.namespace.name, '-s', join(folder, 's'), ...args]
      const child = Bun.spawn([process.execPath, main, ...words], { stdout: 'ignore', stderr: 'pipe' })
      const text = await new Response(child.stderr).text()
      expect(await child.exited).toBe(1)
      expect(text).not.toContain('for a VM')
      return text
    }
    const sameName = await start('--admin', `unix:${backend.adminPath}`)
    expect(sameName).toContain(`${backend.adminPath} is served by another process`)
    expect(sameName).not.toContain('created other')

    const server = createServer().listen(0, '127.0.0.1')
    await once(server, 'listening')
    const token = join(folder, 'token')
    writeFileSync(token, Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString('hex'), { mode: 0o600 })
    const { port } = server.address() as AddressInfo
    const samePort = await start('--admin', `127.0.0.1:${port}`, '--admin-token-file', token)
    expect(samePort).toContain('EADDRINUSE')
    server.close()
    expect(backend.namespace.interfaces()).toEqual(['lo', 'tap0'])
    rmSync(folder, { recursive: true })
  })

  test('--fd: only a connected stream socket of this machine will do', async () => {
    await using backend = await Backend.start()
    const listener = check('listen', listenUnix(`@vduse-net-fd-${process.pid}`))
    const [datagrams, packets] = [socketPair('datagram'), socketPair('packet')]
    const file = openSync('/dev/null', 'r')
    const others: readonly (readonly [string, number])[] = [
      ['not a connected stream socket', listener],
      ['not a connected stream socket', datagrams[0]],
      ['not a connected stream socket', packets[0]],
      ['not a unix socket', file],
    ]
    for (const [why, fd] of others) {
      const words = ['--tap', 'other', '--netns', backend.namespace.name, '--admin', 'off', '--fd', '3']
      const child = Bun.spawn([process.execPath, main, ...words], { stdio: ['ignore', 'ignore', 'pipe', fd] })
      const text = await new Response(child.stderr as ReadableStream<Uint8Array>).text()
      expect([fd, text]).toEqual([fd, expect.stringContaining(`--fd 3: ${why}\nhint: `)])
      expect(await child.exited).toBe(2)
    }
    for (const fd of [listener, file, ...datagrams, ...packets]) native.vn_close(fd)
  }, 60_000)

  test('another process that listens, a file that is no socket, and no descriptor are refused', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'vduse-net-refused-'))
    const file = join(folder, 'precious')
    writeFileSync(file, 'data')
    await using backend = await Backend.start()
    const refusals: readonly (readonly [string, readonly string[], number])[] = [
      [backend.socketPath, ['--socket-path', backend.socketPath], 1],
      [file, ['--socket-path', file], 1],
      ['/nowhere/at/all', ['--socket-path', '/nowhere/at/all'], 1],
      ['--fd 77', ['--fd', '77'], 2],
      ['--fd 0', ['--fd', '0'], 2],
    ]
    for (const [what, args, code] of refusals) {
      const child = Bun.spawn(
        [process.execPath, main, '--tap', 'other', '--netns', backend.namespace.name, '--admin', 'off', ...args],
        { stdout: 'ignore', stderr: 'pipe' },
      )
      const text = await new Response(child.stderr).text()
      expect([what, await child.exited]).toEqual([what, code])
      expect(text).toContain(what)
      expect(text).toContain('hint: ')
    }
    expect(readFileSync(file, 'utf8')).toBe('data')
    expect(backend.namespace.interfaces()).toEqual(['lo', 'tap0'])
    new Traffic(backend).serveNext()
    rmSync(folder, { recursive: true })
  })
})
