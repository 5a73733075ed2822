import { VRING_DESC_F_WRITE } from '../abi/virtio-ring.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import { ACCESS } from '../memory/region.ts'
import { CHAIN_BYTES_MAX, CHAIN_SEGMENTS_MAX } from './descriptor-chain.ts'
import { BUFFER_DIRECTION, type BufferDirection } from './virtqueue.ts'

/**
 * The fast path: takes many ordinary chains at a time. In an ordinary chain every buffer has the queue's direction, is
 * not empty, and lies within the region used last. Any other chain is not taken; {@link OpenChain} checks it and names
 * its fault.
 *
 * All state is in this object, so that the engine can compile a loop over many descriptors without calls.
 */
export class Burst {
  readonly #space: AddressSpace
  #arena!: IovecArena
  #chains!: Uint32Array
  #iovecs!: Uint32Array
  /** The region: driver addresses [start, end), and host address minus driver address. */
  #start = 0
  #end = 0
  #delta = 0
  #wantedFlag = 0
  #chainsLeft = 0
  #bytesLeft = 0
  /** Bytes of the chains taken. */
  #bytes = 0
  /** Index of the next chain record, then first, next and limit of the open chain's iovecs. */
  #chain = 0
  #first = 0
  #at = 0
  #limit = 0
  #length = 0

  constructor(space: AddressSpace) {
    this.#space = space
  }

  /** The value of VRING_DESC_F_WRITE in ordinary buffers: the flag or 0. */
  get wantedFlag(): number {
    return this.#wantedFlag
  }

  /** Buffers of the open chain so far. */
  get buffers(): number {
    return this.#at - this.#first
  }

  /**
   * Begins a burst that ends after `chainsMax` chains or with `bytesMax` bytes in the arena. False if no chain can be
   * ordinary.
   */
  begin(arena: IovecArena, direction: BufferDirection, chainsMax: number, bytesMax: number): boolean {
    const { start, end, delta, access } = this.#space.lastRegion
    const writable = direction === BUFFER_DIRECTION.writable
    if (direction === BUFFER_DIRECTION.mixed || (access & (writable ? ACCESS.write : ACCESS.read)) === 0) return false
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

  /** Opens the next chain and forgets one that was not closed. False at the end of the burst. */
  open(): boolean {
    if (this.#chainsLeft === 0 || this.#bytes >= this.#bytesLeft) return false
    this.#at = this.#first
    this.#limit = Math.min(this.#first + CHAIN_SEGMENTS_MAX, this.#arena.iovecCapacity)
    this.#length = 0
    return true
  }

  /** Takes the buffer of a descriptor, whose three fields were loaded once. False if it is not ordinary. */
  take(addressLow: number, addressHigh: number, length: number): boolean {
    // Inexact above 2^53, but no region ends there.
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

  /** Closes the open chain. False if it is too long. */
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

  /** Ends the burst: hands the closed chains to the arena. Returns how many. */
  commit(): number {
    const arena = this.#arena
    const taken = this.#chain - arena.chainCount
    arena.commit(taken, this.#first - arena.iovecCount, this.#bytes)
    return taken
  }
}
