import { VRING_DESC_BYTES } from '../abi/virtio-ring.ts'
import { addressOf, native } from '../sys/native.ts'
import { type AddressSpace, TRANSLATED } from './address-space.ts'
import { IovecArena } from './iovec-arena.ts'
import { ACCESS } from './region.ts'
import type { TableWindow } from './ring-view.ts'

/**
 * Reads descriptors of indirect tables, which lie anywhere in the driver's memory. The specification asks for no
 * alignment of a table (VIRTIO 1.2 §2.7.5.3), and one may cross regions: each descriptor is located by itself and
 * copied once.
 */
export class TableReader {
  /** The last descriptor read, as four little-endian words. */
  readonly words = new Uint32Array(VRING_DESC_BYTES / 4)
  /** For reads without a window: the descriptor's pieces, and the address of their list. */
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

  /** The words of the last window. This is driver memory: two loads of a word may differ. */
  get windowWords(): Uint32Array {
    return this.#window!.words
  }

  /**
   * Index in `windowWords` of the bytes at driver address `address`; -1 if they are unaligned, not wholly inside, or
   * must be read without a window.
   */
  locate(address: number, lengthBytes: number): number {
    const window = this.#windowAt(address)
    if (window === undefined) return -1
    const offset = address - window.start
    return (offset & 3) !== 0 || offset + lengthBytes > 4 * window.words.length ? -1 : offset >>> 2
  }

  /** Reads without a window; also for a descriptor that is unaligned or crosses two regions. */
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
