import { beforeEach, describe, expect, test } from 'bun:test'
import { dropReasons } from '../../../src/abi/drop-reason.ts'
import { createApp } from '../../../src/admin/app.ts'
import { EXIT, UserError } from '../../../src/base/errors.ts'
import type { Card } from '../../../src/card/card.ts'
import { FakeCard, noLosses } from './fake-card.ts'

const TOKEN = '0123456789abcdef'.repeat(4)

let card: FakeCard

beforeEach(() => {
  card = new FakeCard()
})

const appOf = (served: Card = card, token: string | null = null) =>
  createApp({ card: served, hosts: new Set(['localhost']), token, version: '1.2.3', logLosses: noLosses })

const get = (path: string, headers: Record<string, string> = {}, app = appOf()) =>
  app.request(`http://localhost${path}`, { headers: { host: 'localhost', ...headers } })

const patch = (body: string, headers: Record<string, string> = {}, app = appOf()) =>
  app.request('http://localhost/v1/device', {
    method: 'PATCH',
    body,
    headers: { host: 'localhost', 'content-type': 'application/json', ...headers },
  })

/** Checks that a response is a problem, and returns it. */
const problemOf = async (response: Response, status: number) => {
  expect(response.status).toBe(status)
  expect(response.headers.get('content-type')).toBe('application/problem+json')
  const body = (await response.json()) as {
    status: number
    title: string
    detail: string
    faults?: { where: string }[]
  }
  expect(body.status).toBe(status)
  expect(body.title.length).toBeGreaterThan(0)
  expect(body.detail.length).toBeGreaterThan(0)
  return body
}

describe('reading', () => {
  test('GET /healthz answers while the card is not ready', async () => {
    card.readyView = { ready: false, reason: 'no driver' }
    const response = await get('/healthz')
    expect(response.status).toBe(200)
    expect(await response.json()).toEqual({ status: 'ok' })
  })

  test('GET /readyz is 200 when packets can flow and 503 with the reason when not', async () => {
    expect((await get('/readyz')).status).toBe(200)
    card.readyView = { ready: false, reason: 'no driver' }
    const response = await get('/readyz')
    expect(response.status).toBe(503)
    expect(await response.json()).toEqual({ ready: false, reason: 'no driver' })
  })

  test('GET /v1/device, /v1/queues and /v1/stats give what the card says', async () => {
    expect(await (await get('/v1/device')).json()).toEqual(card.view)
    expect(await (await get('/v1/queues')).json()).toEqual({ queues: card.queueViews })
    expect(await (await get('/v1/stats')).json()).toEqual({ ...card.statsView, logLines: { leftOut: 0, lost: 0 } })
  })

  test('HEAD answers like GET, without a body', async () => {
    const response = await appOf().request('http://localhost/v1/device', {
      method: 'HEAD',
      headers: { host: 'localhost' },
    })
    expect(response.status).toBe(200)
    expect(await response.text()).toBe('')
  })

  test('no answer may be cached, sniffed or framed', async () => {
    for (const path of ['/v1/device', '/metrics', '/nowhere']) {
      const { headers } = await get(path)
      expect(headers.get('cache-control')).toBe('no-store')
      expect(headers.get('x-content-type-options')).toBe('nosniff')
      expect(headers.get('content-security-policy')).toContain("frame-ancestors 'none'")
    }
  })
})

describe('GET /openapi.json', () => {
  test('lists every route with its problems', async () => {
    const document = (await (await get('/openapi.json')).json()) as {
      openapi: string
      info: { version: string }
      paths: Record<string, Record<string, { responses: Record<string, { content: Record<string, unknown> }> }>>
    }
    expect(document.openapi).toBe('3.1.0')
    expect(document.info.version).toBe('1.2.3')
    const operations = Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.keys(methods).map((method) => `${method} ${path}`),
    )
    expect(operations.sort()).toEqual([
      'get /healthz',
      'get /metrics',
      'get /readyz',
      'get /v1/device',
      'get /v1/queues',
      'get /v1/stats',
      'patch /v1/device',
    ])
    for (const methods of Object.values(document.paths)) {
      for (const { responses } of Object.values(methods))
        expect(Object.keys(responses.default?.content ?? {})).toEqual(['application/problem+json'])
    }
  })

  test('describes every field that the routes answer with', async () => {
    const document = (await (await get('/openapi.json')).json()) as {
      components: { schemas: Record<string, { properties: Record<string, unknown>; required: string[] }> }
    }
    const { Device, Queue, Stats } = document.components.schemas
    expect(Object.keys(Device?.properties ?? {}).sort()).toEqual(Object.keys(card.view).sort())
    expect(Object.keys(Queue?.properties ?? {}).sort()).toEqual(Object.keys(card.queueViews[0] ?? {}).sort())
    expect(Object.keys(Stats?.properties ?? {}).sort()).toEqual([...Object.keys(card.statsView), 'logLines'].sort())
    expect(Device?.required.sort()).toEqual(Object.keys(card.view).sort())
  })

  test('asks for the token only where there is one', async () => {
    const open = (await (await get('/openapi.json')).json()) as { security?: unknown }
    expect(open.security).toBeUndefined()
    const locked = (await (
      await get('/openapi.json', { authorization: `Bearer ${TOKEN}` }, appOf(card, TOKEN))
    ).json()) as { security?: unknown; components: { securitySchemes: unknown } }
    expect(locked.security).toEqual([{ bearer: [] }])
    expect(locked.components.securitySchemes).toEqual({ bearer: { type: 'http', scheme: 'bearer' } })
  })
})

describe('GET /metrics', () => {
  const scrape = async (app = appOf()) => {
    const response = await get('/metrics', {}, app)
    expect(response.status).toBe(200)
    expect(response.headers.get('content-type')).toBe('text/plain; version=0.0.4; charset=utf-8')
    const samples = new Map<string, number>()
    for (const line of (await response.text()).split('\n')) {
      const [, name, value] = /^([a-z_]+(?:\{[^}]*\})?) (\S+)$/.exec(line) ?? []
      if (name !== undefined) samples.set(name, Number(value))
    }
    return samples
  }

  test('has each queue, each drop reason and the device', async () => {
    const samples = await scrape()
    expect(samples.get('vduse_net_packets_total{queue="0",dir="rx"}')).toBe(40)
    expect(samples.get('vduse_net_packets_total{queue="1",dir="tx"}')).toBe(41)
    expect(samples.get('vduse_net_bytes_total{queue="1",dir="tx"}')).toBe(4001)
    expect(samples.get('vduse_net_kicks_total{queue="0",dir="rx"}')).toBe(11)
    expect(samples.get('vduse_net_calls_total{queue="1",dir="tx"}')).toBe(8)
    expect(samples.get('vduse_net_ring_used_ratio{queue="0",dir="rx"}')).toBe(0.25)
    expect(samples.get('vduse_net_batch_size{queue="0",dir="rx"}')).toBe(4)
    for (const [index, reason] of dropReasons.entries())
      expect(samples.get(`vduse_net_dropped_total{reason="${reason}"}`)).toBe(index)
    expect(samples.get('vduse_net_log_lines_missing_total{why="left_out"}')).toBe(0)
    expect(samples.get('vduse_net_log_lines_missing_total{why="lost"}')).toBe(0)
    expect(samples.get('vduse_net_link_up')).toBe(1)
    expect(samples.get('vduse_net_device_status')).toBe(15)
    expect(samples.get('vduse_net_resets_total')).toBe(3)
    expect(samples.get('vduse_net_build_info{version="1.2.3",name="tap0",transport="vduse"}')).toBe(1)
  })

  test('copies the counters: a second scrape adds nothing, and a queue that went is gone', async () => {
    const app = appOf()
    const first = await scrape(app)
    expect(await scrape(app)).toEqual(first)
    card.queueViews = card.queueViews.slice(0, 1)
    card.view = { ...card.view, linkUp: false }
    const later = await scrape(app)
    expect(later.has('vduse_net_packets_total{queue="1",dir="tx"}')).toBe(false)
    expect(later.get('vduse_net_link_up')).toBe(0)
  })

  test('a queue that has done nothing has no NaN', async () => {
    card.queueViews = card.queueViews.map((queue) => ({ ...queue, size: 0, pending: 0, batches: 0, packets: 0 }))
    for (const value of (await scrape()).values()) expect(Number.isFinite(value)).toBe(true)
  })

  test('two cards in one process keep their metrics apart', async () => {
    const other = new FakeCard()
    other.view = { ...other.view, resets: 9 }
    const [one, two] = [await scrape(), await scrape(appOf(other))]
    expect(one.get('vduse_net_resets_total')).toBe(3)
    expect(two.get('vduse_net_resets_total')).toBe(9)
  })
})

describe('PATCH /v1/device', () => {
  test('switches the link and answers with the device after it', async () => {
    const response = await patch('{"linkUp":false}')
    expect(response.status).toBe(200)
    expect(await response.json()).toMatchObject({ name: 'tap0', linkUp: false })
    expect(card.linkChanges).toEqual([false])
  })

  test('is 409 with what to do where the card cannot', async () => {
    card.beforeLinkChange = () => {
      throw new UserError('link: the driver has not negotiated STATUS', 'load a newer driver', EXIT.runtime)
    }
    const { detail } = await problemOf(await patch('{"linkUp":false}'), 409)
    expect(detail).toBe('link: the driver has not negotiated STATUS; load a newer driver')
  })

  test.each([
    ['an unknown key', '{"linkUp":true,"speed":1}', 'json'],
    ['a missing key', '{}', 'json.linkUp'],
    ['a string for a boolean', '{"linkUp":"true"}', 'json.linkUp'],
    ['null', 'null', 'json'],
    ['an array', '[]', 'json'],
    ['a number for a boolean', '{"linkUp":1}', 'json.linkUp'],
  ])('%s is 400, names the place and changes nothing', async (_, body, where) => {
    const { faults } = await problemOf(await patch(body), 400)
    expect(faults?.[0]?.where).toBe(where)
    expect(card.linkChanges).toEqual([])
  })

  test.each([
    ['a broken body', '{"linkUp":'],
    ['an empty body', ''],
    ['a lone surrogate', '\udc00'],
  ])('%s is 400', async (_, body) => {
    await problemOf(await patch(body), 400)
    expect(card.linkChanges).toEqual([])
  })

  test('__proto__ in the body is an unknown key and pollutes nothing', async () => {
    await problemOf(await patch('{"linkUp":true,"__proto__":{"polluted":1}}'), 400)
    expect(({} as { polluted?: number }).polluted).toBeUndefined()
  })

  test.each([
    'text/plain',
    'application/x-www-form-urlencoded',
    'multipart/form-data; boundary=x',
    'application/json, text/plain',
    'application/jsonp',
    'application/json; charset=utf-16',
    '',
  ])('Content-Type %p is 415', async (type) => {
    await problemOf(await patch('{"linkUp":false}', { 'content-type': type }), 415)
    expect(card.linkChanges).toEqual([])
  })

  test('Content-Type application/json; charset=utf-8 is fine', async () => {
    expect((await patch('{"linkUp":false}', { 'content-type': 'application/json; charset=UTF-8' })).status).toBe(200)
  })
})

describe('refusals', () => {
  test('an unknown path is a 404 problem', async () => {
    for (const path of ['/', '/v1', '/v1/device/', '/v2/device', '/metrics/x', '/%00', '/v1/../healthz/x'])
      await problemOf(await get(path), 404)
  })

  test('a wrong method is 405 with Allow, and OPTIONS gives no CORS', async () => {
    for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS']) {
      const response = await appOf().request('http://localhost/v1/device', {
        method,
        // Without a body there is no type to be said.
        headers: { host: 'localhost', ...(method === 'DELETE' ? {} : { 'content-type': 'application/json' }) },
      })
      await problemOf(response, 405)
      expect(response.headers.get('allow')).toBe('GET, HEAD, PATCH')
      expect([...response.headers.keys()].filter((name) => name.startsWith('access-control-'))).toEqual([])
    }
    expect(card.linkChanges).toEqual([])
  })

  test('an unknown query key is 400', async () => {
    for (const path of ['/healthz', '/readyz', '/metrics', '/v1/device', '/v1/queues', '/v1/stats'])
      await problemOf(await get(`${path}?verbose=1`), 400)
  })

  test('GET never changes anything, whatever it carries', async () => {
    await get('/v1/device?linkUp=false')
    await get('/v1/device', { 'x-http-method-override': 'PATCH', 'content-type': 'application/json' })
    expect(card.linkChanges).toEqual([])
  })

  test.each(['evil.example', 'localhost.evil.example', 'localhost:80', 'localhost, evil.example', '127.0.0.1', ''])(
    'Host %p is 421',
    async (host) => {
      await problemOf(await get('/v1/device', { host }), 421)
    },
  )

  test('no Host at all is 421', async () => {
    await problemOf(await appOf().request('http://localhost/v1/device'), 421)
  })

  test('Host in capitals is the same name', async () => {
    expect((await get('/v1/device', { host: 'LocalHost' })).status).toBe(200)
  })

  test.each(['http://evil.example', 'https://localhost', 'http://localhost:8080', 'null', ''])(
    'Origin %p is 403',
    async (origin) => {
      await problemOf(await patch('{"linkUp":false}', { origin }), 403)
      await problemOf(await get('/v1/device', { origin }), 403)
      expect(card.linkChanges).toEqual([])
    },
  )

  test.each(['cross-site', 'same-site', 'nonsense', ''])('Sec-Fetch-Site %p is 403', async (site) => {
    await problemOf(await patch('{"linkUp":false}', { 'sec-fetch-site': site }), 403)
    expect(card.linkChanges).toEqual([])
  })

  test('the own origin passes', async () => {
    const headers = { origin: 'http://localhost', 'sec-fetch-site': 'same-origin' }
    expect((await patch('{"linkUp":false}', headers)).status).toBe(200)
  })

  test('what goes wrong inside is a 500 without a stack', async () => {
    const broken = new FakeCard()
    broken.queues = () => {
      throw new Error('secret of /etc/passwd')
    }
    for (const path of ['/v1/queues', '/metrics']) {
      const response = await get(path, {}, appOf(broken))
      const text = await response.clone().text()
      await problemOf(response, 500)
      expect(text).not.toContain('secret')
      expect(text).not.toContain('.ts')
    }
  })
})

describe('the bearer token', () => {
  const locked = () => appOf(card, TOKEN)

  test('opens every route', async () => {
    for (const path of ['/healthz', '/readyz', '/metrics', '/openapi.json', '/v1/device', '/v1/queues', '/v1/stats'])
      expect((await get(path, { authorization: `Bearer ${TOKEN}` }, locked())).status).toBe(200)
  })

  test('is asked for on every route, an unknown one too', async () => {
    for (const path of [
      '/healthz',
      '/readyz',
      '/metrics',
      '/openapi.json',
      '/v1/device',
      '/v1/queues',
      '/v1/stats',
      '/x',
    ]) {
      const response = await get(path, {}, locked())
      await problemOf(response, 401)
      expect(response.headers.get('www-authenticate')).toBe('Bearer realm="vduse-net"')
    }
  })

  test.each([
    `Bearer ${TOKEN.slice(1)}`,
    `Bearer ${TOKEN}0`,
    `Bearer ${TOKEN.toUpperCase()}`,
    'Bearer',
    'Bearer ',
    `Basic ${TOKEN}`,
    TOKEN,
    `Bearer ${TOKEN}, Bearer ${TOKEN}`,
  ])('%p is 401', async (authorization) => {
    await problemOf(await get('/v1/device', { authorization }, locked()), 401)
    await problemOf(await patch('{"linkUp":false}', { authorization }, locked()), 401)
    expect(card.linkChanges).toEqual([])
  })

  test('is never taken from the query', async () => {
    await problemOf(await get(`/v1/device?access_token=${TOKEN}`, {}, locked()), 401)
  })
})
