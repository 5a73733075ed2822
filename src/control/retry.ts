const FIRST_MS = 100
const LAST_MS = 5_000

/** When to try again what fails for now: after 100 ms, then after twice as long with each failure, up to 5 s. */
export class Retry {
  #delayMs = FIRST_MS
  #atMs: number

  /** `nowMs`: performance.now(), here as below. */
  constructor(nowMs: number) {
    this.#atMs = nowMs + this.#delayMs
  }

  /** Nothing has failed yet. */
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
