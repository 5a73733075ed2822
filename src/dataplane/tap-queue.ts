import { POLLIN, POLLOUT, type Poller } from '../sys/poller.ts'
import type { PacketIo } from './packet-io.ts'

/**
 * The TAP queue of a worker, as both ways of packets see it: whether packets can pass, and what of it is waited for.
 */
export class TapQueue {
  /** False while the operator has switched the link off. */
  linkUp = true
  readonly #poller: Poller
  readonly #slot: number
  readonly #io: PacketIo
  #fd = -1
  #events = 0

  /** Takes one slot of the poll set. */
  constructor(poller: Poller, io: PacketIo) {
    this.#poller = poller
    this.#slot = poller.add(-1, 0)
    this.#io = io
  }

  /** False while there is no TAP. */
  get present(): boolean {
    return this.#fd >= 0
  }

  /** POLL* bits that the last wait found. */
  get ready(): number {
    return this.#poller.ready(this.#slot)
  }

  /** True if the last wait found that the TAP answers with errors only. */
  get failed(): boolean {
    return (this.ready & ~(POLLIN | POLLOUT)) !== 0
  }

  /** Uses another descriptor from now on; -1 for none. */
  use(fd: number): void {
    this.#fd = fd
    this.#io.tapFd = fd
    this.#apply()
  }

  /** Waits for one event of the TAP from now on, or does not. Errors are found while anything is waited for. */
  waitFor(event: typeof POLLIN | typeof POLLOUT, wanted: boolean): void {
    this.#events = wanted ? this.#events | event : this.#events & ~event
    this.#apply()
  }

  #apply(): void {
    this.#poller.setFd(this.#slot, this.#events === 0 ? -1 : this.#fd)
    this.#poller.setEvents(this.#slot, this.#events)
  }
}
