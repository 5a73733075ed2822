import { DROP } from '../abi/drop-reason.ts'
import { VRING_DESC_BYTES, VRING_DESC_F_WRITE } from '../abi/virtio-ring.ts'
import { type AddressSpace, TRANSLATED } from '../memory/address-space.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import { ACCESS, type Access } from '../memory/region.ts'
import { DIRECTION, type Direction } from './virtqueue.ts'

/**
 * Pieces of memory in a chain at most, and descriptors in an indirect table: IOV_MAX, which readv and writev impose.
 */
export const CHAIN_SEGMENTS_MAX = 1024

/** Words of a descriptor of either layout: address low, address high, length, and two fields of 16 bits. */
export const DESC_WORDS = VRING_DESC_BYTES / 4

/** Bytes in a chain at most. VIRTIO 1.2 §2.7.5.2. */
export const CHAIN_BYTES_MAX = 2 ** 32

/** Answers of a walk below zero; the others are indices of dropReasons. */
export const CHAIN_OK = -1
export const CHAIN_NO_ROOM = -2

/** Checks the buffers of one chain after the other, whatever ring they stand in, and appends them to an arena. */
export class OpenChain {
  readonly #space: AddressSpace
  #arena!: IovecArena
  #mixed = false
  #wantedFlag = 0
  #access: Access = ACCESS.read
  #bytes = 0

  constructor(space: AddressSpace) {
    this.#space = space
  }

  /** Begins a chain in `arena`, which has room for one more. */
  begin(arena: IovecArena, direction: Direction): void {
    const writable = direction === DIRECTION.writable
    this.#arena = arena
    this.#mixed = direction === DIRECTION.mixed
    this.#wantedFlag = writable ? VRING_DESC_F_WRITE : 0
    this.#access = writable ? ACCESS.write : ACCESS.read
    this.#bytes = 0
  }

  /**
   * Appends the buffer of a descriptor: its four fields, each loaded once, since the driver may change them at any time
   * and what is checked must be what is used. CHAIN_OK, CHAIN_NO_ROOM, or the reason to drop the chain.
   */
  append(addressLow: number, addressHigh: number, length: number, flags: number): number {
    // An empty buffer is skipped, wherever it points: Linux sends such in RSS commands.
    if (length === 0) return CHAIN_OK
    if ((flags & VRING_DESC_F_WRITE) !== this.#wantedFlag) {
      if (!this.#mixed || this.#wantedFlag !== 0) return DROP.chain_wrong_direction
      // From its first writable buffer on a chain has no readable one. VIRTIO 1.2 §2.7.4.2, §2.8.17.
      this.#wantedFlag = VRING_DESC_F_WRITE
      this.#access = ACCESS.write
      this.#arena.endReadable()
    }
    this.#bytes += length
    if (this.#bytes > CHAIN_BYTES_MAX) return DROP.chain_too_long
    // Above 2^53 numbers have gaps. A sum rounds only there, and what it rounds to is refused all the same.
    const address = addressHigh * 0x1_0000_0000 + addressLow
    if (address + length > Number.MAX_SAFE_INTEGER) return DROP.chain_address_unmapped
    const arena = this.#arena
    const translated = this.#space.translate(address, length, this.#access, arena)
    if (translated === TRANSLATED.fault) return DROP.chain_address_unmapped
    if (arena.openIovecs > CHAIN_SEGMENTS_MAX) return DROP.chain_too_many_segments
    if (translated === TRANSLATED.noRoom) return arena.openChainIsAlone ? DROP.chain_too_many_segments : CHAIN_NO_ROOM
    return CHAIN_OK
  }

  /** What the chain as a whole is, now that its last buffer is appended: CHAIN_OK or the reason to drop it. */
  end(): number {
    if (this.#bytes === 0) return DROP.chain_empty
    // A command without room for its answer cannot be answered.
    return this.#mixed && this.#wantedFlag === 0 ? DROP.chain_wrong_direction : CHAIN_OK
  }

  /**
   * Ends the chain: it becomes the arena's last record if `outcome` is CHAIN_OK, else nothing of it stays. Returns
   * `outcome`.
   */
  close(outcome: number): number {
    if (outcome === CHAIN_OK) this.#arena.close()
    else this.#arena.abandon()
    return outcome
  }
}
