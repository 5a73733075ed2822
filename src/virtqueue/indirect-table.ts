import { DROP } from '../abi/drop-reason.ts'
import { VRING_DESC_BYTES } from '../abi/virtio-ring.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import { TableReader } from '../memory/table-reader.ts'
import { CHAIN_OK, CHAIN_SEGMENTS_MAX } from './descriptor-chain.ts'

/** The indirect descriptor table of the current chain. VIRTIO 1.2 §2.7.5.3, §2.8.7. */
export class IndirectTable {
  /** The last descriptor read: address low, address high, length, and two 16-bit fields. */
  readonly words: Uint32Array
  readonly #reader: TableReader
  readonly #negotiated: boolean
  #address = 0
  #entries = 0

  /** `negotiated`: VIRTIO_RING_F_INDIRECT_DESC was negotiated. */
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
   * Selects the table of an indirect descriptor by the descriptor's address and length. `alone`: false if the
   * descriptor is chained with others where its layout forbids that. Returns CHAIN_OK or the reason to drop the chain.
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

  /** The words of the window that holds the table found by {@link locate}. */
  get windowWords(): Uint32Array {
    return this.#reader.windowWords
  }

  /** Selects a table that lies in one window. Returns its first index in `windowWords`, or -1 for any other table. */
  locate(addressLow: number, addressHigh: number, length: number): number {
    if (this.enter(addressLow, addressHigh, length, true) !== CHAIN_OK) return -1
    return this.#reader.locate(this.#address, length)
  }

  /** Copies descriptor `index`, below `entries`, into `words`; false if a part of it is unmapped. */
  read(index: number): boolean {
    return this.#reader.read(this.#address + index * VRING_DESC_BYTES)
  }
}
