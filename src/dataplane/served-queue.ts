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
  /** The queue runs on this ring: it was started, or its ring was made again over new mappings. */
  started(ring: Virtqueue): void
  /** The ring is gone: the queue was stopped, quarantined or suspended. */
  stopped(): void
  /** The driver may have made chains available. */
  kicked(): void
  /**
   * One turn: pops, uses and publishes a bounded number of chains.
   * @throws DriverFault
   */
  turn(): void
}

/** What a served queue needs from its thread. */
export type ServedQueueOptions = {
  /** The queue's state for other threads. */
  readonly block: QueueBlock
  /** Packets dropped: one element for each of dropReasons. */
  readonly drops: Float64Array
  /** The driver's memory, shared by the queues of one thread. */
  readonly space: AddressSpace
  /** The dirty log of that memory. */
  readonly log: MigrationLog
  /** The thread's poll set. The queue takes one slot. */
  readonly poller: Poller
  /** Interrupts the driver. `target`: the call target that the front-end has set, or -1. */
  readonly call: (target: SignalTarget) => void
  /** The queue was quarantined. The callback may stop it. */
  readonly failed: (fault: DriverFault) => void
}

const memoryVanished = (): DriverFault => new DriverFault('MEMORY_VANISHED', 'the driver took away memory in use')

/**
 * One running virtqueue, receive, transmit or control: ring, record of chains in flight, dirty log of the ring, kick
 * and call, limit of spurious kicks, quarantine, and making the ring again over new mappings. A {@link QueueUser} moves
 * the chains. The thread reads {@link dueMs} before it sleeps, and calls {@link takeKick} and {@link serveDue}
 * afterwards.
 */
export class ServedQueue {
  readonly block: QueueBlock
  /** Delays calls as the driver has set it. */
  readonly coalescing = new CallCoalescing()
  /** When {@link serveDue} is due, by `performance.now()`; {@link NEVER} without timed work. */
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
  /** The base of a suspended ring, between {@link suspend} and {@link resume}. */
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

  /** The queue's base, running or not. */
  get base(): VqBase {
    return this.block.counters[COUNTER.base]!
  }

  /** Starts the queue. It may resume where another process stopped. */
  start(config: VirtqueueConfig, { kickFd, callTarget, usedLog, inflight }: QueueWiring): void {
    assert(this.#config === null, 'start of a running queue')
    this.#config = config
    this.#kickFd = kickFd
    this.#callTarget = callTarget
    this.#usedLog = usedLog
    this.#inflightArea = inflight
    this.block.counters[COUNTER.base] = config.base === 'used' ? 0 : config.base
    const made = this.#makeRing(config)
    this.block.counters[COUNTER.startBase] = this.base
    if (made && this.#ring?.resumed === true) this.#options.call(callTarget)
  }

  /**
   * Stops the queue. On return the ring is not accessed any more, and {@link base} is final. Does nothing to a stopped
   * queue.
   */
  stop(): void {
    this.#dropRing()
    this.#config = null
    this.#suspendedAt = null
    this.block.state = QUEUE_STATE.stopped
  }

  /** Releases the ring's memory if the queue runs; {@link resume} makes the ring again. */
  suspend(): void {
    if (this.#ring === null) return
    this.#suspendedAt = this.#ring.base
    this.#dropRing()
  }

  /** Makes the ring again over new mappings, at the base where {@link suspend} stopped it. */
  resume(): void {
    const base = this.#suspendedAt
    this.#suspendedAt = null
    if (base !== null) this.#makeRing({ ...this.#config!, base })
  }

  /** Sets the target of calls; -1 for none. */
  setCall(target: SignalTarget): void {
    this.#callTarget = target
  }

  /** Sets the guest address under which used ring writes are logged; -1 for no logging. */
  setUsedLog(address: number): void {
    this.#usedLog = address
  }

  /** Sets the coalescing of calls. A delayed call is made now: an early call is always allowed. */
  setCoalescing(packets: number, usecs: number): void {
    this.#callIfWaiting()
    this.coalescing.set(packets, usecs)
  }

  /** Polls the kick fd, or stops polling it. */
  waitForKicks(wanted: boolean): void {
    this.#waitsForKicks = wanted
    this.#pollKicks()
  }

  /** Takes the kick that the last wait found, if any. */
  takeKick(): void {
    if (this.#options.poller.ready(this.#kickSlot) === 0) return
    native.vn_eventfd_drain(this.#kickFd)
    this.block.counters[COUNTER.kicks]!++
    this.#ring!.disableNotification()
    if (this.#spuriousKicks.kicked()) {
      this.#pollKicks()
      this.#updateDue()
    }
    this.#user.kicked()
  }

  /** Does what is due: ends a mask of kicks, makes a delayed call. */
  serveDue(nowMs: number): void {
    if (nowMs >= this.#spuriousKicks.maskedUntilMs) {
      this.#spuriousKicks.reset()
      this.#pollKicks()
      // Kicks were masked: the ring may have new chains.
      this.#user.kicked()
    }
    if (nowMs >= this.coalescing.dueMs) this.#callIfWaiting()
    this.#updateDue()
  }

  /** One turn of the user, then dirty log, call and the check for vanished memory. */
  serve(): void {
    const { space, log } = this.#options
    try {
      this.#user.turn()
      log.markRing(this.#config!, this.#usedLog)
      this.#signal(this.#ring!)
      if (space.guardHits() !== 0 || this.#inflight?.vanished) throw memoryVanished()
    } catch (fault) {
      if (!(fault instanceof DriverFault)) throw fault
      // Pages that vanished read as zeroes, which can look like any fault of the driver.
      this.#quarantine(space.guardHits() === 0 ? fault : memoryVanished())
    }
  }

  /** Interrupts the driver if it wants a call for what was published since the last check. */
  call(): void {
    if (!this.#ring!.needsCall()) return
    this.block.counters[COUNTER.calls]!++
    this.#options.call(this.#callTarget)
  }

  /** Publishes the counters and calls the driver, now or after the coalescing delay. */
  #signal(ring: Virtqueue): void {
    const { counters } = this.block
    const used = (ring.nextUsed - counters[COUNTER.nextUsed]!) & 0xffff
    if (used === 0) return
    this.#spuriousKicks.progressed()
    counters[COUNTER.batches]!++
    this.#showProgress(ring)
    if (this.coalescing.active && this.coalescing.delays(used, ring.size)) this.#updateDue()
    else this.call()
  }

  /** Makes the delayed call, if any. */
  #callIfWaiting(): void {
    if (this.coalescing.dueMs === NEVER) return
    this.coalescing.clear()
    this.call()
  }

  #updateDue(): void {
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

  /** Makes the ring. False if that fails; the queue is then quarantined. */
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

  /** Releases the ring and its memory. */
  #dropRing(): void {
    if (this.#ring !== null) {
      this.#showProgress(this.#ring)
      // A delayed call would otherwise be lost.
      this.#callIfWaiting()
    }
    this.#ring?.[Symbol.dispose]()
    this.#ring = null
    this.#inflight?.[Symbol.dispose]()
    this.#inflight = null
    this.#spuriousKicks.reset()
    this.#waitsForKicks = false
    this.#pollKicks()
    this.#updateDue()
    this.#user.stopped()
  }

  /** Releases the ring until the queue is started anew. */
  #quarantine(fault: DriverFault): void {
    this.#dropRing()
    this.block.quarantine(fault)
    this.#options.failed(fault)
  }
}
