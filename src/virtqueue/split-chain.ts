import { DROP } from '../abi/drop-reason.ts'
import { VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT } from '../abi/virtio-ring.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import { CHAIN_NO_ROOM, CHAIN_OK, DESC_WORDS, OpenChain } from './descriptor-chain.ts'
import { IndirectTable } from './indirect-table.ts'
import type { BufferDirection } from './virtqueue.ts'

/** Walks the chains of a split ring: descriptors linked by `next`. VIRTIO 1.2 §2.7.5. */
export class SplitChainWalker {
  readonly #chain: OpenChain
  readonly #table: IndirectTable

  /** `indirect`: VIRTIO_RING_F_INDIRECT_DESC was negotiated. */
  constructor(space: AddressSpace, indirect: boolean) {
    this.#chain = new OpenChain(space)
    this.#table = new IndirectTable(space, indirect)
  }

  /**
   * Walks the chain that starts at `head` in a table of `size` descriptors, four words each. CHAIN_OK: the chain is the
   * arena's new last one. Otherwise the arena is unchanged: CHAIN_NO_ROOM, or the reason to drop the chain.
   */
  walk(descriptors: Uint32Array, size: number, head: number, direction: BufferDirection, arena: IovecArena): number {
    if (!arena.hasChainRoom) return CHAIN_NO_ROOM
    this.#chain.begin(arena, direction)
    return this.#chain.close(this.#append(descriptors, size, head))
  }

  #append(descriptors: Uint32Array, size: number, head: number): number {
    const chain = this.#chain
    let index = head
    // A chain with more steps than descriptors is a loop.
    for (let left = size; left > 0; left--) {
      const at = index * DESC_WORDS
      const addressLow = descriptors[at]!
      const addressHigh = descriptors[at + 1]!
      const length = descriptors[at + 2]!
      const flagsAndNext = descriptors[at + 3]!
      const hasNext = (flagsAndNext & VRING_DESC_F_NEXT) !== 0
      if ((flagsAndNext & VRING_DESC_F_INDIRECT) !== 0) {
        // The WRITE flag has no meaning here. VIRTIO 1.2 §2.7.5.3.2.
        const entered = this.#table.enter(addressLow, addressHigh, length, !hasNext)
        return entered === CHAIN_OK ? this.#appendTable() : entered
      }
      const outcome = chain.append(addressLow, addressHigh, length, flagsAndNext)
      if (outcome !== CHAIN_OK) return outcome
      if (!hasNext) return chain.end()
      index = flagsAndNext >>> 16
      if (index >= size) return DROP.chain_next_out_of_range
    }
    return DROP.chain_loop
  }

  #appendTable(): number {
    const chain = this.#chain
    const table = this.#table
    const words = table.words
    let index = 0
    for (let left = table.entries; left > 0; left--) {
      if (!table.read(index)) return DROP.chain_address_unmapped
      const flagsAndNext = words[3]!
      // A table may not refer to another table. VIRTIO 1.2 §2.7.5.3.1.
      if ((flagsAndNext & VRING_DESC_F_INDIRECT) !== 0) return DROP.indirect_malformed
      const outcome = chain.append(words[0]!, words[1]!, words[2]!, flagsAndNext)
      if (outcome !== CHAIN_OK) return outcome
      if ((flagsAndNext & VRING_DESC_F_NEXT) === 0) return chain.end()
      index = flagsAndNext >>> 16
      if (index >= table.entries) return DROP.chain_next_out_of_range
    }
    return DROP.chain_loop
  }
}
