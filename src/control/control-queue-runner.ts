import { dropReasons } from '../abi/drop-reason.ts'
import { DriverFault } from '../base/errors.ts'
import { DEAF_MS, KICKS_IN_VAIN_MAX } from '../dataplane/kicks-in-vain.ts'
import { type ControlEffects, ControlQueue } from '../device/control-queue.ts'
import type { ReceiveFilter } from '../device/receive-filter.ts'
import { AddressSpace } from '../memory/address-space.ts'
import { DirtyLog } from '../memory/dirty-log.ts'
import type { RegionSource } from '../memory/region.ts'
import { BorrowedMapping } from '../sys/mapping.ts'
import { native } from '../sys/native.ts'
import { type SignalTarget, signalPeer } from '../sys/peer-signal.ts'
import { POLLIN, type Poller } from '../sys/poller.ts'
import type { BorrowedArea } from '../transport/vhost-user/shared-area.ts'
import type { PackedInflight, SplitInflight } from '../virtqueue/inflight-record.ts'
import { newInflightRecord, newVirtqueue, resumes } from '../virtqueue/new-virtqueue.ts'
import { logRing } from '../virtqueue/ring-log.ts'
import type { Virtqueue } from '../virtqueue/virtqueue.ts'
import type { VirtqueueConfig, VqBase } from '../virtqueue/virtqueue-config.ts'

const borrowed = ({ address, lengthBytes, guardSlot }: BorrowedArea): BorrowedMapping =>
  new BorrowedMapping(address, lengthBytes, guardSlot)

/** A control queue while it runs, and what to make it of. */
type Running = {
  readonly spec: VirtqueueConfig
  readonly kickFd: number
  readonly queue: Virtqueue
  readonly control: ControlQueue
  readonly inflight: SplitInflight | PackedInflight | null
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
  #inflight: BorrowedArea | null = null
  #log: DirtyLog | null = null
  #logSignal: SignalTarget = -1
  /** Guest address of the used ring in the dirty log, or -1. */
  #usedLog = -1
  /** Commands are known to wait. */
  #pending = false
  /** Kicks since there was last a command. */
  #kicksInVain = 0
  /** 0: kicks are listened to. */
  #deafUntilMs = 0

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

  /** Milliseconds until {@link serve} has something to do that no kick tells of; -1 for never. */
  timeoutMs(nowMs: number): number {
    if (this.#pending) return 0
    return this.#deafUntilMs === 0 ? -1 : Math.max(0, Math.ceil(this.#deafUntilMs - nowMs))
  }

  get base(): VqBase {
    return this.#running?.queue.base ?? this.#base
  }

  start(spec: VirtqueueConfig, kickFd: number, callTarget: SignalTarget): void {
    this.#callTarget = callTarget
    using undo = new DisposableStack()
    const inflight = this.#inflight === null ? null : undo.use(newInflightRecord(borrowed(this.#inflight), spec))
    try {
      const queue = newVirtqueue(this.#space, spec, { drops: this.#drops, inflight })
      const control = new ControlQueue({
        queue,
        space: this.#space,
        features: spec.features,
        pairsMax: this.#pairsMax,
        filter: this.#filter,
        effects: this.#effects,
        call: () => signalPeer(this.#callTarget),
      })
      control.log = this.#log
      undo.move()
      this.#running = { spec, kickFd, queue, control, inflight }
      this.#pending = true
      this.#listen()
      if (resumes(spec, inflight)) signalPeer(callTarget)
    } catch (fault) {
      if (!(fault instanceof DriverFault)) throw fault
      this.#onFault(fault)
    }
  }

  stop(): VqBase {
    this.#base = this.base
    this.#running?.queue[Symbol.dispose]()
    this.#running?.inflight?.[Symbol.dispose]()
    this.#running = null
    this.#pending = false
    this.#kicksInVain = 0
    this.#deafUntilMs = 0
    this.#listen()
    return this.#base
  }

  setCall(target: SignalTarget): void {
    this.#callTarget = target
  }

  /** Where to note the chain in flight, from the next start on. */
  setInflight(area: BorrowedArea | null): void {
    this.#inflight = area
  }

  /** Where to note pages that are written, from now on, and what to signal then. */
  setLog(area: BorrowedArea | null, signal: SignalTarget): void {
    this.#log?.[Symbol.dispose]()
    this.#log = area === null ? null : new DirtyLog(this.#space, borrowed(area))
    this.#logSignal = signal
    if (this.#running !== null) this.#running.control.log = this.#log
  }

  /** Guest address of the used ring in the log; -1 for not to log writes to it. */
  setUsedLog(address: number): void {
    this.#usedLog = address
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
    this.#takeKick(running.kickFd)
    if (!this.#pending) return
    try {
      const { nextUsed } = running.queue
      this.#pending = running.control.turn()
      if (running.queue.nextUsed !== nextUsed) this.#kicksInVain = 0
      if (this.#log !== null) this.#logRing(this.#log, running.spec)
      if (this.#space.guardHits() !== 0 || running.inflight?.vanished)
        throw new DriverFault('MEMORY_VANISHED', 'the driver took away memory in use')
    } catch (fault) {
      if (!(fault instanceof DriverFault)) throw fault
      this.stop()
      this.#onFault(fault)
    }
  }

  #takeKick(kickFd: number): void {
    const nowMs = performance.now()
    if (this.#deafUntilMs !== 0 && nowMs >= this.#deafUntilMs) {
      // What came meanwhile is found by looking.
      this.#deafUntilMs = 0
      this.#kicksInVain = 0
      this.#pending = true
      this.#listen()
    }
    if (this.#poller === null || this.#poller.ready(this.#slot) === 0) return
    native.vn_eventfd_drain(kickFd)
    this.#pending = true
    if (++this.#kicksInVain <= KICKS_IN_VAIN_MAX) return
    this.#deafUntilMs = nowMs + DEAF_MS
    this.#listen()
  }

  #listen(): void {
    const heard = this.#deafUntilMs === 0 ? this.#running?.kickFd : undefined
    this.#poller?.setFd(this.#slot, heard ?? -1)
  }

  #logRing(log: DirtyLog, config: VirtqueueConfig): void {
    logRing(log, config, this.#usedLog)
    signalPeer(this.#logSignal)
    if (log.vanished) throw new DriverFault('MEMORY_VANISHED', 'the dirty log was taken away')
  }
}
