import { join } from 'node:path'
import { watch } from '../../scripts/frontends/meter.ts'
import type { NativeProcess } from '../../scripts/frontends/native-process.ts'
import { closing, limitMethod, startBackend } from '../lib/contestants.ts'
import type { Rig } from '../lib/rig.ts'
import type { Contestant, Row, Sample, Session, Who } from '../lib/row.ts'

/** As long as IPv4 lets a frame be, in round figures. */
const GSO_BYTES = 65_000

/** Payload of a segment at an MTU of 1500, with TCP's timestamps. */
const TCP_SEGMENT = 1448

const UDP_PAYLOAD = 1400

/** Segments of a datagram that fit into a frame: UDP_MAX_SEGMENTS of linux/udp.h allows more. */
const UDP_GSO_BYTES = 42 + 46 * UDP_PAYLOAD

/** Chains of the model driver. */
const MODEL_RING_SIZE = 256

const GIB = 2 ** 30

const startModelDriver = async (rig: Rig, ...words: readonly (string | number)[]): Promise<NativeProcess> => {
  const script = join(import.meta.dir, '../lib/model-driver.ts')
  const argv = ['taskset', '--cpu-list', String(rig.placement.frontend), process.execPath, script, ...words.map(String)]
  const driver = rig.start('model driver', argv)
  try {
    await driver.line(/^ready$/)
    return driver
  } catch (error) {
    await driver.stop()
    throw error
  }
}

/** Bits a second through an interface, and the processor time of the process for a GiB. */
const throughput = async (
  rig: Rig,
  device: NativeProcess,
  ifname: string,
  direction: 'rxBytes' | 'txBytes',
  seconds: number,
): Promise<Sample> => {
  const window = await watch(device.pid, seconds, () => rig.counters(ifname)[direction])
  return { value: (window.count * 8) / window.seconds / 1e9, cpuNs: (window.cpuNs / window.count) * GIB }
}

/** Frames of the model driver out of the TAP. */
const transmit = (rig: Rig, who: Who, kind: 'tcp' | 'udp', bytes: number, segment: number): Contestant => ({
  who,
  open: async (): Promise<Session> => {
    const backend = await startBackend(rig, 'vduse-net')
    const driver = await startModelDriver(rig, backend.socket, 'tx', kind, bytes, segment).catch(closing(backend))
    return {
      processes: [backend.process, driver],
      measure: (seconds) => throughput(rig, backend.process, backend.ifname, 'rxBytes', seconds),
      [Symbol.asyncDispose]: async () => {
        await driver.stop()
        await backend.process.stop()
      },
    }
  },
})

const receive = (rig: Rig): Contestant => ({
  who: 'vduse-net',
  open: async (): Promise<Session> => {
    const backend = await startBackend(rig, 'vduse-net')
    const driver = await startModelDriver(rig, backend.socket, 'rx').catch(closing(backend))
    const generator = await rig.tapLoadOn(rig.placement.generator, 'gso', backend.ifname, GSO_BYTES)
    return {
      processes: [backend.process, driver, generator],
      measure: (seconds) => throughput(rig, backend.process, backend.ifname, 'txBytes', seconds),
      [Symbol.asyncDispose]: async () => {
        await generator.stop()
        await driver.stop()
        await backend.process.stop()
      },
    }
  },
})

const limit = (rig: Rig, direction: 'write' | 'read'): Contestant => ({
  who: 'limit',
  open: async (): Promise<Session> => {
    const ifname = rig.interfaceName()
    const { device, generator } = rig.placement
    const words = direction === 'write' ? ['write', ifname, GSO_BYTES] : ['read', ifname]
    const end = await rig.tapLoadOn(device, ...words, ...limitMethod(MODEL_RING_SIZE))
    const source = direction === 'read' ? [await rig.tapLoadOn(generator, 'gso', ifname, GSO_BYTES)] : []
    return {
      processes: [end, ...source],
      measure: (seconds) => throughput(rig, end, ifname, direction === 'write' ? 'rxBytes' : 'txBytes', seconds),
      [Symbol.asyncDispose]: async () => {
        for (const process of [...source, end]) await process.stop()
      },
    }
  },
})

const row = (id: string, title: string, rest: Pick<Row, 'contestants' | 'goals'>): Row => ({
  id,
  title,
  unit: 'Gbit/s',
  better: 'higher',
  cpuPer: 'GiB',
  ...rest,
})

/** Frames that stand for many packets. */
export const offloadRows = (rig: Rig): Row[] => [
  row('gso-tx', 'TX GSO 64 KiB', {
    contestants: [transmit(rig, 'vduse-net', 'tcp', GSO_BYTES, TCP_SEGMENT), limit(rig, 'write')],
    goals: [{ against: 'limit', is: 'at least', factor: 0.9 }],
  }),
  row('gso-rx', 'RX GSO 64 KiB', {
    contestants: [receive(rig), limit(rig, 'read')],
    goals: [{ against: 'limit', is: 'at least', factor: 0.9 }],
  }),
  row('uso', 'UDP 1400 B with USO', {
    contestants: [
      transmit(rig, 'vduse-net', 'udp', UDP_GSO_BYTES, UDP_PAYLOAD),
      transmit(rig, 'without USO', 'udp', 42 + UDP_PAYLOAD, 0),
    ],
    goals: [{ against: 'without USO', is: 'at least', factor: 3 }],
  }),
]
