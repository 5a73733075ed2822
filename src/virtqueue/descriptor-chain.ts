import { DROP } from '../abi/drop-reason.ts'
import { VRING_DESC_BYTES, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE } from '../abi/virtio-ring.ts'
import { type AddressSpace, TRANSLATED } from '../memory/address-space.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import { ACCESS, type Access } from '../memory/region.ts'
import { TableReader } from '../memory/table-reader.ts'
import { DIRECTION, type Direction } from './virtqueue.ts'

/** Pieces of memory in a chain at most, and descriptors in an indirect table: IOV_MAX, which readv and writev impose. */
export const CHAIN_SEGMENTS_MAX = 1024

/** Words of a descriptor: address low, address high, length, flags and next. */
const DESC_WORDS = VRING_DESC_BYTES / 4

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
    const outcome = this.#append(table, size, head, direction, arena)
    if (outcome === CHAIN_OK) arena.close()
    else arena.abandon()
    return outcome
  }

  #append(table: Uint32Array, size: number, head: number, direction: Direction, arena: IovecArena): number {
    let access: Access = direction === DIRECTION.writable ? ACCESS.write : ACCESS.read
    let wantedFlag = direction === DIRECTION.writable ? VRING_DESC_F_WRITE : 0
    const reader = this.#reader
    // Where descriptors come from: the ring's table, then perhaps an indirect one, which ends the chain.
    let inTable = false
    let tableAddress = 0
    let words = table
    let limit = size
    let index = head
    let bytes = 0
    // More steps than there are descriptors to visit: a loop.
    for (let left = size; left > 0; left--) {
      let at = index * DESC_WORDS
      if (inTable) {
        if (!reader.read(tableAddress + index * VRING_DESC_BYTES)) return DROP.chain_address_unmapped
        at = 0
      }
      // The driver may change a descriptor at any time: what is checked is what is used, so each word is loaded once.
      const addressLow = words[at]!
      const addressHigh = words[at + 1]!
      const length = words[at + 2]!
      const flagsAndNext = words[at + 3]!
      const hasNext = (flagsAndNext & VRING_DESC_F_NEXT) !== 0
      // Above 2^53 numbers have gaps. A sum rounds only there, and what it rounds to is refused all the same.
      const address = addressHigh * 0x1_0000_0000 + addressLow
      const addressable = address + length <= Number.MAX_SAFE_INTEGER

      if ((flagsAndNext & VRING_DESC_F_INDIRECT) !== 0) {
        // The WRITE flag has no meaning here. VIRTIO 1.2 §2.7.5.3.2.
        if (!this.#indirect) return DROP.indirect_not_negotiated
        if (inTable || hasNext) return DROP.indirect_malformed
        if (length === 0 || length % VRING_DESC_BYTES !== 0) return DROP.indirect_malformed
        limit = length / VRING_DESC_BYTES
        if (limit > CHAIN_SEGMENTS_MAX) return DROP.chain_too_many_segments
        if (!addressable) return DROP.chain_address_unmapped
        inTable = true
        tableAddress = address
        words = reader.words
        index = 0
        // This step itself visits nothing of the table.
        left = limit + 1
        continue
      }
      // An empty buffer is skipped, wherever it points: Linux sends such in RSS commands.
      if (length !== 0) {
        if ((flagsAndNext & VRING_DESC_F_WRITE) !== wantedFlag) {
          if (direction !== DIRECTION.mixed || wantedFlag !== 0) return DROP.chain_wrong_direction
          // From its first writable buffer on a chain has no readable one. VIRTIO 1.2 §2.7.4.2.
          wantedFlag = VRING_DESC_F_WRITE
          access = ACCESS.write
          arena.endReadable()
        }
        bytes += length
        if (bytes > CHAIN_BYTES_MAX) return DROP.chain_too_long
        if (!addressable) return DROP.chain_address_unmapped
        const translated = this.#space.translate(address, length, access, arena)
        if (translated === TRANSLATED.fault) return DROP.chain_address_unmapped
        if (arena.openIovecs > CHAIN_SEGMENTS_MAX) return DROP.chain_too_many_segments
        if (translated === TRANSLATED.noRoom)
          return arena.openChainIsAlone ? DROP.chain_too_many_segments : CHAIN_NO_ROOM
      }
      if (!hasNext) {
        if (bytes === 0) return DROP.chain_empty
        // A command without room for its answer cannot be answered.
        return wantedFlag === 0 && direction === DIRECTION.mixed ? DROP.chain_wrong_direction : CHAIN_OK
      }
      index = flagsAndNext >>> 16
      if (index >= limit) return DROP.chain_next_out_of_range
    }
    return DROP.chain_loop
  }
}
