import { NEVER } from './call-coalescing.ts'

/** After this many kicks in a row that made nothing available, kicks are masked. */
export const SPURIOUS_KICKS_MAX = 256
/** For how long; then the ring is looked at without a kick. */
export const MASK_MS = 5

/** The limit of what a driver can make a thread do by kicking: a count of kicks without any progress in between. */
export class SpuriousKicks {
  #count = 0
  #maskedUntilMs = NEVER

  /** True while kicks are not to be waited for. */
  get masked(): boolean {
    return this.#maskedUntilMs !== NEVER
  }

  /** When the mask ends, by `performance.now()`; {@link NEVER} without one. */
  get maskedUntilMs(): number {
    return this.#maskedUntilMs
  }

  /** The driver has kicked. True if kicks are masked from now on. */
  kicked(): boolean {
    if (++this.#count <= SPURIOUS_KICKS_MAX) return false
    this.#maskedUntilMs = performance.now() + MASK_MS
    return true
  }

  /** Something was used: the kicks before were not spurious. A mask stays until its time is over. */
  progressed(): void {
    this.#count = 0
  }

  /** Ends the mask and starts to count anew. */
  reset(): void {
    this.#count = 0
    this.#maskedUntilMs = NEVER
  }
}
