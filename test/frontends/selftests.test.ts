/**
 * Linux's own selftests against a card: the C programs of tools/testing/selftests/net that drivers/net uses, on a guest
 * that has no Python. Of drivers/net the rest is not applicable:
 *
 * - hw/csum.py, gro.py: they start the programs that run here, and read their exit codes.
 * - ping.py: pings with XDP programs attached. qemu-xdp.test.ts has that; a program with fragments is refused by
 *   virtio_net, whose buffers of one page are not enough for it.
 * - tso.py, uso.py: they expect segments on the wire. A TAP hands a frame over whole.
 * - queues.py, stats.py, napi_*.py: netlink questions that the guest's kernel answers without the card.
 * - hw/rss_ctx.py, hw/ntuple.py, hw/rss_flow_label.py: RSS contexts and flow rules, which virtio-net does not have.
 * - hw/devmem.py, hw/iou-zcrx.py, hw/pp_alloc_fail.py, xsk: memory of the driver, which the card does not see.
 * - devlink, loopback, link modes, time stamps, PSP, MACsec, IPsec, shaper: not part of virtio-net.
 */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { until } from '../../scripts/frontends/native-process.ts'
import { fetchSelftests } from '../../scripts/frontends/selftests.ts'
import { cardArgs } from '../../scripts/frontends/vhost-qemu.ts'
import { bootLab, type Lab } from '../../scripts/lab/lab.ts'
import { FrontendRig, noFrontends } from '../support/frontend-rig.ts'
import { testKernel } from '../support/lab.ts'

/** A bound for hangs. */
const TEST_MS = 300_000

/** Segments that arrive too far apart are not merged: tools/testing/selftests/net/gro.sh tries again for that, too. */
const TRIES = 10

const NAMES = ['csum', 'gro', 'udpgso']

/** Where csum.c waits for datagrams, as /proc/net/udp says it. */
const CSUM_PORT = /:84D0 /

/**
 * The cards of the guest: this program's with a vnet header on its TAP, this program's without, and QEMU's own TAP as a
 * control. The other end of each is the TAP's interface here.
 */
const CARDS = ['card', 'plain', 'control'] as const
type CardName = (typeof CARDS)[number]

/** The cases of tools/testing/selftests/drivers/net/hw/csum.py: name, sent by the guest, options. */
const csumCases = [
  ['rx_tcp', false, '-r 1 -t'],
  ['rx_tcp_invalid', false, '-r 1 -t -E'],
  ['rx_udp', false, '-r 1'],
  ['rx_udp_invalid', false, '-r 1 -E'],
  ['tx_udp_csum_offload', true, '-U -r 1'],
  ['tx_udp_zero_checksum', true, '-U -Z'],
] as const

/**
 * csum.c counts frames with whole checksums. One that a guest leaves to the card passes a TAP with a vnet header as it
 * is, marked: nobody needs its checksum before it meets a wire. csum.c skips it, whoever serves the TAP.
 */
const SKIPPED = /GSO packet has partial csum: skip/
const MISSING = /missing packets at pf_packet/

const groCases = ['data', 'ack', 'flags', 'tcp', 'ip', 'large'] as const

const mac = (card: CardName): string => `02:76:6e:00:05:0${CARDS.indexOf(card) + 1}`
const address = (card: CardName, version: 4 | 6, end: 'host' | 'guest'): string =>
  `${version === 4 ? '10.95.' : 'fd00:95:'}${CARDS.indexOf(card)}${version === 4 ? '.' : '::'}${end === 'host' ? 1 : 2}`

describe.skipIf(noFrontends !== null)("Linux's own selftests", () => {
  let rig: FrontendRig
  let guest: Lab
  let stack: AsyncDisposableStack
  let programs: string
  /** The interfaces of each card: the TAP here, and the guest's. */
  const here = new Map<CardName, string>()
  const there = new Map<CardName, string>()

  beforeAll(async () => {
    stack = new AsyncDisposableStack()
    rig = stack.use(await FrontendRig.open())
    programs = await fetchSelftests()
    const qemuArgs: string[] = []
    const start = async (name: CardName, args: readonly string[]) => {
      const card = await rig.device({ args })
      stack.use(card.process)
      here.set(name, card.ifname)
      return card
    }
    // The longest frames of gro.c are of 4,096 bytes.
    const backends = {
      card: await start('card', ['--mtu', '9000']),
      plain: await start('plain', ['--no-vnet-hdr']),
      control: { tap: rig.interfaceName() },
    }
    here.set('control', backends.control.tap)
    rig.ip(`tuntap add dev ${backends.control.tap} mode tap vnet_hdr`)
    rig.ip(`link set ${backends.control.tap} up`)
    for (const name of CARDS) {
      const ifname = here.get(name)!
      rig.sysctl(`net.ipv6.conf.${ifname}.disable_ipv6`, '0')
      rig.ip(`addr add ${address(name, 4, 'host')}/24 dev ${ifname}`)
      rig.ip(`addr add ${address(name, 6, 'host')}/64 dev ${ifname} nodad`)
      const deviceProperties = ['romfile=', `host_mtu=${name === 'card' ? 9000 : 1500}`]
      qemuArgs.push(...cardArgs({ card: backends[name], id: name, mac: mac(name), deviceProperties }))
    }
    guest = stack.use(
      await bootLab({
        kernel: testKernel(),
        loadModules: ['virtio_net', 'ipv6'],
        memoryMb: 1024,
        netns: rig.netns,
        qemuArgs,
        files: Object.fromEntries(NAMES.map((name) => [`/usr/bin/${name}`, join(programs, name)])),
      }),
    )
    for (const name of CARDS) {
      const found = (await guest.ok(`grep -l ${mac(name)} /sys/class/net/*/address | cut -d / -f 5`)).trim()
      there.set(name, found)
      await guest.ok(`ip addr add ${address(name, 4, 'guest')}/24 dev ${found} && ip link set ${found} up`)
      await guest.ok(`ip addr add ${address(name, 6, 'guest')}/64 dev ${found} nodad`)
      for (const version of [4, 6] as const) await guest.waitFor(`ping -c 1 -W 1 ${address(name, version, 'host')}`)
    }
  }, 2 * TEST_MS)
  afterAll(async () => {
    await stack?.disposeAsync()
  }, TEST_MS)

  /** Runs csum.c at both ends: true if both have passed, and what they said. */
  const csum = async (card: CardName, version: 4 | 6, sends: boolean, options: string) => {
    const [from, to] = sends ? (['guest', 'host'] as const) : (['host', 'guest'] as const)
    const ends = `-S ${address(card, version, from)} -D ${address(card, version, to)}`
    const common = `-n 100 -${version}${sends ? ' -L 1' : ''} ${ends}`
    const words = (end: 'host' | 'guest', role: string): string =>
      `-i ${end === 'host' ? here.get(card) : there.get(card)} ${common} ${role} ${options}`
    const atHost = (role: string) => rig.start('csum', [join(programs, 'csum'), ...words('host', role).split(' ')])
    if (sends) {
      await using receiver = atHost('-R')
      const sockets = () => readFileSync(`/proc/${receiver.pid}/net/udp${version === 6 ? '6' : ''}`, 'utf8')
      await until('csum waits for datagrams', () => CSUM_PORT.test(sockets()))
      const sender = await guest.sh(`csum ${words('guest', '-T')}`)
      const code = await receiver.ended()
      return { passed: code === 0 && sender.code === 0, said: receiver.linesSince(0).join('\n') }
    }
    const receiver = guest.spawn(`csum ${words('guest', '-R')}`)
    await guest.waitFor('grep -q :84D0 /proc/net/udp /proc/net/udp6')
    await using sender = atHost('-T')
    const code = await sender.ended()
    return { passed: code === 0 && (await receiver.exited) === 0, said: receiver.lines.join('\n') }
  }

  const versions = [4, 6] as const
  const each = csumCases.flatMap(([name, sends, options]) => versions.map((v) => [name, v, sends, options] as const))

  test.each(each.filter(([, , sends]) => !sends))(
    'csum %s, IPv%d: passes',
    async (_, version, sends, options) => {
      const { passed, said } = await csum('card', version, sends, options)
      expect(passed ? 'passed' : said).toBe('passed')
    },
    TEST_MS,
  )

  test.each(each.filter(([, , sends]) => sends))(
    'csum %s, IPv%d: passes without a vnet header; with one it does not apply, nor to a TAP of QEMU',
    async (_, version, sends, options) => {
      const { passed, said } = await csum('plain', version, sends, options)
      expect(passed ? 'passed' : said).toBe('passed')
      for (const card of ['card', 'control'] as const) {
        const other = await csum(card, version, sends, options)
        expect([card, other.passed]).toEqual([card, false])
        expect(other.said).toMatch(SKIPPED)
        expect(other.said).toMatch(MISSING)
      }
    },
    TEST_MS,
  )

  test.each(versions.flatMap((version) => groCases.map((name) => [name, version] as const)))(
    'gro %s, IPv%d: passes',
    async (name, version) => {
      const ifname = there.get('card')
      await guest.ok(`echo 100000 > /sys/class/net/${ifname}/gro_flush_timeout`)
      await guest.ok(`echo 50 > /sys/class/net/${ifname}/napi_defer_hard_irqs`)
      const options = `--ipv${version} --dmac ${mac('card')} --smac aa:00:00:00:00:01 --test ${name} --verbose`
      let said = ''
      for (let time = 0; time < TRIES; time++) {
        const receiver = guest.spawn(`gro ${options} --rx --iface ${ifname}`)
        await guest.waitFor('[ $(wc -l < /proc/net/packet) -gt 1 ]')
        const words = [join(programs, 'gro'), ...options.split(' '), '--iface', here.get('card')!]
        await using sender = rig.start('gro', words)
        const sent = await sender.ended(60_000)
        const code = await receiver.exited
        said = [...sender.linesSince(0), ...receiver.lines].join('\n')
        if (sent === 0 && code === 0) return
      }
      throw new Error(said)
    },
    TEST_MS,
  )

  test.each(
    versions.flatMap((version) => ['-C -R', '-C -R -s', '-C -R -m'].map((options) => [options, version] as const)),
  )(
    'udpgso %s, IPv%d: passes over the card, not over a dummy interface',
    async (options, version) => {
      const ifname = there.get('card')
      // The addresses and the MTU are constants of udpgso.c.
      await guest.ok(`ip link set ${ifname} mtu 1500`)
      const [peer, own] = version === 4 ? ['10.0.0.1/24', '10.0.0.2/24'] : ['fd00::1/64', 'fd00::2/64']
      const nodad = version === 4 ? '' : ' nodad'
      rig.ip(`addr replace ${peer} dev ${here.get('card')}${nodad}`)
      await guest.ok(`ip addr replace ${own} dev ${ifname}${nodad}`)
      await guest.waitFor(`ping -c 1 -W 1 ${peer!.split('/')[0]}`)
      const before = rig.counters(here.get('card')!).rxPackets
      const { code, stdout, stderr } = await guest.sh(`udpgso -${version} ${options}`)
      expect(code === 0 ? 'passed' : `${stdout}${stderr}`).toBe('passed')
      expect(rig.counters(here.get('card')!).rxPackets).toBeGreaterThan(before)
    },
    TEST_MS,
  )

  test('the kernel of the guest reports no problem', () => {
    expect(guest.kernelProblems()).toEqual([])
  })
})
