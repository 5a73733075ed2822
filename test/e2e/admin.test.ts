import { expect, test } from 'bun:test'
import { GuestCard } from '../support/e2e-card.ts'
import { answerOf, endToEnd, guestProgram, type Lab, sharedLab, traces } from '../support/e2e-lab.ts'
import { patch, requests } from '../support/e2e-requests.ts'
import { startLoad } from '../support/e2e-traffic.ts'
import type { ApiWatch } from '../support/guest/api.ts'
import { type OpenApi, responseSchema } from '../support/openapi-schemas.ts'

const PATHS = ['/healthz', '/readyz', '/v1/device', '/v1/queues', '/v1/stats', '/metrics', '/openapi.json'] as const

/**
 * Of one answer, in an emulated guest whose processors all have something else to do, on a machine that has too.
 * Whoever waited for a driver would wait until VDUSE gives it up, 30 s.
 */
const ANSWER_MS = 15_000

/** Asks the card all the time while `meanwhile` runs. */
const watched = async (lab: Lab, card: GuestCard, meanwhile: () => Promise<void>): Promise<ApiWatch> => {
  const watch = lab.spawn(`exec ${guestProgram('api-watch', card.socket, ...PATHS)}`)
  await watch.line(/^watching$/)
  try {
    await meanwhile()
  } finally {
    watch.kill('TERM')
    await watch.exited
  }
  return answerOf<ApiWatch>(watch.lines)
}

endToEnd('the admin API', () => {
  test('listens on a socket that only its owner can reach, and takes it away at the end', async () => {
    const lab = await sharedLab()
    // A card that another test has killed leaves the folder, and a card removes at its end only what it has made.
    await lab.ok('rm -rf /run/vduse-net')
    await using card = await GuestCard.start(lab)
    expect(await lab.ok(`stat -c '%a %u %F' /run/vduse-net ${card.socket}`)).toBe('700 0 directory\n600 0 socket\n')
    expect((await lab.sh(`su nobody -s /bin/sh -c 'ls ${card.socket}'`)).code).not.toBe(0)
    expect(await lab.ok('ss -lntuH')).toBe('')
    expect((await card.end()).code).toBe(0)
    expect((await lab.sh('ls /run/vduse-net')).code).not.toBe(0)
  })

  test('answers as its own description says', async () => {
    const lab = await sharedLab()
    await using card = await GuestCard.start(lab)
    await card.wire()
    await card.passes()
    const answers = await requests(lab, card.socket, [
      ...PATHS.map((path) => ({ path })),
      { path: '/v1/stats?since=yesterday' },
      patch('{"linkUp":"yes"}'),
    ])
    const document = JSON.parse(answers[PATHS.indexOf('/openapi.json')]!.body) as OpenApi
    expect(document.openapi).toBe('3.1.0')
    const described: string[] = []
    for (const [index, path] of [...PATHS, '/v1/stats', '/v1/device'].entries()) {
      const { status, headers, body } = answers[index]!
      if (path === '/openapi.json') continue
      const method = index > PATHS.length ? 'patch' : 'get'
      const mediaType = headers['content-type']!.split(';')[0]!
      const schema = responseSchema(document, path, method, status, mediaType)
      schema.parse(mediaType.endsWith('json') ? JSON.parse(body) : body)
      described.push(`${method} ${path} ${status} ${mediaType}`)
    }
    expect(described).toEqual([
      'get /healthz 200 application/json',
      'get /readyz 200 application/json',
      'get /v1/device 200 application/json',
      'get /v1/queues 200 application/json',
      'get /v1/stats 200 application/json',
      'get /metrics 200 text/plain',
      'get /v1/stats 400 application/problem+json',
      'patch /v1/device 400 application/problem+json',
    ])
  })

  test('tells the same in JSON, in the metrics, and as the interface counts', async () => {
    const lab = await sharedLab()
    await using card = await GuestCard.start(lab)
    const netdev = await card.wire()
    await card.passes()
    expect(await card.ping({ count: 50 })).toEqual({ sent: 50, received: 50 })
    const read = async () => {
      const answers = await requests(lab, card.socket, [
        { path: '/v1/device' },
        { path: '/v1/queues' },
        { path: '/v1/stats' },
        { path: '/metrics' },
      ])
      const [counted] = JSON.parse(await card.inDriver(`ip -j -s link show ${netdev}`))
      return { answers, queues: JSON.parse(answers[1]!.body).queues, interface: counted.stats64 }
    }
    // Where the last agrees with the first, nothing has come or gone while one answer after the other was read.
    const { answers, queues } = await card.until(read, (now) => {
      const [rx, tx] = now.queues
      return now.interface.rx.packets === rx.packets && now.interface.tx.packets === tx.packets
    })
    const [device, , stats, metrics] = answers
    const view = JSON.parse(device!.body)
    const [rx, tx] = queues
    const totals = JSON.parse(stats!.body)
    expect([rx.direction, tx.direction]).toEqual(['rx', 'tx'])
    expect(rx.packets).toBeGreaterThanOrEqual(50)
    for (const [direction, queue] of Object.entries({ rx, tx })) {
      const { packets, bytes, gsoPackets, csumPackets } = queue
      expect(totals[direction]).toEqual({ packets, bytes, gsoPackets, csumPackets })
      const labels = `{queue="${queue.index}",dir="${direction}"}`
      expect(metrics!.body).toContain(`vduse_net_packets_total${labels} ${packets}\n`)
      expect(metrics!.body).toContain(`vduse_net_bytes_total${labels} ${bytes}\n`)
    }
    for (const [reason, count] of Object.entries(totals.drops)) {
      expect(metrics!.body).toContain(`vduse_net_dropped_total{reason="${reason}"} ${count}\n`)
    }
    expect(metrics!.body).toContain(`vduse_net_resets_total ${view.resets}\n`)
    expect(metrics!.body).toContain(`vduse_net_device_status ${view.status.bits}\n`)
  })

  test('answers while packets flow both ways', async () => {
    const lab = await sharedLab()
    await using card = await GuestCard.start(lab)
    await card.wire()
    await card.passes()
    const load = await startLoad(card)
    const before = await card.stats()
    const seen = await watched(lab, card, async () => {
      await card.until(
        () => card.stats(),
        (now) => now.rx.packets > before.rx.packets + 1000 && now.tx.packets > before.tx.packets + 1000,
        120_000,
      )
    })
    await load.stop()
    expect(seen.failures).toEqual([])
    expect(Object.keys(seen.statuses).sort()).toEqual(PATHS.map((path) => `${path} 200`).sort())
    expect(seen.slowestMs).toBeLessThan(ANSWER_MS)
  })

  test('answers while its driver is taken away and given back all the time', async () => {
    const lab = await sharedLab()
    await using card = await GuestCard.start(lab)
    await card.netdev()
    const before = (await card.device()).resets
    const seen = await watched(lab, card, async () => {
      const bus = '/sys/bus/vdpa/drivers/virtio_vdpa'
      await lab.ok(
        `for i in $(seq 15); do echo ${card.name} > ${bus}/unbind && echo ${card.name} > ${bus}/bind || exit 1; done`,
      )
    })
    expect(seen.failures).toEqual([])
    expect(seen.statuses).toMatchObject({ '/healthz 200': expect.any(Number), '/v1/device 200': expect.any(Number) })
    for (const answer of Object.keys(seen.statuses)) expect(answer).toMatch(/ 200$|^\/readyz 503$/)
    expect(seen.slowestMs).toBeLessThan(ANSWER_MS)
    expect((await card.device()).resets).toBeGreaterThanOrEqual(before + 15)
    await card.until(
      () => card.api('GET', '/readyz'),
      ({ status }) => status === 200,
    )
  })

  test('switches the link: the driver and the host see no carrier, and packets flow again after', async () => {
    const lab = await sharedLab()
    await using card = await GuestCard.start(lab)
    const netdev = await card.wire()
    await card.passes()
    const carriers = async (): Promise<string> =>
      (await card.inDriver(`cat /sys/class/net/${netdev}/carrier`)) +
      (await lab.ok(`cat /sys/class/net/${card.tap}/carrier`))
    expect(await carriers()).toBe('1\n1\n')

    const down = await card.api('PATCH', '/v1/device', { linkUp: false })
    expect(down).toMatchObject({ status: 200, body: { linkUp: false } })
    await card.until(carriers, (now) => now === '0\n0\n')
    expect(await card.api('GET', '/readyz')).toMatchObject({
      status: 503,
      body: { ready: false, reason: 'the link is down' },
    })
    expect((await card.api('GET', '/metrics')).body).toContain('\nvduse_net_link_up 0\n')
    expect((await lab.sh(`ping -c 2 -W 1 ${card.driverIpv4}`)).code).not.toBe(0)
    // Twice is no more than once.
    expect((await card.api('PATCH', '/v1/device', { linkUp: false })).status).toBe(200)

    expect(await card.api('PATCH', '/v1/device', { linkUp: true })).toMatchObject({
      status: 200,
      body: { linkUp: true },
    })
    await card.until(carriers, (now) => now === '1\n1\n')
    expect((await card.api('GET', '/readyz')).status).toBe(200)
    await card.passes()
    expect(await card.ping()).toEqual({ sent: 20, received: 20 })
  })

  test('keeps the link down through a reset of the driver', async () => {
    const lab = await sharedLab()
    await using card = await GuestCard.start(lab)
    await card.netdev()
    await card.api('PATCH', '/v1/device', { linkUp: false })
    const bus = '/sys/bus/vdpa/drivers/virtio_vdpa'
    await lab.ok(`echo ${card.name} > ${bus}/unbind && echo ${card.name} > ${bus}/bind`)
    const netdev = await card.wire()
    expect(await card.inDriver(`cat /sys/class/net/${netdev}/carrier`)).toBe('0\n')
    await card.api('PATCH', '/v1/device', { linkUp: true })
    await card.passes()
  })

  test('refuses what it does not know, and changes nothing', async () => {
    const lab = await sharedLab()
    await using card = await GuestCard.start(lab)
    await card.netdev()
    const refused = [
      [patch('{}'), 400],
      [patch('{"linkUp":0}'), 400],
      [patch('{"linkUp":false,"mtu":9000}'), 400],
      [patch('[{"linkUp":false}]'), 400],
      [patch('null'), 400],
      [patch('{"linkUp":fal'), 400],
      [patch(''), 400],
      [{ ...patch('{"linkUp":false}'), path: '/v1/device?force=1' }, 400],
      [patch('linkUp=false', { 'content-type': 'application/x-www-form-urlencoded' }), 415],
      [patch('{"linkUp":false}', { 'content-type': 'text/plain' }), 415],
      [patch('{"linkUp":false}', { host: 'rebound.example' }), 421],
      [patch('{"linkUp":false}', { origin: 'http://elsewhere.example' }), 403],
      [patch('{"linkUp":false}', { 'sec-fetch-site': 'cross-site' }), 403],
      [patch(`{"linkUp":false,"x":"${'x'.repeat(70_000)}"}`), 413],
      [{ path: '/v1/device', headers: { 'x-long': 'x'.repeat(9000) } }, 431],
      [{ ...patch('{"linkUp":false}'), method: 'POST' }, 405],
      [{ ...patch('{"linkUp":false}'), method: 'DELETE' }, 405],
      [{ ...patch('{"linkUp":false}'), path: '/v1/queues' }, 405],
      [{ path: '/v1/nothing' }, 404],
      [{ path: '/v1/../../etc/passwd' }, 404],
    ] as const
    const answers = await requests(
      lab,
      card.socket,
      refused.map(([request]) => request),
    )
    for (const [index, [request, status]] of refused.entries()) {
      const { headers, body, ...answer } = answers[index]!
      expect({ request, status: answer.status, type: headers['content-type'] }).toEqual({
        request,
        status,
        type: 'application/problem+json',
      })
      const { detail } = JSON.parse(body)
      expect(detail).not.toBe('')
      expect(body).not.toMatch(/\bat \S+ \(|\/\$bunfs/)
    }
    expect(await card.device()).toMatchObject({ linkUp: true, attached: true })
  })

  test('asks for its token where it listens on TCP, which is loopback only', async () => {
    const lab = await sharedLab()
    const before = await traces(lab)
    const token = 'a1'.repeat(32)
    await lab.push(`${token}\n`, '/tmp/e2e-token', { mode: 0o600 })
    const card = lab.spawn('exec vduse-net --tap tap0 --admin 127.0.0.1:8090 --admin-token-file /tmp/e2e-token')
    await card.line(/admin API on/, { timeoutMs: 60_000 })
    expect((await lab.ok('ss -lntuH')).trim().split('\n')).toEqual([expect.stringContaining(' 127.0.0.1:8090 ')])
    const bearer = (secret: string) => ({ authorization: `Bearer ${secret}` })
    const answers = await requests(lab, 8090, [
      { path: '/healthz' },
      { path: '/healthz', headers: bearer('b2'.repeat(32)) },
      { path: '/healthz', headers: bearer(token) },
      { path: '/healthz', headers: { ...bearer(token), host: 'rebound.example:8090' } },
      patch('{"linkUp":false}'),
      { path: '/v1/device', headers: bearer(token) },
    ])
    expect(answers.map(({ status }) => status)).toEqual([401, 401, 200, 421, 401, 200])
    expect(answers[0]!.headers['www-authenticate']).toStartWith('Bearer ')
    expect(JSON.parse(answers[5]!.body)).toMatchObject({ linkUp: true })
    expect(card.lines.join('\n')).not.toContain(token)
    card.kill('TERM')
    expect(await card.exited).toBe(0)
    expect(await traces(lab)).toEqual(before)
  })
})
