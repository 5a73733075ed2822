import { DROP } from '../abi/drop-reason.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import { POLLOUT } from '../sys/poller.ts'
import { popBatch } from '../virtqueue/pop-batch.ts'
import { DIRECTION, POP, type Virtqueue } from '../virtqueue/virtqueue.ts'
import type { PacketIo } from './packet-io.ts'
import { type QueueUser, ServedQueue, type ServedQueueOptions } from './served-queue.ts'
import type { TapErrors } from './tap-errors.ts'
import type { TapQueue } from './tap-queue.ts'
import { TURN, type Turn } from './turn.ts'

/** A turn ends after this many packets or bytes, so that reception gets its share. */
const PACKETS_PER_TURN = 256
const BYTES_PER_TURN = 512 * 1024

/** What the transmit path uses of its worker. */
export type TransmitPathOptions = {
  readonly arena: IovecArena
  readonly io: PacketIo
  readonly tap: TapQueue
  readonly errors: TapErrors
}

/** Transmitq: the driver's readable chains to the TAP. VIRTIO 1.2 §5.1.6.2. */
export class TransmitPath implements QueueUser {
  readonly queue: ServedQueue
  /** A turn has something to do, as far as is known. */
  pending = false
  readonly #arena: IovecArena
  readonly #io: PacketIo
  readonly #tap: TapQueue
  readonly #errors: TapErrors
  #ring: Virtqueue | null = null
  /** The last {@link #pop} came to the end of what the driver has made available. */
  #exhausted = false
  /** The TAP takes no more until it is writable. */
  #blocked = false
  /** The driver has been asked to kick, and has not since. */
  #kickRequested = false
  #enabled = true

  constructor(queue: ServedQueueOptions, { arena, io, tap, errors }: TransmitPathOptions) {
    this.queue = new ServedQueue(queue, this)
    this.#arena = arena
    this.#io = io
    this.#tap = tap
    this.#errors = errors
  }

  /** What the driver sends on a queue that is not enabled is dropped. */
  set enabled(enabled: boolean) {
    this.#enabled = enabled
    this.look()
  }

  started(ring: Virtqueue): void {
    this.#ring = ring
    this.queue.waitForKicks(true)
    this.look()
  }

  stopped(): void {
    this.#ring = null
    this.#kickRequested = false
    this.look()
  }

  kicked(): void {
    this.#kickRequested = false
    if (!this.#blocked) this.pending = true
  }

  /**
   * Looks at the ring in the next turn. To be called when the TAP takes packets again or the way of packets has
   * changed; what the driver made available before it could kick is found by it, too.
   */
  look(): void {
    this.pending = this.#ring !== null
    this.#block(false)
  }

  /** True if the ring has something for a turn: for a thread that looks itself instead of being kicked. */
  poll(): boolean {
    if (this.#blocked || this.#ring === null || this.#ring.pending === 0) return false
    this.pending = true
    return true
  }

  /** Asks the driver for kicks, just before a sleep. False if it has sent something meanwhile: do not sleep. */
  requestKicks(): boolean {
    if (this.#kickRequested || this.#blocked || this.#ring === null) return true
    this.#kickRequested = !this.#ring.enableNotification()
    this.pending = !this.#kickRequested
    return this.#kickRequested
  }

  /** One turn; how it ended. */
  turn(): Turn {
    const ring = this.#ring!
    // What is taken now moves the ring past the place at which the driver was asked to kick.
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

  /** Moves one batch. What is used is published. */
  #transmit(ring: Virtqueue): Turn {
    const chains = this.#pop(ring)
    const done = chains === 0 ? 0 : this.#io.transmit(0, chains)
    if (chains > 0) this.#errors.note(this.queue.block, this.#io.txErrno)
    if (done < chains) ring.unpop(chains - done)
    this.#use(ring, done)
    if (done < chains) return TURN.blocked
    return this.#exhausted ? TURN.idle : TURN.more
  }

  /**
   * Takes and throws away what the driver sends while it has no way out; counted as `reason`, an index of dropReasons.
   */
  #discard(ring: Virtqueue, reason: number): Turn {
    const chains = this.#pop(ring)
    this.#use(ring, chains)
    this.#io.countDrops(reason, chains)
    return this.#exhausted ? TURN.idle : TURN.more
  }

  /** Fills the arena with one batch; how many chains. */
  #pop(ring: Virtqueue): number {
    this.#arena.clear()
    const ended = popBatch(ring, this.#arena, DIRECTION.readable, PACKETS_PER_TURN, BYTES_PER_TURN)
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
