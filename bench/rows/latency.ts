import { closing, startBackend, startDriver } from '../lib/contestants.ts'
import { qemuStation } from '../lib/guests.ts'
import type { Rig } from '../lib/rig.ts'
import type { Contestant, Row, Sample, Session } from '../lib/row.ts'
import { percentile } from '../lib/statistics.ts'

/** Round trips in a measurement of one second; those of a second take about as long. */
const PINGS_PER_SECOND = 2000

/** Times in ns -> the median in microseconds, with the far percentiles beside it. */
const summary = (times: readonly number[]): Sample => {
  const sorted = times.toSorted((a, b) => a - b)
  const at = (share: number): number => percentile(sorted, share) / 1000
  return { value: at(0.5), details: { p99: at(0.99), p999: at(0.999) } }
}

/** A frame from the host's packet socket to a driver that sends it back. */
const pingPong = (rig: Rig, who: 'vduse-net' | 'DPDK', args: readonly string[] = []): Contestant => ({
  who,
  open: async (): Promise<Session> => {
    const backend = await startBackend(rig, who, { args })
    const driver = await startDriver(rig, backend).catch(closing(backend))
    await driver.startForwarding('macswap')
    return {
      processes: [backend.process, driver.process],
      measure: async (seconds) => {
        const words = rig.tapLoadWords('ping', backend.ifname, 64, Math.ceil(seconds * PINGS_PER_SECOND))
        await using ping = rig.start('tap-load ping', words)
        const code = await ping.ended(60_000)
        const [, p50, p99, p999] = /^lost 0 p50 (\d+) p99 (\d+) p999 (\d+)$/.exec(ping.linesSince(0)[0] ?? '') ?? []
        if (code !== 0 || p50 === undefined) throw new Error(`ping: exit code ${code}: ${ping.tail()}`)
        return { value: Number(p50) / 1000, details: { p99: Number(p99) / 1000, p999: Number(p999) / 1000 } }
      },
      [Symbol.asyncDispose]: async () => {
        await driver.stop()
        await backend.process.stop()
      },
    }
  },
})

/** An echo request to a guest in QEMU. */
const echo = (rig: Rig, who: 'vduse-net' | 'QEMU'): Contestant => ({
  who,
  open: async (): Promise<Session> => {
    const station = await qemuStation(rig, who)
    return {
      processes: station.processes,
      measure: async (seconds) => {
        const count = String(Math.ceil(seconds * 100))
        const words = rig.guestProgram('ping', '-i', '0.01', '-c', count, '-s', '22', station.address)
        await using ping = rig.start('ping', words)
        await ping.ended(60_000)
        const times = ping.linesSince(0).flatMap((line) => {
          const [, time] = /time=([\d.]+) ms/.exec(line) ?? []
          return time === undefined ? [] : [Number(time) * 1e6]
        })
        return summary(times)
      },
      [Symbol.asyncDispose]: () => station[Symbol.asyncDispose](),
    }
  },
})

const row = (id: string, title: string, rest: Pick<Row, 'contestants' | 'goals'>): Row => ({
  id,
  title,
  unit: 'us',
  better: 'lower',
  ...rest,
})

/** Round trips of small packets, one at a time: the median, and in the JSON p99 and p99.9. */
export const latencyRows = (rig: Rig): Row[] => [
  row('rtt', 'Round trip 64 B', {
    contestants: [pingPong(rig, 'vduse-net'), pingPong(rig, 'DPDK')],
    goals: [{ against: 'DPDK', is: 'at most', factor: 2 }],
  }),
  row('rtt-busy', 'Round trip 64 B, --busy-poll 100', {
    contestants: [pingPong(rig, 'vduse-net', ['--busy-poll', '100']), pingPong(rig, 'DPDK')],
    goals: [{ against: 'DPDK', is: 'at most', factor: 1.2 }],
  }),
  row('qemu-rtt', 'Echo 64 B (QEMU)', {
    contestants: [echo(rig, 'vduse-net'), echo(rig, 'QEMU')],
    goals: [{ against: 'QEMU', is: 'at most', factor: 1 }],
  }),
]
