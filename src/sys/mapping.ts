import { type Pointer, toArrayBuffer } from 'bun:ffi'
import { PROT_READ, PROT_WRITE } from '../abi/linux.ts'
import { assert } from '../base/assert.ts'
import { SysError } from '../base/errors.ts'
import { pageBytesOf } from './memory-file.ts'
import { check, native } from './native.ts'

/** JSC's limit for one ArrayBuffer. */
const BUFFER_BYTES_MAX = 2 ** 32

/** The ArrayBuffers over a memory range, so that all can be detached before it is unmapped. */
class Views {
  #buffers: ArrayBuffer[] = []

  /** A new ArrayBuffer over [offset, offset + length) of the `lengthBytes` at `address`. */
  make(address: number, lengthBytes: number, offset: number, length: number): ArrayBuffer {
    assert(offset >= 0 && length > 0 && offset + length <= lengthBytes, 'view outside of the mapping')
    assert(length <= BUFFER_BYTES_MAX, 'view longer than an ArrayBuffer can be')
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
 * Foreign memory mapped MAP_SHARED, with a guard against vanishing pages: an access to a vanished page reads zeroes and
 * counts in {@link guardHits}. Belongs to the thread that made it.
 */
export class OwnedMapping {
  /** Host address of the first byte, and length in bytes. */
  readonly address: number
  readonly lengthBytes: number
  /** The guard's slot of the mapping, for borrowers in other threads. */
  readonly guardSlot: number
  readonly #views = new Views()
  /** The range that was mapped: whole pages of the file's page size. */
  readonly #mappedAt: number
  readonly #mappedBytes: number
  #mapped = true

  /**
   * Maps `lengthBytes` of `fd` from `offsetBytes` (any alignment) with PROT_* bits. The caller may close the fd
   * afterwards. Throws SysError.
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

  /** Accesses so far to vanished pages of this mapping. If the count grows, data read since may be zeroes. */
  guardHits(): number {
    return native.vn_guard_hits(this.guardSlot)
  }

  /** Unmaps the memory. No native call may be using it. Does nothing the second time. */
  [Symbol.dispose](): void {
    if (!this.#mapped) return
    this.#mapped = false
    // SAFETY: views first.
    this.#views.detachAll()
    assert(native.vn_guard_remove(this.guardSlot) === 0, 'the guard slot is gone')
    assert(native.vn_munmap(this.#mappedAt, this.#mappedBytes) === 0, 'munmap of our own mapping')
  }
}

/** A range of an {@link OwnedMapping} for a borrower in another thread. */
export type BorrowedArea = {
  /** Host address of its first byte. */
  readonly address: number
  readonly lengthBytes: number
  /** The mapping's {@link OwnedMapping.guardSlot}. */
  readonly guardSlot: number
}

/**
 * Memory that another thread of this process has mapped and guards. Disposal detaches the buffers; the owner unmaps the
 * memory after every borrower's disposal.
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
