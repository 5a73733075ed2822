import { ftruncateSync, openSync } from 'node:fs'
import { OwnedMapping } from '../../src/sys/mapping.ts'
import { check, cString, native } from '../../src/sys/native.ts'
import type { DriverMemory } from './driver-model.ts'
import { HUGE_PAGE_BYTES, hugeMemfd } from './huge-pages.ts'

/** In /proc/PID/maps and /proc/PID/fd: what a backend keeps of a front-end that has gone is found by this name. */
export const GUEST_MEMFD_NAME = 'vn-test-guest'

export type GuestMemoryOptions = {
  /** Guest address of the first byte. */
  readonly start?: number
  /** Bytes of the file in front of the memory. */
  readonly fileOffset?: number
  /** A new file to make, instead of a memfd. */
  readonly file?: string | undefined
  /** A memfd of 2 MiB pages, instead of an ordinary one. */
  readonly hugePages?: boolean
  /** First byte that is used here: memory is larger than what can be looked at. */
  readonly usedFrom?: number
}

/** A guest's memory in a memfd, mapped here, for a backend in another process to map too. */
export class GuestMemory implements DriverMemory {
  readonly fd: number
  readonly start: number
  /**
   * The front-end's own address of it, as far as a backend is told: another one than the guest's, to tell them apart.
   */
  readonly userStart: number
  readonly lengthBytes: number
  readonly fileOffset: number
  readonly #mapping: OwnedMapping
  /** The bytes that are used here. */
  readonly #bytes: Uint8Array
  readonly #usedFrom: number
  #next: number

  constructor(lengthBytes: number, options: GuestMemoryOptions = {}) {
    const { start = 0x4000_0000, fileOffset = 0, file, hugePages = false, usedFrom = 0 } = options
    this.lengthBytes = lengthBytes
    this.start = start
    this.userStart = start + 0x7000_0000_0000
    this.fileOffset = fileOffset
    this.fd = hugePages
      ? hugeMemfd(Math.ceil((fileOffset + lengthBytes) / HUGE_PAGE_BYTES))
      : file === undefined
        ? check('memfd_create', native.vn_memfd(cString(GUEST_MEMFD_NAME), fileOffset + lengthBytes))
        : openSync(file, 'wx+')
    if (file !== undefined) this.truncate(fileOffset + lengthBytes)
    this.#mapping = new OwnedMapping(this.fd, lengthBytes - usedFrom, fileOffset + usedFrom)
    this.#bytes = new Uint8Array(this.#mapping.buffer(0, lengthBytes - usedFrom))
    this.#usedFrom = start + usedFrom
    this.#next = this.#usedFrom
  }

  /** Where the bytes that are used here are mapped. */
  get mappedAt(): number {
    return this.#mapping.address
  }

  get end(): number {
    return this.start + this.lengthBytes
  }

  allocate(length: number, alignment = 16): number {
    const address = Math.ceil(this.#next / alignment) * alignment
    this.#next = address + length
    if (this.#next > this.end) throw new RangeError('the guest memory is full')
    return address
  }

  /** The bytes at a guest address. */
  bytes(address: number, length: number): Uint8Array {
    const at = address - this.#usedFrom
    return this.#bytes.subarray(at, at + length)
  }

  dataView(address: number, length: number): DataView {
    return new DataView(this.#bytes.buffer, address - this.#usedFrom, length)
  }

  /** Of all that is used here. */
  hash(): number | bigint {
    return Bun.hash(this.#bytes)
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
