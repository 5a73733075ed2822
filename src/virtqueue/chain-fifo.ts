import { dropReasons } from '../abi/drop-reason.ts'
import { assert } from '../base/assert.ts'
import { CHAIN_OK } from './descriptor-chain.ts'

/** Smallest power of two that is not below `size`. */
const powerOfTwo = (size: number): number => {
  let power = 1
  while (power < size) power *= 2
  return power
}

/**
 * The chains that the device holds, oldest first: used and not published, then popped and not used. It is private to
 * the device: the driver can change the ring at any time.
 *
 * `published`, `staged` and `popped` are free-running u16 indices, in this order; masked they index the columns.
 */
export class ChainFifo {
  /** The chain's id in the ring: head (split) or buffer id (packed). */
  readonly ids: Uint16Array
  /** CHAIN_OK, or why the chain is dropped: an index of dropReasons. */
  readonly outcomes: Int8Array
  /** Position of the chain's first descriptor (packed rings only). */
  readonly positions: Uint16Array
  /** Bytes written into a used chain. */
  readonly lengths: Uint32Array
  readonly mask: number
  readonly #drops: Uint32Array | Float64Array
  #published: number
  #staged: number
  #popped: number
  #inFlight = 0

  /** Holds up to `capacity` chains (at most 32768). `start`: index of the first. `drops`: counters by drop reason. */
  constructor(capacity: number, start: number, drops: Uint32Array | Float64Array) {
    assert(drops.length >= dropReasons.length)
    const places = powerOfTwo(capacity)
    this.ids = new Uint16Array(places)
    this.outcomes = new Int8Array(places)
    this.positions = new Uint16Array(places)
    this.lengths = new Uint32Array(places)
    this.mask = places - 1
    this.#drops = drops
    this.#published = start
    this.#staged = start
    this.#popped = start
  }

  /** Index of the oldest chain that is not published. */
  get published(): number {
    return this.#published
  }

  /** Index of the oldest chain that is not used. */
  get staged(): number {
    return this.#staged
  }

  /** Index of the next chain to pop. */
  get popped(): number {
    return this.#popped
  }

  /** Chains popped and not published. */
  get held(): number {
    return (this.#popped - this.#published) & 0xffff
  }

  /** Chains popped and not used, without malformed ones. */
  get inFlight(): number {
    return this.#inFlight
  }

  /** Adds a popped chain. A malformed one is used as soon as no older one is in flight. */
  push(id: number, outcome: number, position: number): void {
    const place = this.#popped & this.mask
    this.ids[place] = id
    this.outcomes[place] = outcome
    this.positions[place] = position
    this.#popped = (this.#popped + 1) & 0xffff
    if (outcome === CHAIN_OK) this.#inFlight++
    else if (this.#inFlight === 0) this.#stageDropped()
  }

  /** Adds `count` well-formed chains whose columns the caller has written from `popped` on. */
  commit(count: number): void {
    this.#popped = (this.#popped + count) & 0xffff
    this.#inFlight += count
  }

  /**
   * Removes the last `count` chains in flight, with the malformed ones among and after them. Returns how many chains
   * that are. Their columns stay valid, from `popped` on, until the next push.
   */
  unpop(count: number): number {
    assert(count <= this.#inFlight, 'giving back more chains than were popped')
    const last = this.#popped
    let left = count
    while (left > 0) {
      this.#popped = (this.#popped - 1) & 0xffff
      if (this.outcomes[this.#popped & this.mask] === CHAIN_OK) left--
    }
    this.#inFlight -= count
    return (last - this.#popped) & 0xffff
  }

  /** Uses the oldest chain in flight, and the malformed ones behind it. */
  stage(lengthBytes: number): void {
    assert(this.#inFlight > 0, 'no chain is in flight')
    this.lengths[this.#staged & this.mask] = lengthBytes
    this.#staged = (this.#staged + 1) & 0xffff
    this.#inFlight--
    if (this.#staged !== this.#popped) this.#stageDropped()
  }

  /** Marks all staged chains as published. */
  publish(): void {
    this.#published = this.#staged
  }

  #stageDropped(): void {
    while (this.#staged !== this.#popped) {
      const place = this.#staged & this.mask
      const outcome = this.outcomes[place]!
      if (outcome === CHAIN_OK) return
      this.#drops[outcome]!++
      this.lengths[place] = 0
      this.#staged = (this.#staged + 1) & 0xffff
    }
  }
}
