import { DriverFault } from '../base/errors.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import { DirtyLog } from '../memory/dirty-log.ts'
import { type BorrowedArea, BorrowedMapping } from '../sys/mapping.ts'
import { type SignalTarget, signalPeer } from '../sys/peer-signal.ts'
import { logRing } from '../virtqueue/ring-log.ts'
import type { VirtqueueConfig } from '../virtqueue/virtqueue-config.ts'

/** One thread's dirty log, set while a front-end migrates its guest. */
export class MigrationLog {
  /** Where written pages are logged; null without a log. */
  pages: DirtyLog | null = null
  readonly #space: AddressSpace
  #signal: SignalTarget = -1

  constructor(space: AddressSpace) {
    this.#space = space
  }

  /** Logs pages in `area` and signals `signal`; null and -1 for neither. Releases the previous log. */
  set(area: BorrowedArea | null, signal: SignalTarget): void {
    this.pages?.[Symbol.dispose]()
    this.pages = area === null ? null : new DirtyLog(this.#space, new BorrowedMapping(area))
    this.#signal = signal
  }

  /**
   * Logs writes to the ring of `config`, then signals for everything logged in this turn. `usedLog`: guest address
   * under which used ring writes are logged, or -1.
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
