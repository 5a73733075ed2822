import type { SplitDriver } from './driver-model.ts'
import type { PackedDriver } from './packed-driver.ts'

/**
 * Makes the chains that a driver has added available again and again, without allocating and with as little work as can
 * be: for loops of millions.
 */
export interface Replay {
  /** Makes the next `count` chains available. All that were before must have been used. */
  offer(count: number): void
}

/** Only avail.idx moves. The driver has added its chains, and is not used any more. */
export class SplitReplay implements Replay {
  readonly #avail: Uint16Array
  #idx = 0

  constructor(driver: SplitDriver) {
    // Fewer chains than slots: the same heads again, at such a distance that no two are in flight together.
    const heads = driver.outstanding
    for (let slot = heads; slot < driver.size; slot++) {
      driver.avail.setUint16(4 + 2 * slot, driver.avail.getUint16(4 + 2 * (slot % heads), true), true)
    }
    this.#avail = new Uint16Array(driver.avail.buffer, driver.avail.byteOffset, 2)
  }

  offer(count: number): void {
    this.#idx = (this.#idx + count) & 0xffff
    Atomics.store(this.#avail, 1, this.#idx)
  }
}

const BOTH_WRAP_BITS = 0x8080 << 16

/**
 * Lengths, ids and flags are written again, which is what the device has overwritten. The ring is full of the driver's
 * chains.
 */
export class PackedReplay implements Replay {
  readonly #words: Int32Array
  readonly #image: Int32Array
  /** First entry of each chain, and the end of the ring. */
  readonly #starts: Int32Array
  readonly #chains: number
  #chain = 0
  /** To be added to the flags of the image, which are those of wrap counter 1. */
  #flip = 0

  constructor(driver: PackedDriver) {
    if (driver.freeDescriptors !== 0) throw new Error('the ring is not full')
    driver.publish()
    this.#words = new Int32Array(driver.ring.buffer, driver.ring.byteOffset, 4 * driver.size)
    this.#image = this.#words.slice()
    const starts = [0]
    for (let slot = 0; slot < driver.size; slot++)
      if ((driver.ring.getUint16(16 * slot + 14, true) & 1) === 0) starts.push(slot + 1)
    this.#starts = Int32Array.from(starts)
    this.#chains = starts.length - 1
    for (let slot = 0; slot < driver.size; slot++) this.#words[4 * slot + 3] = 0
  }

  offer(count: number): void {
    const words = this.#words
    const image = this.#image
    for (let left = count; left > 0; left--) {
      const first = this.#starts[this.#chain]!
      for (let slot = this.#starts[this.#chain + 1]! - 1; slot > first; slot--) {
        words[4 * slot + 2] = image[4 * slot + 2]!
        words[4 * slot + 3] = image[4 * slot + 3]! ^ this.#flip
      }
      words[4 * first + 2] = image[4 * first + 2]!
      Atomics.store(words, 4 * first + 3, image[4 * first + 3]! ^ this.#flip)
      this.#chain++
      if (this.#chain === this.#chains) {
        this.#chain = 0
        this.#flip ^= BOTH_WRAP_BITS
      }
    }
  }
}
