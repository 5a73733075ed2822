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
import type { QueueWorkers } from './queue-workers.ts'

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
  readonly #workers: QueueWorkers
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
  /** The driver has set the number of pairs by a command to this process. */
  #pairsCommanded = false
  /** The number that was last set before the driver set the device up anew; null if none was. */
  #pairsBefore: number | null = null
  /** The driver has had a control queue here. */
  #hadControlQueue = false
  /**
   * The driver may have set the number of pairs by a command to a process that died. A pair that had carried nothing
   * does not show in its rings: what the driver sends there is sent.
   */
  #pairsUnknown = false
  /** Pairs of the driver that have resumed: they were served before it was set up here. */
  #pairsResumed = 1

  constructor(
    workers: QueueWorkers,
    control: ControlQueueRunner,
    pairs: number,
    attachTapQueue: (pair: number, attached: boolean) => void,
  ) {
    this.#workers = workers
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
      this.#pairsBefore = this.#pairsCommanded ? this.#activePairs : null
      this.#activatePairs(this.#pairs)
      this.#pairsCommanded = false
      this.#pairsUnknown = false
      this.#hadControlQueue = false
      this.#pairsResumed = 1
    }
    const { wiring } = this.#vrings[index]!
    if (hasFeature(features, VIRTIO_NET_F_CTRL_VQ) && index === controlQueueIndex(features, this.#pairs)) {
      this.#controlIndex = index
      this.#control.start(config, wiring)
      if (!this.#hadControlQueue && usesQueuePairs(features)) this.#startPairs(config)
      this.#hadControlQueue = true
    } else if (this.#isInWorker(index)) this.#startInWorker(index, config, wiring)
  }

  #startInWorker(index: number, config: VirtqueueConfig, wiring: QueueWiring): void {
    this.#workers.start(index, config, wiring)
    // This pair was served before, by another card or a process that died: its driver set the number of pairs there,
    // and does not repeat that here. The ring tells that; the front-end's base may be that of its first start.
    if (this.#workers.startBase(index) === firstBase(isPacked(config))) return
    this.#pairsResumed = Math.max(this.#pairsResumed, (index >> 1) + 1)
    if (!this.#pairsCommanded) this.#activatePairs(Math.max(this.#activePairs, this.#pairsResumed))
  }

  /**
   * Activates the pairs of a driver whose control queue has just started here: one until it commands more (VIRTIO 1.2
   * §5.1.5). A control queue that resumes is that of a driver that was paused, which has given its command before.
   */
  #startPairs(control: VirtqueueConfig): void {
    const resumes = this.#control.queue.base !== firstBase(isPacked(control))
    if (resumes && this.#pairsBefore !== null) this.setActivePairs(this.#pairsBefore)
    else {
      this.#pairsUnknown = resumes
      this.#activatePairs(this.#pairsResumed)
    }
  }

  stop(index: number): VqBase {
    if (index !== this.#controlIndex) return this.#isInWorker(index) ? this.#workers.stop(index) : 0
    this.#controlIndex = -1
    this.#control.queue.stop()
    return this.#control.queue.base
  }

  base(index: number): VqBase {
    if (index === this.#controlIndex) return this.#control.queue.base
    return this.#isInWorker(index) ? this.#workers.base(index) : 0
  }

  forgetMemory(): void {
    this.#workers.forgetMemory()
    this.#control.forgetMemory()
  }

  setKick(index: number, kickFd: number): void {
    this.#rewire(index, { kickFd })
  }

  setCall(index: number, callTarget: SignalTarget): void {
    this.#rewire(index, { callTarget })
    if (index === this.#controlIndex) this.#control.queue.setCall(callTarget)
    else if (this.#isInWorker(index)) this.#workers.setCall(index, callTarget)
  }

  setInflight(index: number, inflight: BorrowedArea | null): void {
    this.#rewire(index, { inflight })
  }

  setLog(log: BorrowedArea | null, signal: SignalTarget): void {
    this.#workers.setLog(log, signal)
    this.#control.setLog(log, signal)
  }

  setUsedLog(index: number, usedLog: number): void {
    this.#rewire(index, { usedLog })
    if (index === this.#controlIndex) this.#control.queue.setUsedLog(usedLog)
    else if (this.#isInWorker(index)) this.#workers.setUsedLog(index, usedLog)
  }

  setEnabled(index: number, enabled: boolean): void {
    this.#vrings[index]!.enabled = enabled
    if (this.#isInWorker(index)) this.#applyEnabled(index >> 1)
  }

  /** Activates the first `pairs` pairs and deactivates the others. */
  setActivePairs(pairs: number): void {
    this.#pairsCommanded = true
    this.#pairsUnknown = false
    this.#activatePairs(pairs)
  }

  #activatePairs(pairs: number): void {
    this.#activePairs = pairs
    for (let pair = 0; pair < this.#pairs; pair++) this.#applyEnabled(pair)
  }

  /** True for a queue that a queue worker runs, even if the driver uses it as something else. */
  #isInWorker(index: number): boolean {
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
    this.#workers.setEnabled(rx, receives)
    this.#workers.setEnabled(tx, (active || this.#pairsUnknown) && this.#vrings[tx]!.enabled)
    if (!receives) this.#attachTapQueue(pair, false)
  }
}
