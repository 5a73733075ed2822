import { VIRTIO_NET_F_CTRL_VQ } from '../abi/virtio.ts'
import { controlQueueIndex, usesQueuePairs } from '../device/control-queue.ts'
import { hasFeature } from '../device/features.ts'
import type { QueueEngine } from '../device/queue-engine.ts'
import type { SignalTarget } from '../sys/peer-signal.ts'
import type { BorrowedArea } from '../transport/vhost-user/shared-area.ts'
import type { VringHost } from '../transport/vhost-user/vring-host.ts'
import type { VirtqueueConfig, VqBase } from '../virtqueue/virtqueue-config.ts'
import type { ControlQueueRunner } from './control-queue-runner.ts'
import type { RemoteQueueEngine } from './remote-queue-engine.ts'

/**
 * All queues of the device: those that move packets run in the queue workers, the control queue here on the device thread. A pair
 * of queues is served while the front-end has enabled it and, with VIRTIO_NET_F_MQ or VIRTIO_NET_F_RSS, the driver uses it.
 */
export class DeviceQueues implements QueueEngine, VringHost {
  readonly #remote: RemoteQueueEngine
  readonly #control: ControlQueueRunner
  readonly #pairs: number
  /** Puts a pair's queue into the TAP, or takes it out: the host sends nothing to one that is out. */
  readonly #attachTapQueue: (pair: number, attached: boolean) => void
  /** By queue: as the transport has it, the control queue among them. */
  readonly #kickFds: number[]
  readonly #callTargets: SignalTarget[]
  readonly #usedLogs: number[]
  readonly #inflight: (BorrowedArea | null)[]
  readonly #enabled: boolean[]
  /** Pairs that the driver uses. */
  #activePairs: number
  #controlIndex = -1

  constructor(
    remote: RemoteQueueEngine,
    control: ControlQueueRunner,
    pairs: number,
    attachTapQueue: (pair: number, attached: boolean) => void,
  ) {
    this.#remote = remote
    this.#control = control
    this.#pairs = pairs
    this.#attachTapQueue = attachTapQueue
    const queues = pairs * 2 + 1
    this.#kickFds = new Array<number>(queues).fill(-1)
    this.#callTargets = new Array<number>(queues).fill(-1)
    this.#usedLogs = new Array<number>(queues).fill(-1)
    this.#inflight = new Array<BorrowedArea | null>(queues).fill(null)
    this.#enabled = new Array<boolean>(queues).fill(true)
    this.#activePairs = pairs
  }

  start(index: number, spec: VirtqueueConfig): void {
    const { features } = spec
    if (hasFeature(features, VIRTIO_NET_F_CTRL_VQ)) {
      if (index === controlQueueIndex(features, this.#pairs)) {
        this.#controlIndex = index
        this.#control.setUsedLog(this.#usedLogs[index]!)
        this.#control.setInflight(this.#inflight[index]!)
        this.#control.start(spec, this.#kickFds[index]!, this.#callTargets[index]!)
        return
      }
      // VIRTIO 1.2 §5.1.5: a driver with several pairs starts with one.
      if (index === 0) this.setActivePairs(usesQueuePairs(features) ? 1 : this.#pairs)
    }
    if (index < this.#pairs * 2) this.#remote.start(index, spec)
  }

  stop(index: number): VqBase {
    if (index !== this.#controlIndex) return index < this.#pairs * 2 ? this.#remote.stop(index) : 0
    this.#controlIndex = -1
    return this.#control.stop()
  }

  base(index: number): VqBase {
    if (index === this.#controlIndex) return this.#control.base
    return index < this.#pairs * 2 ? this.#remote.base(index) : 0
  }

  forgetMemory(): void {
    this.#remote.forgetMemory()
    this.#control.forgetMemory()
  }

  setKick(index: number, fd: number): void {
    this.#kickFds[index] = fd
    if (index < this.#pairs * 2) this.#remote.setKick(index, fd)
  }

  setCall(index: number, target: SignalTarget): void {
    this.#callTargets[index] = target
    if (index === this.#controlIndex) this.#control.setCall(target)
    else if (index < this.#pairs * 2) this.#remote.setCall(index, target)
  }

  setInflight(index: number, area: BorrowedArea | null): void {
    this.#inflight[index] = area
    if (index < this.#pairs * 2) this.#remote.setInflight(index, area)
  }

  setLog(log: BorrowedArea | null, signal: SignalTarget): void {
    this.#remote.setLog(log, signal)
    this.#control.setLog(log, signal)
  }

  setUsedLog(index: number, address: number): void {
    this.#usedLogs[index] = address
    if (index === this.#controlIndex) this.#control.setUsedLog(address)
    if (index < this.#pairs * 2) this.#remote.setUsedLog(index, address)
  }

  setEnabled(index: number, enabled: boolean): void {
    this.#enabled[index] = enabled
    if (index < this.#pairs * 2) this.#applyEnabled(index >> 1)
  }

  /** Pairs 1 to `pairs` are in use from now on. */
  setActivePairs(pairs: number): void {
    this.#activePairs = pairs
    for (let pair = 0; pair < this.#pairs; pair++) this.#applyEnabled(pair)
  }

  #applyEnabled(pair: number): void {
    const [rx, tx] = [pair * 2, pair * 2 + 1]
    const active = pair < this.#activePairs
    const receives = active && this.#enabled[rx]!
    if (receives) this.#attachTapQueue(pair, true)
    this.#remote.setEnabled(rx, receives)
    this.#remote.setEnabled(tx, active && this.#enabled[tx]!)
    if (!receives) this.#attachTapQueue(pair, false)
  }
}
