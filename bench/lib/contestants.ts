import { startDevice } from '../../scripts/frontends/device.ts'
import type { NativeProcess } from '../../scripts/frontends/native-process.ts'
import { DpdkBackend, startVirtioUser, type Testpmd } from '../../scripts/frontends/testpmd.ts'
import type { Rig } from './rig.ts'

/** A device with its TAP, before any driver. */
export interface Backend {
  readonly ifname: string
  readonly socket: string
  /** Its process. */
  readonly process: NativeProcess
  /** To be called once a driver is ready. */
  forward(): Promise<void>
}

/** The largest ring that both devices and the driver can have. */
export const QUEUE_SIZE = 1024

/**
 * How the limit uses a TAP: the fastest way there is (docs/decisions/0006), with as many buffers as the driver's ring
 * has, so that the processor's cache helps it no more than a device.
 */
export const limitMethod = (buffers: number): ['calls', number] => ['calls', buffers]

/**
 * The same in the way that was not taken: a ring, in batches of which larger ones do no better beyond the noise
 * (docs/decisions/0006).
 */
export const ringMethod: ['uring', number] = ['uring', 64]

/** The devices that are compared. Both run on the processor that is theirs. */
export const startBackend = async (
  rig: Rig,
  who: 'vduse-net' | 'DPDK',
  options: { queuePairs?: number; args?: readonly string[] } = {},
): Promise<Backend> => {
  const { queuePairs = 1, args = [] } = options
  const ifname = rig.interfaceName()
  const socket = rig.socket()
  const { device, frontend } = rig.placement
  if (who === 'vduse-net') {
    const process = await startDevice({
      netns: rig.netns,
      ifname,
      socket,
      ...(queuePairs > 1 ? { queuePairs } : {}),
      // Several queues want several processors.
      ...(queuePairs > 1 ? {} : { cpu: device }),
      args: ['--queue-size', String(QUEUE_SIZE), '--log-level', 'warning', ...args],
    })
    await rig.interfaceUp(ifname)
    return { ifname, socket, process, forward: async () => {} }
  }
  const lcores = { main: frontend, forwarding: [device] }
  const backend = await DpdkBackend.start({ netns: rig.netns, socket, ifname, queues: queuePairs, lcores })
  return { ifname, socket, process: backend.testpmd.process, forward: () => backend.forward() }
}

/**
 * A driver in userspace on a backend, ready, doing nothing yet. It polls its own processor once it is told to forward.
 */
export const startDriver = async (rig: Rig, backend: Backend, queuePairs = 1): Promise<Testpmd> => {
  const { device, frontend } = rig.placement
  const driver = await startVirtioUser({
    netns: rig.netns,
    socket: backend.socket,
    queueSize: QUEUE_SIZE,
    queues: queuePairs,
    lcores: { main: device, forwarding: [frontend] },
  })
  try {
    await backend.forward()
    return driver
  } catch (error) {
    await driver.stop()
    throw error
  }
}

/** Ends a backend whose driver did not start, and goes on with the error. */
export const closing =
  (backend: Backend) =>
  async (error: unknown): Promise<never> => {
    await backend.process.stop()
    throw error
  }
