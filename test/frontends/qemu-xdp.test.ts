/**
 * XDP in a guest of QEMU. Its driver switches receive offloads off by a command, which QEMU answers without telling the
 * card, so that the driver drops what the card still sends with an open checksum or to be cut: docs/limits.md says what
 * to switch off before.
 */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { startVhostQemu } from '../../scripts/frontends/vhost-qemu.ts'
import { FrontendRig, noFrontends } from '../support/frontend-rig.ts'
import { expectIntact, ping } from '../support/frontend-traffic.ts'
import { testKernel } from '../support/lab.ts'
import { xdpPassObject } from '../support/xdp-object.ts'

/** A bound for hangs. */
const TEST_MS = 300_000
const HOST = '10.91.0.1'
const GUEST = '10.91.0.2'
const PROGRAM = '/opt/pass.o'

let rig: FrontendRig

beforeAll(async () => {
  if (noFrontends === null) rig = await FrontendRig.open()
}, 3 * TEST_MS)
afterAll(() => rig?.[Symbol.dispose]())

const ways = [
  ['guest_csum=off of QEMU', { qemu: ['guest_csum=off'], card: [] }],
  ['guest_csum=off of QEMU, packed rings', { qemu: ['guest_csum=off', 'packed=on'], card: [] }],
  ['--features -guest_csum of the card', { qemu: [], card: ['--features', '-guest_csum'] }],
] as const

describe.skipIf(noFrontends !== null)('XDP in a guest of QEMU', () => {
  test.each(ways)(
    'passes TCP both ways with %s',
    async (_title, { qemu, card }) => {
      const { process, ifname, socket } = await rig.device({ args: card })
      await using _device = process
      rig.ip(`addr add ${HOST}/24 dev ${ifname}`)
      await using guest = await startVhostQemu({
        netns: rig.netns,
        kernel: testKernel(),
        card: { socket },
        deviceProperties: qemu,
        files: { [PROGRAM]: { content: xdpPassObject() } },
      })
      await guest.ok(`ip addr add ${GUEST}/24 dev eth0 && ip link set eth0 up`)
      await guest.waitFor('ip link show eth0 | grep -q LOWER_UP')
      await guest.ok(`ip link set eth0 xdp obj ${PROGRAM} sec xdp`)
      expect(await guest.ok('ip link show eth0')).toContain('prog/xdp')
      await ping(guest, HOST, { count: 20 })
      await expectIntact(rig, guest, { host: HOST, bytes: 1 << 20 })
      rig.ip(`addr flush to ${HOST}`)
    },
    TEST_MS,
  )
})
