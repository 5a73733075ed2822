import { DROP } from '../abi/drop-reason.ts'
import { VRING_DESC_BYTES, VRING_DESC_F_WRITE } from '../abi/virtio-ring.ts'
import { type AddressSpace, TRANSLATED } from '../memory/address-space.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import { ACCESS, type Access } from '../memory/region.ts'
import { BUFFER_DIRECTION, type BufferDirection } from './virtqueue.ts'

/** Most iovecs of a chain, and most descriptors of an indirect table: IOV_MAX, the limit of readv and writev. */
export const CHAIN_SEGMENTS_MAX = 1024

/** 32-bit words of a descriptor of either layout: address low, address high, length, and two 16-bit fields. */
export const DESC_WORDS = VRING_DESC_BYTES / 4

/** Most bytes of a chain. VIRTIO 1.2 §2.7.5.2. */
export const CHAIN_BYTES_MAX = 2 ** 32

/** Results of a walk below zero; all others are indices of dropReasons. */
export const CHAIN_OK = -1
export const CHAIN_NO_ROOM = -2

/** Checks the buffers of one chain, of either ring layout, and appends them to an arena. */
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
  begin(arena: IovecArena, direction: BufferDirection): void {
    const writable = direction === BUFFER_DIRECTION.writable
    this.#arena = arena
    this.#mixed = direction === BUFFER_DIRECTION.mixed
    this.#wantedFlag = writable ? VRING_DESC_F_WRITE : 0
    this.#access = writable ? ACCESS.write : ACCESS.read
    this.#bytes = 0
  }

  /**
   * Appends the buffer of a descriptor. The caller has loaded each field once: the driver can change it at any time,
   * and the checked value must be the used one. Returns CHAIN_OK, CHAIN_NO_ROOM, or the reason to drop the chain.
   */
  append(addressLow: number, addressHigh: number, length: number, flags: number): number {
    // An empty buffer is skipped, and its address not checked: Linux sends such buffers in RSS commands.
    if (length === 0) return CHAIN_OK
    if ((flags & VRING_DESC_F_WRITE) !== this.#wantedFlag) {
      if (!this.#mixed || this.#wantedFlag !== 0) return DROP.chain_wrong_direction
      // Writable buffers follow all readable ones. VIRTIO 1.2 §2.7.4.2, §2.8.17.
      this.#wantedFlag = VRING_DESC_F_WRITE
      this.#access = ACCESS.write
      this.#arena.endReadable()
    }
    this.#bytes += length
    if (this.#bytes > CHAIN_BYTES_MAX) return DROP.chain_too_long
    // Inexact only above 2^53, and any value there is refused.
    const address = addressHigh * 0x1_0000_0000 + addressLow
    if (address + length > Number.MAX_SAFE_INTEGER) return DROP.chain_address_unmapped
    const arena = this.#arena
    const translated = this.#space.translate(address, length, this.#access, arena)
    if (translated === TRANSLATED.fault) return DROP.chain_address_unmapped
    if (arena.openIovecs > CHAIN_SEGMENTS_MAX) return DROP.chain_too_many_segments
    if (translated === TRANSLATED.noRoom) return arena.openChainIsAlone ? DROP.chain_too_many_segments : CHAIN_NO_ROOM
    return CHAIN_OK
  }

  /** Checks the chain as a whole, after its last buffer. Returns CHAIN_OK or the reason to drop it. */
  end(): number {
    if (this.#bytes === 0) return DROP.chain_empty
    // A control command needs a writable buffer for its ack.
    return this.#mixed && this.#wantedFlag === 0 ? DROP.chain_wrong_direction : CHAIN_OK
  }

  /** Closes the chain: the arena's last record if `outcome` is CHAIN_OK, else abandoned. Returns `outcome`. */
  close(outcome: number): number {
    if (outcome === CHAIN_OK) this.#arena.close()
    else this.#arena.abandon()
    return outcome
  }
}
