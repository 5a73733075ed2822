import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { type NativeProcess, until } from '../../scripts/frontends/native-process.ts'
import { startUml, type Uml } from '../../scripts/frontends/uml.ts'
import type { Lab } from '../../scripts/lab/lab.ts'
import { deviceHoldings } from '../support/frontend-holdings.ts'
import { iperf } from '../support/frontend-iperf.ts'
import { FrontendRig, noFrontends } from '../support/frontend-rig.ts'
import { exchange, ping } from '../support/frontend-traffic.ts'

/** Booting takes a second or, where other things run, many; fetching the packages at first takes minutes. */
const TEST_MS = 600_000

const HOST = '10.76.0.1'
const GUEST = '10.76.0.2'

const TRANSFER_BYTES = 64 << 20

let rig: FrontendRig

beforeAll(async () => {
  if (noFrontends === null) rig = await FrontendRig.open()
}, 10 * TEST_MS)
afterAll(() => rig?.[Symbol.dispose]())

/** What one end sent is what the other got. */
const expectIntact = async (...what: Parameters<typeof exchange>): Promise<void> => {
  const { sent, received } = await exchange(...what)
  expect(received).toBe(sent)
}

/** Every packet that the guest sent came out of the TAP, and every one that was read from the TAP came to the guest. */
const expectSameCounts = async ({ uml, ifname }: Station): Promise<void> => {
  const both = async (): Promise<{ guest: number[]; tap: number[] }> => {
    const { rxPackets, txPackets } = rig.counters(ifname)
    const [link] = JSON.parse(await uml.guest.ok('ip -s -j link show eth0'))
    return { guest: [link.stats64.tx.packets, link.stats64.rx.packets], tap: [rxPackets, txPackets] }
  }
  await until('both ends count the same', async () => {
    const { guest, tap } = await both()
    return Bun.deepEquals(guest, tap)
  }).catch(() => {})
  const { guest, tap } = await both()
  expect(guest).toEqual(tap)
}

/** A card with a Linux on it, both with addresses. */
class Station implements AsyncDisposable {
  readonly device: NativeProcess
  readonly ifname: string
  readonly uml: Uml
  readonly #admin: string

  private constructor(device: NativeProcess, ifname: string, uml: Uml, admin: string) {
    this.device = device
    this.ifname = ifname
    this.uml = uml
    this.#admin = admin
  }

  static async open(args: readonly string[] = []): Promise<Station> {
    const admin = rig.socket()
    const { process, ifname, socket } = await rig.device({ args, admin: `unix:${admin}` })
    try {
      rig.ip(`addr add ${HOST}/24 dev ${ifname}`)
      const uml = await startUml({ netns: rig.netns, sockets: [socket] })
      const station = new Station(process, ifname, uml, admin)
      await station.configure()
      return station
    } catch (error) {
      await process.stop()
      throw error
    }
  }

  async configure(): Promise<void> {
    await this.uml.guest.ok(`ip addr replace ${GUEST}/24 dev eth0 && ip link set eth0 up`)
    await this.uml.guest.waitFor('ip link show eth0 | grep -q LOWER_UP')
  }

  /** Calls of the driver so far, for what it receives and for what it sends. */
  async calls(): Promise<{ rx: number; tx: number }> {
    const response = await fetch('http://localhost/v1/queues', { unix: this.#admin })
    const { queues } = (await response.json()) as { queues: { direction: 'rx' | 'tx'; calls: number }[] }
    const of = (wanted: string): number => queues.find(({ direction }) => direction === wanted)!.calls
    return { rx: of('rx'), tx: of('tx') }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.uml.stop()
    await this.device.stop()
    rig.ip(`addr flush to ${HOST}`)
  }
}

describe.skipIf(noFrontends !== null)('a Linux kernel as a process', () => {
  let station: Station

  beforeAll(async () => {
    station = await Station.open()
  }, TEST_MS)
  afterAll(() => station?.[Symbol.asyncDispose]())

  test(
    'is reached, without a loss',
    async () => {
      await ping(station.uml.guest, HOST, { count: 200 })
      await ping(station.uml.guest, HOST, { count: 50, sizeBytes: 1472, fragment: false })
      // Fragments of 1500 bytes: the largest that IPv4 has.
      await ping(station.uml.guest, HOST, { count: 20, sizeBytes: 65_507 })
    },
    TEST_MS,
  )

  test(
    'passes TCP both ways, contents intact',
    async () => {
      for (const direction of ['to the guest', 'from the guest'] as const) {
        await expectIntact(rig, station.uml.guest, { direction, host: HOST, bytes: TRANSFER_BYTES })
      }
    },
    TEST_MS,
  )

  test(
    'runs iperf3 each way, both at once, and over UDP',
    async () => {
      for (const words of ['', '-R', '--bidir']) {
        const result = await iperf(rig, station.uml.guest, HOST, `-t 2 ${words}`)
        expect(result.receivedBytes).toBeGreaterThan(0)
      }
      for (const words of ['', '-R']) {
        const result = await iperf(rig, station.uml.guest, HOST, `-u -b 20M -l 1400 -t 2 ${words}`)
        expect(result.receivedBytes).toBeGreaterThan(0)
      }
      await expectSameCounts(station)
    },
    TEST_MS,
  )

  test(
    'goes on with each offload off and on again',
    async () => {
      const { guest } = station.uml
      const features = ['tx', 'sg', 'tso', 'gso', 'gro', 'rx-gro-hw']
      for (const feature of features) {
        for (const state of ['off', 'on']) {
          const { code } = await guest.sh(`ethtool -K eth0 ${feature} ${state}`)
          // What this kernel cannot switch it says, and nothing has changed.
          if (code !== 0) continue
          for (const direction of ['to the guest', 'from the guest'] as const) {
            await expectIntact(rig, guest, { direction, host: HOST, bytes: 4 << 20 })
          }
        }
      }
    },
    TEST_MS,
  )

  test(
    'uses the control queue: promiscuous, multicast, another MAC address',
    async () => {
      const { guest } = station.uml
      await guest.ok('ip link set eth0 promisc on && ip link set eth0 promisc off')
      await guest.ok('ip link set eth0 allmulticast on && ip link set eth0 allmulticast off')
      await guest.ok('ip maddr add 01:00:5e:00:00:42 dev eth0')
      await guest.ok('ip link set eth0 address 02:00:5e:10:20:30')
      await ping(guest, HOST, { count: 20 })
      expect(rig.ip(`neigh show ${GUEST}`)).toContain('02:00:5e:10:20:30')
      expect((await guest.sh('dmesg | grep -i "failed to set"')).stdout).toBe('')
    },
    TEST_MS,
  )

  test(
    'is called less often once ethtool -C has asked for that, and loses nothing',
    async () => {
      const { guest } = station.uml
      /** Calls that a hundred pings, fifty a second, take. */
      const ofPings = async (): Promise<number> => {
        const before = await station.calls()
        await ping(guest, HOST, { count: 100 })
        return (await station.calls()).rx - before.rx
      }
      const atOnce = await ofPings()
      await guest.ok('ethtool -C eth0 rx-usecs 100000 rx-frames 32 tx-usecs 100000 tx-frames 32')
      expect(await guest.ok('ethtool -c eth0')).toMatch(/rx-usecs:\s*100000\n(.*\n)*rx-frames:\s*32\n/)
      expect(await ofPings()).toBeLessThan(atOnce / 2)
      // As an operator would have it.
      await guest.ok('ethtool -C eth0 rx-usecs 300 rx-frames 32 tx-usecs 300 tx-frames 32')
      for (const direction of ['to the guest', 'from the guest'] as const) {
        await expectIntact(rig, guest, { direction, host: HOST, bytes: 4 << 20 })
      }
      // More than the card allows.
      expect((await guest.sh('ethtool -C eth0 rx-usecs 100001')).code).not.toBe(0)
      await guest.ok('ethtool -C eth0 rx-usecs 0 rx-frames 0 tx-usecs 0')
      expect(await ofPings()).toBeGreaterThan(atOnce / 2)
      await expectSameCounts(station)
    },
    TEST_MS,
  )

  test(
    'sees the cable pulled and plugged in on the host',
    async () => {
      const { guest } = station.uml
      rig.ip(`link set ${station.ifname} down`)
      await guest.waitFor('ip link show eth0 | grep -q NO-CARRIER')
      rig.ip(`link set ${station.ifname} up`)
      await guest.waitFor('ip link show eth0 | grep -q LOWER_UP')
      await ping(guest, HOST, { count: 10 })
    },
    TEST_MS,
  )
})

describe.skipIf(noFrontends !== null)('two Linux kernels as processes', () => {
  test(
    'reach each other through a bridge, in a VLAN of their own too',
    async () => {
      rig.ip('link add br0 type bridge')
      rig.ip('link set br0 up')
      await using both = new AsyncDisposableStack()
      const boot = async (number: number): Promise<Lab> => {
        const { process, ifname, socket } = await rig.device()
        both.use(process)
        rig.ip(`link set ${ifname} master br0`)
        const uml = both.use(await startUml({ netns: rig.netns, sockets: [socket] }))
        await uml.guest.ok(`ip addr add 10.77.0.${number}/24 dev eth0 && ip link set eth0 up`)
        await uml.guest.ok('ip link add link eth0 name eth0.7 type vlan id 7 && ip link set eth0.7 up')
        await uml.guest.ok(`ip addr add 10.77.7.${number}/24 dev eth0.7`)
        return uml.guest
      }
      const first = await boot(1)
      const second = await boot(2)
      await first.waitFor('ping -c 1 -W 1 10.77.0.2')
      await ping(first, '10.77.0.2', { count: 50 })
      await ping(second, '10.77.7.1', { count: 50 })
      const server = first.spawn('iperf3 -s -1 --forceflush')
      await server.line(/Server listening/)
      const report = JSON.parse(await second.ok('iperf3 -c 10.77.7.1 -t 2 -J'))
      expect(report.end.sum_received.bytes).toBeGreaterThan(1 << 20)
    },
    TEST_MS,
  )
})

describe.skipIf(noFrontends !== null)('a Linux kernel as a process that dies', () => {
  test(
    'is killed in the middle of traffic, and the next one is served',
    async () => {
      const { process, ifname, socket } = await rig.device()
      await using _device = process
      rig.ip(`addr add ${HOST}/24 dev ${ifname}`)
      await process.line(/waiting for a front-end/)
      const before = deviceHoldings(process.pid)
      for (let kill = 0; kill < 5; kill++) {
        await using uml = await startUml({ netns: rig.netns, sockets: [socket] })
        await uml.guest.ok(`ip addr add ${GUEST}/24 dev eth0 && ip link set eth0 up`)
        await ping(uml.guest, HOST, { count: 5 })
        const sent = rig.counters(ifname).rxPackets
        uml.guest.spawn(`ping -f ${HOST}`)
        await until('packets flow', () => rig.counters(ifname).rxPackets > sent + 500)
        await uml.stop()
        await until('the device lets go', () => Bun.deepEquals(deviceHoldings(process.pid), before)).catch(() => {})
        expect(deviceHoldings(process.pid)).toEqual(before)
      }
      rig.ip(`addr flush to ${HOST}`)
    },
    TEST_MS,
  )
})
