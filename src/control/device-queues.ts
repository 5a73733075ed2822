import { VIRTIO_NET_F_CTRL_VQ } from '../abi/virtio.ts'
import type { QueueWiring } from '../channel/queue-command.ts'
import { controlQueueIndex, usesQueuePairs } from '../device/control-queue.ts'
import { hasFeature } from '../device/features.ts'
import type { QueueEngine } from '../device/queue-engine.ts'
import type { BorrowedArea } from '../sys/mapping.ts'
import type { SignalTarget } from '../sys/peer-signal.ts'
import type { VringHost } from '../transport/vhost-user/vring-host.ts'
import { firstBase, isPacked, type VirtqueueConfig, type VqBase } from '../virtqueue/virtqueue-config.ts'
import type { ControlQueueRunner } from './control-queue-runner.ts'
import type { RemoteQueueEngine } from './remote-queue-engine.ts'

/** What the transport has set for a queue outside of its ring. */
type Vring = {
  wiring: QueueWiring
  enabled: boolean
}

/**
 * All queues of the device. Receive and transmit queues run in the queue workers, the control queue on the device
 * thread. A pair is served while the front-end has enabled it and, with VIRTIO_NET_F_MQ or VIRTIO_NET_F_RSS, the driver
 * uses it.
 */
export class DeviceQueues implements QueueEngine, VringHost {
  readonly #remote: RemoteQueueEngine
  readonly #control: ControlQueueRunner
  readonly #pairs: number
  /** Attaches or detaches a pair's TAP queue: the host sends nothing to a detached queue. */
  readonly #attachTapQueue: (pair: number, attached: boolean) => void
  /** By queue, the control queue among them. */
  readonly #vrings: readonly Vring[]
  /** Pairs that the driver uses. */
  #activePairs: number
  #controlIndex = -1
  #driverIsNew = true
  /** The driver has told this process how many pairs it uses. */
  #pairsTold = false
  /** As the driver before has told; null if it has not. */
  #toldBefore: number | null = null
  /** The driver has had a control queue here. */
  #givesCommands = false
  /** Pairs that were served before the driver was set up here. */
  #pairsServed = 1

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
    this.#vrings = Array.from({ length: pairs * 2 + 1 }, () => ({
      wiring: { kickFd: -1, callTarget: -1, inflight: null, usedLog: -1 },
      enabled: true,
    }))
    this.#activePairs = pairs
  }

  /**
   * A new driver is about to start its queues. All pairs are active until its control queue starts: a front-end that
   * keeps that queue to itself tells the pairs in use by enabling their rings, also if it passes on
   * VIRTIO_NET_F_CTRL_VQ (cloud-hypervisor).
   */
  expectDriver(): void {
    this.#driverIsNew = true
  }

  start(index: number, config: VirtqueueConfig): void {
    const { features } = config
    if (this.#driverIsNew) {
      this.#driverIsNew = false
      this.#toldBefore = this.#pairsTold ? this.#activePairs : null
      this.#activatePairs(this.#pairs)
      this.#pairsTold = false
      this.#givesCommands = false
      this.#pairsServed = 1
    }
    // A pair that another card, or a process that has died, has served: its driver asked for it then, and only once.
    // Some front-ends say base 0 of a new packed ring.
    const wasServed = this.#isRemote(index) && config.base !== 0 && config.base !== firstBase(isPacked(config))
    if (wasServed) this.#pairsServed = Math.max(this.#pairsServed, (index >> 1) + 1)
    if (wasServed && !this.#pairsTold) this.#activatePairs(Math.max(this.#activePairs, this.#pairsServed))
    const { wiring } = this.#vrings[index]!
    if (hasFeature(features, VIRTIO_NET_F_CTRL_VQ) && index === controlQueueIndex(features, this.#pairs)) {
      this.#controlIndex = index
      this.#control.start(config, wiring)
      if (!this.#givesCommands && usesQueuePairs(features)) this.#startPairs(config)
      this.#givesCommands = true
    } else if (this.#isRemote(index)) this.#remote.start(index, config, wiring)
  }

  /**
   * Activates the pairs of a driver whose control queue has just started here. VIRTIO 1.2 §5.1.5: one, until it asks
   * for more. A queue that has been used before is that of a driver that was paused, which has asked already.
   */
  #startPairs(control: VirtqueueConfig): void {
    const goesOn = this.#control.queue.base !== firstBase(isPacked(control))
    if (goesOn && this.#toldBefore !== null) this.setActivePairs(this.#toldBefore)
    else this.#activatePairs(this.#pairsServed)
  }

  stop(index: number): VqBase {
    if (index !== this.#controlIndex) return this.#isRemote(index) ? this.#remote.stop(index) : 0
    this.#controlIndex = -1
    this.#control.queue.stop()
    return this.#control.queue.base
  }

  base(index: number): VqBase {
    if (index === this.#controlIndex) return this.#control.queue.base
    return this.#isRemote(index) ? this.#remote.base(index) : 0
  }

  forgetMemory(): void {
    this.#remote.forgetMemory()
    this.#control.forgetMemory()
  }

  setKick(index: number, kickFd: number): void {
    this.#rewire(index, { kickFd })
  }

  setCall(index: number, callTarget: SignalTarget): void {
    this.#rewire(index, { callTarget })
    if (index === this.#controlIndex) this.#control.queue.setCall(callTarget)
    else if (this.#isRemote(index)) this.#remote.setCall(index, callTarget)
  }

  setInflight(index: number, inflight: BorrowedArea | null): void {
    this.#rewire(index, { inflight })
  }

  setLog(log: BorrowedArea | null, signal: SignalTarget): void {
    this.#remote.setLog(log, signal)
    this.#control.setLog(log, signal)
  }

  setUsedLog(index: number, usedLog: number): void {
    this.#rewire(index, { usedLog })
    if (index === this.#controlIndex) this.#control.queue.setUsedLog(usedLog)
    else if (this.#isRemote(index)) this.#remote.setUsedLog(index, usedLog)
  }

  setEnabled(index: number, enabled: boolean): void {
    this.#vrings[index]!.enabled = enabled
    if (this.#isRemote(index)) this.#applyEnabled(index >> 1)
  }

  /** Activates the first `pairs` pairs and deactivates the others. */
  setActivePairs(pairs: number): void {
    this.#pairsTold = true
    this.#activatePairs(pairs)
  }

  #activatePairs(pairs: number): void {
    this.#activePairs = pairs
    for (let pair = 0; pair < this.#pairs; pair++) this.#applyEnabled(pair)
  }

  /** True for a queue that a queue worker runs, even if the driver uses it as something else. */
  #isRemote(index: number): boolean {
    return index < this.#pairs * 2
  }

  #rewire(index: number, change: Partial<QueueWiring>): void {
    const vring = this.#vrings[index]!
    vring.wiring = { ...vring.wiring, ...change }
  }

  #applyEnabled(pair: number): void {
    const [rx, tx] = [pair * 2, pair * 2 + 1]
    const active = pair < this.#activePairs
    const receives = active && this.#vrings[rx]!.enabled
    if (receives) this.#attachTapQueue(pair, true)
    this.#remote.setEnabled(rx, receives)
    this.#remote.setEnabled(tx, active && this.#vrings[tx]!.enabled)
    if (!receives) this.#attachTapQueue(pair, false)
  }
}
