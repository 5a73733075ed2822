import { DROP } from '../abi/drop-reason.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import { POLLOUT } from '../sys/poller.ts'
import { popBatch } from '../virtqueue/pop-batch.ts'
import { BUFFER_DIRECTION, POP, type Virtqueue } from '../virtqueue/virtqueue.ts'
import type { PacketIo } from './packet-io.ts'
import { type QueueUser, ServedQueue, type ServedQueueOptions } from './served-queue.ts'
import type { TapErrors } from './tap-errors.ts'
import type { TapQueue } from './tap-queue.ts'
import { TURN, type Turn } from './turn.ts'

/** A turn ends after this many packets or bytes, so that reception gets its share. */
const PACKETS_PER_TURN = 256
const BYTES_PER_TURN = 512 * 1024

/** What the transmit path shares with its worker. */
export type TransmitPathOptions = {
  readonly arena: IovecArena
  readonly io: PacketIo
  readonly tap: TapQueue
  readonly errors: TapErrors
}

/** Transmitq: the driver's readable chains to the TAP. VIRTIO 1.2 §5.1.6.2. */
export class TransmitPath implements QueueUser {
  readonly queue: ServedQueue
  /** True if a turn may have work. */
  pending = false
  readonly #arena: IovecArena
  readonly #io: PacketIo
  readonly #tap: TapQueue
  readonly #errors: TapErrors
  #ring: Virtqueue | null = null
  /** The last {@link #pop} emptied the avail ring. */
  #exhausted = false
  /** The TAP is full: no turn until it is writable. */
  #blocked = false
  /** Notification is enabled, and the driver has not kicked since. */
  #kickRequested = false
  #enabled = true

  constructor(queueOptions: ServedQueueOptions, { arena, io, tap, errors }: TransmitPathOptions) {
    this.queue = new ServedQueue(queueOptions, this)
    this.#arena = arena
    this.#io = io
    this.#tap = tap
    this.#errors = errors
  }

  /** What the driver sends on a disabled queue is dropped. */
  set enabled(enabled: boolean) {
    this.#enabled = enabled
    this.schedule()
  }

  started(ring: Virtqueue): void {
    this.#ring = ring
    this.queue.waitForKicks(true)
    this.schedule()
  }

  stopped(): void {
    this.#ring = null
    this.#kickRequested = false
    this.schedule()
  }

  kicked(): void {
    this.#kickRequested = false
    if (!this.#blocked) this.pending = true
  }

  /**
   * Schedules a turn. Call it when the TAP is writable again, when queue, TAP or link have changed, and once at the
   * start: chains that were made available before the kick fd was set are found without a kick.
   */
  schedule(): void {
    this.pending = this.#ring !== null
    this.#block(false)
  }

  /** Checks the ring without a kick, for a spinning thread. True if it has chains. */
  poll(): boolean {
    if (this.#blocked || this.#ring === null || this.#ring.pending === 0) return false
    this.pending = true
    return true
  }

  /** Enables notification, just before a sleep. False if the driver has added chains meanwhile: do not sleep. */
  requestKicks(): boolean {
    if (this.#kickRequested || this.#blocked || this.#ring === null) return true
    this.#kickRequested = !this.#ring.enableNotification()
    this.pending = !this.#kickRequested
    return this.#kickRequested
  }

  /** One turn. Returns how it ended. */
  turn(): Turn {
    const ring = this.#ring!
    // Chains popped now move the ring past the event index at which the driver was to kick.
    this.#kickRequested = false
    const turn = this.#move(ring)
    if (turn !== TURN.more) this.pending = false
    if (turn === TURN.blocked) this.#block(true)
    return turn
  }

  #move(ring: Virtqueue): Turn {
    if (!this.#tap.linkUp) return this.#discard(ring, DROP.link_down)
    if (!this.#enabled) return this.#discard(ring, DROP.queue_disabled)
    if (!this.#tap.present) return this.#discard(ring, DROP.tap_gone)
    return this.#transmit(ring)
  }

  /** Moves one batch. Publishes the used chains. */
  #transmit(ring: Virtqueue): Turn {
    const chains = this.#pop(ring)
    const done = chains === 0 ? 0 : this.#io.transmit(chains)
    if (chains > 0) this.#errors.note(this.queue.block, this.#io.txErrno)
    if (done < chains) ring.unpop(chains - done)
    this.#use(ring, done)
    if (done < chains) return TURN.blocked
    return this.#exhausted ? TURN.idle : TURN.more
  }

  /** Drops one batch while packets cannot pass. `reason`: an index of dropReasons. */
  #discard(ring: Virtqueue, reason: number): Turn {
    const chains = this.#pop(ring)
    this.#use(ring, chains)
    this.#io.countDrops(reason, chains)
    return this.#exhausted ? TURN.idle : TURN.more
  }

  /** Fills the arena with one batch. Returns how many chains. */
  #pop(ring: Virtqueue): number {
    this.#arena.clear()
    const ended = popBatch(ring, this.#arena, BUFFER_DIRECTION.readable, PACKETS_PER_TURN, BYTES_PER_TURN)
    this.#exhausted = ended === POP.empty
    return this.#arena.chainCount
  }

  #use(ring: Virtqueue, chains: number): void {
    for (let chain = 0; chain < chains; chain++) ring.stageUsed(0)
    ring.publishUsed()
  }

  #block(blocked: boolean): void {
    this.#blocked = blocked
    this.#tap.waitFor(POLLOUT, blocked)
  }
}
