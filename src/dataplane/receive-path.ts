import { RX_STOP } from '../abi/vn-io.ts'
import type { DirtyLog } from '../memory/dirty-log.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import { popBatch } from '../virtqueue/pop-batch.ts'
import { DIRECTION, POP, type Virtqueue } from '../virtqueue/virtqueue.ts'
import type { PacketIo } from './packet-io.ts'
import { TURN, type Turn } from './turn.ts'

/** Packets of one turn, so that transmission gets its share. */
const PACKETS_PER_TURN = 256
/** Chains offered to a call at first; a call that uses them all doubles it, one that uses few halves it. */
const CHAINS_MIN = 4

/**
 * Receiveq: packets of the TAP into the driver's writable chains. Chains are popped as a guess of how many packets wait; those
 * not used go back to the ring, so that between turns none is held. VIRTIO 1.2 §5.1.6.4.
 */
export class ReceivePath {
  readonly #queue: Virtqueue
  readonly #arena: IovecArena
  readonly #io: PacketIo
  readonly #chainsMax: number
  /** Where to note which of the driver's pages are written, or null for not to. */
  log: DirtyLog | null = null
  #chainsWanted = CHAINS_MIN
  /** The last {@link #pop} came to the end of what the driver has made available. */
  #exhausted = false

  constructor(queue: Virtqueue, arena: IovecArena, io: PacketIo) {
    this.#queue = queue
    this.#arena = arena
    this.#io = io
    this.#chainsMax = Math.min(queue.size, arena.chainCapacity)
  }

  /**
   * Moves packets until the TAP is empty, the chains run out or the turn is over. What is used is published; the caller
   * signals the driver.
   */
  turn(): Turn {
    let packets = 0
    while (packets < PACKETS_PER_TURN) {
      const offered = this.#pop()
      if (offered === 0) {
        this.#queue.publishUsed()
        return this.#exhausted ? TURN.noBuffers : TURN.more
      }
      packets += this.#io.receive(0, offered, PACKETS_PER_TURN - packets)
      const used = this.#io.rxChainsUsed
      for (let chain = 0; chain < used; chain++) {
        const bytes = this.#io.rxWritten(chain)
        this.log?.markChain(this.#arena, chain, bytes)
        this.#queue.stageUsed(bytes)
      }
      if (used < offered) this.#queue.unpop(offered - used)
      this.#queue.publishUsed()
      switch (this.#io.rxStop) {
        case RX_STOP.empty:
          if (used < this.#chainsWanted >> 1 && this.#chainsWanted > CHAINS_MIN) this.#chainsWanted >>= 1
          return TURN.idle
        case RX_STOP.needChains:
          if (this.#chainsWanted < this.#chainsMax)
            this.#chainsWanted = Math.min(this.#chainsWanted * 2, this.#chainsMax)
          else if (used === 0) return this.#cannotFit()
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
   * still make available, and is dropped when it has none: it would wait for ever, and all that comes after it. Each iovec
   * counts as a descriptor. Chains of indirect tables have fewer; a packet too long for all of them may be dropped early.
   */
  #cannotFit(): Turn {
    const ringIsFull = this.#arena.iovecCount >= this.#queue.size
    if (this.#exhausted && !ringIsFull && this.#arena.chainCount < this.#chainsMax) return TURN.noBuffers
    this.#io.dropPending()
    return TURN.more
  }

  /** Fills the arena with as many chains as are wanted and there; how many. */
  #pop(): number {
    this.#arena.clear()
    const ended = popBatch(this.#queue, this.#arena, DIRECTION.writable, this.#chainsWanted, Number.POSITIVE_INFINITY)
    this.#exhausted = ended === POP.empty
    return this.#arena.chainCount
  }
}
