import { existsSync } from 'node:fs'
import { launchDevice, offeredFeatures } from '../../scripts/frontends/device.ts'
import { ownMemoryBytes, watch } from '../../scripts/frontends/meter.ts'
import type { NativeProcess } from '../../scripts/frontends/native-process.ts'
import { Qmp } from '../../scripts/frontends/qmp.ts'
import { launchDpdkBackend } from '../../scripts/frontends/testpmd.ts'
import { fetchQemu } from '../../scripts/lab/qemu.ts'
import { closing, startBackend, startDriver } from '../lib/contestants.ts'
import type { Rig } from '../lib/rig.ts'
import type { Contestant, Row, Session } from '../lib/row.ts'

type Device = 'vduse-net' | 'DPDK'

const DEVICES: readonly Device[] = ['vduse-net', 'DPDK']

/** Processor time with a driver that is ready and idle. */
const idle = (rig: Rig, who: Device): Contestant => ({
  who,
  open: async (): Promise<Session> => {
    const backend = await startBackend(rig, who)
    const driver = await startDriver(rig, backend).catch(closing(backend))
    return {
      processes: [backend.process, driver.process],
      measure: async (seconds) => {
        const window = await watch(backend.process.pid, seconds, () => 0)
        return { value: (window.cpuNs / (window.seconds * 1e9)) * 100 }
      },
      [Symbol.asyncDispose]: async () => {
        await driver.stop()
        await backend.process.stop()
      },
    }
  },
})

/** Memory of the device's own once packets have gone both ways. */
const memory = (rig: Rig, who: Device, queuePairs: number): Contestant => ({
  who,
  open: async (): Promise<Session> => {
    const backend = await startBackend(rig, who, { queuePairs })
    const driver = await startDriver(rig, backend, queuePairs).catch(closing(backend))
    await driver.startForwarding('macswap')
    const generator = await rig.tapLoadOn(rig.placement.generator, 'generate', backend.ifname, 64)
    return {
      processes: [backend.process, driver.process, generator],
      measure: async (seconds) => {
        await Bun.sleep(seconds * 1000)
        return { value: ownMemoryBytes(backend.process.pid) / 1e6 }
      },
      [Symbol.asyncDispose]: async () => {
        await generator.stop()
        await driver.stop()
        await backend.process.stop()
      },
    }
  },
})

/** From exec until a frontend's first question is answered. */
const start = (rig: Rig, who: Device): Contestant => ({
  who,
  open: async (): Promise<Session> => {
    const launch = async (socket: string): Promise<NativeProcess> => {
      const ifname = rig.interfaceName()
      if (who === 'vduse-net') return launchDevice({ netns: rig.netns, ifname, socket })
      const lcores = { main: rig.placement.frontend, forwarding: [rig.placement.device] }
      return launchDpdkBackend({ netns: rig.netns, ifname, socket, lcores })
    }
    return {
      processes: [],
      measure: async () => {
        const socket = rig.socket()
        const began = performance.now()
        await using process = await launch(socket)
        for (;;) {
          const features = await offeredFeatures(socket).catch(() => undefined)
          if (features !== undefined) break
          if (!process.alive) throw new Error(process.tail())
          await Bun.sleep(1)
        }
        return { value: performance.now() - began }
      },
      [Symbol.asyncDispose]: async () => {},
    }
  },
})

/**
 * From exec until QEMU's monitor answers: it has its own TAP then, and a card on it for a guest that is not started.
 */
const startQemu = (rig: Rig): Contestant => ({
  who: 'QEMU',
  open: async (): Promise<Session> => {
    const qemu = await fetchQemu()
    return {
      processes: [],
      measure: async () => {
        const monitor = rig.socket()
        const tap = `tap,id=n,ifname=${rig.interfaceName()},script=no,downscript=no`
        const began = performance.now()
        await using process = rig.start('qemu', [
          ...qemu,
          ...['-nodefaults', '-display', 'none', '-S', '-qmp', `unix:${monitor},server=on,wait=off`],
          ...['-netdev', tap, '-device', 'virtio-net-pci,netdev=n'],
        ])
        for (;;) {
          const qmp = existsSync(monitor) ? await Qmp.connect(monitor).catch(() => null) : null
          qmp?.[Symbol.dispose]()
          if (qmp !== null) break
          if (!process.alive) throw new Error(process.tail())
          await Bun.sleep(1)
        }
        return { value: performance.now() - began }
      },
      [Symbol.asyncDispose]: async () => {},
    }
  },
})

/** What it costs to have it, whether or not packets flow. */
export const footprintRows = (rig: Rig, quick: boolean): Row[] => [
  {
    id: 'idle',
    title: 'Idle',
    unit: '% of a core',
    better: 'lower',
    contestants: DEVICES.map((who) => idle(rig, who)),
    goals: [{ is: 'at most', factor: 0.5 }],
    // The kernel counts in hundredths of a second.
    seconds: quick ? 2 : 10,
    rounds: quick ? 1 : 3,
  },
  ...(
    [
      [1, 90],
      [4, 150],
    ] as const
  ).map(
    ([pairs, limit]): Row => ({
      id: `memory-${pairs}`,
      title: `Memory, ${pairs} queue pair${pairs > 1 ? 's' : ''}`,
      unit: 'MB',
      better: 'lower',
      contestants: DEVICES.map((who) => memory(rig, who, pairs)),
      goals: [{ is: 'at most', factor: limit }],
      rounds: 1,
    }),
  ),
  {
    id: 'start',
    title: 'Start',
    unit: 'ms',
    better: 'lower',
    contestants: [...DEVICES.map((who) => start(rig, who)), startQemu(rig)],
    goals: [{ is: 'at most', factor: 150 }],
  },
]
