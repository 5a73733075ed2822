import { dropReasons } from '../abi/drop-reason.ts'
import { DriverFault } from '../base/errors.ts'
import { type ControlEffects, ControlQueue } from '../device/control-queue.ts'
import type { VqBase, VqSpec } from '../device/queue-engine.ts'
import type { ReceiveFilter } from '../device/receive-filter.ts'
import { AddressSpace } from '../memory/address-space.ts'
import type { RegionSource } from '../memory/region.ts'
import { native } from '../sys/native.ts'
import { type SignalTarget, signalPeer } from '../sys/peer-signal.ts'
import { POLLIN, type Poller } from '../sys/poller.ts'
import { newVirtqueue } from '../virtqueue/new-virtqueue.ts'
import type { Virtqueue } from '../virtqueue/virtqueue.ts'

/** A control queue while it runs, and what to make it of. */
type Running = {
  readonly spec: VqSpec
  readonly kickFd: number
  readonly queue: Virtqueue
  readonly control: ControlQueue
}

/** Runs the control queue on the device thread: its kicks are part of that thread's poll set. */
export class ControlQueueRunner {
  readonly #space: AddressSpace
  readonly #pairsMax: number
  readonly #filter: ReceiveFilter
  readonly #effects: ControlEffects
  readonly #onFault: (fault: DriverFault) => void
  readonly #drops = new Float64Array(dropReasons.length)
  #poller: Poller | null = null
  #slot = -1
  #running: Running | null = null
  #callTarget: SignalTarget = -1
  #base: VqBase = 0
  /** Commands are known to wait. */
  #pending = false

  constructor(options: {
    memory: RegionSource
    pairsMax: number
    filter: ReceiveFilter
    effects: ControlEffects
    onFault: (fault: DriverFault) => void
  }) {
    this.#space = new AddressSpace(options.memory)
    this.#pairsMax = options.pairsMax
    this.#filter = options.filter
    this.#effects = options.effects
    this.#onFault = options.onFault
  }

  /** Adds the kicks to the poll set of the thread that will call {@link serve}. */
  watch(poller: Poller): void {
    this.#poller = poller
    this.#slot = poller.add(-1, POLLIN)
  }

  /** Commands wait: the thread must not sleep. */
  get pending(): boolean {
    return this.#pending
  }

  get base(): VqBase {
    return this.#running?.queue.base ?? this.#base
  }

  start(spec: VqSpec, kickFd: number, callTarget: SignalTarget): void {
    this.#callTarget = callTarget
    try {
      const queue = newVirtqueue(this.#space, spec, this.#drops)
      const control = new ControlQueue({
        queue,
        space: this.#space,
        features: spec.features,
        pairsMax: this.#pairsMax,
        filter: this.#filter,
        effects: this.#effects,
        call: () => signalPeer(this.#callTarget),
      })
      this.#running = { spec, kickFd, queue, control }
      this.#pending = true
      this.#poller?.setFd(this.#slot, kickFd)
    } catch (fault) {
      if (!(fault instanceof DriverFault)) throw fault
      this.#onFault(fault)
    }
  }

  stop(): VqBase {
    this.#base = this.base
    this.#running?.queue[Symbol.dispose]()
    this.#running = null
    this.#pending = false
    this.#poller?.setFd(this.#slot, -1)
    return this.#base
  }

  setCall(target: SignalTarget): void {
    this.#callTarget = target
  }

  /** Unmaps everything; a queue that runs is made again over what is mapped next. */
  forgetMemory(): void {
    const running = this.#running
    const base = this.stop()
    this.#space.clear()
    if (running !== null) this.start({ ...running.spec, base }, running.kickFd, this.#callTarget)
  }

  /** Serves commands that the driver has kicked for, to a limit. */
  serve(): void {
    const running = this.#running
    if (running === null) return
    if (this.#poller !== null && this.#poller.ready(this.#slot) !== 0) {
      native.vn_eventfd_drain(running.kickFd)
      this.#pending = true
    }
    if (!this.#pending) return
    try {
      this.#pending = running.control.turn()
      if (this.#space.guardHits() !== 0) throw new DriverFault('MEMORY_VANISHED', 'the driver took away memory in use')
    } catch (fault) {
      if (!(fault instanceof DriverFault)) throw fault
      this.stop()
      this.#onFault(fault)
    }
  }
}
