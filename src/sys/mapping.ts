import { type Pointer, toArrayBuffer } from 'bun:ffi'
import { PROT_READ, PROT_WRITE } from '../abi/linux.ts'
import { assert } from '../base/assert.ts'
import { SysError } from '../base/errors.ts'
import { pageBytesOf } from './memory-file.ts'
import { check, native } from './native.ts'

/** JSC's limit for one ArrayBuffer. */
const BUFFER_BYTES_MAX = 2 ** 32

/** ArrayBuffers over a stretch of memory, so that all can be detached before the memory goes. */
class Views {
  #buffers: ArrayBuffer[] = []

  /** A new one over [offset, offset + length) of the `lengthBytes` at `address`. */
  make(address: number, lengthBytes: number, offset: number, length: number): ArrayBuffer {
    assert(offset >= 0 && length > 0 && offset + length <= lengthBytes, 'outside of the mapping')
    assert(length <= BUFFER_BYTES_MAX, 'more than one ArrayBuffer can hold')
    // SAFETY: inside the mapping, which lives until its views are detached.
    const buffer = toArrayBuffer((address + offset) as Pointer, 0, length)
    this.#buffers = this.#buffers.filter((old) => !old.detached)
    this.#buffers.push(buffer)
    return buffer
  }

  // SAFETY: a stale view must throw or read undefined, never reach pages that belong to others.
  detachAll(): void {
    for (const buffer of this.#buffers) if (!buffer.detached) buffer.transfer()
    this.#buffers = []
  }
}

/**
 * Memory of somebody else's mapped into this process, MAP_SHARED, guarded against its disappearance: an access to a
 * page that is gone reads zeroes and counts in {@link guardHits}. Belongs to the thread that made it.
 */
export class OwnedMapping {
  /** Host address of the first byte, and length; 0 bytes once disposed of. */
  readonly address: number
  readonly lengthBytes: number
  /** Names the mapping to the guard, for a borrower in another thread. */
  readonly guardSlot: number
  readonly #views = new Views()
  /** What was mapped: whole pages, as large as the file has them. */
  readonly #mappedAt: number
  readonly #mappedBytes: number
  #mapped = true

  /**
   * Maps `lengthBytes` of `fd` from `offsetBytes`, wherever that is in a page, with PROT_* bits. The fd may be closed
   * at once. Throws SysError.
   */
  constructor(fd: number, lengthBytes: number, offsetBytes = 0, prot = PROT_READ | PROT_WRITE) {
    assert(Number.isSafeInteger(lengthBytes) && lengthBytes > 0, 'length of a mapping')
    assert(Number.isSafeInteger(offsetBytes) && offsetBytes >= 0, 'offset of a mapping')
    check('sigaction(SIGBUS)', native.vn_guard_install())
    const pageBytes = pageBytesOf(fd)
    const lead = offsetBytes % pageBytes
    this.#mappedBytes = Math.ceil((lead + lengthBytes) / pageBytes) * pageBytes
    this.#mappedAt = check('mmap', native.vn_mmap(fd, this.#mappedBytes, offsetBytes - lead, prot))
    this.address = this.#mappedAt + lead
    this.lengthBytes = lengthBytes
    this.guardSlot = native.vn_guard_add(this.#mappedAt, this.#mappedBytes, pageBytes)
    if (this.guardSlot < 0) {
      native.vn_munmap(this.#mappedAt, this.#mappedBytes)
      throw new SysError('guard of a mapping', -this.guardSlot)
    }
  }

  /**
   * A new ArrayBuffer over `[offset, offset + length)`, which must lie inside and be at most 4 GiB. The holder detaches
   * it with `transfer()` when done; disposal detaches what is left.
   */
  buffer(offset: number, length: number): ArrayBuffer {
    assert(this.#mapped, 'the mapping is gone')
    return this.#views.make(this.address, this.lengthBytes, offset, length)
  }

  /**
   * Accesses to pages of this mapping that were gone, so far. More than before: the memory cannot be trusted any more.
   */
  guardHits(): number {
    return native.vn_guard_hits(this.guardSlot)
  }

  /** Unmaps. No native call may be using the memory; does nothing the second time. */
  [Symbol.dispose](): void {
    if (!this.#mapped) return
    this.#mapped = false
    // SAFETY: views first.
    this.#views.detachAll()
    assert(native.vn_guard_remove(this.guardSlot) === 0, 'the guard slot is gone')
    assert(native.vn_munmap(this.#mappedAt, this.#mappedBytes) === 0, 'munmap of our own mapping')
  }
}

/** Where a stretch of an {@link OwnedMapping} lies that another thread borrows. */
export type BorrowedArea = {
  /** Host address of its first byte. */
  readonly address: number
  readonly lengthBytes: number
  /** Of the mapping. */
  readonly guardSlot: number
}

/**
 * A view of memory that another thread of this process has mapped and guards. Disposal detaches the buffers; the memory
 * stays for its owner to unmap, once every borrower has let go.
 */
export class BorrowedMapping {
  readonly address: number
  readonly lengthBytes: number
  readonly #guardSlot: number
  readonly #views = new Views()

  constructor({ address, lengthBytes, guardSlot }: BorrowedArea) {
    this.address = address
    this.lengthBytes = lengthBytes
    this.#guardSlot = guardSlot
  }

  /** As {@link OwnedMapping.buffer}. */
  buffer(offset: number, length: number): ArrayBuffer {
    return this.#views.make(this.address, this.lengthBytes, offset, length)
  }

  guardHits(): number {
    return native.vn_guard_hits(this.#guardSlot)
  }

  [Symbol.dispose](): void {
    this.#views.detachAll()
  }
}
