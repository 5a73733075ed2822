/** A time that is never reached. */
export const NEVER = Number.POSITIVE_INFINITY

/**
 * Call coalescing of one queue (VIRTIO_NET_F_NOTF_COAL): a call is immediate, or waits for a number of packets or a
 * delay, whichever comes first. The ring then decides whether the driver wants the call. VIRTIO 1.3 §5.1.6.5.9.
 */
export class CallCoalescing {
  #packets = 0
  #delayMs = 0
  #waiting = 0
  #dueMs = NEVER

  /** False if all calls are immediate. */
  get active(): boolean {
    return this.#packets !== 0
  }

  /** When the delayed call is due, by `performance.now()`; {@link NEVER} if none is delayed. */
  get dueMs(): number {
    return this.#dueMs
  }

  /** If either is 0, calls are immediate. No call may be delayed when this is called. */
  set(packets: number, usecs: number): void {
    this.#packets = usecs === 0 ? 0 : packets
    this.#delayMs = usecs / 1000
  }

  /**
   * Adds `used` buffers of a ring of `size`. True if their call is delayed. Buffers count as packets although a packet
   * may have several, so calls may come early. Half a ring is always enough for a call: otherwise the driver gets no
   * buffers back in time to refill the ring.
   */
  delays(used: number, size: number): boolean {
    this.#waiting += used
    if (this.#waiting >= Math.min(this.#packets, size >> 1)) {
      this.clear()
      return false
    }
    if (this.#dueMs === NEVER) this.#dueMs = performance.now() + this.#delayMs
    return true
  }

  /** Forgets the delayed call: the caller makes it now. */
  clear(): void {
    this.#waiting = 0
    this.#dueMs = NEVER
  }
}
