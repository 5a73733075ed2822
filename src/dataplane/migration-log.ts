import { DriverFault } from '../base/errors.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import { DirtyLog } from '../memory/dirty-log.ts'
import { type BorrowedArea, BorrowedMapping } from '../sys/mapping.ts'
import { type SignalTarget, signalPeer } from '../sys/peer-signal.ts'
import { logRing } from '../virtqueue/ring-log.ts'
import type { VirtqueueConfig } from '../virtqueue/virtqueue-config.ts'

/**
 * The dirty log of one thread's view of the driver's memory, while a front-end migrates its guest; without one it does
 * nothing.
 */
export class MigrationLog {
  /** Where to note pages that are written; null for nowhere. */
  pages: DirtyLog | null = null
  readonly #space: AddressSpace
  #signal: SignalTarget = -1

  constructor(space: AddressSpace) {
    this.#space = space
  }

  /** True while there is a log. */
  get active(): boolean {
    return this.pages !== null
  }

  /** Notes pages in `area` from now on, and signals then; the log before is let go of. */
  set(area: BorrowedArea | null, signal: SignalTarget): void {
    this.pages?.[Symbol.dispose]()
    this.pages = area === null ? null : new DirtyLog(this.#space, new BorrowedMapping(area))
    this.#signal = signal
  }

  /**
   * Notes writes to the ring of `config`, and signals for all that was noted in the turn. `usedLog`: guest address by
   * which writes to its used ring are logged, or -1.
   * @throws DriverFault MEMORY_VANISHED
   */
  markRing(config: VirtqueueConfig, usedLog: number): void {
    const { pages } = this
    if (pages === null) return
    logRing(pages, config, usedLog)
    signalPeer(this.#signal)
    if (pages.vanished) throw new DriverFault('MEMORY_VANISHED', 'the dirty log was taken away')
  }
}
