import { DROP } from '../abi/drop-reason.ts'
import { VRING_DESC_BYTES, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE } from '../abi/virtio-ring.ts'
import { type AddressSpace, TRANSLATED } from '../memory/address-space.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import { ACCESS } from '../memory/region.ts'
import { TableReader } from '../memory/table-reader.ts'
import { DIRECTION, type Direction } from './virtqueue.ts'

/** Pieces of memory in a chain at most, and descriptors in an indirect table: IOV_MAX, which readv and writev impose. */
export const CHAIN_SEGMENTS_MAX = 1024

/** Bytes in a chain at most. VIRTIO 1.2 §2.7.5.2. */
const CHAIN_BYTES_MAX = 2 ** 32

/** Answers of the walk below zero; the others are indices of dropReasons. */
export const CHAIN_OK = -1
export const CHAIN_NO_ROOM = -2

/** Walks chains of descriptors, checks every one, and appends their buffers to an arena. */
export class ChainWalker {
  readonly #space: AddressSpace
  readonly #reader: TableReader
  readonly #indirect: boolean
  /** Bytes of the chain so far. */
  #bytes = 0

  /** `indirect`: VIRTIO_F_INDIRECT_DESC was negotiated. */
  constructor(space: AddressSpace, indirect: boolean) {
    this.#space = space
    this.#reader = new TableReader(space)
    this.#indirect = indirect
  }

  /**
   * Walks the chain that starts at `head` in a table of `size` descriptors, four words each. CHAIN_OK: it is the arena's new
   * last chain. Otherwise the arena is as before: CHAIN_NO_ROOM, or the reason to drop it.
   */
  walk(table: Uint32Array, size: number, head: number, direction: Direction, arena: IovecArena): number {
    if (!arena.hasChainRoom) return CHAIN_NO_ROOM
    this.#bytes = 0
    const outcome = this.#walkDirect(table, size, head, direction, arena)
    if (outcome === CHAIN_OK) arena.close()
    else arena.abandon()
    return outcome
  }

  #walkDirect(table: Uint32Array, size: number, head: number, direction: Direction, arena: IovecArena): number {
    let index = head
    for (let visited = 0; visited < size; visited++) {
      // The driver may change a descriptor at any time: what is checked is what is used, so each word is loaded once.
      const at = index * 4
      const addressLow = table[at]!
      const addressHigh = table[at + 1]!
      const length = table[at + 2]!
      const flagsAndNext = table[at + 3]!
      if ((flagsAndNext & VRING_DESC_F_INDIRECT) !== 0) {
        if (!this.#indirect) return DROP.indirect_not_negotiated
        if ((flagsAndNext & VRING_DESC_F_NEXT) !== 0) return DROP.indirect_malformed
        return this.#walkIndirect(addressLow, addressHigh, length, direction, arena)
      }
      const outcome = this.#append(addressLow, addressHigh, length, flagsAndNext, direction, arena)
      if (outcome !== CHAIN_OK) return outcome
      if ((flagsAndNext & VRING_DESC_F_NEXT) === 0) return this.#end()
      index = flagsAndNext >>> 16
      if (index >= size) return DROP.chain_next_out_of_range
    }
    return DROP.chain_loop
  }

  /** The descriptor's WRITE flag has no meaning, and the table ends the chain. VIRTIO 1.2 §2.7.5.3. */
  #walkIndirect(
    addressLow: number,
    addressHigh: number,
    tableBytes: number,
    direction: Direction,
    arena: IovecArena,
  ): number {
    if (tableBytes === 0 || tableBytes % VRING_DESC_BYTES !== 0) return DROP.indirect_malformed
    const size = tableBytes / VRING_DESC_BYTES
    if (size > CHAIN_SEGMENTS_MAX) return DROP.chain_too_many_segments
    const base = addressHigh * 0x1_0000_0000 + addressLow
    if (base + tableBytes > Number.MAX_SAFE_INTEGER) return DROP.chain_address_unmapped
    const reader = this.#reader
    const words = reader.words
    let index = 0
    for (let visited = 0; visited < size; visited++) {
      if (!reader.read(base + index * VRING_DESC_BYTES)) return DROP.chain_address_unmapped
      const flagsAndNext = words[3]!
      if ((flagsAndNext & VRING_DESC_F_INDIRECT) !== 0) return DROP.indirect_malformed
      const outcome = this.#append(words[0]!, words[1]!, words[2]!, flagsAndNext, direction, arena)
      if (outcome !== CHAIN_OK) return outcome
      if ((flagsAndNext & VRING_DESC_F_NEXT) === 0) return this.#end()
      index = flagsAndNext >>> 16
      if (index >= size) return DROP.chain_next_out_of_range
    }
    return DROP.chain_loop
  }

  /** Appends one buffer. An empty one is skipped, wherever it points: Linux sends such in RSS commands. */
  #append(
    addressLow: number,
    addressHigh: number,
    length: number,
    flags: number,
    direction: Direction,
    arena: IovecArena,
  ): number {
    if (length === 0) return CHAIN_OK
    const writable = (flags & VRING_DESC_F_WRITE) !== 0
    if (writable !== (direction === DIRECTION.writable)) return DROP.chain_wrong_direction
    this.#bytes += length
    if (this.#bytes > CHAIN_BYTES_MAX) return DROP.chain_too_long
    const address = addressHigh * 0x1_0000_0000 + addressLow
    // Above 2^53 numbers have gaps; the sum of an address just below and a length is refused as well.
    if (address + length > Number.MAX_SAFE_INTEGER) return DROP.chain_address_unmapped
    const translated = this.#space.translate(address, length, writable ? ACCESS.write : ACCESS.read, arena)
    if (translated === TRANSLATED.fault) return DROP.chain_address_unmapped
    if (arena.openIovecs > CHAIN_SEGMENTS_MAX) return DROP.chain_too_many_segments
    if (translated === TRANSLATED.ok) return CHAIN_OK
    return arena.openChainIsAlone ? DROP.chain_too_many_segments : CHAIN_NO_ROOM
  }

  #end(): number {
    return this.#bytes === 0 ? DROP.chain_empty : CHAIN_OK
  }
}
