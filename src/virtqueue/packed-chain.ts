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
import type { Direction } from './virtqueue.ts'

/** Further answers of a walk below zero. */
const CHAIN_NOT_AVAILABLE = -3
export const CHAIN_TAIL_NOT_AVAILABLE = -4
export const CHAIN_OVERRUN = -5

/** Walks the chains of a packed ring: descriptors that follow each other. VIRTIO 1.2 §2.8.6. */
export class PackedChainWalker {
  readonly #chain: OpenChain
  readonly #table: IndirectTable
  readonly #size: number
  readonly #words: Uint32Array
  readonly #signedWords: Int32Array
  #id = 0
  #descriptors = 0

  /** `ring`: the descriptor ring, of `size` entries. `indirect`: VIRTIO_F_INDIRECT_DESC was negotiated. */
  constructor(space: AddressSpace, ring: RingView, size: number, indirect: boolean) {
    this.#chain = new OpenChain(space)
    this.#table = new IndirectTable(space, indirect)
    this.#size = size
    this.#words = ring.u32
    this.#signedWords = ring.i32
  }

  /** Buffer id of the last chain walked, whole or malformed. */
  get id(): number {
    return this.#id
  }

  /** How many descriptors it takes in the ring. */
  get descriptors(): number {
    return this.#descriptors
  }

  /** Has the driver made a descriptor available there? */
  isAvailable(position: Position): boolean {
    const word = Atomics.load(this.#signedWords, slotOf(position, this.#size) * DESC_WORDS + ID_AND_FLAGS)
    return (word & WRAP_BITS) === availableBits(position, this.#size)
  }

  /**
   * Walks the chain that starts at `position` and may have `limit` descriptors, the rest of the ring being held.
   * CHAIN_OK: it is the arena's new last chain. Otherwise the arena is as before: CHAIN_NO_ROOM, CHAIN_NOT_AVAILABLE,
   * the reason to drop it, or what the ring cannot go on after: CHAIN_TAIL_NOT_AVAILABLE, CHAIN_OVERRUN.
   */
  walk(position: Position, limit: number, direction: Direction, arena: IovecArena): number {
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
      // ORDERING: acquires the flags before the other fields of the descriptor, and of those behind it, are read.
      const idAndFlags = Atomics.load(this.#signedWords, at + ID_AND_FLAGS)
      if ((idAndFlags & WRAP_BITS) !== availableBits(position, size)) {
        // The driver makes the first descriptor of a chain available last. VIRTIO 1.2 §2.8.21.
        return count === 1 ? CHAIN_NOT_AVAILABLE : CHAIN_TAIL_NOT_AVAILABLE
      }
      // What is held is not the driver's to make available again, and neither is there an end to a ring of NEXT only.
      if (count > limit) return CHAIN_OVERRUN
      const flags = idAndFlags >>> FLAGS_SHIFT
      const hasNext = (flags & VRING_DESC_F_NEXT) !== 0
      // A malformed chain is followed to its end all the same, which has its id and tells where the next one begins.
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
        // It stays in the ring.
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

  /** Of a table's descriptors all are taken in order, and only the WRITE flag means something. VIRTIO 1.2 §2.8.7. */
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
