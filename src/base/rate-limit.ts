/** Lets so many things happen in each stretch of time, and counts the others: for log lines that somebody else can cause. */
export class RateLimit {
  readonly #most: number
  readonly #windowMs: number
  readonly #nowMs: () => number
  #windowEndsMs = 0
  #happened = 0
  #suppressed = 0

  constructor(most: number, windowMs: number, nowMs: () => number = () => performance.now()) {
    this.#most = most
    this.#windowMs = windowMs
    this.#nowMs = nowMs
  }

  /** May it happen? */
  allows(): boolean {
    const now = this.#nowMs()
    if (now >= this.#windowEndsMs) {
      this.#windowEndsMs = now + this.#windowMs
      this.#happened = 0
    }
    if (this.#happened === this.#most) {
      this.#suppressed++
      return false
    }
    this.#happened++
    return true
  }

  /** How often it was not allowed since this was last asked. */
  takeSuppressed(): number {
    const count = this.#suppressed
    this.#suppressed = 0
    return count
  }
}
