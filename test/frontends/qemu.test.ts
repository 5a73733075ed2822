import { afterAll, afterEach, beforeAll, describe, expect, test } from 'bun:test'
import { existsSync } from 'node:fs'
import { type NativeProcess, until } from '../../scripts/frontends/native-process.ts'
import { Qmp } from '../../scripts/frontends/qmp.ts'
import { startVhostQemu, type VhostQemuOptions } from '../../scripts/frontends/vhost-qemu.ts'
import type { Lab } from '../../scripts/lab/lab.ts'
import { deviceHoldings } from '../support/frontend-holdings.ts'
import { FrontendRig, noFrontends } from '../support/frontend-rig.ts'
import { exchange, expectIntact as intact, ping } from '../support/frontend-traffic.ts'
import { testKernel } from '../support/lab.ts'

/** Emulated guests are slow, and slower where other things run. */
const TEST_MS = 600_000

const HOST = '10.78.0.1'
const GUEST = '10.78.0.2'

/** An emulated processor does well to pass a few megabytes a second. */
const TRANSFER_BYTES = 4 << 20

let rig: FrontendRig

beforeAll(async () => {
  if (noFrontends === null) rig = await FrontendRig.open()
}, 10 * TEST_MS)
afterAll(() => rig?.[Symbol.dispose]())
afterEach(() => rig?.ip(`addr flush to ${HOST}`))

type Card = { process: NativeProcess; ifname: string; socket: string }

/** A guest, the QEMU that it is to move to, and the move: what QEMU says has become of it. */
type Migration = {
  readonly source: Lab
  readonly destination: Lab
  readonly migrate: () => Promise<string>
}

const boot = (card: Pick<Card, 'socket'>, options: Partial<VhostQemuOptions> = {}): Promise<Lab> =>
  startVhostQemu({ netns: rig.netns, kernel: testKernel(), card: { socket: card.socket }, ...options })

const configure = async (guest: Lab): Promise<void> => {
  await guest.ok(`ip addr replace ${GUEST}/24 dev eth0 && ip link set eth0 up`)
  await guest.waitFor('ip link show eth0 | grep -q LOWER_UP')
}

const hostAddress = (ifname: string): void => void rig.ip(`addr add ${HOST}/24 dev ${ifname}`)

/** What one end sent is what the other got, both ways. */
const expectIntact = (guest: Lab): Promise<void> => intact(rig, guest, { host: HOST, bytes: TRANSFER_BYTES })

const expectHealthy = (guest: Lab): void => expect(guest.kernelProblems()).toEqual([])

describe.skipIf(noFrontends !== null)('a Debian kernel in QEMU', () => {
  test(
    'has one queue pair: TCP intact both ways, every offload off and on, another MTU, another MAC address',
    async () => {
      const card = await rig.device()
      await using _device = card.process
      hostAddress(card.ifname)
      await using guest = await boot(card)
      await configure(guest)
      await ping(guest, HOST, { count: 50 })
      await expectIntact(guest)

      for (const feature of ['tx', 'sg', 'tso', 'gso', 'gro', 'rx-gro-hw', 'tx-udp-segmentation']) {
        for (const state of ['off', 'on']) {
          // What this kernel cannot switch it says, and nothing has changed.
          const { code } = await guest.sh(`ethtool -K eth0 ${feature} ${state}`)
          if (code === 0) await expectIntact(guest)
        }
      }

      await guest.ok('ip link set eth0 mtu 1280')
      await ping(guest, HOST, { count: 20, sizeBytes: 1252, fragment: false })
      await guest.ok('ip link set eth0 mtu 1500')
      await ping(guest, HOST, { count: 20, sizeBytes: 1472, fragment: false })

      await guest.ok('ip link set eth0 address 02:00:5e:10:20:30')
      await ping(guest, HOST, { count: 20 })
      expect(rig.ip(`neigh show ${GUEST}`)).toContain('02:00:5e:10:20:30')
      expectHealthy(guest)
    },
    TEST_MS,
  )

  test(
    'has packed rings',
    async () => {
      const card = await rig.device()
      await using _device = card.process
      hostAddress(card.ifname)
      await using guest = await boot(card, { packed: true })
      const [, names = ''] = await card.process.line(/driver is up: ([\w ]+)/)
      expect(names.split(' ')).toContain('ring_packed')
      await configure(guest)
      await ping(guest, HOST, { count: 50 })
      await expectIntact(guest)
      expectHealthy(guest)
    },
    TEST_MS,
  )

  test(
    'has frames of 9,000 bytes, and reaches another one in a VLAN too',
    async () => {
      rig.ip('link add jumbo type bridge')
      rig.ip('link set jumbo mtu 9000 up')
      await using both = new AsyncDisposableStack()
      const join = async (number: number): Promise<Lab> => {
        const card = await rig.device({ args: ['--mtu', '9000'] })
        both.use(card.process)
        rig.ip(`link set ${card.ifname} master jumbo`)
        const mac = `02:76:6e:00:01:0${number}`
        const guest = both.use(
          await boot(card, { mac, deviceProperties: ['host_mtu=9000'], loadModules: ['virtio_net', '8021q'] }),
        )
        expect(await guest.ok('cat /sys/class/net/eth0/mtu')).toBe('9000\n')
        await guest.ok(`ip addr add 10.79.0.${number}/24 dev eth0 && ip link set eth0 up`)
        await guest.ok('ip link add link eth0 name eth0.5 type vlan id 5 && ip link set eth0.5 up')
        await guest.ok(`ip addr add 10.79.5.${number}/24 dev eth0.5`)
        return guest
      }
      const first = await join(1)
      const second = await join(2)
      await first.waitFor('ping -c 1 -W 1 10.79.0.2')
      await ping(first, '10.79.0.2', { count: 20, sizeBytes: 8972, fragment: false })
      await ping(second, '10.79.5.1', { count: 20, sizeBytes: 8968, fragment: false })
      await second.ok('ip link del eth0.5')
      await ping(second, '10.79.0.1', { count: 20 })
      for (const guest of [first, second]) expectHealthy(guest)
    },
    TEST_MS,
  )

  test(
    'has four queue pairs and uses as many as it likes',
    async () => {
      const card = await rig.device({ queuePairs: 4 })
      await using _device = card.process
      hostAddress(card.ifname)
      await using guest = await boot(card, { queuePairs: 4, cpus: 4 })
      await configure(guest)
      for (const pairs of [4, 1, 3, 2, 4]) {
        await guest.ok(`ethtool -L eth0 combined ${pairs}`)
        expect(await guest.ok('ethtool -l eth0 | tail -n 1')).toContain(String(pairs))
        await ping(guest, HOST, { count: 30 })
        await expectIntact(guest)
      }
      expectHealthy(guest)
    },
    TEST_MS,
  )

  test(
    'loads its driver anew twenty times, and reboots',
    async () => {
      const card = await rig.device()
      await using _device = card.process
      hostAddress(card.ifname)
      let boots = 0
      await using guest = await boot(card, {
        // The lab's guests end where others reboot.
        qemuArgs: ['-action', 'reboot=reset'],
        log: (line) => {
          if (line === 'lab: init') boots++
        },
      })
      await configure(guest)
      await ping(guest, HOST, { count: 3 })
      const before = deviceHoldings(card.process.pid)
      const device = '$(basename $(readlink -f /sys/class/net/eth0/device))'
      for (let time = 0; time < 20; time++) {
        const name = (await guest.ok(`echo ${device}`)).trim()
        await guest.ok(`echo ${name} > /sys/bus/virtio/drivers/virtio_net/unbind`)
        await guest.ok(`echo ${name} > /sys/bus/virtio/drivers/virtio_net/bind`)
        await guest.waitFor('ip link show eth0')
        await configure(guest)
        await ping(guest, HOST, { count: 3 })
      }
      await until('the device holds as much as before', () => {
        return Bun.deepEquals(deviceHoldings(card.process.pid), before)
      }).catch(() => {})
      expect(deviceHoldings(card.process.pid)).toEqual(before)

      guest.spawn('reboot -f').exited.catch(() => {})
      await until('the guest is up again', () => boots === 2)
      await configure(guest)
      await ping(guest, HOST, { count: 20 })
      expectHealthy(guest)
    },
    TEST_MS,
  )

  test.each([
    ['split', false],
    // QEMU asks for no record of chains in flight, and says the base of the last good stop.
    ['packed', true],
  ])(
    'goes on when the device is killed and started again, five times, with %s rings: no buffer is lost or used twice',
    async (_, packed) => {
      const socket = rig.socket()
      // An interface that outlives the device keeps its MAC address, which the guest has learned.
      const ifname = rig.interfaceName()
      rig.ip(`tuntap add dev ${ifname} mode tap vnet_hdr`)
      hostAddress(ifname)
      let card = await rig.device({ ifname, socket })
      try {
        await using guest = await boot(card, { packed, card: { socket, reconnectMs: 200 } })
        await configure(guest)
        for (let time = 0; time < 5; time++) {
          const flood = guest.spawn(`ping -q -f ${HOST}`)
          const { rxPackets } = rig.counters(ifname)
          await until('packets flow', () => rig.counters(ifname).rxPackets > rxPackets + 200)
          await card.process.stop()
          const before = rig.counters(ifname).rxPackets
          card = await rig.device({ ifname, socket })
          await until('packets flow again', () => rig.counters(ifname).rxPackets > before + 200)
          flood.kill('INT')
          await flood.exited
          // One that is lost would stay on its way for ever; one that is used twice the driver reports as a problem.
          await guest.waitFor('grep -qx 0 /sys/class/net/eth0/queues/tx-0/byte_queue_limits/inflight')
          await expectIntact(guest)
        }
        expectHealthy(guest)
      } finally {
        await card.process.stop()
      }
    },
    TEST_MS,
  )

  test(
    'is killed in the middle of traffic ten times: the device frees everything and serves the next',
    async () => {
      const card = await rig.device()
      await using _device = card.process
      hostAddress(card.ifname)
      await card.process.line(/waiting for a front-end/)
      const before = deviceHoldings(card.process.pid)
      for (let kill = 0; kill < 10; kill++) {
        await using guest = await boot(card)
        await configure(guest)
        const sent = rig.counters(card.ifname).rxPackets
        guest.spawn(`ping -f ${HOST}`)
        await until('packets flow', () => rig.counters(card.ifname).rxPackets > sent + 200)
        await guest.stop()
        const same = (): boolean => Bun.deepEquals(deviceHoldings(card.process.pid), before)
        await until('the device lets go', same).catch(() => {})
        expect(deviceHoldings(card.process.pid)).toEqual(before)
      }
    },
    2 * TEST_MS,
  )

  /** Boots a guest on one card, and another QEMU on a second card that waits for it. Both end with `stack`. */
  const bootForMigration = async (stack: AsyncDisposableStack, cards: readonly [Card, Card]): Promise<Migration> => {
    for (const { process } of cards) stack.use(process)
    const monitor = rig.socket()
    const channel = rig.socket()
    const source = stack.use(await boot(cards[0], { qemuArgs: ['-qmp', `unix:${monitor},server=on,wait=off`] }))
    await configure(source)
    await ping(source, HOST, { count: 10 })
    const destination = stack.use(await boot(cards[1], { incoming: true, qemuArgs: ['-incoming', `unix:${channel}`] }))
    await until('the other QEMU listens', () => existsSync(channel))
    const qmp = stack.use(await Qmp.connect(monitor))
    // Without it the source takes for done what it has sent, whatever becomes of it.
    await qmp.run('migrate-set-capabilities', { capabilities: [{ capability: 'return-path', state: true }] })
    const migrate = async (): Promise<string> => {
      await qmp.run('migrate', { uri: `unix:${channel}` })
      return until(
        'the migration is over',
        async () => {
          const { status } = (await qmp.run('query-migrate')) as { status: string }
          return ['completed', 'failed'].includes(status) && status
        },
        120_000,
      )
    }
    return { source, destination, migrate }
  }

  test(
    'migrates to another QEMU, with another device, while packets flow',
    async () => {
      rig.ip('link add br0 type bridge')
      rig.ip('link set br0 up')
      hostAddress('br0')
      const cards = [await rig.device(), await rig.device()] as const
      for (const { ifname } of cards) rig.ip(`link set ${ifname} master br0`)
      await using stack = new AsyncDisposableStack()
      const { source, destination, migrate } = await bootForMigration(stack, cards)
      // It moves along with the guest, and so does what it writes.
      source.spawn(`ping -i 0.05 ${HOST} > /tmp/ping.log 2>&1; echo done >> /tmp/ping.log`)
      await source.waitFor('grep -q icmp_seq=5 /tmp/ping.log')
      expect(await migrate()).toBe('completed')
      await cards[0].process.line(/handed over the state of a card with MTU 1500 and 1 queue pair"/)
      await cards[1].process.line(/took over the state of a card with MTU 1500 and 1 queue pair"/)
      await source.stop()
      await ping(destination, HOST, { count: 20 })
      await destination.ok('kill -INT $(pidof ping) || { cat /tmp/ping.log; ps; false; }')
      const report = await destination.waitFor('grep "packets transmitted" /tmp/ping.log')
      const [, sent = '', received = ''] = /(\d+) packets transmitted, (\d+) received/.exec(report) ?? []
      // While it is in neither machine for a moment nobody answers; a ring out of step would end everything.
      expect(Number(received)).toBeGreaterThan(Number(sent) / 2)
      const { sent: there, received: here } = await exchange(rig, destination, {
        direction: 'from the guest',
        host: HOST,
        bytes: TRANSFER_BYTES,
      })
      expect(here).toBe(there)
      expectHealthy(destination)
    },
    TEST_MS,
  )

  test(
    'does not migrate to a device with a smaller MTU, and goes on where it was',
    async () => {
      const cards = [await rig.device(), await rig.device({ args: ['--mtu', '1400'] })] as const
      hostAddress(cards[0].ifname)
      await using stack = new AsyncDisposableStack()
      const { source, migrate } = await bootForMigration(stack, cards)
      source.spawn(`ping -i 0.05 ${HOST} > /tmp/ping.log 2>&1`)
      await source.waitFor('grep -q icmp_seq=5 /tmp/ping.log')
      expect(await migrate()).toBe('failed')
      await cards[1].process.line(/CHECK_DEVICE_STATE refused: the other card has MTU 1500, .* 1400; start it with/)
      await ping(source, HOST, { count: 20, sizeBytes: 1472, fragment: false })
      await expectIntact(source)
      expectHealthy(source)
    },
    TEST_MS,
  )
})
