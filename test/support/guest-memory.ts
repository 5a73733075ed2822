import { ftruncateSync, openSync } from 'node:fs'
import { OwnedMapping } from '../../src/sys/mapping.ts'
import { check, cString, native } from '../../src/sys/native.ts'
import type { DriverMemory } from './driver-model.ts'

/** In /proc/PID/maps and /proc/PID/fd: what a backend keeps of a front-end that has gone is found by this name. */
export const GUEST_MEMFD_NAME = 'vn-test-guest'

/** A guest's memory in a memfd, mapped here, for a backend in another process to map too. */
export class GuestMemory implements DriverMemory {
  readonly fd: number
  /** Guest address of the first byte. */
  readonly start: number
  /** The front-end's own address of it, as far as a backend is told: another one than the guest's, to tell them apart. */
  readonly userStart: number
  readonly lengthBytes: number
  /** Bytes of the file in front of the memory. */
  readonly fileOffset: number
  readonly bytes: Uint8Array
  readonly #mapping: OwnedMapping
  #allocated = 0

  /** In a memfd, or in a new file where one is named. */
  constructor(
    lengthBytes: number,
    options: { readonly start?: number; readonly fileOffset?: number; readonly file?: string | undefined } = {},
  ) {
    const { start = 0x4000_0000, fileOffset = 0, file } = options
    this.lengthBytes = lengthBytes
    this.start = start
    this.userStart = start + 0x7000_0000_0000
    this.fileOffset = fileOffset
    this.fd =
      file === undefined
        ? check('memfd_create', native.vn_memfd(cString(GUEST_MEMFD_NAME), fileOffset + lengthBytes))
        : openSync(file, 'wx+')
    if (file !== undefined) this.truncate(fileOffset + lengthBytes)
    this.#mapping = new OwnedMapping(this.fd, lengthBytes, fileOffset)
    this.bytes = new Uint8Array(this.#mapping.buffer(0, Math.min(lengthBytes, 2 ** 32)))
  }

  get end(): number {
    return this.start + this.lengthBytes
  }

  allocate(length: number, alignment = 16): number {
    const address = Math.ceil((this.start + this.#allocated) / alignment) * alignment
    this.#allocated = address + length - this.start
    if (this.#allocated > this.lengthBytes) throw new RangeError('the guest memory is full')
    return address
  }

  dataView(address: number, length: number): DataView {
    return new DataView(this.bytes.buffer, this.bytes.byteOffset + address - this.start, length)
  }

  /** The front-end's address of a guest address. */
  user(address: number): number {
    return address - this.start + this.userStart
  }

  /** Takes memory away from whoever has it mapped. */
  truncate(lengthBytes: number): void {
    ftruncateSync(this.fd, lengthBytes)
  }

  [Symbol.dispose](): void {
    this.#mapping[Symbol.dispose]()
    native.vn_close(this.fd)
  }
}
