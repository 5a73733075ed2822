import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { cardArgs } from '../../scripts/frontends/vhost-qemu.ts'
import { bootLab, type Lab } from '../../scripts/lab/lab.ts'
import { negotiated } from '../support/frontend-admin.ts'
import { FrontendRig, noFrontends } from '../support/frontend-rig.ts'
import { expectIntact, ping } from '../support/frontend-traffic.ts'
import { testKernel } from '../support/lab.ts'

/** A bound for hangs. */
const TEST_MS = 300_000

const TRANSFER_BYTES = 1 << 19

/** What a card of the guest has other than by default, and what the driver must therefore have acknowledged, or not. */
type Case = {
  readonly properties: string
  readonly pairs?: number
  readonly has?: readonly string[]
  readonly hasNot?: readonly string[]
}

/** The control queue, and what a driver refuses without one. */
const CONTROL_QUEUE = [
  'ctrl_vq',
  'ctrl_rx',
  'ctrl_vlan',
  'ctrl_rx_extra',
  'ctrl_mac_addr',
  'ctrl_guest_offloads',
  'guest_announce',
]

const off = (...names: readonly string[]): string => names.map((name) => `${name}=off`).join(',')

const cases: readonly Case[] = [
  { properties: '', has: ['csum', 'guest_csum', 'mrg_rxbuf', 'version_1'] },
  { properties: off('csum'), hasNot: ['csum'] },
  { properties: off('guest_csum'), hasNot: ['guest_csum'] },
  { properties: off('csum', 'guest_csum'), hasNot: ['csum', 'guest_csum'] },
  { properties: off('gso') },
  { properties: off('host_tso4', 'host_tso6', 'host_ecn', 'host_uso'), hasNot: ['host_tso4', 'host_tso6', 'host_uso'] },
  { properties: off('guest_tso4', 'guest_tso6'), hasNot: ['guest_tso4', 'guest_tso6'] },
  { properties: off('guest_tso4'), hasNot: ['guest_tso4'] },
  { properties: off('guest_tso6'), hasNot: ['guest_tso6'] },
  { properties: off('host_tso4'), hasNot: ['host_tso4'] },
  { properties: off('host_tso6'), hasNot: ['host_tso6'] },
  { properties: off('guest_uso4', 'guest_uso6', 'host_uso'), hasNot: ['guest_uso4', 'guest_uso6', 'host_uso'] },
  { properties: off('guest_ecn', 'host_ecn'), hasNot: ['guest_ecn', 'host_ecn'] },
  { properties: off('mrg_rxbuf'), hasNot: ['mrg_rxbuf'] },
  { properties: off('mrg_rxbuf', 'guest_tso4', 'guest_tso6', 'guest_uso4', 'guest_uso6'), hasNot: ['mrg_rxbuf'] },
  { properties: off('event_idx'), hasNot: ['event_idx'] },
  { properties: off('indirect_desc'), hasNot: ['indirect_desc'] },
  { properties: off('event_idx', 'indirect_desc'), hasNot: ['event_idx', 'indirect_desc'] },
  { properties: 'packed=on', has: ['ring_packed'] },
  { properties: 'packed=on,event_idx=off,indirect_desc=off,mrg_rxbuf=off', has: ['ring_packed'] },
  { properties: 'packed=on,guest_csum=off,csum=off', has: ['ring_packed'], hasNot: ['guest_csum', 'csum'] },
  { properties: 'hash=on' },
  { properties: 'hash=on,mrg_rxbuf=off' },
  { properties: 'packed=on,hash=on', has: ['ring_packed'] },
  { properties: 'hash=on,rss=on', pairs: 2 },
  { properties: 'rss=on', pairs: 2 },
  { properties: '', pairs: 2 },
  { properties: 'guest_csum=off,mrg_rxbuf=off', pairs: 2, hasNot: ['guest_csum'] },
  { properties: off('status', 'guest_announce') },
  { properties: off('guest_announce') },
  { properties: off(...CONTROL_QUEUE) },
  { properties: off('ctrl_rx', 'ctrl_vlan', 'ctrl_mac_addr', 'ctrl_guest_offloads') },
  { properties: 'disable-legacy=on', has: ['version_1'] },
  { properties: 'disable-modern=on', hasNot: ['version_1'] },
  { properties: 'disable-modern=on,mrg_rxbuf=off', hasNot: ['version_1', 'mrg_rxbuf'] },
  { properties: 'disable-modern=on,guest_csum=off,csum=off', hasNot: ['version_1', 'guest_csum', 'csum'] },
  { properties: 'disable-modern=on,event_idx=off,indirect_desc=off', hasNot: ['version_1'] },
  { properties: 'disable-modern=on', pairs: 2, hasNot: ['version_1'] },
  { properties: 'rx_queue_size=1024,tx_queue_size=1024' },
  {
    properties: off('csum', 'guest_csum', 'gso', 'mrg_rxbuf', 'event_idx', 'indirect_desc', 'status', ...CONTROL_QUEUE),
    hasNot: ['csum', 'guest_csum', 'mrg_rxbuf', 'event_idx', 'indirect_desc'],
  },
]

/** How many cards a guest has: a PCI bus has 32 places. */
const CARDS = 20

const batches = Array.from({ length: Math.ceil(cases.length / CARDS) }, (_, i) =>
  cases.slice(i * CARDS, (i + 1) * CARDS),
)

describe.skipIf(noFrontends !== null).each(batches.map((batch, i) => [i + 1, batch] as const))(
  'features of QEMU that are on or off, guest %d',
  (_, batch) => {
    let rig: FrontendRig
    let guest: Lab
    let stack: AsyncDisposableStack
    const cards: { ifname: string; admin: string }[] = []

    const mac = (place: number): string => `02:76:6e:00:02:${(place + 1).toString(16).padStart(2, '0')}`

    beforeAll(async () => {
      stack = new AsyncDisposableStack()
      rig = stack.use(await FrontendRig.open())
      const qemuArgs: string[] = []
      for (const [place, { properties, pairs = 1 }] of batch.entries()) {
        const admin = rig.socket()
        const { process, ifname, socket } = await rig.device({ queuePairs: pairs, admin: `unix:${admin}` })
        stack.use(process)
        rig.sysctl(`net.ipv6.conf.${ifname}.disable_ipv6`, '0')
        rig.ip(`addr add 10.90.${place}.1/24 dev ${ifname}`)
        rig.ip(`addr add fd00:90:${place}::1/64 dev ${ifname} nodad`)
        cards.push({ ifname, admin })
        const deviceProperties = ['romfile=', ...(properties === '' ? [] : [properties])]
        const card = { socket }
        qemuArgs.push(...cardArgs({ card, id: `net${place}`, queuePairs: pairs, mac: mac(place), deviceProperties }))
      }
      const modules = ['virtio_net', 'ipv6']
      guest = stack.use(
        await bootLab({ kernel: testKernel(), loadModules: modules, memoryMb: 1024, netns: rig.netns, qemuArgs }),
      )
    }, 3 * TEST_MS)
    afterAll(async () => {
      await stack?.disposeAsync()
    }, TEST_MS)

    /** Configures the guest's end of a card. */
    const configure = async (place: number): Promise<void> => {
      const name = (await guest.ok(`basename $(dirname $(grep -l ${mac(place)} /sys/class/net/*/address))`)).trim()
      await guest.ok(
        `ip addr add 10.90.${place}.2/24 dev ${name} && ip addr add fd00:90:${place}::2/64 dev ${name} nodad`,
      )
      await guest.ok(`ip link set ${name} up`)
      await guest.waitFor(`ip link show ${name} | grep -q LOWER_UP`)
    }

    test.each(batch.map((given, place) => [given.properties, given.pairs ?? 1, place] as const))(
      'traffic passes with "%s" and %d queue pairs',
      async (_, __, place) => {
        const { has = [], hasNot = [] } = batch[place]!
        const { admin } = cards[place]!
        await configure(place)
        const agreed = await negotiated(admin)
        expect(agreed.filter((name) => hasNot.includes(name))).toEqual([])
        expect(agreed).toEqual(expect.arrayContaining([...has]))
        const host = `10.90.${place}.1`
        for (const sizeBytes of [0, 1472]) await ping(guest, host, { count: 3, sizeBytes })
        // One on its way: a socket's buffer holds two, should ping be slow to read them.
        await ping(guest, host, { count: 1, sizeBytes: 60_000 })
        for (const address of [host, `fd00:90:${place}::1`]) {
          await expectIntact(rig, guest, { host: address, bytes: TRANSFER_BYTES })
        }
      },
      TEST_MS,
    )

    test('the kernel of the guest reports no problem', () => {
      expect(guest.kernelProblems()).toEqual([])
    })
  },
)
