import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type AdminServer, startAdmin } from '../../../src/admin/server.ts'
import { placeSocket } from '../../../src/admin/unix-socket.ts'
import { EXIT, UserError } from '../../../src/base/errors.ts'
import type { ListenAddress } from '../../../src/base/listen-address.ts'
import { FakeCard, noLosses } from './fake-card.ts'
import { getRequest, patchRequest, RawClient, rawExchange, statusOf, trickle } from './raw-http.ts'

const TOKEN = '0123456789abcdef'.repeat(4)

let folder: string
let card: FakeCard
const running: AdminServer[] = []

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'vduse-net-admin-'))
  card = new FakeCard()
})

afterEach(async () => {
  await Promise.all(running.splice(0).map((server) => server.close()))
  rmSync(folder, { recursive: true, force: true })
})

const start = async (listen: ListenAddress, exchangeTimeoutMs = 10_000) => {
  const token = listen.kind === 'tcp' ? TOKEN : null
  const server = await startAdmin({ listen, token, card, version: '1.2.3', logLosses: noLosses, exchangeTimeoutMs })
  if (server === null) throw new Error('the admin API is off')
  running.push(server)
  return server
}

const socketPath = () => join(folder, 'run', 'tap0.sock')

const startUnix = async (exchangeTimeoutMs?: number) => {
  await start({ kind: 'unix', path: socketPath() }, exchangeTimeoutMs)
  return socketPath()
}

const refusal = async (listen: ListenAddress): Promise<UserError> => {
  try {
    await start(listen)
  } catch (error) {
    if (error instanceof UserError) return error
    throw error
  }
  throw new Error('it was not refused')
}

const expectProblem = (response: string, status: number): void => {
  expect(statusOf(response)).toBe(status)
  expect(response.toLowerCase()).toContain('content-type: application/problem+json')
  expect(JSON.parse(response.slice(response.indexOf('\r\n\r\n') + 4))).toMatchObject({ status })
}

describe('the unix socket', () => {
  test('is 0600 in a folder of 0700, with nothing beside it, and goes at close with the folder', async () => {
    const path = await startUnix()
    expect(lstatSync(path).isSocket()).toBe(true)
    expect(lstatSync(path).mode & 0o777).toBe(0o600)
    expect(lstatSync(join(folder, 'run')).mode & 0o777).toBe(0o700)
    expect(readdirSync(join(folder, 'run'))).toEqual(['tap0.sock'])
    await running.pop()?.close()
    expect(existsSync(join(folder, 'run'))).toBe(false)
  })

  test('keeps a folder that was there', async () => {
    mkdirSync(join(folder, 'run'), { mode: 0o700 })
    await startUnix()
    await running.pop()?.close()
    expect(readdirSync(folder)).toEqual(['run'])
    expect(readdirSync(join(folder, 'run'))).toEqual([])
  })

  test("takes the program's own folder away with the last card's socket, whoever has made it", async () => {
    const own = join(folder, 'own')
    mkdirSync(own, { mode: 0o700 })
    const [first, second] = await Promise.all(
      ['a.sock', 'b.sock'].map((name) => placeSocket(join(own, name), async (at) => writeFileSync(at, ''), own)),
    )
    first![Symbol.dispose]()
    expect(readdirSync(own)).toEqual(['b.sock'])
    second![Symbol.dispose]()
    expect(existsSync(own)).toBeFalse()
  })

  test('answers, and keeps the connection for the next request', async () => {
    const client = await RawClient.open(await startUnix())
    client.send('GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n')
    await client.until((received) => received.endsWith('{"status":"ok"}\n'))
    client.send('GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n')
    await client.until((received) => received.endsWith('{"ready":true,"reason":"ready"}\n'))
    client.close()
  })

  test('answers pipelined requests in order', async () => {
    const client = await RawClient.open(await startUnix())
    client.send(
      'GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n' +
        getRequest('/readyz'),
    )
    const statuses = [...(await client.end()).matchAll(/HTTP\/1\.1 ([0-9]{3})/g)].map(([, status]) => status)
    expect(statuses).toEqual(['200', '404', '200'])
  })

  test('PATCH over the wire reaches the card', async () => {
    expect(statusOf(await rawExchange(await startUnix(), patchRequest('{"linkUp":false}')))).toBe(200)
    expect(card.linkChanges).toEqual([false])
  })

  test("a crashed run's leftover is replaced", async () => {
    mkdirSync(join(folder, 'run'), { mode: 0o700 })
    const made = Bun.spawnSync([
      process.execPath,
      '-e',
      `Bun.serve({ unix: ${JSON.stringify(socketPath())}, fetch: () => new Response() }); ` +
        `process.kill(process.pid, 'SIGKILL')`,
    ])
    expect(made.signalCode).toBe('SIGKILL')
    expect(lstatSync(socketPath()).isSocket()).toBe(true)
    expect(statusOf(await rawExchange(await startUnix(), getRequest('/healthz')))).toBe(200)
  })

  test('one that is served is left alone and refused', async () => {
    const path = await startUnix()
    const error = await refusal({ kind: 'unix', path })
    expect(error.message).toContain('is served by another process')
    expect(error.hint).toContain('--admin unix:/PATH')
    expect(statusOf(await rawExchange(path, getRequest('/healthz')))).toBe(200)
    expect(readdirSync(join(folder, 'run'))).toEqual(['tap0.sock'])
  })

  test('a file that is no socket is left alone and refused', async () => {
    mkdirSync(join(folder, 'run'), { mode: 0o700 })
    writeFileSync(socketPath(), 'precious')
    expect((await refusal({ kind: 'unix', path: socketPath() })).message).toContain('is no socket')
    expect(readdirSync(join(folder, 'run'))).toEqual(['tap0.sock'])
  })

  test('a symbolic link is not followed', async () => {
    mkdirSync(join(folder, 'run'), { mode: 0o700 })
    symlinkSync(join(folder, 'elsewhere'), socketPath())
    expect((await refusal({ kind: 'unix', path: socketPath() })).message).toContain('is no socket')
    expect(existsSync(join(folder, 'elsewhere'))).toBe(false)
  })

  test('a folder in which others can replace files is refused', async () => {
    mkdirSync(join(folder, 'run'))
    chmodSync(join(folder, 'run'), 0o777)
    const error = await refusal({ kind: 'unix', path: socketPath() })
    expect(error.message).toContain('others can replace files')
    expect(error.exitCode).toBe(EXIT.usage)
  })

  test('a folder that cannot be made is refused', async () => {
    writeFileSync(join(folder, 'run'), '')
    expect((await refusal({ kind: 'unix', path: socketPath() })).message).toMatch(/EEXIST|ENOTDIR/)
  })

  test('a socket that another process has put there is not removed at close', async () => {
    const path = await startUnix()
    rmSync(path)
    const other = createServer().listen(path)
    await new Promise((resolve) => other.once('listening', resolve))
    await running.pop()?.close()
    expect(lstatSync(path).isSocket()).toBe(true)
    other.close()
  })
})

describe('TCP', () => {
  const tcp = { kind: 'tcp', host: '127.0.0.1', port: 0 } as const

  test('answers with the token only, under its own names only', async () => {
    const { address } = await start(tcp)
    if (address.kind !== 'tcp') throw new Error('not TCP')
    const ask = (host: string, ...headers: string[]) =>
      rawExchange(address, getRequest('/v1/device', ...headers).replace('Host: localhost', `Host: ${host}`))
    const token = `Authorization: Bearer ${TOKEN}`
    for (const name of ['localhost', '127.0.0.1', '[::1]'])
      expect(statusOf(await ask(`${name}:${address.port}`, token))).toBe(200)
    expectProblem(await ask(`localhost:${address.port}`), 401)
    expectProblem(await ask('localhost', token), 421)
    expectProblem(await ask(`evil.example:${address.port}`, token), 421)
  })

  test('listens on loopback and nowhere else', async () => {
    const { address } = await start(tcp)
    if (address.kind !== 'tcp') throw new Error('not TCP')
    const port = address.port.toString(16).toUpperCase().padStart(4, '0')
    const tables = await Promise.all(['/proc/net/tcp', '/proc/net/tcp6'].map((path) => Bun.file(path).text()))
    const listeners = tables
      .join('\n')
      .split('\n')
      .map((line) => line.trim().split(/\s+/))
      .filter(([, local, , state]) => state === '0A' && local?.endsWith(`:${port}`))
      .map(([, local]) => local)
    expect(listeners).toEqual([`0100007F:${port}`])
  })

  test('a port that is taken is refused with what to do', async () => {
    const { address } = await start(tcp)
    const error = await refusal(address)
    expect(error.message).toContain('EADDRINUSE')
    expect(error.hint).toContain('another port')
  })

  test('an address that is not loopback never gets as far as a socket', async () => {
    const listen = { kind: 'tcp', host: '0.0.0.0', port: 0 } as unknown as ListenAddress
    expect(startAdmin({ listen, token: TOKEN, card, version: '1', logLosses: noLosses })).rejects.toThrow('loopback')
  })
})

describe('limits', () => {
  test('a body of 64 KiB is read, one byte more is 413', async () => {
    const path = await startUnix()
    const body = (bytes: number) => '{"linkUp":false}'.padEnd(bytes, ' ')
    expect(statusOf(await rawExchange(path, patchRequest(body(65_536))))).toBe(200)
    expectProblem(await rawExchange(path, patchRequest(body(65_537))), 413)
    expect(card.linkChanges).toEqual([false])
  })

  test('a chunked body is counted too', async () => {
    const path = await startUnix()
    const head = patchRequest('').replace('Content-Length: 0', 'Transfer-Encoding: chunked')
    expectProblem(await rawExchange(path, `${head}10001\r\n${' '.repeat(65_537)}\r\n0\r\n\r\n`), 413)
    expect(card.linkChanges).toEqual([])
  })

  test('a client that sends a megabyte before it listens sees the 413 too', async () => {
    const path = await startUnix()
    expectProblem(await rawExchange(path, patchRequest(' '.repeat(1_000_000))), 413)
    const head = patchRequest('').replace('Content-Length: 0', 'Transfer-Encoding: chunked')
    expectProblem(await rawExchange(path, `${head}f4240\r\n${' '.repeat(1_000_000)}\r\n0\r\n\r\n`), 413)
    expect(card.linkChanges).toEqual([])
  })

  test('a body without end is cut off', async () => {
    const client = await RawClient.open(await startUnix())
    client.send(patchRequest('').replace('Content-Length: 0', 'Transfer-Encoding: chunked'))
    const chunk = `10000\r\n${' '.repeat(65_536)}\r\n`
    const flood = setInterval(() => client.send(chunk), 1)
    await client.end().finally(() => clearInterval(flood))
    expect(card.linkChanges).toEqual([])
  })

  test('Content-Length of 2^53 is 413 before a byte of it is read', async () => {
    const request = patchRequest('').replace('Content-Length: 0', 'Content-Length: 9007199254740992')
    expectProblem(await rawExchange(await startUnix(), request), 413)
  })

  test('headers of 8 KiB are 431, in one line or in many', async () => {
    const path = await startUnix()
    expect(statusOf(await rawExchange(path, getRequest('/healthz', `X: ${'a'.repeat(7000)}`)))).toBe(200)
    expectProblem(await rawExchange(path, getRequest('/healthz', `X: ${'a'.repeat(8200)}`)), 431)
    expectProblem(await rawExchange(path, getRequest('/healthz', ...Array(900).fill('X: abcdef'))), 431)
    expectProblem(await rawExchange(path, getRequest(`/${'a'.repeat(9000)}`)), 431)
  })

  test('32 connections, not 33; a place that is left is free again', async () => {
    const path = await startUnix()
    const clients = await Promise.all(Array.from({ length: 32 }, () => RawClient.open(path)))
    for (const client of clients) client.send('GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n')
    for (const client of clients) await client.until((received) => received.includes('200 OK'))
    for (let extra = 0; extra < 40; extra++) expect(await (await RawClient.open(path)).end()).toBe('')
    clients.pop()?.close()
    let status = 0
    for (let attempt = 0; attempt < 100 && status !== 200; attempt++) {
      const client = await RawClient.open(path)
      client.send(getRequest('/healthz'))
      status = statusOf(await client.end())
    }
    expect(status).toBe(200)
    for (const client of clients) client.close()
  })

  test('a request whose headers do not come in time is 408', async () => {
    const client = await RawClient.open(await startUnix(300))
    client.send('GET /healthz HTTP/1.1\r\nHo')
    expectProblem(await client.end(), 408)
  })

  test('headers that trickle get no more time', async () => {
    expect(statusOf(await trickle(await startUnix(300), 'GET /healthz HTTP/1.1\r\nX: ', 'a'))).toBe(408)
  })

  test('a body that trickles gets no more time', async () => {
    const head = patchRequest('').replace('Content-Length: 0', 'Content-Length: 1000')
    expect(statusOf(await trickle(await startUnix(300), head, ' '))).toBe(408)
    expect(card.linkChanges).toEqual([])
  })

  test('a connection that says nothing is closed', async () => {
    const client = await RawClient.open(await startUnix(300))
    await client.end()
  })

  test('an answer that takes too long is 503', async () => {
    const never = Promise.withResolvers<void>()
    card.beforeLinkChange = () => never.promise
    expectProblem(await rawExchange(await startUnix(300), patchRequest('{"linkUp":false}')), 503)
    never.resolve()
  })

  test('a client that leaves in the middle takes nothing with it', async () => {
    const path = await startUnix()
    const slow = Promise.withResolvers<void>()
    const entered = Promise.withResolvers<void>()
    card.beforeLinkChange = () => {
      entered.resolve()
      return slow.promise
    }
    const client = await RawClient.open(path)
    client.send(patchRequest('{"linkUp":false}'))
    await entered.promise
    client.close()
    slow.resolve()
    expect(statusOf(await rawExchange(path, getRequest('/healthz')))).toBe(200)
  })

  test('the time of one exchange is not that of the next on the same connection', async () => {
    const client = await RawClient.open(await startUnix(1500))
    const started = performance.now()
    let exchanges = 0
    while (performance.now() - started < 3000) {
      client.send('GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n')
      exchanges++
      await client.until((received) => received.split('{"status":"ok"}').length > exchanges)
    }
    expect(client.closed).toBe(false)
    client.close()
  })

  test('close waits a second for an answer, not for ever', async () => {
    const entered = Promise.withResolvers<void>()
    const never = Promise.withResolvers<void>()
    card.beforeLinkChange = () => {
      entered.resolve()
      return never.promise
    }
    const client = await RawClient.open(await startUnix())
    client.send(patchRequest('{"linkUp":false}'))
    await entered.promise
    const started = performance.now()
    await running.pop()?.close()
    expect(performance.now() - started).toBeLessThan(3000)
    await client.end()
  })

  test('close lets an answer finish', async () => {
    const entered = Promise.withResolvers<void>()
    const slow = Promise.withResolvers<void>()
    card.beforeLinkChange = () => {
      entered.resolve()
      return slow.promise
    }
    const client = await RawClient.open(await startUnix())
    client.send(patchRequest('{"linkUp":false}'))
    await entered.promise
    const closed = running.pop()?.close()
    slow.resolve()
    await closed
    expect(statusOf(await client.end())).toBe(200)
  })
})

describe('what is not HTTP/1.1 as it should be', () => {
  const head = 'Host: localhost\r\nConnection: close\r\n'
  test.each([
    ['a TLS hello', '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n', 400],
    ['HTTP/0.9', 'GET /healthz\r\n\r\n', 400],
    ['HTTP/2 prior knowledge', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 400],
    ['an unknown method', `BREW /v1/device HTTP/1.1\r\n${head}\r\n`, 400],
    ['a NUL in a header', `GET /healthz HTTP/1.1\r\n${head}X: a\0b\r\n\r\n`, 400],
    ['a folded header', `GET /healthz HTTP/1.1\r\n${head}X: a\r\n b\r\n\r\n`, 400],
    ['a space before the colon', `GET /healthz HTTP/1.1\r\n${head}X : a\r\n\r\n`, 400],
    ['bare line feeds', 'GET /healthz HTTP/1.1\nHost: localhost\n\n', 400],
    ['two lengths', `PATCH /v1/device HTTP/1.1\r\n${head}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd`, 400],
    [
      'a length and chunks',
      `PATCH /v1/device HTTP/1.1\r\n${head}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`,
      400,
    ],
    ['a negative length', `PATCH /v1/device HTTP/1.1\r\n${head}Content-Length: -1\r\n\r\n`, 400],
    ['an absolute target', `GET http://evil.example/healthz HTTP/1.1\r\n${head}\r\n`, 400],
    ['a target that is no path', `OPTIONS * HTTP/1.1\r\n${head}\r\n`, 400],
    ['CONNECT', `CONNECT evil.example:80 HTTP/1.1\r\n${head}\r\n`, 405],
    [
      'an upgrade',
      'GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n',
      400,
    ],
    ['no Host', 'GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n', 421],
    ['two Hosts', `GET /healthz HTTP/1.1\r\n${head}Host: evil.example\r\n\r\n`, 421],
    ['HTTP/1.0 without Host', 'GET /healthz HTTP/1.0\r\n\r\n', 421],
    ['a path of an authority', `GET //evil.example/healthz HTTP/1.1\r\n${head}\r\n`, 404],
    ['bytes that are no text in the path', `GET /%ff%00%2e%2e HTTP/1.1\r\n${head}\r\n`, 404],
  ])('%s', async (_, bytes, status) => {
    const path = await startUnix()
    expectProblem(await rawExchange(path, bytes), status)
    expect(statusOf(await rawExchange(path, getRequest('/healthz')))).toBe(200)
  })

  test('an unknown expectation is 417', async () => {
    expect(statusOf(await rawExchange(await startUnix(), getRequest('/healthz', 'Expect: miracles')))).toBe(417)
  })

  test('a chunk size that is no number changes nothing', async () => {
    const path = await startUnix()
    const request = patchRequest('').replace('Content-Length: 0', 'Transfer-Encoding: chunked')
    await rawExchange(path, `${request}zz\r\n`)
    expect(card.linkChanges).toEqual([])
    expect(statusOf(await rawExchange(path, getRequest('/healthz')))).toBe(200)
  })
})

test('off serves nothing', async () => {
  expect(await startAdmin({ listen: { kind: 'off' }, token: null, card, version: '1', logLosses: noLosses })).toBeNull()
})
