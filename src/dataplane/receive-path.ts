import { RX_STOP } from '../abi/vn-io.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import { POLLIN } from '../sys/poller.ts'
import { popBatch } from '../virtqueue/pop-batch.ts'
import { BUFFER_DIRECTION, POP, type Virtqueue } from '../virtqueue/virtqueue.ts'
import { NEVER } from './call-coalescing.ts'
import type { MigrationLog } from './migration-log.ts'
import type { PacketIo } from './packet-io.ts'
import { type QueueUser, ServedQueue, type ServedQueueOptions } from './served-queue.ts'
import type { TapErrors } from './tap-errors.ts'
import type { TapQueue } from './tap-queue.ts'
import { TURN, type Turn } from './turn.ts'

/** A turn ends after this many packets, so that transmission gets its share. */
const PACKETS_PER_TURN = 256
/** Chains offered to a call at first; a call that uses them all doubles it, one that uses few halves it. */
const CHAINS_MIN = 4
/** Time until a ring without buffers is checked again, at first and at most. Each check that finds none doubles it. */
const STARVED_MIN_MS = 10
const STARVED_MAX_MS = 1000

/** What the receive path shares with its worker. */
export type ReceivePathOptions = {
  readonly arena: IovecArena
  readonly io: PacketIo
  readonly tap: TapQueue
  readonly errors: TapErrors
  /** Called when a read of the TAP fails. */
  readonly tapFailed: () => void
}

/**
 * Receiveq: packets of the TAP into the driver's writable chains. The number of chains to pop is a guess of how many
 * packets wait. Unused chains go back to the ring, so that none is held between turns. VIRTIO 1.2 §5.1.6.4.
 */
export class ReceivePath implements QueueUser {
  readonly queue: ServedQueue
  /** True if a turn may have work. */
  pending = false
  /**
   * When to check the ring again without a kick, by `performance.now()`; {@link NEVER} unless it has no buffers. The
   * drivers of U-Boot and barebox kick once at start, and never for the buffers that they add later.
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
  /** The last {@link #pop} emptied the avail ring. */
  #exhausted = false
  /** The ring has no buffers: the TAP is not polled until the driver kicks, or until {@link starvedUntilMs}. */
  #starved = false
  #starvedMs = STARVED_MIN_MS
  #enabled = true

  constructor(queueOptions: ServedQueueOptions, { arena, io, tap, errors, tapFailed }: ReceivePathOptions) {
    this.queue = new ServedQueue(queueOptions, this)
    this.#arena = arena
    this.#io = io
    this.#tap = tap
    this.#log = queueOptions.log
    this.#errors = errors
    this.#tapFailed = tapFailed
  }

  /** A disabled queue receives nothing. */
  set enabled(enabled: boolean) {
    this.#enabled = enabled
    this.schedule()
  }

  started(ring: Virtqueue): void {
    this.#ring = ring
    this.#chainsMax = Math.min(ring.size, this.#arena.chainCapacity)
    this.#endStarvation()
    this.schedule()
  }

  stopped(): void {
    this.#ring = null
    this.#endStarvation()
    this.schedule()
  }

  kicked(): void {
    this.#endStarvation()
    this.schedule()
  }

  #endStarvation(): void {
    this.#starved = false
    this.starvedUntilMs = NEVER
  }

  /** Schedules a turn if packets can pass. Call it when queue, TAP or link have changed. */
  schedule(): void {
    this.pending = this.#ring !== null && this.#enabled && this.#tap.present && this.#tap.linkUp && !this.#starved
    this.#tap.waitFor(POLLIN, this.pending)
    this.queue.waitForKicks(this.#starved)
  }

  /** One turn. Returns how it ended. */
  turn(): Turn {
    const ring = this.#ring!
    const turn = this.#receive(ring)
    if (turn === TURN.idle) this.pending = false
    else if (turn === TURN.noBuffers && !ring.enableNotification()) {
      this.#starved = true
      this.starvedUntilMs = performance.now() + this.#starvedMs
      this.#starvedMs = Math.min(this.#starvedMs * 2, STARVED_MAX_MS)
      this.schedule()
    } else if (turn === TURN.tapError) {
      this.#errors.note(this.queue.block, this.#io.rxErrno)
      this.#tapFailed()
    }
    return turn
  }

  /** Moves packets until the TAP is empty, the chains run out or the turn is over. Publishes the used chains. */
  #receive(ring: Virtqueue): Turn {
    const log = this.#log.pages
    let packets = 0
    while (packets < PACKETS_PER_TURN) {
      const offered = this.#pop(ring)
      if (offered === 0) {
        ring.publishUsed()
        return this.#exhausted ? TURN.noBuffers : TURN.more
      }
      packets += this.#io.receive(offered, PACKETS_PER_TURN - packets)
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
   * A packet is longer than all chains together. It waits while the driver can make more descriptors available. When
   * the ring has none left it is dropped: otherwise it and all later packets wait for ever. Each iovec counts as a
   * descriptor. Chains of indirect tables take fewer descriptors, so a packet too long for them may be dropped early.
   */
  #cannotFit(ring: Virtqueue): Turn {
    const ringIsFull = this.#arena.iovecCount >= ring.size
    if (this.#exhausted && !ringIsFull && this.#arena.chainCount < this.#chainsMax) return TURN.noBuffers
    this.#io.dropPending()
    return TURN.more
  }

  /** Fills the arena with up to `#chainsWanted` chains. Returns how many. */
  #pop(ring: Virtqueue): number {
    this.#arena.clear()
    const ended = popBatch(ring, this.#arena, BUFFER_DIRECTION.writable, this.#chainsWanted, Number.POSITIVE_INFINITY)
    this.#exhausted = ended === POP.empty
    return this.#arena.chainCount
  }
}
