import { DROP } from '../abi/drop-reason.ts'
import { VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT } from '../abi/virtio-ring.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import type { RingView } from '../memory/ring-view.ts'
import { CHAIN_NO_ROOM, CHAIN_OK, DESC_WORDS, OpenChain } from './descriptor-chain.ts'
import { IndirectTable } from './indirect-table.ts'
import {
  advance,
  availableBits,
  FLAGS_SHIFT,
  ID_AND_FLAGS,
  type Position,
  slotOf,
  WRAP_BITS,
} from './packed-descriptor.ts'
import type { BufferDirection } from './virtqueue.ts'

/** Further results of a walk below zero. */
const CHAIN_NOT_AVAILABLE = -3
export const CHAIN_TAIL_NOT_AVAILABLE = -4
export const CHAIN_OVERRUN = -5

/** Walks the chains of a packed ring: consecutive descriptors. VIRTIO 1.2 §2.8.6. */
export class PackedChainWalker {
  readonly #chain: OpenChain
  readonly #table: IndirectTable
  readonly #size: number
  readonly #words: Uint32Array
  readonly #signedWords: Int32Array
  #id = 0
  #descriptors = 0

  /** `ring`: the descriptor ring, of `size` entries. `indirect`: VIRTIO_RING_F_INDIRECT_DESC was negotiated. */
  constructor(space: AddressSpace, ring: RingView, size: number, indirect: boolean) {
    this.#chain = new OpenChain(space)
    this.#table = new IndirectTable(space, indirect)
    this.#size = size
    this.#words = ring.u32
    this.#signedWords = ring.i32
  }

  /** Buffer id of the last chain walked, well-formed or not. */
  get id(): number {
    return this.#id
  }

  /** Descriptors in the ring of the last chain walked. */
  get descriptors(): number {
    return this.#descriptors
  }

  /** True if the descriptor at `position` is available. */
  isAvailable(position: Position): boolean {
    const word = Atomics.load(this.#signedWords, slotOf(position, this.#size) * DESC_WORDS + ID_AND_FLAGS)
    return (word & WRAP_BITS) === availableBits(position, this.#size)
  }

  /**
   * Walks the chain at `position`, of at most `limit` descriptors: the device holds the rest of the ring. CHAIN_OK: the
   * chain is the arena's new last one. Otherwise the arena is unchanged: CHAIN_NO_ROOM, CHAIN_NOT_AVAILABLE, the reason
   * to drop the chain, or a fault that ends the ring: CHAIN_TAIL_NOT_AVAILABLE, CHAIN_OVERRUN.
   */
  walk(position: Position, limit: number, direction: BufferDirection, arena: IovecArena): number {
    if (!arena.hasChainRoom) return this.isAvailable(position) ? CHAIN_NO_ROOM : CHAIN_NOT_AVAILABLE
    this.#chain.begin(arena, direction)
    return this.#chain.close(this.#append(position, limit))
  }

  #append(start: Position, limit: number): number {
    const size = this.#size
    const chain = this.#chain
    let position = start
    let outcome = CHAIN_OK
    for (let count = 1; ; count++) {
      const at = slotOf(position, size) * DESC_WORDS
      // ORDERING: acquires the flags before the other fields of this descriptor and of those behind it are read.
      const idAndFlags = Atomics.load(this.#signedWords, at + ID_AND_FLAGS)
      if ((idAndFlags & WRAP_BITS) !== availableBits(position, size)) {
        // The driver makes the first descriptor of a chain available last. VIRTIO 1.2 §2.8.21.
        return count === 1 ? CHAIN_NOT_AVAILABLE : CHAIN_TAIL_NOT_AVAILABLE
      }
      // The driver cannot make held descriptors available again. This also ends a ring in which every descriptor has
      // NEXT.
      if (count > limit) return CHAIN_OVERRUN
      const flags = idAndFlags >>> FLAGS_SHIFT
      const hasNext = (flags & VRING_DESC_F_NEXT) !== 0
      // A malformed chain is followed to its last descriptor: that has the buffer id, and the next chain begins behind
      // it.
      if (outcome === CHAIN_OK) {
        const addressLow = this.#words[at]!
        const addressHigh = this.#words[at + 1]!
        const length = this.#words[at + 2]!
        if ((flags & VRING_DESC_F_INDIRECT) === 0) {
          outcome = chain.append(addressLow, addressHigh, length, flags)
        } else {
          // The WRITE flag has no meaning here. VIRTIO 1.2 §2.8.7.
          outcome = this.#table.enter(addressLow, addressHigh, length, !hasNext && count === 1)
          if (outcome === CHAIN_OK) outcome = this.#appendTable()
        }
        // The chain stays in the ring.
        if (outcome === CHAIN_NO_ROOM) return outcome
      }
      if (!hasNext) {
        this.#id = idAndFlags & 0xffff
        this.#descriptors = count
        return outcome === CHAIN_OK ? chain.end() : outcome
      }
      position = advance(position, 1, size)
    }
  }

  /** Appends all descriptors of the table in order. Only their WRITE flag has a meaning. VIRTIO 1.2 §2.8.7. */
  #appendTable(): number {
    const table = this.#table
    const words = table.words
    for (let index = 0; index < table.entries; index++) {
      if (!table.read(index)) return DROP.chain_address_unmapped
      const outcome = this.#chain.append(words[0]!, words[1]!, words[2]!, words[ID_AND_FLAGS]! >>> FLAGS_SHIFT)
      if (outcome !== CHAIN_OK) return outcome
    }
    return CHAIN_OK
  }
}
