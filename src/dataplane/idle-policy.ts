/**
 * Bounds of a spin. A spin pays off if the next packet arrives sooner than a sleep and its wake-up take. Milliseconds.
 */
const SPIN_MIN_MS = 0.01
const SPIN_MAX_MS = 0.05

/**
 * How long a queue worker spins before it sleeps. Adaptive like the kernel's halt polling: after a sleep shorter than
 * the longest spin the next spin is longer, after any other sleep there is none. The worker thus spins only while
 * packets follow each other quickly, and an idle card uses no processor time. The operator can choose a fixed time
 * instead.
 */
export class IdlePolicy {
  readonly #fixedMs: number | null
  #spinMs: number

  /** `busyPollUs`: microseconds to spin each time; null for adaptive. */
  constructor(busyPollUs: number | null) {
    this.#fixedMs = busyPollUs === null ? null : busyPollUs / 1000
    this.#spinMs = this.#fixedMs ?? 0
  }

  /** Milliseconds to spin before the next sleep. */
  get spinMs(): number {
    return this.#spinMs
  }

  /** Records the length of a sleep. */
  slept(ms: number): void {
    if (this.#fixedMs !== null) return
    this.#spinMs = ms >= SPIN_MAX_MS ? 0 : Math.min(SPIN_MAX_MS, Math.max(SPIN_MIN_MS, this.#spinMs * 2))
  }
}
