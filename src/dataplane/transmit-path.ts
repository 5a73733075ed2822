import type { IovecArena } from '../memory/iovec-arena.ts'
import { popBatch } from '../virtqueue/pop-batch.ts'
import { DIRECTION, POP, type Virtqueue } from '../virtqueue/virtqueue.ts'
import type { PacketIo } from './packet-io.ts'
import { TURN, type Turn } from './turn.ts'

/** A turn ends after this many packets or bytes, so that reception gets its share. */
const PACKETS_PER_TURN = 256
const BYTES_PER_TURN = 512 * 1024

/** Transmitq: the driver's readable chains to the TAP. VIRTIO 1.2 §5.1.6.2. */
export class TransmitPath {
  readonly #queue: Virtqueue
  readonly #arena: IovecArena
  readonly #io: PacketIo
  /** The last {@link #pop} came to the end of what the driver has made available. */
  #exhausted = false

  constructor(queue: Virtqueue, arena: IovecArena, io: PacketIo) {
    this.#queue = queue
    this.#arena = arena
    this.#io = io
  }

  /** Moves one batch. What is used is published; the caller signals the driver. */
  turn(): Turn {
    const chains = this.#pop()
    const done = chains === 0 ? 0 : this.#io.transmit(0, chains)
    if (done < chains) this.#queue.unpop(chains - done)
    this.#use(done)
    if (done < chains) return TURN.blocked
    return this.#exhausted ? TURN.idle : TURN.more
  }

  /** Takes and throws away what the driver sends while it has no way out; counted as `reason`, an index of dropReasons. */
  discard(reason: number): Turn {
    const chains = this.#pop()
    this.#use(chains)
    this.#io.countDrops(reason, chains)
    return this.#exhausted ? TURN.idle : TURN.more
  }

  /** Fills the arena with one batch; how many chains. */
  #pop(): number {
    this.#arena.clear()
    const ended = popBatch(this.#queue, this.#arena, DIRECTION.readable, PACKETS_PER_TURN, BYTES_PER_TURN)
    this.#exhausted = ended === POP.empty
    return this.#arena.chainCount
  }

  #use(chains: number): void {
    for (let chain = 0; chain < chains; chain++) this.#queue.stageUsed(0)
    this.#queue.publishUsed()
  }
}
