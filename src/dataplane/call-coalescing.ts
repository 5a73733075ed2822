/** A time that does not come. */
export const NEVER = Number.POSITIVE_INFINITY

/**
 * When a driver is called for what a queue has used: at once, or as it has asked for, after a number of packets or some
 * time, whichever comes first. Whether it is called at all then is another question, which its ring answers. VIRTIO 1.3
 * §5.1.6.5.9.
 */
export class CallCoalescing {
  #packets = 0
  #delayMs = 0
  #waiting = 0
  #dueMs = NEVER

  /** Do calls wait? If not, there is nothing to ask here. */
  get active(): boolean {
    return this.#packets !== 0
  }

  /** When the call that waits is to be made, by `performance.now()`; {@link NEVER} if none does. */
  get dueMs(): number {
    return this.#dueMs
  }

  /** If either is 0, calls do not wait. No call may be waiting. */
  set(packets: number, usecs: number): void {
    this.#packets = usecs === 0 ? 0 : packets
    this.#delayMs = usecs / 1000
  }

  /**
   * So many more buffers of a ring of `size` are used: does the call for them wait? A packet has one buffer or several,
   * so that calls come rather too often; and after half a ring in any case, or the driver would get no buffers back
   * while it has some to give.
   */
  waits(used: number, size: number): boolean {
    this.#waiting += used
    if (this.#waiting >= Math.min(this.#packets, size >> 1)) {
      this.clear()
      return false
    }
    if (this.#dueMs === NEVER) this.#dueMs = performance.now() + this.#delayMs
    return true
  }

  /** The call that waits, if one does, is made now. */
  clear(): void {
    this.#waiting = 0
    this.#dueMs = NEVER
  }
}
