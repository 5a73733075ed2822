import { watch } from '../../scripts/frontends/meter.ts'
import { closing, limitMethod, QUEUE_SIZE, ringMethod, startBackend, startDriver } from '../lib/contestants.ts'
import type { Rig } from '../lib/rig.ts'
import type { Contestant, Goal, Row, Sample, Session } from '../lib/row.ts'

const millionsASecond = (count: number, seconds: number): number => count / seconds / 1e6

/** Packets from a driver to the TAP, counted by the TAP. */
const transmit = (
  rig: Rig,
  who: 'vduse-net' | 'DPDK' | 'one pair',
  frameBytes: number,
  queuePairs = 1,
): Contestant => ({
  who,
  open: async (): Promise<Session> => {
    const backend = await startBackend(rig, who === 'DPDK' ? who : 'vduse-net', { queuePairs })
    const driver = await startDriver(rig, backend, queuePairs).catch(closing(backend))
    await driver.startForwarding('txonly', frameBytes)
    return {
      processes: [backend.process, driver.process],
      measure: async (seconds): Promise<Sample> => {
        const {
          seconds: elapsed,
          count,
          cpuNs,
        } = await watch(backend.process.pid, seconds, () => rig.counters(backend.ifname).rxPackets)
        return { value: millionsASecond(count, elapsed), cpuNs: cpuNs / count }
      },
      [Symbol.asyncDispose]: async () => {
        await driver.stop()
        await backend.process.stop()
      },
    }
  },
})

/** The limit: a program that does nothing but use the TAP. */
const method = (who: 'limit' | 'io_uring') => (who === 'limit' ? limitMethod(QUEUE_SIZE) : ringMethod)

const transmitLimit = (rig: Rig, frameBytes: number, who: 'limit' | 'io_uring' = 'limit'): Contestant => ({
  who,
  open: async (): Promise<Session> => {
    const ifname = rig.interfaceName()
    const writer = await rig.tapLoadOn(rig.placement.device, 'write', ifname, frameBytes, ...method(who))
    return {
      processes: [writer],
      measure: async (seconds): Promise<Sample> => {
        const count = (): number => rig.counters(ifname).rxPackets
        const window = await watch(writer.pid, seconds, count)
        return { value: millionsASecond(window.count, window.seconds), cpuNs: window.cpuNs / window.count }
      },
      [Symbol.asyncDispose]: () => writer.stop(),
    }
  },
})

/**
 * Room for what the host sends while the driver, which may have to share its processor with the sender, does not run:
 * otherwise it is the length of the queue that is measured.
 */
const lengthenQueue = (rig: Rig, ifname: string): void => void rig.ip(`link set dev ${ifname} txqueuelen 10000`)

/** Packets out of the host's packet socket to a driver, counted by the driver. */
const receive = (rig: Rig, who: 'vduse-net' | 'DPDK', frameBytes: number): Contestant => ({
  who,
  open: async (): Promise<Session> => {
    const backend = await startBackend(rig, who)
    lengthenQueue(rig, backend.ifname)
    const driver = await startDriver(rig, backend).catch(closing(backend))
    await driver.startForwarding('rxonly')
    const generator = await rig.tapLoadOn(rig.placement.generator, 'generate', backend.ifname, frameBytes)
    return {
      processes: [backend.process, driver.process, generator],
      measure: async (seconds): Promise<Sample> => {
        const before = rig.counters(backend.ifname)
        const window = await watch(backend.process.pid, seconds, async () => (await driver.stats()).rxPackets)
        const after = rig.counters(backend.ifname)
        return {
          value: millionsASecond(window.count, window.seconds),
          cpuNs: window.cpuNs / window.count,
          // Where the TAP dropped none it was the generator that was measured.
          details: { offered: after.txPackets + after.txDropped - before.txPackets - before.txDropped },
        }
      },
      [Symbol.asyncDispose]: async () => {
        await generator.stop()
        await driver.stop()
        await backend.process.stop()
      },
    }
  },
})

const receiveLimit = (rig: Rig, frameBytes: number, who: 'limit' | 'io_uring' = 'limit'): Contestant => ({
  who,
  open: async (): Promise<Session> => {
    const ifname = rig.interfaceName()
    const { device, frontend, generator } = rig.placement
    const reader = await rig.tapLoadOn(device, 'read', ifname, ...method(who))
    lengthenQueue(rig, ifname)
    // In the place of the driver, which takes the generator's processor half away where there are only two.
    const spinner = await rig.tapLoadOn(frontend, 'spin', ifname)
    const source = await rig.tapLoadOn(generator, 'generate', ifname, frameBytes)
    return {
      processes: [reader, spinner, source],
      measure: async (seconds): Promise<Sample> => {
        const before = rig.counters(ifname)
        const window = await watch(reader.pid, seconds, () => rig.counters(ifname).txPackets)
        const after = rig.counters(ifname)
        return {
          value: millionsASecond(window.count, window.seconds),
          cpuNs: window.cpuNs / window.count,
          details: { offered: after.txPackets + after.txDropped - before.txPackets - before.txDropped },
        }
      },
      [Symbol.asyncDispose]: async () => {
        await source.stop()
        await spinner.stop()
        await reader.stop()
      },
    }
  },
})

const goals: readonly Goal[] = [
  { against: 'DPDK', is: 'at least', factor: 1.4 },
  { against: 'limit', is: 'at least', factor: 0.9 },
  { against: 'limit', is: 'at most', factor: 1.15, cpu: true },
]

const row = (direction: 'TX' | 'RX', frameBytes: number, title: string, contestants: readonly Contestant[]): Row => ({
  id: `${direction.toLowerCase()}-${frameBytes}`,
  title,
  unit: 'Mpps',
  better: 'higher',
  cpuPer: 'packet',
  contestants,
  goals,
})

/** Small and full frames each way through one queue pair. */
export const packetRows = (rig: Rig): Row[] => [
  ...[64, 1500].map((bytes) =>
    row('TX', bytes, `TX ${bytes} B`, [
      transmit(rig, 'vduse-net', bytes),
      transmit(rig, 'DPDK', bytes),
      transmitLimit(rig, bytes),
    ]),
  ),
  ...[64, 1500].map((bytes) =>
    row('RX', bytes, `RX ${bytes} B`, [
      receive(rig, 'vduse-net', bytes),
      receive(rig, 'DPDK', bytes),
      receiveLimit(rig, bytes),
    ]),
  ),
  {
    ...row('TX', 64, 'TX 64 B, two queue pairs', [transmit(rig, 'vduse-net', 64, 2), transmit(rig, 'one pair', 64)]),
    id: 'pairs-64',
    // Two workers and a driver that polls want three processors; with fewer it tells what sharing costs.
    goals: [],
  },
  // Why there is no ring: docs/decisions/0006.
  {
    ...row('TX', 64, 'TAP by io_uring, 64 B written', [transmitLimit(rig, 64, 'io_uring'), transmitLimit(rig, 64)]),
    id: 'ring-tx',
    goals: [],
  },
  {
    ...row('RX', 64, 'TAP by io_uring, 64 B read', [receiveLimit(rig, 64, 'io_uring'), receiveLimit(rig, 64)]),
    id: 'ring-rx',
    goals: [],
  },
]
