import { VRING_DESC_BYTES } from '../abi/virtio-ring.ts'
import { addressOf, native } from '../sys/native.ts'
import { type AddressSpace, TRANSLATED } from './address-space.ts'
import { IovecArena } from './iovec-arena.ts'
import { ACCESS } from './region.ts'
import type { TableWindow } from './ring-view.ts'

/**
 * Reads descriptors of indirect tables, which lie anywhere in the driver's memory. The specification asks for no
 * alignment of a table (VIRTIO 1.2 §2.7.5.3), and one may cross regions: each descriptor is found for itself, and
 * copied once.
 */
export class TableReader {
  /** The last descriptor read, as four little-endian words. */
  readonly words = new Uint32Array(VRING_DESC_BYTES / 4)
  /** For a descriptor that is read without a window: its pieces, and where these are listed. */
  readonly #pieces = new IovecArena(1, VRING_DESC_BYTES)
  readonly #piecesAt = addressOf(this.#pieces.iovecs)
  readonly #space: AddressSpace
  #window: TableWindow | undefined
  #generation = -1

  constructor(space: AddressSpace) {
    this.#space = space
  }

  /** Copies the descriptor at driver address `address` (below 2^53) into `words`; false if a part of it is unmapped. */
  read(address: number): boolean {
    const window = this.#windowAt(address)
    if (window === undefined) return this.#copy(address)
    const offset = address - window.start
    const at = offset >>> 2
    const from = window.words
    if ((offset & 3) !== 0 || at + 4 > from.length) return this.#copy(address)
    const words = this.words
    words[0] = from[at]!
    words[1] = from[at + 1]!
    words[2] = from[at + 2]!
    words[3] = from[at + 3]!
    return true
  }

  /** The words around what was found last: the driver's memory itself, where each load may give something else. */
  get windowWords(): Uint32Array {
    return this.#window!.words
  }

  /**
   * Where in `windowWords` the bytes at driver address `address` begin; -1 if they are not aligned, not all of them in
   * there, or to be read without a window.
   */
  locate(address: number, lengthBytes: number): number {
    const window = this.#windowAt(address)
    if (window === undefined) return -1
    const offset = address - window.start
    return (offset & 3) !== 0 || offset + lengthBytes > 4 * window.words.length ? -1 : offset >>> 2
  }

  /** The way without a window, for a descriptor that is unaligned or straddles two regions, too. */
  #copy(address: number): boolean {
    const pieces = this.#pieces
    pieces.clear()
    if (this.#space.translate(address, VRING_DESC_BYTES, ACCESS.read, pieces) !== TRANSLATED.ok) return false
    native.vn_guest_read(this.#piecesAt, pieces.iovecCount, this.words, VRING_DESC_BYTES)
    return true
  }

  #windowAt(address: number): TableWindow | undefined {
    const window = this.#window
    if (window !== undefined && address >= window.start && address < window.end) {
      if (this.#generation === this.#space.generation) return window
    }
    this.#window = this.#space.tableWindow(address)
    this.#generation = this.#space.generation
    return this.#window
  }
}
