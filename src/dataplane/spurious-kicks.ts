import { NEVER } from './call-coalescing.ts'

/** After this many consecutive spurious kicks the kick fd is masked. */
export const SPURIOUS_KICKS_MAX = 256
/** Length of the mask. Then the ring is checked without a kick. */
export const MASK_MS = 5

/**
 * Counts kicks without progress in between, and masks kicks after too many: a driver cannot keep a thread busy by
 * kicking.
 */
export class SpuriousKicks {
  #count = 0
  #maskedUntilMs = NEVER

  /** True while the kick fd must not be polled. */
  get masked(): boolean {
    return this.#maskedUntilMs !== NEVER
  }

  /** When the mask ends, by `performance.now()`; {@link NEVER} without one. */
  get maskedUntilMs(): number {
    return this.#maskedUntilMs
  }

  /** Counts a kick. True if kicks are masked from now on. */
  kicked(): boolean {
    if (++this.#count <= SPURIOUS_KICKS_MAX) return false
    this.#maskedUntilMs = performance.now() + MASK_MS
    return true
  }

  /** A chain was used: earlier kicks were not spurious. A mask stays until its time is over. */
  progressed(): void {
    this.#count = 0
  }

  /** Ends the mask and resets the count. */
  reset(): void {
    this.#count = 0
    this.#maskedUntilMs = NEVER
  }
}
