import { VRING_DESC_F_WRITE } from '../abi/virtio-ring.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import { ACCESS } from '../memory/region.ts'
import { CHAIN_BYTES_MAX, CHAIN_SEGMENTS_MAX } from './descriptor-chain.ts'
import { DIRECTION, type Direction } from './virtqueue.ts'

/**
 * Chains in which nothing is unusual, taken many at a time: each buffer goes the direction of the queue, is not empty,
 * and lies whole in the region that was used last. What is not so is left to {@link OpenChain}, which judges it; here
 * it is only not taken.
 *
 * All that a buffer needs is at hand in here, so that a loop over many descriptors is one piece of machine code without
 * a call.
 */
export class Burst {
  readonly #space: AddressSpace
  #arena!: IovecArena
  #chains!: Uint32Array
  #iovecs!: Uint32Array
  /** The region: driver addresses [start, end), and what makes a host address of one. */
  #start = 0
  #end = 0
  #delta = 0
  #wantedFlag = 0
  #chainsLeft = 0
  #bytesLeft = 0
  /** Bytes of the chains taken. */
  #bytes = 0
  /** Where the next chain record goes, and where the open chain's iovecs begin, end, and must end. */
  #chain = 0
  #first = 0
  #at = 0
  #limit = 0
  #length = 0

  constructor(space: AddressSpace) {
    this.#space = space
  }

  /** The WRITE flag as usual buffers have it. */
  get wantedFlag(): number {
    return this.#wantedFlag
  }

  /** Buffers of the open chain so far. */
  get buffers(): number {
    return this.#at - this.#first
  }

  /**
   * Begins a burst of at most `chainsMax` chains that ends with `bytesMax` in the arena. False if there is none to be
   * had.
   */
  begin(arena: IovecArena, direction: Direction, chainsMax: number, bytesMax: number): boolean {
    const { start, end, delta, access } = this.#space.lastRegion
    const writable = direction === DIRECTION.writable
    if (direction === DIRECTION.mixed || (access & (writable ? ACCESS.write : ACCESS.read)) === 0) return false
    this.#arena = arena
    this.#chains = arena.chains
    this.#iovecs = arena.iovecs
    this.#start = start
    this.#end = end
    this.#delta = delta
    this.#wantedFlag = writable ? VRING_DESC_F_WRITE : 0
    this.#chainsLeft = Math.min(chainsMax, arena.chainCapacity - arena.chainCount)
    this.#bytesLeft = bytesMax - arena.bytes
    this.#bytes = 0
    this.#chain = arena.chainCount
    this.#first = arena.iovecCount
    return true
  }

  /** Opens the next chain, forgetting one that was not closed; false at the end of the burst. */
  open(): boolean {
    if (this.#chainsLeft === 0 || this.#bytes >= this.#bytesLeft) return false
    this.#at = this.#first
    this.#limit = Math.min(this.#first + CHAIN_SEGMENTS_MAX, this.#arena.iovecCapacity)
    this.#length = 0
    return true
  }

  /** Takes the buffer of a descriptor, whose three fields were loaded once. False if it is unusual. */
  take(addressLow: number, addressHigh: number, length: number): boolean {
    // Above 2^53 numbers have gaps, but no region has an end there.
    const address = addressHigh * 0x1_0000_0000 + addressLow
    const at = this.#at
    if (length === 0 || address < this.#start || address + length > this.#end || at === this.#limit) return false
    const host = address + this.#delta
    const iovecs = this.#iovecs
    iovecs[4 * at] = host
    iovecs[4 * at + 1] = host / 0x1_0000_0000
    iovecs[4 * at + 2] = length
    this.#at = at + 1
    this.#length += length
    return true
  }

  /** Ends the open chain, all of whose buffers were taken. False if it is too long. */
  close(): boolean {
    if (this.#length > CHAIN_BYTES_MAX) return false
    const chain = this.#chain
    this.#chains[2 * chain] = this.#first
    this.#chains[2 * chain + 1] = this.#at - this.#first
    this.#chain = chain + 1
    this.#first = this.#at
    this.#bytes += this.#length
    this.#chainsLeft--
    return true
  }

  /** Ends the burst: the chains that were closed are the arena's. How many. */
  commit(): number {
    const arena = this.#arena
    const taken = this.#chain - arena.chainCount
    arena.commit(taken, this.#first - arena.iovecCount, this.#bytes)
    return taken
  }
}
