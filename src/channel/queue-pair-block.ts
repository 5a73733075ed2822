import { dropReasons } from '../abi/drop-reason.ts'
import { QueueBlock } from './queue-block.ts'
import { decodeCommand, encodeCommand, PARAMETERS, type QueueCommand } from './queue-command.ts'

/** Int32 words. */
const WORD = {
  /** Counts of commands issued (written by the device worker) and carried out (written by the queue worker). */
  issued: 0,
  done: 1,
  /** Number of the last command. */
  command: 2,
  /** Set to 1 once the queue worker is ready for commands. */
  alive: 3,
} as const
const WORDS = 4

/**
 * One queue worker's memory shared with the device worker, which issues commands, and with main, which only reads. One
 * SharedArrayBuffer; each number has one writer. Every thread makes its own views.
 */
export class QueuePairBlock {
  /** Bytes of one block. */
  static readonly byteLength = WORDS * 4 + (PARAMETERS + dropReasons.length) * 8 + 2 * QueueBlock.byteLength
  readonly buffer: SharedArrayBuffer
  /** State of each queue, by DIRECTION. */
  readonly queues: readonly [rx: QueueBlock, tx: QueueBlock]
  /** Packets dropped: one element for each of dropReasons. */
  readonly drops: Float64Array
  readonly #words: Int32Array
  readonly #parameters: Float64Array

  constructor(buffer: SharedArrayBuffer = new SharedArrayBuffer(QueuePairBlock.byteLength)) {
    this.buffer = buffer
    this.#words = new Int32Array(buffer, 0, WORDS)
    this.#parameters = new Float64Array(buffer, WORDS * 4, PARAMETERS)
    this.drops = new Float64Array(buffer, WORDS * 4 + PARAMETERS * 8, dropReasons.length)
    const queues = WORDS * 4 + (PARAMETERS + dropReasons.length) * 8
    this.queues = [new QueueBlock(buffer, queues), new QueueBlock(buffer, queues + QueueBlock.byteLength)]
  }

  /** Device worker: publishes a command; the caller then signals the worker's eventfd. */
  issue(command: QueueCommand): void {
    Atomics.store(this.#words, WORD.command, encodeCommand(command, this.#parameters))
    // ORDERING: the count last: it publishes the command and its parameters.
    Atomics.add(this.#words, WORD.issued, 1)
  }

  /** Device worker: sleeps until the last command is carried out. False after `timeoutMs`. */
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

  /** Queue worker: the command that is not carried out yet, or null. */
  pendingCommand(): QueueCommand | null {
    if (Atomics.load(this.#words, WORD.issued) === Atomics.load(this.#words, WORD.done)) return null
    return decodeCommand(Atomics.load(this.#words, WORD.command), this.#parameters)
  }

  /** Queue worker: marks the command as carried out. */
  answer(): void {
    Atomics.store(this.#words, WORD.done, Atomics.load(this.#words, WORD.issued))
    Atomics.notify(this.#words, WORD.done)
  }

  /** Queue worker: marks it as ready for commands. */
  markAlive(): void {
    Atomics.store(this.#words, WORD.alive, 1)
    Atomics.notify(this.#words, WORD.alive)
  }

  /** Sleeps until the queue worker is ready for commands. False after `timeoutMs`. */
  awaitAlive(timeoutMs: number): boolean {
    return Atomics.wait(this.#words, WORD.alive, 0, timeoutMs) !== 'timed-out'
  }
}
