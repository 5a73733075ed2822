import { SysError } from '../../base/errors.ts'
import { type BorrowedArea, OwnedMapping } from '../../sys/mapping.ts'
import { refuseMemoryFile } from '../../sys/memory-file.ts'

/** A mapped area of a file that a front-end shares besides its memory: the dirty log or the inflight buffer. */
export class SharedArea {
  readonly borrowed: BorrowedArea
  readonly #mapping: OwnedMapping

  private constructor(mapping: OwnedMapping) {
    this.#mapping = mapping
    const { address, lengthBytes, guardSlot } = mapping
    this.borrowed = { address, lengthBytes, guardSlot }
  }

  /**
   * Maps [offset, offset + lengthBytes), which must lie inside the file. A string says why it cannot. `fd` is the
   * caller's.
   */
  static map(fd: number, lengthBytes: number, offset: number): SharedArea | string {
    if (!Number.isSafeInteger(offset + lengthBytes) || lengthBytes === 0) return 'without length, or beyond 2^53'
    const refusal = refuseMemoryFile(fd, offset, lengthBytes)
    if (refusal !== null) return refusal
    try {
      return new SharedArea(new OwnedMapping(fd, lengthBytes, offset))
    } catch (error) {
      if (error instanceof SysError) return error.message
      throw error
    }
  }

  /** A copy of `length` bytes from `offset`. */
  read(offset: number, length: number): Uint8Array {
    const buffer = this.#mapping.buffer(offset, length)
    const bytes = new Uint8Array(buffer).slice()
    buffer.transfer()
    return bytes
  }

  /** Precondition: no thread borrows the area any more. */
  [Symbol.dispose](): void {
    this.#mapping[Symbol.dispose]()
  }
}
