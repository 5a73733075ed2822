const FIRST_MS = 100
const LAST_MS = 5_000

/** The time of the next attempt: 100 ms after the first failure, then doubled with each failure up to 5 s. */
export class Retry {
  #delayMs = FIRST_MS
  #atMs: number

  /** `nowMs`: performance.now(), as in all methods. */
  constructor(nowMs: number) {
    this.#atMs = nowMs + this.#delayMs
  }

  /** True before the first call of {@link failed}. */
  get isFirst(): boolean {
    return this.#delayMs === FIRST_MS
  }

  isDue(nowMs: number): boolean {
    return nowMs >= this.#atMs
  }

  /** Whole milliseconds until it is due. */
  timeoutMs(nowMs: number): number {
    return Math.max(0, Math.ceil(this.#atMs - nowMs))
  }

  failed(nowMs: number): void {
    this.#delayMs = Math.min(this.#delayMs * 2, LAST_MS)
    this.#atMs = nowMs + this.#delayMs
  }
}
