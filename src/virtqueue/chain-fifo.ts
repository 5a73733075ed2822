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
 * The chains that the device holds, oldest first: those it has popped and not used, behind those it has used and not
 * published. It is the device's own record: what the ring says may change at any time, as the driver likes.
 *
 * `published`, `staged` and `popped` run freely, 0..65535, and follow each other; masked they are the place of a chain
 * in the columns.
 */
export class ChainFifo {
  /** The id that the driver knows the chain by: its head in a split ring, its buffer id in a packed one. */
  readonly ids: Uint16Array
  /** CHAIN_OK, or why the chain is dropped: an index of dropReasons. */
  readonly outcomes: Int8Array
  /** Where in the ring the chain begins. Of a packed ring only. */
  readonly positions: Uint16Array
  /** Bytes written into a chain that is used. */
  readonly lengths: Uint32Array
  readonly mask: number
  readonly #drops: Uint32Array | Float64Array
  #published: number
  #staged: number
  #popped: number
  #inFlight = 0

  /** Room for `capacity` chains, at most 32768, the first with number `start`. `drops` counts by reason. */
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

  /** The oldest chain that is not published. */
  get published(): number {
    return this.#published
  }

  /** The oldest chain that is not used. */
  get staged(): number {
    return this.#staged
  }

  /** The chain that is popped next. */
  get popped(): number {
    return this.#popped
  }

  /** Chains that the driver has not been given back. */
  get held(): number {
    return (this.#popped - this.#published) & 0xffff
  }

  /** Popped and not used, malformed ones excepted. */
  get inFlight(): number {
    return this.#inFlight
  }

  /** Adds a chain that was popped. A malformed one is used as soon as no older one is in flight. */
  push(id: number, outcome: number, position: number): void {
    const place = this.#popped & this.mask
    this.ids[place] = id
    this.outcomes[place] = outcome
    this.positions[place] = position
    this.#popped = (this.#popped + 1) & 0xffff
    if (outcome === CHAIN_OK) this.#inFlight++
    else if (this.#inFlight === 0) this.#stageDropped()
  }

  /** Takes over `count` good chains whose columns were written from `popped` on. */
  commit(count: number): void {
    this.#popped = (this.#popped + count) & 0xffff
    this.#inFlight += count
  }

  /**
   * Takes the last `count` chains in flight back, with the malformed ones among and after them; how many chains that
   * are. They stay readable, from `popped` on, until the next push.
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

  /** Uses the oldest chain in flight, and the malformed ones that waited for it. */
  stage(lengthBytes: number): void {
    assert(this.#inFlight > 0, 'no chain is in flight')
    this.lengths[this.#staged & this.mask] = lengthBytes
    this.#staged = (this.#staged + 1) & 0xffff
    this.#inFlight--
    if (this.#staged !== this.#popped) this.#stageDropped()
  }

  /** All that is staged has been shown to the driver. */
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
