import { VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE } from '../abi/virtio-ring.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import { Burst } from './burst.ts'
import type { ChainFifo } from './chain-fifo.ts'
import { CHAIN_OK, DESC_WORDS } from './descriptor-chain.ts'
import { IndirectTable } from './indirect-table.ts'
import type { BufferDirection } from './virtqueue.ts'

/** Takes bursts of chains from a split ring. */
export class SplitBurst {
  readonly #burst: Burst
  readonly #table: IndirectTable
  readonly #descriptors: Uint32Array
  /** The entries of the avail ring. */
  readonly #availRing: Uint16Array
  readonly #held: ChainFifo
  readonly #headBusy: Uint8Array

  constructor(
    space: AddressSpace,
    indirect: boolean,
    descriptors: Uint32Array,
    availRing: Uint16Array,
    held: ChainFifo,
    headBusy: Uint8Array,
  ) {
    this.#burst = new Burst(space)
    this.#table = new IndirectTable(space, indirect)
    this.#descriptors = descriptors
    this.#availRing = availRing
    this.#held = held
    this.#headBusy = headBusy
  }

  /** Takes chains up to avail index `end`, which was loaded with acquire. Returns how many. */
  take(end: number, arena: IovecArena, direction: BufferDirection, chainsMax: number, bytesMax: number): number {
    const burst = this.#burst
    if (!burst.begin(arena, direction, chainsMax, bytesMax)) return 0
    const wanted = burst.wantedFlag
    const descriptors = this.#descriptors
    const availRing = this.#availRing
    const headBusy = this.#headBusy
    const held = this.#held
    const { ids, outcomes, mask } = held
    const size = headBusy.length
    let next = held.popped
    all: while (next !== end && burst.open()) {
      const head = availRing[next & (size - 1)]!
      if (head >= size || headBusy[head] === 1) break
      for (let index = head; ; ) {
        const at = index * DESC_WORDS
        const flagsAndNext = descriptors[at + 3]!
        if ((flagsAndNext & (VRING_DESC_F_WRITE | VRING_DESC_F_INDIRECT)) === wanted) {
          if (!burst.take(descriptors[at]!, descriptors[at + 1]!, descriptors[at + 2]!)) break all
          if ((flagsAndNext & VRING_DESC_F_NEXT) === 0) break
          index = flagsAndNext >>> 16
          // A loop ends when the chain has too many buffers.
          if (index >= size) break all
          continue
        }
        if ((flagsAndNext & (VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT)) !== VRING_DESC_F_INDIRECT) break all
        if (!this.#takeTable(descriptors[at]!, descriptors[at + 1]!, descriptors[at + 2]!)) break all
        break
      }
      if (!burst.close()) break
      const place = next & mask
      ids[place] = head
      outcomes[place] = CHAIN_OK
      headBusy[head] = 1
      next = (next + 1) & 0xffff
    }
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
    const entries = table.entries
    for (let index = 0; index < entries; ) {
      const at = start + index * DESC_WORDS
      const flagsAndNext = words[at + 3]!
      if ((flagsAndNext & (VRING_DESC_F_WRITE | VRING_DESC_F_INDIRECT)) !== wanted) return false
      if (!burst.take(words[at]!, words[at + 1]!, words[at + 2]!)) return false
      if ((flagsAndNext & VRING_DESC_F_NEXT) === 0) return true
      index = flagsAndNext >>> 16
    }
    return false
  }
}
