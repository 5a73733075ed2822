import { dropReasons } from '../abi/drop-reason.ts'
import type { DriverFault } from '../base/errors.ts'
import { QueueBlock } from '../channel/queue-block.ts'
import type { QueueWiring } from '../channel/queue-command.ts'
import { NEVER } from '../dataplane/call-coalescing.ts'
import { MigrationLog } from '../dataplane/migration-log.ts'
import { type QueueUser, ServedQueue } from '../dataplane/served-queue.ts'
import { type ControlEffects, ControlQueue } from '../device/control-queue.ts'
import type { Features } from '../device/features.ts'
import type { ReceiveFilter } from '../device/receive-filter.ts'
import { AddressSpace } from '../memory/address-space.ts'
import type { RegionSource } from '../memory/region.ts'
import type { BorrowedArea } from '../sys/mapping.ts'
import { type SignalTarget, signalPeer } from '../sys/peer-signal.ts'
import type { Poller } from '../sys/poller.ts'
import type { Virtqueue } from '../virtqueue/virtqueue.ts'
import type { VirtqueueConfig } from '../virtqueue/virtqueue-config.ts'

/** Runs the control queue on the device thread: its kicks are part of that thread's poll set. */
export class ControlQueueRunner implements QueueUser {
  readonly queue: ServedQueue
  readonly #space: AddressSpace
  readonly #log: MigrationLog
  readonly #pairsMax: number
  readonly #filter: ReceiveFilter
  readonly #effects: ControlEffects
  #features: Features = 0n
  #control: ControlQueue | null = null
  /** True if the ring may have commands. */
  #pending = false

  /** `poller` is that of the thread that will call {@link serve}; `failed` is called when the queue is quarantined. */
  constructor(options: {
    memory: RegionSource
    pairsMax: number
    filter: ReceiveFilter
    effects: ControlEffects
    poller: Poller
    failed: (fault: DriverFault) => void
  }) {
    this.#space = new AddressSpace(options.memory)
    this.#log = new MigrationLog(this.#space)
    this.#pairsMax = options.pairsMax
    this.#filter = options.filter
    this.#effects = options.effects
    this.queue = new ServedQueue(
      {
        block: QueueBlock.private(),
        drops: new Float64Array(dropReasons.length),
        space: this.#space,
        log: this.#log,
        poller: options.poller,
        call: signalPeer,
        failed: options.failed,
      },
      this,
    )
  }

  /** Milliseconds until {@link serve} has work that no kick announces; -1 for never. */
  timeoutMs(nowMs: number): number {
    if (this.#pending) return 0
    return this.queue.dueMs === NEVER ? -1 : Math.max(0, Math.ceil(this.queue.dueMs - nowMs))
  }

  /** Starts the control queue. */
  start(config: VirtqueueConfig, wiring: QueueWiring): void {
    this.#features = config.features
    this.queue.start(config, wiring)
  }

  /** Logs written pages in `area` and signals `signal`; null and -1 for neither. */
  setLog(area: BorrowedArea | null, signal: SignalTarget): void {
    this.#log.set(area, signal)
  }

  /** Unmaps all driver memory. A running queue makes its ring again over new mappings. */
  forgetMemory(): void {
    this.queue.suspend()
    this.#space.clear()
    this.queue.resume()
  }

  /** Serves a bounded number of waiting commands. Call it after each wait of the thread. */
  serve(): void {
    this.queue.takeKick()
    if (this.queue.dueMs !== NEVER) this.queue.serveDue(performance.now())
    if (this.#pending) this.queue.serve()
  }

  started(ring: Virtqueue): void {
    this.#control = new ControlQueue({
      queue: ring,
      space: this.#space,
      features: this.#features,
      pairsMax: this.#pairsMax,
      filter: this.#filter,
      effects: this.#effects,
      call: () => this.queue.call(),
    })
    this.#pending = true
    this.queue.waitForKicks(true)
  }

  stopped(): void {
    this.#control = null
    this.#pending = false
  }

  kicked(): void {
    this.#pending = true
  }

  turn(): void {
    const control = this.#control!
    control.log = this.#log.pages
    this.#pending = control.turn()
  }
}
