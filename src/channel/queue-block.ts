import type { DriverFault } from '../base/errors.ts'

/** The queues of a pair, by index in `QueuePairBlock.queues`. */
export const DIRECTION = { rx: 0, tx: 1 } as const
export type Direction = (typeof DIRECTION)[keyof typeof DIRECTION]

/** States of a queue. */
export const QUEUE_STATE = { stopped: 0, running: 1, quarantined: 2 } as const
export type QueueState = (typeof QUEUE_STATE)[keyof typeof QUEUE_STATE]

/** Float64 counters of one queue. The first four are counted by PacketIo. */
export const COUNTER = {
  packets: 0,
  bytes: 1,
  gsoPackets: 2,
  csumPackets: 3,
  kicks: 4,
  calls: 5,
  batches: 6,
  quarantines: 7,
  /** Free-running 16-bit indices: next chain to use, and next used element. */
  nextAvail: 8,
  nextUsed: 9,
  /** Chains that waited in the ring after the last batch. */
  pending: 10,
  /** Entries of the ring; 0 until the driver has set them. */
  size: 11,
  /** The queue's VqBase after its last batch: all that the driver can have seen. */
  base: 12,
  /** The VqBase at which the queue was started: what the ring itself tells, else the front-end's. */
  startBase: 13,
  /** Unexpected TAP errors. */
  tapErrors: 14,
} as const
const COUNTERS = 15

/** Int32 words. */
const WORD = { state: 0, fault: 1, tapErrno: 2 } as const
const WORDS = 4
const TEXT_BYTES = 128

/** Why a queue is quarantined: the fault's number in DRIVER_FAULT, and a text for people that no code compares. */
export type QueueFault = { readonly number: number; readonly text: string }

/**
 * A served queue's state, fault and counters for other threads. Only the thread that serves the queue writes them;
 * every thread makes its own views.
 */
export class QueueBlock {
  /** Bytes of one block, a multiple of 8. */
  static readonly byteLength = WORDS * 4 + COUNTERS * 8 + TEXT_BYTES
  /** Doubles. All but the positions and sizes of the ring only grow. */
  readonly counters: Float64Array
  readonly #words: Int32Array
  readonly #text: Uint8Array

  /** A block in `buffer` from `offset` on, a multiple of 8. */
  constructor(buffer: SharedArrayBuffer, offset: number) {
    this.#words = new Int32Array(buffer, offset, WORDS)
    this.counters = new Float64Array(buffer, offset + WORDS * 4, COUNTERS)
    this.#text = new Uint8Array(buffer, offset + WORDS * 4 + COUNTERS * 8, TEXT_BYTES)
  }

  /** A block that no other thread reads. */
  static private(): QueueBlock {
    return new QueueBlock(new SharedArrayBuffer(QueueBlock.byteLength), 0)
  }

  get state(): QueueState {
    return Atomics.load(this.#words, WORD.state) as QueueState
  }

  set state(state: QueueState) {
    Atomics.store(this.#words, WORD.state, state)
  }

  /** Why the queue is quarantined; null if it is not. */
  get fault(): QueueFault | null {
    if (this.state !== QUEUE_STATE.quarantined) return null
    const text = new TextDecoder().decode(this.#text.slice()).replace(/\0.*$/s, '')
    return { number: Atomics.load(this.#words, WORD.fault), text }
  }

  /** The last unexpected errno of the TAP; 0 for none. */
  get tapErrno(): number {
    return Atomics.load(this.#words, WORD.tapErrno)
  }

  /** Counts an unexpected errno of the TAP. */
  noteTapError(errno: number): void {
    Atomics.store(this.#words, WORD.tapErrno, errno)
    this.counters[COUNTER.tapErrors]!++
  }

  /** Sets the state to quarantined, with the reason. */
  quarantine(fault: DriverFault): void {
    this.#text.fill(0)
    this.#text.set(new TextEncoder().encode(fault.message).subarray(0, TEXT_BYTES))
    Atomics.store(this.#words, WORD.fault, fault.number)
    this.counters[COUNTER.quarantines]!++
    // ORDERING: the state last: it publishes the fault.
    this.state = QUEUE_STATE.quarantined
  }
}
