import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { cardArgs, type QemuCard } from '../../scripts/frontends/vhost-qemu.ts'
import { bootLab, type Lab } from '../../scripts/lab/lab.ts'
import { drops } from '../support/frontend-admin.ts'
import { FrontendRig, noFrontends } from '../support/frontend-rig.ts'
import { testKernel } from '../support/lab.ts'

/** A bound for hangs. */
const TEST_MS = 300_000

const TRANSFER_BYTES = 2 << 20
const TCP_PORT = 7000

const MTUS = [1500, 9000] as const

/**
 * No tag, one of 802.1Q, and two, the outer of 802.1ad: the name of the interface, and how it is made on the one
 * before.
 */
const taggings = [
  ['no VLAN tag', 'eth', null],
  ['one VLAN tag', 'one', 'link add link eth name one type vlan id 5'],
  ['an outer VLAN tag of 802.1ad', 'outer', 'link add link eth name outer type vlan proto 802.1ad id 100'],
  ['two VLAN tags', 'two', 'link add link outer name two type vlan id 200'],
] as const

/**
 * A port of the bridge that is served by the card, with its namespace in the guest, and one that QEMU serves itself.
 */
const ENDS = ['card', 'peer'] as const

/**
 * The bridge, and what is on it. One end is this program's card, the other QEMU's own TAP; both are in the same guest.
 */
describe.skipIf(noFrontends !== null)('a bridge', () => {
  let rig: FrontendRig
  let guest: Lab
  let stack: AsyncDisposableStack
  const admins = new Map<number, string>()

  const namespace = (end: (typeof ENDS)[number], mtu: number): string => `${end}${mtu}`
  const address = (end: (typeof ENDS)[number], mtu: number, tagging: number): string =>
    `10.${mtu === 1500 ? 92 : 93}.${tagging}.${ENDS.indexOf(end) + 1}`

  const macOf = (end: (typeof ENDS)[number], mtu: number): string =>
    `02:76:6e:00:0${ENDS.indexOf(end) + 3}:0${MTUS.indexOf(mtu as 1500) + 1}`

  beforeAll(async () => {
    stack = new AsyncDisposableStack()
    if (noFrontends !== null) return
    rig = stack.use(await FrontendRig.open())
    const qemuArgs: string[] = []
    for (const mtu of MTUS) {
      const bridge = `br${mtu}`
      const tap = rig.interfaceName()
      rig.ip(`link add ${bridge} type bridge`)
      rig.ip(`tuntap add dev ${tap} mode tap vnet_hdr`)
      // The lowest of its ports' addresses is a bridge's own.
      rig.ip(`link set ${tap} address ${macOf('peer', mtu).replace('02:', '06:')} mtu ${mtu} master ${bridge} up`)
      rig.ip(`link set ${bridge} mtu ${mtu} up`)
      const look = (ifname: string) => JSON.parse(rig.ip(`-json link show ${ifname}`))[0]
      const before = look(bridge)
      const admin = rig.socket()
      const card = await rig.device({ args: ['--bridge', bridge], admin: `unix:${admin}` })
      stack.use(card.process)
      await card.process.line(/waiting for a front-end/)
      admins.set(mtu, admin)
      // A new port neither lowers the bridge's MTU nor gives it another address.
      const after = look(bridge)
      expect([after.mtu, after.address]).toEqual([mtu, before.address])
      expect(look(card.ifname).mtu).toBe(mtu)
      const backends: Record<(typeof ENDS)[number], QemuCard> = { card, peer: { tap } }
      for (const end of ENDS) {
        const deviceProperties = ['romfile=', `host_mtu=${mtu}`]
        const id = namespace(end, mtu)
        qemuArgs.push(...cardArgs({ card: backends[end], id, mac: macOf(end, mtu), deviceProperties }))
      }
    }
    guest = stack.use(
      await bootLab({
        kernel: testKernel(),
        loadModules: ['virtio_net', '8021q'],
        memoryMb: 1024,
        netns: rig.netns,
        qemuArgs,
      }),
    )
    for (const mtu of MTUS) {
      for (const end of ENDS) {
        const name = namespace(end, mtu)
        const found = await guest.ok(`grep -l ${macOf(end, mtu)} /sys/class/net/*/address | cut -d / -f 5`)
        expect(await guest.ok(`cat /sys/class/net/${found.trim()}/mtu`)).toBe(`${mtu}\n`)
        await guest.ok(`ip netns add ${name} && ip link set ${found.trim()} netns ${name} name eth`)
        for (const [tagging, [, ifname, make]] of taggings.entries()) {
          const words = [make, `addr add ${address(end, mtu, tagging)}/24 dev ${ifname}`, `link set ${ifname} up`]
          for (const word of words) if (word !== null) await guest.ok(`ip -n ${name} ${word}`)
        }
      }
      await guest.waitFor(`ip netns exec ${namespace('card', mtu)} ping -c 1 -W 1 ${address('peer', mtu, 0)}`)
    }
  }, 2 * TEST_MS)
  afterAll(async () => {
    await stack?.disposeAsync()
  }, TEST_MS)

  /** Sends random bytes over TCP from one end to the other. */
  const expectIntact = async (mtu: number, tagging: number, from: 'card' | 'peer', to: 'card' | 'peer') => {
    const server = guest.spawn(
      `ip netns exec ${namespace(to, mtu)} nc -l -p ${TCP_PORT} -e sh -c 'cat > /tmp/received'`,
    )
    await guest.waitFor(`ip netns exec ${namespace(to, mtu)} ss -ltn | grep -q :${TCP_PORT}`)
    await guest.ok(`head -c ${TRANSFER_BYTES} /dev/urandom > /tmp/sent`)
    const client = `ip netns exec ${namespace(from, mtu)} nc ${address(to, mtu, tagging)} ${TCP_PORT} < /tmp/sent`
    await guest.ok(client, { timeoutMs: TEST_MS })
    expect(await server.exited).toBe(0)
    await guest.ok('cmp /tmp/sent /tmp/received')
  }

  const cases = MTUS.flatMap((mtu) => taggings.map(([name], tagging) => [name, mtu, tagging] as const))
  test.each(cases)(
    'passes whole frames with %s, and TCP both ways, at an MTU of %d',
    async (_, mtu, tagging) => {
      const sizeBytes = mtu - 28
      const command = `ping -q -M do -c 1 -W 5 -s ${sizeBytes} ${address('peer', mtu, tagging)}`
      // One for each packet: of several, the last is waited for twice the longest way so far, which a busy machine
      // takes longer for.
      await guest.ok(`for run in $(seq 10); do ip netns exec ${namespace('card', mtu)} ${command} || exit; done`)
      await expectIntact(mtu, tagging, 'card', 'peer')
      await expectIntact(mtu, tagging, 'peer', 'card')
    },
    TEST_MS,
  )

  test('dropped nothing for its length or its header', async () => {
    for (const admin of admins.values()) {
      const all = await drops(admin)
      for (const reason of ['frame_too_long', 'tap_rejected', 'gso_protocol_mismatch', 'rx_malformed']) {
        expect([reason, all[reason]]).toEqual([reason, 0])
      }
    }
    expect(guest.kernelProblems()).toEqual([])
  })
})
