import { assert } from '../base/assert.ts'

/**
 * Words of a chain record {first iovec, iovec count} and of an iovec record {address low, high, length, 0}:
 * src/abi/vn-io.ts.
 */
const CHAIN_WORDS = 2
const IOVEC_WORDS = 4

/**
 * A batch of chains in the layout that the native library reads. Iovecs are appended to an open chain; `close` makes it
 * the next record, `abandon` forgets it. Nothing allocates after construction.
 */
export class IovecArena {
  /** Records of {first iovec, iovec count}. */
  readonly chains: Uint32Array
  /** Records of {host address low, high, length, 0}: `struct iovec` on a little-endian host. */
  readonly iovecs: Uint32Array
  readonly chainCapacity: number
  readonly iovecCapacity: number
  #chainCount = 0
  #iovecCount = 0
  #bytes = 0
  /** First iovec of the open chain. */
  #openAt = 0
  #readableIovecs = 0

  /** Capacities in records. */
  constructor(chainCapacity: number, iovecCapacity: number) {
    this.chainCapacity = chainCapacity
    this.iovecCapacity = iovecCapacity
    this.chains = new Uint32Array(chainCapacity * CHAIN_WORDS)
    this.iovecs = new Uint32Array(iovecCapacity * IOVEC_WORDS)
  }

  /** Chains closed so far. */
  get chainCount(): number {
    return this.#chainCount
  }

  /** Bytes appended since the last {@link clear}, abandoned chains included: a measure of the work in a batch. */
  get bytes(): number {
    return this.#bytes
  }

  /** Iovecs appended so far. */
  get iovecCount(): number {
    return this.#iovecCount
  }

  /** Iovecs of the open chain. */
  get openIovecs(): number {
    return this.#iovecCount - this.#openAt
  }

  /** Readable iovecs of the last chain with BUFFER_DIRECTION.mixed; the others are writable. */
  get readableIovecs(): number {
    return this.#readableIovecs
  }

  /** Marks the open chain's iovecs so far as readable; those that follow are writable. */
  endReadable(): void {
    this.#readableIovecs = this.openIovecs
  }

  /** True if the arena holds only the open chain: clearing it cannot make more room. */
  get openChainIsAlone(): boolean {
    return this.#openAt === 0
  }

  get hasChainRoom(): boolean {
    return this.#chainCount < this.chainCapacity
  }

  /**
   * Appends `length` bytes (1 to 2^32 - 1) at host `address` (below 2^53) to the open chain; false if there is no room.
   */
  append(address: number, length: number): boolean {
    if (this.#iovecCount === this.iovecCapacity) return false
    const at = this.#iovecCount * IOVEC_WORDS
    // A store keeps the low 32 bits of the integral part; the fourth word stays 0.
    this.iovecs[at] = address
    this.iovecs[at + 1] = address / 0x1_0000_0000
    this.iovecs[at + 2] = length
    this.#iovecCount++
    this.#bytes += length
    return true
  }

  /** Makes the open chain the next record. The caller has checked `hasChainRoom`. */
  close(): void {
    const at = this.#chainCount * CHAIN_WORDS
    this.chains[at] = this.#openAt
    this.chains[at + 1] = this.#iovecCount - this.#openAt
    this.#chainCount++
    this.#openAt = this.#iovecCount
  }

  /**
   * Adds chains whose records the caller has written behind the others: counts of chains, iovecs and bytes. No chain is
   * open.
   */
  commit(chains: number, iovecs: number, bytes: number): void {
    this.#chainCount += chains
    this.#iovecCount += iovecs
    this.#bytes += bytes
    this.#openAt = this.#iovecCount
  }

  /** Forgets the open chain. */
  abandon(): void {
    this.#iovecCount = this.#openAt
  }

  /** Forgets the last `count` closed chains. */
  removeLast(count: number): void {
    assert(count <= this.#chainCount && this.openIovecs === 0)
    if (count === 0) return
    this.#chainCount -= count
    this.#openAt = this.chains[this.#chainCount * CHAIN_WORDS]!
    this.#iovecCount = this.#openAt
  }

  /** Forgets everything. */
  clear(): void {
    this.#chainCount = 0
    this.#iovecCount = 0
    this.#openAt = 0
    this.#bytes = 0
  }
}
