import { constants, fstatSync } from 'node:fs'
import { SysError } from '../../base/errors.ts'
import { type BorrowedArea, OwnedMapping } from '../../sys/mapping.ts'

const PAGE_BYTES = 4096

/** An area of a file that a front-end shares with us beside its memory: the dirty log, the record of chains in flight. */
export class SharedArea {
  readonly borrowed: BorrowedArea
  readonly #mapping: OwnedMapping

  private constructor(mapping: OwnedMapping, lead: number) {
    this.#mapping = mapping
    this.borrowed = {
      address: mapping.address + lead,
      lengthBytes: mapping.lengthBytes - lead,
      guardSlot: mapping.guardSlot,
    }
  }

  /** Maps [offset, offset + lengthBytes) of the file, all of which must be there; a string says why it cannot. `fd` is the caller's. */
  static map(fd: number, lengthBytes: number, offset: number): SharedArea | string {
    if (!Number.isSafeInteger(offset + lengthBytes) || lengthBytes === 0) return 'without length, or beyond 2^53'
    const file = fstatSync(fd)
    if ((file.mode & constants.S_IFMT) !== constants.S_IFREG) return 'it is no file'
    if (offset + lengthBytes > file.size) return `it ends at ${offset + lengthBytes} of a file of ${file.size}`
    const lead = offset % PAGE_BYTES
    try {
      return new SharedArea(new OwnedMapping(fd, lengthBytes + lead, offset - lead), lead)
    } catch (error) {
      if (error instanceof SysError) return error.message
      throw error
    }
  }

  /** A copy of `length` bytes from `offset`. */
  read(offset: number, length: number): Uint8Array {
    const lead = this.borrowed.address - this.#mapping.address
    const buffer = this.#mapping.buffer(lead + offset, length)
    const bytes = new Uint8Array(buffer).slice()
    buffer.transfer()
    return bytes
  }

  /** Nobody borrows it any more. */
  [Symbol.dispose](): void {
    this.#mapping[Symbol.dispose]()
  }
}
