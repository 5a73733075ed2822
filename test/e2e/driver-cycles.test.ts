import { afterAll, beforeAll, expect, test } from 'bun:test'
import { GuestCard } from '../support/e2e-card.ts'
import { answerOf, endToEnd, guestProgram, type Lab, sharedLab } from '../support/e2e-lab.ts'
import { transfer } from '../support/e2e-traffic.ts'
import type { ApiWatch } from '../support/guest/api.ts'

const CYCLES = 20
/** Of one answer of the API, on a busy machine. Whoever waited for the driver would wait until VDUSE ends it, 30 s. */
const API_MS = 15_000

endToEnd('driver', () => {
  let lab: Lab
  let card: GuestCard
  beforeAll(async () => {
    lab = await sharedLab()
    card = await GuestCard.start(lab)
    await card.wire()
    await card.passes()
  })
  afterAll(() => card[Symbol.asyncDispose]())

  test(`unbound and bound ${CYCLES} times under traffic: packets pass each time, the API always answers`, async () => {
    // A fixed neighbour, so that packets go on coming while nobody answers.
    const { mac, resets } = await card.device()
    await lab.ok(`ip neigh replace ${card.driverIpv4} lladdr ${mac} dev ${card.tap} nud permanent`)
    const flood = lab.spawn(`exec ping -q -i 0.002 ${card.driverIpv4}`)
    const back = lab.spawn(`exec ip netns exec ${card.netns} ping -q -i 0.002 ${card.tapIpv4}`)
    const watch = lab.spawn(`exec ${guestProgram('api-watch', card.socket, '/healthz', '/v1/device', '/v1/queues')}`)
    await watch.line(/^watching$/)
    for (let cycle = 0; cycle < CYCLES; cycle++) {
      await lab.ok(`echo ${card.name} > /sys/bus/vdpa/drivers/virtio_vdpa/unbind`)
      await lab.ok(`echo ${card.name} > /sys/bus/vdpa/drivers/virtio_vdpa/bind`)
      await card.wire()
      await lab.waitFor(`ping -c 1 -W 1 ${card.driverIpv4}`)
    }
    watch.kill('TERM')
    expect(await watch.exited).toBe(0)
    for (const ping of [flood, back]) {
      ping.kill('INT')
      await ping.exited
    }

    const answers = answerOf<ApiWatch>(watch.lines)
    expect(answers.failures).toEqual([])
    expect(answers.requests).toBeGreaterThan(CYCLES)
    expect(Object.keys(answers.statuses).sort()).toEqual(['/healthz 200', '/v1/device 200', '/v1/queues 200'])
    expect(answers.slowestMs).toBeLessThan(API_MS)

    const device = await card.device()
    expect(device.resets - resets).toBeGreaterThanOrEqual(CYCLES)
    expect(device.status.names).toContain('DRIVER_OK')
    expect((await card.queues()).map(({ running, quarantined }) => ({ running, quarantined }))).toEqual([
      { running: true, quarantined: null },
      { running: true, quarantined: null },
    ])
    const { sent, received } = await transfer(card, { direction: 'rx', megabytes: 4 })
    expect(received.sha256).toBe(sent.sha256)
  })

  test('the virtio driver unbound and bound: packets pass again', async () => {
    const bus = '/sys/bus/virtio/drivers/virtio_net'
    const device = (await lab.ok(`basename /sys/bus/vdpa/devices/${card.name}/virtio*`)).trim()
    for (let cycle = 0; cycle < 3; cycle++) {
      await lab.ok(`echo ${device} > ${bus}/unbind`)
      expect((await card.device()).status.names).not.toContain('DRIVER_OK')
      expect((await card.api('GET', '/readyz')).status).toBe(503)
      await lab.ok(`echo ${device} > ${bus}/bind`)
      await card.wire()
      await card.passes()
    }
    expect((await card.api('GET', '/readyz')).status).toBe(200)
  })

  test('the interface down and up: packets pass again, and none is lost for good', async () => {
    const netdev = await card.netdev()
    for (let round = 0; round < 5; round++) {
      await card.inDriver(`ip link set ${netdev} down`)
      await card.inDriver(`ip link set ${netdev} up`)
      // IPv6 addresses go with the link.
      await card.wire()
      await card.passes()
    }
    expect(await card.ping()).toEqual({ sent: 20, received: 20 })
  })
})
