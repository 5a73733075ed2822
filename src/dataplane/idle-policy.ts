/** Looking for work pays as long as the next packet is nearer than a sleep and its wake-up take. Milliseconds. */
const SPIN_MIN_MS = 0.01
const SPIN_MAX_MS = 0.05

/**
 * How long a queue worker looks for work before it sleeps. As the kernel does for idle virtual processors (halt
 * polling): after a sleep that was shorter than the longest spin it looks longer the next time, after any other not at
 * all. So it spins only while packets come in quick succession, and an idle card costs nothing. A fixed time is the
 * operator's choice.
 */
export class IdlePolicy {
  readonly #fixedMs: number | null
  #spinMs: number

  /** `busyPollUs`: microseconds to look each time; null to adapt. */
  constructor(busyPollUs: number | null) {
    this.#fixedMs = busyPollUs === null ? null : busyPollUs / 1000
    this.#spinMs = this.#fixedMs ?? 0
  }

  /** Milliseconds to look before the next sleep. */
  get spinMs(): number {
    return this.#spinMs
  }

  /** A sleep has lasted so long. */
  slept(ms: number): void {
    if (this.#fixedMs !== null) return
    this.#spinMs = ms >= SPIN_MAX_MS ? 0 : Math.min(SPIN_MAX_MS, Math.max(SPIN_MIN_MS, this.#spinMs * 2))
  }
}
