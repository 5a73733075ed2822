import { dropReasons } from '../abi/drop-reason.ts'

/**
 * What one queue worker shares with the device worker, which commands it, and with main, which only reads: one
 * SharedArrayBuffer of Int32 words (commands, states) and Float64 numbers (parameters, counters). Each number has one writer.
 */

/** What the device worker asks of a queue worker. */
export const COMMAND = {
  none: 0,
  start: 1,
  stop: 2,
  forgetMemory: 3,
  setTap: 4,
  setLink: 5,
  setCall: 6,
  setEnabled: 7,
  setPolicy: 8,
  exit: 9,
  setLog: 10,
  setUsedLog: 11,
  setCoalescing: 12,
  setScaling: 13,
} as const
export type Command = (typeof COMMAND)[keyof typeof COMMAND]

/** What a queue worker does with a queue. */
export const QUEUE_STATE = { stopped: 0, running: 1, quarantined: 2 } as const

/** Int32 words. */
const WORD = {
  /** Written by the device worker: command number; the queue worker answers by setting `done` to it. */
  issued: 0,
  done: 1,
  command: 2,
  /** Answer: 0, or 1 for "failed". */
  result: 3,
  /** Set to 1 when the queue worker waits for commands for the first time. */
  alive: 4,
  rxState: 5,
  txState: 6,
} as const
const WORDS = 8

/** Float64 numbers: parameters and answers of commands. */
export const PARAM = {
  queue: 0,
  size: 1,
  descAddr: 2,
  availAddr: 3,
  usedAddr: 4,
  featuresLow: 5,
  featuresHigh: 6,
  /** Where to start (VqBase); -1: where the used ring ends. The answer to `stop`: where it stopped. */
  base: 7,
  kickFd: 8,
  /** SignalTarget; -1: the driver's side does not want to be called, or is called otherwise. */
  callTarget: 9,
  tapFd: 10,
  linkUp: 11,
  enabled: 12,
  /** Host address, length and guard of the dirty log; length 0 for none. */
  logAddress: 13,
  logBytes: 14,
  logGuardSlot: 15,
  /** SignalTarget */
  logSignal: 16,
  /** Guest address of the used ring in the log; -1 for not to log it. */
  usedLog: 17,
  /** Host address, length and guard of the record of chains in flight; length 0 for none. */
  inflightAddress: 18,
  inflightBytes: 19,
  inflightGuardSlot: 20,
  /** When the driver is called for what is used: so many packets, or microseconds, if neither is 0. */
  coalescePackets: 21,
  coalesceUsecs: 22,
  /** Place of the ReceiveScaling that packets are hashed by; -1: they are not. */
  scalingPlace: 23,
} as const
const PARAMS = 24

/** Float64 counters of one direction. */
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
  /** Where the queue is, as VqBase. */
  base: 12,
} as const
const COUNTERS = 13

export const DIRECTION = { rx: 0, tx: 1 } as const
export type Direction = (typeof DIRECTION)[keyof typeof DIRECTION]

const CODE_BYTES = 128

/** Views over one block; every thread makes its own. */
export class QueuePairBlock {
  readonly buffer: SharedArrayBuffer
  readonly params: Float64Array
  /** Counters by direction: index {@link COUNTER}. */
  readonly counters: readonly [Float64Array, Float64Array]
  /** Drops by reason: index of dropReasons. */
  readonly drops: Float64Array
  readonly #words: Int32Array
  readonly #codes: readonly [Uint8Array, Uint8Array]

  static readonly byteLength = WORDS * 4 + (PARAMS + 2 * COUNTERS + dropReasons.length) * 8 + 2 * CODE_BYTES

  constructor(buffer: SharedArrayBuffer = new SharedArrayBuffer(QueuePairBlock.byteLength)) {
    this.buffer = buffer
    let offset = 0
    this.#words = new Int32Array(buffer, offset, WORDS)
    offset += WORDS * 4
    const numbers = (count: number): Float64Array => {
      const view = new Float64Array(buffer, offset, count)
      offset += count * 8
      return view
    }
    this.params = numbers(PARAMS)
    this.counters = [numbers(COUNTERS), numbers(COUNTERS)]
    this.drops = numbers(dropReasons.length)
    this.#codes = [new Uint8Array(buffer, offset, CODE_BYTES), new Uint8Array(buffer, offset + CODE_BYTES, CODE_BYTES)]
  }

  queueState(direction: Direction): number {
    return Atomics.load(this.#words, WORD.rxState + direction)
  }

  setQueueState(direction: Direction, state: number): void {
    Atomics.store(this.#words, WORD.rxState + direction, state)
  }

  /** Why the queue was quarantined, as text for people. */
  quarantineReason(direction: Direction): string {
    const bytes = this.#codes[direction].slice()
    const end = bytes.indexOf(0)
    return new TextDecoder().decode(bytes.subarray(0, end < 0 ? bytes.length : end))
  }

  setQuarantineReason(direction: Direction, reason: string): void {
    const bytes = this.#codes[direction]
    bytes.fill(0)
    bytes.set(new TextEncoder().encode(reason).subarray(0, CODE_BYTES - 1))
  }

  /** Device worker: publishes a command whose parameters are in place; the caller then signals the worker's eventfd. */
  issue(command: Command): void {
    Atomics.store(this.#words, WORD.command, command)
    Atomics.add(this.#words, WORD.issued, 1)
  }

  /** Device worker: sleeps until the last command is answered. False if it is not within `timeoutMs`. */
  awaitDone(timeoutMs: number): boolean {
    const issued = Atomics.load(this.#words, WORD.issued)
    const deadline = performance.now() + timeoutMs
    for (;;) {
      const done = Atomics.load(this.#words, WORD.done)
      if (done === issued) return true
      const left = deadline - performance.now()
      if (left <= 0) return false
      Atomics.wait(this.#words, WORD.done, done, left)
    }
  }

  /** Queue worker: the command that waits, or COMMAND.none. */
  pendingCommand(): Command {
    if (Atomics.load(this.#words, WORD.issued) === Atomics.load(this.#words, WORD.done)) return COMMAND.none
    return Atomics.load(this.#words, WORD.command) as Command
  }

  /** Queue worker: the command is carried out. */
  answer(): void {
    Atomics.store(this.#words, WORD.done, Atomics.load(this.#words, WORD.issued))
    Atomics.notify(this.#words, WORD.done)
  }

  markAlive(): void {
    Atomics.store(this.#words, WORD.alive, 1)
    Atomics.notify(this.#words, WORD.alive)
  }

  /** Sleeps until the queue worker waits for commands. */
  awaitAlive(timeoutMs: number): boolean {
    return Atomics.wait(this.#words, WORD.alive, 0, timeoutMs) !== 'timed-out'
  }
}
