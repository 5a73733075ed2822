import { RX_STOP } from '../abi/vn-io.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import { POLLIN } from '../sys/poller.ts'
import { popBatch } from '../virtqueue/pop-batch.ts'
import { DIRECTION, POP, type Virtqueue } from '../virtqueue/virtqueue.ts'
import { NEVER } from './call-coalescing.ts'
import type { MigrationLog } from './migration-log.ts'
import type { PacketIo } from './packet-io.ts'
import { type QueueUser, ServedQueue, type ServedQueueOptions } from './served-queue.ts'
import type { TapErrors } from './tap-errors.ts'
import type { TapQueue } from './tap-queue.ts'
import { TURN, type Turn } from './turn.ts'

/** Packets of one turn, so that transmission gets its share. */
const PACKETS_PER_TURN = 256
/** Chains offered to a call at first; a call that uses them all doubles it, one that uses few halves it. */
const CHAINS_MIN = 4
/** How long a ring without buffers is left alone at first, and at most. Each look in vain doubles it. */
const STARVED_MIN_MS = 10
const STARVED_MAX_MS = 1000

/** What the receive path uses of its worker. */
export type ReceivePathOptions = {
  readonly arena: IovecArena
  readonly io: PacketIo
  readonly tap: TapQueue
  readonly errors: TapErrors
  /** Called when the TAP answers with an error. */
  readonly tapFailed: () => void
}

/**
 * Receiveq: packets of the TAP into the driver's writable chains. Chains are popped as a guess of how many packets
 * wait; those not used go back to the ring, so that between turns none is held. VIRTIO 1.2 §5.1.6.4.
 */
export class ReceivePath implements QueueUser {
  readonly queue: ServedQueue
  /** A turn has something to do, as far as is known. */
  pending = false
  /**
   * When to look at the ring again though nobody has kicked, by `performance.now()`; {@link NEVER} unless it has no
   * buffers. The drivers of U-Boot and barebox kick once, at their start, and never for buffers that they give back.
   */
  starvedUntilMs = NEVER
  readonly #arena: IovecArena
  readonly #io: PacketIo
  readonly #tap: TapQueue
  readonly #log: MigrationLog
  readonly #errors: TapErrors
  readonly #tapFailed: () => void
  #ring: Virtqueue | null = null
  #chainsMax = 0
  #chainsWanted = CHAINS_MIN
  /** The last {@link #pop} came to the end of what the driver has made available. */
  #exhausted = false
  /** The ring has no buffers: the TAP is left alone until the driver kicks, or until {@link starvedUntilMs}. */
  #starved = false
  #starvedMs = STARVED_MIN_MS
  #enabled = true

  constructor(queue: ServedQueueOptions, { arena, io, tap, errors, tapFailed }: ReceivePathOptions) {
    this.queue = new ServedQueue(queue, this)
    this.#arena = arena
    this.#io = io
    this.#tap = tap
    this.#log = queue.log
    this.#errors = errors
    this.#tapFailed = tapFailed
  }

  /** A queue that is not enabled receives nothing. */
  set enabled(enabled: boolean) {
    this.#enabled = enabled
    this.look()
  }

  started(ring: Virtqueue): void {
    this.#ring = ring
    this.#chainsMax = Math.min(ring.size, this.#arena.chainCapacity)
    this.#feed()
    this.look()
  }

  stopped(): void {
    this.#ring = null
    this.#feed()
    this.look()
  }

  kicked(): void {
    this.#feed()
    this.look()
  }

  #feed(): void {
    this.#starved = false
    this.starvedUntilMs = NEVER
  }

  /** Looks at the TAP in the next turn, if packets can go anywhere. To be called when something of that has changed. */
  look(): void {
    this.pending = this.#ring !== null && this.#enabled && this.#tap.present && this.#tap.linkUp && !this.#starved
    this.#tap.waitFor(POLLIN, this.pending)
    this.queue.waitForKicks(this.#starved)
  }

  /** One turn; how it ended. */
  turn(): Turn {
    const ring = this.#ring!
    const turn = this.#receive(ring)
    if (turn === TURN.idle) this.pending = false
    else if (turn === TURN.noBuffers && !ring.enableNotification()) {
      this.#starved = true
      this.starvedUntilMs = performance.now() + this.#starvedMs
      this.#starvedMs = Math.min(this.#starvedMs * 2, STARVED_MAX_MS)
      this.look()
    } else if (turn === TURN.tapError) {
      this.#errors.note(this.queue.block, this.#io.rxErrno)
      this.#tapFailed()
    }
    return turn
  }

  /** Moves packets until the TAP is empty, the chains run out or the turn is over. What is used is published. */
  #receive(ring: Virtqueue): Turn {
    const log = this.#log.pages
    let packets = 0
    while (packets < PACKETS_PER_TURN) {
      const offered = this.#pop(ring)
      if (offered === 0) {
        ring.publishUsed()
        return this.#exhausted ? TURN.noBuffers : TURN.more
      }
      packets += this.#io.receive(0, offered, PACKETS_PER_TURN - packets)
      const used = this.#io.rxChainsUsed
      if (used > 0) this.#starvedMs = STARVED_MIN_MS
      for (let chain = 0; chain < used; chain++) {
        const bytes = this.#io.rxWritten(chain)
        log?.markChain(this.#arena, chain, bytes)
        ring.stageUsed(bytes)
      }
      if (used < offered) ring.unpop(offered - used)
      ring.publishUsed()
      switch (this.#io.rxStop) {
        case RX_STOP.empty:
          if (used < this.#chainsWanted >> 1 && this.#chainsWanted > CHAINS_MIN) this.#chainsWanted >>= 1
          return TURN.idle
        case RX_STOP.needChains:
          if (this.#chainsWanted < this.#chainsMax)
            this.#chainsWanted = Math.min(this.#chainsWanted * 2, this.#chainsMax)
          else if (used === 0) return this.#cannotFit(ring)
          else if (this.#exhausted) return TURN.noBuffers
          break
        case RX_STOP.error:
          return TURN.tapError
        default:
          return TURN.more
      }
    }
    return TURN.more
  }

  /**
   * A packet waits that all chains together cannot hold. It waits on while the ring has descriptors that the driver can
   * still make available, and is dropped when it has none: it would wait for ever, and all that comes after it. Each
   * iovec counts as a descriptor. Chains of indirect tables have fewer; a packet too long for all of them may be
   * dropped early.
   */
  #cannotFit(ring: Virtqueue): Turn {
    const ringIsFull = this.#arena.iovecCount >= ring.size
    if (this.#exhausted && !ringIsFull && this.#arena.chainCount < this.#chainsMax) return TURN.noBuffers
    this.#io.dropPending()
    return TURN.more
  }

  /** Fills the arena with as many chains as are wanted and there; how many. */
  #pop(ring: Virtqueue): number {
    this.#arena.clear()
    const ended = popBatch(ring, this.#arena, DIRECTION.writable, this.#chainsWanted, Number.POSITIVE_INFINITY)
    this.#exhausted = ended === POP.empty
    return this.#arena.chainCount
  }
}
