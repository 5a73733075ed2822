import { VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE } from '../abi/virtio-ring.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import type { RingView } from '../memory/ring-view.ts'
import { Burst } from './burst.ts'
import type { ChainFifo } from './chain-fifo.ts'
import { CHAIN_OK, DESC_WORDS } from './descriptor-chain.ts'
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

const NEXT = VRING_DESC_F_NEXT << FLAGS_SHIFT
const WRITE = VRING_DESC_F_WRITE << FLAGS_SHIFT
const INDIRECT = VRING_DESC_F_INDIRECT << FLAGS_SHIFT

/** Takes bursts of chains from a packed ring. */
export class PackedBurst {
  readonly #burst: Burst
  readonly #table: IndirectTable
  readonly #size: number
  readonly #words: Uint32Array
  readonly #signedWords: Int32Array
  readonly #held: ChainFifo
  #end: Position = 0

  constructor(space: AddressSpace, indirect: boolean, ring: RingView, size: number, held: ChainFifo) {
    this.#burst = new Burst(space)
    this.#table = new IndirectTable(space, indirect)
    this.#size = size
    this.#words = ring.u32
    this.#signedWords = ring.i32
    this.#held = held
  }

  /** Position behind the last burst. */
  get end(): Position {
    return this.#end
  }

  /**
   * Takes chains from `start` on, of at most `limit` descriptors together: the device holds the rest of the ring.
   * Returns how many chains.
   */
  take(
    start: Position,
    limit: number,
    arena: IovecArena,
    direction: BufferDirection,
    chainsMax: number,
    bytesMax: number,
  ): number {
    this.#end = start
    const burst = this.#burst
    if (!burst.begin(arena, direction, chainsMax, bytesMax)) return 0
    const wanted = burst.wantedFlag << FLAGS_SHIFT
    const size = this.#size
    const words = this.#words
    const signedWords = this.#signedWords
    const held = this.#held
    const { ids, outcomes, positions, mask } = held
    let next = held.popped
    let position = start
    let left = limit
    all: while (left > 0 && burst.open()) {
      let behind = position
      let descriptors = 0
      let idAndFlags = 0
      for (;;) {
        const at = slotOf(behind, size) * DESC_WORDS
        // ORDERING: acquires the flags before the other fields of this descriptor and of those behind it are read.
        idAndFlags = Atomics.load(signedWords, at + ID_AND_FLAGS)
        const available = availableBits(behind, size)
        descriptors++
        behind = advance(behind, 1, size)
        if ((idAndFlags & (WRAP_BITS | WRITE | INDIRECT)) === (available | wanted)) {
          if (descriptors > left || !burst.take(words[at]!, words[at + 1]!, words[at + 2]!)) break all
          if ((idAndFlags & NEXT) === 0) break
          continue
        }
        if (descriptors > 1 || (idAndFlags & (WRAP_BITS | INDIRECT | NEXT)) !== (available | INDIRECT)) break all
        if (!this.#takeTable(words[at]!, words[at + 1]!, words[at + 2]!)) break all
        break
      }
      if (!burst.close()) break
      const place = next & mask
      ids[place] = idAndFlags
      outcomes[place] = CHAIN_OK
      positions[place] = position
      next++
      left -= descriptors
      position = behind
    }
    this.#end = position
    const taken = burst.commit()
    held.commit(taken)
    return taken
  }

  #takeTable(addressLow: number, addressHigh: number, length: number): boolean {
    const table = this.#table
    const start = table.locate(addressLow, addressHigh, length)
    if (start < 0) return false
    const burst = this.#burst
    const words = table.windowWords
    const wanted = burst.wantedFlag
    const end = start + table.entries * DESC_WORDS
    for (let at = start; at < end; at += DESC_WORDS) {
      if (((words[at + ID_AND_FLAGS]! >>> FLAGS_SHIFT) & VRING_DESC_F_WRITE) !== wanted) return false
      if (!burst.take(words[at]!, words[at + 1]!, words[at + 2]!)) return false
    }
    return true
  }
}
