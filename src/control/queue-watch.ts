import { errnoName } from '../base/errors.ts'
import { COUNTER, DIRECTION, type QueueBlock, type QueueFault } from '../channel/queue-block.ts'
import type { QueuePairBlock } from '../channel/queue-pair-block.ts'

/**
 * What the queue workers show of their queues, and what of it is news. Queues are numbered as the driver numbers them.
 */
export class QueueWatch {
  readonly #queues: readonly QueueBlock[]
  /** Queues that are quarantined. */
  readonly #broken = new Set<number>()
  /** By queue: unexpected answers of the TAP that were told. */
  readonly #tapErrors: number[]

  constructor(pairs: readonly QueuePairBlock[]) {
    this.#queues = pairs.flatMap(({ queues }) => queues)
    this.#tapErrors = this.#queues.map(() => 0)
  }

  /** True while a queue is quarantined, as far as was seen. */
  get anyBroken(): boolean {
    return this.#broken.size > 0
  }

  /** Queues that were quarantined since this was last asked. */
  takeFailed(): { readonly index: number; readonly fault: QueueFault }[] {
    const failed: { readonly index: number; readonly fault: QueueFault }[] = []
    for (const [index, { fault }] of this.#queues.entries()) {
      if (fault === null) this.#broken.delete(index)
      else if (!this.#broken.has(index)) {
        this.#broken.add(index)
        failed.push({ index, fault })
      }
    }
    return failed
  }

  /** Answers of the TAP that nobody has planned for, since this was last asked: a line for each queue. */
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
