import { assert } from '../base/assert.ts'
import { DriverFault } from '../base/errors.ts'
import { COUNTER, QUEUE_STATE, type QueueBlock } from '../channel/queue-block.ts'
import type { QueueWiring } from '../channel/queue-command.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import { BorrowedMapping } from '../sys/mapping.ts'
import { native } from '../sys/native.ts'
import type { SignalTarget } from '../sys/peer-signal.ts'
import { POLLIN, type Poller } from '../sys/poller.ts'
import { type InflightRecord, newInflightRecord, newVirtqueue } from '../virtqueue/new-virtqueue.ts'
import type { Virtqueue } from '../virtqueue/virtqueue.ts'
import type { VirtqueueConfig, VqBase } from '../virtqueue/virtqueue-config.ts'
import { CallCoalescing, NEVER } from './call-coalescing.ts'
import type { MigrationLog } from './migration-log.ts'
import { SpuriousKicks } from './spurious-kicks.ts'

/** What moves the chains of a served queue. Its methods are called by the queue, on the thread that serves it. */
export interface QueueUser {
  /** The queue runs on this ring: it was started, or made again over other memory. */
  started(ring: Virtqueue): void
  /** The ring is gone: the queue was stopped or quarantined, or is about to be made again. */
  stopped(): void
  /** The driver may have made something available. */
  kicked(): void
  /**
   * One turn: pops, uses and publishes a bounded number of chains.
   * @throws DriverFault
   */
  turn(): void
}

/** What a served queue needs of the thread that serves it. */
export type ServedQueueOptions = {
  /** What the queue shows of itself. */
  readonly block: QueueBlock
  /** Packets dropped: one element for each of dropReasons. */
  readonly drops: Float64Array
  /** The driver's memory. Queues of one thread share it. */
  readonly space: AddressSpace
  /** The dirty log of that memory. */
  readonly log: MigrationLog
  /** The thread's poll set: the queue takes one slot. */
  readonly poller: Poller
  /** Interrupts the driver; `target` is what the driver's side has set for that. */
  readonly call: (target: SignalTarget) => void
  /** The queue was quarantined. It may be stopped from here. */
  readonly failed: (fault: DriverFault) => void
}

const memoryVanished = (): DriverFault => new DriverFault('MEMORY_VANISHED', 'the driver took away memory in use')

/**
 * One virtqueue while it runs, whatever it carries: its ring and the record of chains in flight, the log of what is
 * written to the ring, kick and call, the limit of spurious kicks, quarantine, and the same ring again over other
 * memory. A {@link QueueUser} moves the chains. The thread asks for {@link dueMs} before it sleeps, and calls {@link
 * takeKick} and {@link passTime} after it.
 */
export class ServedQueue {
  readonly block: QueueBlock
  /** When the driver is called for what is used. */
  readonly coalescing = new CallCoalescing()
  /**
   * When {@link passTime} has something to do, by `performance.now()`; {@link NEVER} if nothing waits for time to pass.
   */
  dueMs = NEVER
  readonly #options: ServedQueueOptions
  readonly #user: QueueUser
  readonly #kickSlot: number
  readonly #spuriousKicks = new SpuriousKicks()
  #config: VirtqueueConfig | null = null
  #kickFd = -1
  #callTarget: SignalTarget = -1
  #usedLog = -1
  #inflightArea: QueueWiring['inflight'] = null
  #inflight: InflightRecord | null = null
  #ring: Virtqueue | null = null
  #waitsForKicks = false
  /** Where to make the ring again, between {@link suspend} and {@link resume}. */
  #suspendedAt: VqBase | null = null

  constructor(options: ServedQueueOptions, user: QueueUser) {
    this.block = options.block
    this.#options = options
    this.#user = user
    this.#kickSlot = options.poller.add(-1, POLLIN)
  }

  /** The ring while the queue runs. */
  get ring(): Virtqueue | null {
    return this.#ring
  }

  /** Where the queue is, running or not. */
  get base(): VqBase {
    return this.block.counters[COUNTER.base]!
  }

  /** Serves a queue as the driver's side has set it up, perhaps where another process was. */
  start(config: VirtqueueConfig, { kickFd, callTarget, usedLog, inflight }: QueueWiring): void {
    assert(this.#config === null, 'a queue is started that was not stopped')
    this.#config = config
    this.#kickFd = kickFd
    this.#callTarget = callTarget
    this.#usedLog = usedLog
    this.#inflightArea = inflight
    this.block.counters[COUNTER.base] = config.base === 'used' ? 0 : config.base
    if (this.#makeRing(config) && this.#ring?.resumed === true) this.#options.call(callTarget)
  }

  /**
   * On return the ring is not touched any more, and {@link base} is where it was. Harmless for a queue that does not
   * run.
   */
  stop(): void {
    this.#dropRing()
    this.#config = null
    this.#suspendedAt = null
    this.block.state = QUEUE_STATE.stopped
  }

  /** Lets go of the memory of a queue that runs, for {@link resume} to make its ring again. */
  suspend(): void {
    if (this.#ring === null) return
    this.#suspendedAt = this.#ring.base
    this.#dropRing()
  }

  /** Makes the ring again over what is mapped now, where {@link suspend} has left it. */
  resume(): void {
    const base = this.#suspendedAt
    this.#suspendedAt = null
    if (base !== null) this.#makeRing({ ...this.#config!, base })
  }

  /** Where to signal a call from now on. */
  setCall(target: SignalTarget): void {
    this.#callTarget = target
  }

  /** Guest address by which writes to the used ring are logged from now on; -1 for not to. */
  setUsedLog(address: number): void {
    this.#usedLog = address
  }

  /**
   * When the driver is called, from now on. A call that waits is made: sooner than either setting says is always right.
   */
  setCoalescing(packets: number, usecs: number): void {
    this.#callIfWaiting()
    this.coalescing.set(packets, usecs)
  }

  /** Kicks wake the thread from now on, or do not. */
  waitForKicks(wanted: boolean): void {
    this.#waitsForKicks = wanted
    this.#pollKicks()
  }

  /** Takes the kick that the last wait has found, if it has. */
  takeKick(): void {
    if (this.#options.poller.ready(this.#kickSlot) === 0) return
    native.vn_eventfd_drain(this.#kickFd)
    this.block.counters[COUNTER.kicks]!++
    this.#ring!.disableNotification()
    if (this.#spuriousKicks.kicked()) {
      this.#pollKicks()
      this.#reckonDue()
    }
    this.#user.kicked()
  }

  /** Does what is due: ends a mask of kicks, makes a call that waits. */
  passTime(nowMs: number): void {
    if (nowMs >= this.#spuriousKicks.maskedUntilMs) {
      this.#spuriousKicks.reset()
      this.#pollKicks()
      // What came meanwhile is found by looking.
      this.#user.kicked()
    }
    if (nowMs >= this.coalescing.dueMs) this.#callIfWaiting()
    this.#reckonDue()
  }

  /** One turn of the user, and all that follows from what it did to the ring. */
  serve(): void {
    const { space, log } = this.#options
    try {
      this.#user.turn()
      if (log.active) log.markRing(this.#config!, this.#usedLog)
      this.#signal(this.#ring!)
      if (space.guardHits() !== 0 || this.#inflight?.vanished) throw memoryVanished()
    } catch (fault) {
      if (!(fault instanceof DriverFault)) throw fault
      // Zeroes in a ring look like a driver that has lost its way.
      this.#quarantine(space.guardHits() === 0 ? fault : memoryVanished())
    }
  }

  /** Interrupts the driver if it wants that for anything used since it was last asked. */
  call(): void {
    if (!this.#ring!.needsCall()) return
    this.block.counters[COUNTER.calls]!++
    this.#options.call(this.#callTarget)
  }

  /** Shows progress to main and calls the driver, now or when it is due. */
  #signal(ring: Virtqueue): void {
    const { counters } = this.block
    const used = (ring.nextUsed - counters[COUNTER.nextUsed]!) & 0xffff
    if (used === 0) return
    this.#spuriousKicks.progressed()
    counters[COUNTER.batches]!++
    this.#showProgress(ring)
    if (this.coalescing.active && this.coalescing.waits(used, ring.size)) this.#reckonDue()
    else this.call()
  }

  /** Makes the call that waits, if one does. */
  #callIfWaiting(): void {
    if (this.coalescing.dueMs === NEVER) return
    this.coalescing.clear()
    this.call()
  }

  #reckonDue(): void {
    this.dueMs = Math.min(this.#spuriousKicks.maskedUntilMs, this.coalescing.dueMs)
  }

  #pollKicks(): void {
    const polled = this.#waitsForKicks && this.#ring !== null && !this.#spuriousKicks.masked
    this.#options.poller.setFd(this.#kickSlot, polled ? this.#kickFd : -1)
  }

  #showProgress(ring: Virtqueue): void {
    const { counters } = this.block
    counters[COUNTER.nextAvail] = ring.nextAvail
    counters[COUNTER.nextUsed] = ring.nextUsed
    counters[COUNTER.pending] = ring.pending
    counters[COUNTER.base] = ring.base
  }

  /** False if the ring is of no use; the queue is quarantined then. */
  #makeRing(config: VirtqueueConfig): boolean {
    const { space, drops } = this.#options
    try {
      const area = this.#inflightArea
      this.#inflight = area === null ? null : newInflightRecord(new BorrowedMapping(area), config)
      this.#ring = newVirtqueue(space, config, { drops, inflight: this.#inflight })
    } catch (fault) {
      if (!(fault instanceof DriverFault)) throw fault
      this.#quarantine(fault)
      return false
    }
    this.#ring.disableNotification()
    this.block.counters[COUNTER.size] = config.size
    this.#showProgress(this.#ring)
    this.block.state = QUEUE_STATE.running
    this.#user.started(this.#ring)
    return true
  }

  /** Lets go of the ring's memory. */
  #dropRing(): void {
    if (this.#ring !== null) {
      this.#showProgress(this.#ring)
      // Nobody else would make it.
      this.#callIfWaiting()
    }
    this.#ring?.[Symbol.dispose]()
    this.#ring = null
    this.#inflight?.[Symbol.dispose]()
    this.#inflight = null
    this.#spuriousKicks.reset()
    this.#waitsForKicks = false
    this.#pollKicks()
    this.#reckonDue()
    this.#user.stopped()
  }

  /** The ring is not touched any more until the queue is started anew. */
  #quarantine(fault: DriverFault): void {
    this.#dropRing()
    this.block.quarantine(fault)
    this.#options.failed(fault)
  }
}
