import type { DriverFault } from '../base/errors.ts'

/** Which queue of a pair. */
export const DIRECTION = { rx: 0, tx: 1 } as const
export type Direction = (typeof DIRECTION)[keyof typeof DIRECTION]

/** What is done with a queue. */
export const QUEUE_STATE = { stopped: 0, running: 1, quarantined: 2 } as const
export type QueueState = (typeof QUEUE_STATE)[keyof typeof QUEUE_STATE]

/** Float64 counters of one queue. The first four are those of the packets that PacketIo counts. */
export const COUNTER = {
  packets: 0,
  bytes: 1,
  gsoPackets: 2,
  csumPackets: 3,
  kicks: 4,
  calls: 5,
  batches: 6,
  quarantines: 7,
  /** Where the queue is, free-running. */
  nextAvail: 8,
  nextUsed: 9,
  /** Chains that waited in the ring after the last batch. */
  pending: 10,
  /** Entries of the ring; 0 until the driver has set them. */
  size: 11,
  /** Where the queue is, as VqBase: after its last batch, so all that the driver can have seen. */
  base: 12,
  /** Answers of the TAP that nobody expects. */
  tapErrors: 13,
} as const
const COUNTERS = 14

/** Int32 words. */
const WORD = { state: 0, fault: 1, tapErrno: 2 } as const
const WORDS = 4
const TEXT_BYTES = 128

/** Why a queue is quarantined: the fault's number in DRIVER_FAULT, and what it was in words, for people only. */
export type QueueFault = { readonly number: number; readonly text: string }

/**
 * What a served queue shows of itself to other threads: its state, its fault, its counters. The thread that serves the
 * queue writes all of it; every thread makes views of its own.
 */
export class QueueBlock {
  /** Bytes of one block, a multiple of 8. */
  static readonly byteLength = WORDS * 4 + COUNTERS * 8 + TEXT_BYTES
  /** Doubles that only grow, the places in the ring excepted. */
  readonly counters: Float64Array
  readonly #words: Int32Array
  readonly #text: Uint8Array

  /** A block in `buffer` from `offset` on, a multiple of 8. */
  constructor(buffer: SharedArrayBuffer, offset: number) {
    this.#words = new Int32Array(buffer, offset, WORDS)
    this.counters = new Float64Array(buffer, offset + WORDS * 4, COUNTERS)
    this.#text = new Uint8Array(buffer, offset + WORDS * 4 + COUNTERS * 8, TEXT_BYTES)
  }

  /** A block that only its own thread sees. */
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

  /** The last answer of the TAP that nobody expects; 0 for none. */
  get tapErrno(): number {
    return Atomics.load(this.#words, WORD.tapErrno)
  }

  /** Shows that the TAP has given an answer that nobody expects. */
  noteTapError(errno: number): void {
    Atomics.store(this.#words, WORD.tapErrno, errno)
    this.counters[COUNTER.tapErrors]!++
  }

  /** Shows that the queue is quarantined, and why. */
  quarantine(fault: DriverFault): void {
    this.#text.fill(0)
    this.#text.set(new TextEncoder().encode(fault.message).subarray(0, TEXT_BYTES))
    Atomics.store(this.#words, WORD.fault, fault.number)
    this.counters[COUNTER.quarantines]!++
    // ORDERING: last, since it says that the fault can be read.
    this.state = QUEUE_STATE.quarantined
  }
}
