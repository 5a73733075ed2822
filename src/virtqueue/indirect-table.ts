import { DROP } from '../abi/drop-reason.ts'
import { VRING_DESC_BYTES } from '../abi/virtio-ring.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import { TableReader } from '../memory/table-reader.ts'
import { CHAIN_OK, CHAIN_SEGMENTS_MAX } from './descriptor-chain.ts'

/** The table that an indirect descriptor points to. VIRTIO 1.2 §2.7.5.3, §2.8.7. */
export class IndirectTable {
  /** The descriptor read last: address low, address high, length, and two fields of 16 bits. */
  readonly words: Uint32Array
  readonly #reader: TableReader
  readonly #negotiated: boolean
  #address = 0
  #entries = 0

  /** `negotiated`: VIRTIO_F_INDIRECT_DESC was. */
  constructor(space: AddressSpace, negotiated: boolean) {
    this.#reader = new TableReader(space)
    this.words = this.#reader.words
    this.#negotiated = negotiated
  }

  /** Descriptors in the table. */
  get entries(): number {
    return this.#entries
  }

  /**
   * Goes to the table of an indirect descriptor, whose address and length these are. `alone`: no other descriptor
   * follows, which neither layout allows. CHAIN_OK, or the reason to drop the chain.
   */
  enter(addressLow: number, addressHigh: number, length: number, alone: boolean): number {
    if (!this.#negotiated) return DROP.indirect_not_negotiated
    if (!alone || length === 0 || (length & (VRING_DESC_BYTES - 1)) !== 0) return DROP.indirect_malformed
    const entries = (length / VRING_DESC_BYTES) >>> 0
    if (entries > CHAIN_SEGMENTS_MAX) return DROP.chain_too_many_segments
    const address = addressHigh * 0x1_0000_0000 + addressLow
    if (address + length > Number.MAX_SAFE_INTEGER) return DROP.chain_address_unmapped
    this.#address = address
    this.#entries = entries
    return CHAIN_OK
  }

  /** The words around the table that {@link locate} has found. */
  get windowWords(): Uint32Array {
    return this.#reader.windowWords
  }

  /** Goes to a table that can be read in one piece: where in `windowWords` it begins, or -1 for any other. */
  locate(addressLow: number, addressHigh: number, length: number): number {
    if (this.enter(addressLow, addressHigh, length, true) !== CHAIN_OK) return -1
    return this.#reader.locate(this.#address, length)
  }

  /** Copies descriptor `index`, below `entries`, into `words`; false if a part of it is unmapped. */
  read(index: number): boolean {
    return this.#reader.read(this.#address + index * VRING_DESC_BYTES)
  }
}
