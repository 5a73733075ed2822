import { POLLERR, POLLFD, POLLHUP, POLLIN, POLLNVAL, POLLOUT } from '../abi/linux.ts'
import { assert } from '../base/assert.ts'
import { addressOf, check, native } from './native.ts'

export { POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT }

/**
 * The poll set of one thread: an array of `struct pollfd`, reused so that waiting does not allocate. A slot keeps its
 * number until it is removed; a slot whose fd is negative is skipped by the kernel.
 */
export class Poller {
  readonly capacity: number
  readonly #words: Int32Array
  readonly #halves: Int16Array
  readonly #address: number
  readonly #taken: Uint8Array
  /** One more than the highest slot in use. */
  #count = 0

  constructor(capacity: number) {
    this.capacity = capacity
    this.#words = new Int32Array((capacity * POLLFD.sizeBytes) / 4)
    this.#halves = new Int16Array(this.#words.buffer)
    this.#address = addressOf(this.#words)
    this.#taken = new Uint8Array(capacity)
  }

  /** The slot of a new entry. `fd` may be -1 until it is known; `events` are POLL* bits. */
  add(fd: number, events: number): number {
    const slot = this.#taken.indexOf(0)
    assert(slot >= 0, 'the poller is full')
    this.#taken[slot] = 1
    this.#count = Math.max(this.#count, slot + 1)
    this.setFd(slot, fd)
    this.setEvents(slot, events)
    return slot
  }

  /** Frees the slot. */
  remove(slot: number): void {
    this.setFd(slot, -1)
    this.#taken[slot] = 0
    this.#count = this.#taken.lastIndexOf(1) + 1
  }

  /** Sets the slot's descriptor; -1 for none. Clears what was ready. */
  setFd(slot: number, fd: number): void {
    assert(this.#taken[slot] === 1, 'no such slot')
    this.#words[slot * 2] = fd
    this.#halves[slot * 4 + 3] = 0
  }

  /** Sets the slot's POLL* bits. POLLERR, POLLHUP and POLLNVAL are always reported, unless the fd is -1. */
  setEvents(slot: number, events: number): void {
    assert(this.#taken[slot] === 1, 'no such slot')
    this.#halves[slot * 4 + 2] = events
  }

  /**
   * Waits until a slot is ready, at most `timeoutMs` (-1: for ever, 0: no wait; fractions count). Returns the number of
   * ready slots; 0 also if a signal ended the wait. Throws SysError.
   */
  wait(timeoutMs: number): number {
    const ready = native.vn_poll(this.#address, this.#count, timeoutMs)
    if (ready > 0) return ready
    // After a signal the kernel does not write revents: they would be stale.
    for (let slot = 0; slot < this.#count; slot++) this.#halves[slot * 4 + 3] = 0
    return check('poll', ready)
  }

  /** The POLL* bits that the last wait found for the slot. */
  ready(slot: number): number {
    return this.#halves[slot * 4 + 3]!
  }
}
