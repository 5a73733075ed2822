import { processorNs } from '../../scripts/frontends/meter.ts'
import { iperf } from '../../test/support/frontend-iperf.ts'
import { qemuStation, umlStation } from '../lib/guests.ts'
import type { Rig } from '../lib/rig.ts'
import type { Contestant, Row, Session } from '../lib/row.ts'

/** What a guest runs, and what the table calls it. From the guest, to the guest, both at once. */
const DIRECTIONS = [
  ['tx', 'from the guest', ''],
  ['rx', 'to the guest', '-R'],
  ['both', 'both ways at once', '--bidir'],
] as const

const GIB = 2 ** 30

const uml = (rig: Rig, who: 'vduse-net' | 'DPDK', options: string): Contestant => ({
  who,
  open: async (): Promise<Session> => {
    const station = await umlStation(rig, who)
    return {
      processes: station.processes,
      measure: async (seconds) => {
        const before = processorNs(station.device.pid)
        const result = await iperf(rig, station.guest, station.host, `-t ${Math.ceil(seconds)} ${options}`)
        const cpuNs = processorNs(station.device.pid) - before
        return { value: result.bitsPerSecond / 1e9, cpuNs: (cpuNs / result.receivedBytes) * GIB }
      },
      [Symbol.asyncDispose]: () => station[Symbol.asyncDispose](),
    }
  },
})

const qemu = (rig: Rig, who: 'vduse-net' | 'QEMU', options: string): Contestant => ({
  who,
  open: async (): Promise<Session> => {
    const station = await qemuStation(rig, who)
    return {
      processes: station.processes,
      measure: async (seconds) => {
        const result = await iperf(rig, station.guest, station.host, `-t ${Math.ceil(seconds)} ${options}`)
        return { value: result.bitsPerSecond / 1e9 }
      },
      [Symbol.asyncDispose]: () => station[Symbol.asyncDispose](),
    }
  },
})

/** TCP by iperf3 between this machine and a real Linux behind the card. */
export const tcpRows = (rig: Rig): Row[] => [
  ...DIRECTIONS.map(
    ([id, title, options]): Row => ({
      id: `tcp-${id}`,
      title: `TCP ${title} (UML)`,
      unit: 'Gbit/s',
      better: 'higher',
      cpuPer: 'GiB',
      contestants: [uml(rig, 'vduse-net', options), uml(rig, 'DPDK', options)],
      goals: [{ against: 'DPDK', is: 'at least', factor: 1.5 }],
    }),
  ),
  ...DIRECTIONS.map(
    ([id, title, options]): Row => ({
      id: `qemu-tcp-${id}`,
      title: `TCP ${title} (QEMU)`,
      unit: 'Gbit/s',
      better: 'higher',
      contestants: [qemu(rig, 'vduse-net', options), qemu(rig, 'QEMU', options)],
      goals: [{ against: 'QEMU', is: 'at least', factor: 1 }],
    }),
  ),
]
