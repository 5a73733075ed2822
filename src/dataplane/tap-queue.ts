import type { POLLIN, POLLOUT, Poller } from '../sys/poller.ts'
import type { PacketIo } from './packet-io.ts'

/**
 * A worker's TAP queue, shared by its receive and transmit path: whether packets can pass, and which events are polled.
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

  /** Switches to another descriptor; -1 for none. */
  use(fd: number): void {
    this.#fd = fd
    this.#io.tapFd = fd
    this.#apply()
  }

  /** Polls for one event of the TAP, or stops polling for it. Errors are found while any event is polled. */
  waitFor(event: typeof POLLIN | typeof POLLOUT, wanted: boolean): void {
    this.#events = wanted ? this.#events | event : this.#events & ~event
    this.#apply()
  }

  #apply(): void {
    this.#poller.setFd(this.#slot, this.#events === 0 ? -1 : this.#fd)
    this.#poller.setEvents(this.#slot, this.#events)
  }
}
