import { errnoName } from '../base/errors.ts'
import { COUNTER, DIRECTION, type QueueBlock, type QueueFault } from '../channel/queue-block.ts'
import type { QueuePairBlock } from '../channel/queue-pair-block.ts'

/**
 * Finds quarantines and TAP errors that the queue workers have recorded since the last call. Queues have the driver's
 * indices.
 */
export class QueueWatch {
  readonly #queues: readonly QueueBlock[]
  /** Quarantined queues that were reported. */
  readonly #reported = new Set<number>()
  /** By queue: unexpected TAP errors that were reported. */
  readonly #tapErrors: number[]

  constructor(pairs: readonly QueuePairBlock[]) {
    this.#queues = pairs.flatMap(({ queues }) => queues)
    this.#tapErrors = this.#queues.map(() => 0)
  }

  /** True while a reported queue is quarantined. */
  get anyQuarantined(): boolean {
    return this.#reported.size > 0
  }

  /** Queues quarantined since the last call. */
  takeFailed(): { readonly index: number; readonly fault: QueueFault }[] {
    const failed: { readonly index: number; readonly fault: QueueFault }[] = []
    for (const [index, { fault }] of this.#queues.entries()) {
      if (fault === null) this.#reported.delete(index)
      else if (!this.#reported.has(index)) {
        this.#reported.add(index)
        failed.push({ index, fault })
      }
    }
    return failed
  }

  /** Unexpected TAP errors since the last call: a log line for each queue. */
  takeTapErrors(): string[] {
    const lines: string[] = []
    for (const [index, { counters, tapErrno }] of this.#queues.entries()) {
      const errors = counters[COUNTER.tapErrors]!
      if (errors === this.#tapErrors[index]) continue
      this.#tapErrors[index] = errors
      const call = index % 2 === DIRECTION.rx ? 'read' : 'write'
      lines.push(`queue ${index}, ${call} of the TAP: ${errnoName(tapErrno)}, ${errors} times so far`)
    }
    return lines
  }
}
