import { ptr, toArrayBuffer } from 'bun:ffi'
import { ACCESS, type Access, type Mapping, type Region } from '../../src/memory/region.ts'

/** Detaching a view in a test must not free the memory: this many bytes belong to the Uint8Array that was allocated. */
const view = (address: number, offset: number, length: number): ArrayBuffer =>
  toArrayBuffer(address as Parameters<typeof toArrayBuffer>[0], offset, length)

/** The driver's memory: one zeroed allocation of this process that plays a mapping. */
export class TestMemory implements Mapping {
  readonly bytes: Uint8Array<ArrayBuffer>
  readonly address: number
  readonly lengthBytes: number
  /** Buffers given out, to check that none outlives the mapping. */
  readonly buffers: ArrayBuffer[] = []
  disposed = 0
  /** Driver address of the first byte. */
  readonly start: number
  #allocated = 0

  /** `misalignBy` shifts the host address, as no mmap does. */
  constructor(lengthBytes: number, start = 0x1_0000, misalignBy = 0) {
    const owner = new Uint8Array(lengthBytes + 4096)
    const page = (4096 - (ptr(owner) % 4096)) % 4096
    this.bytes = owner.subarray(page + misalignBy, page + misalignBy + lengthBytes)
    this.address = ptr(this.bytes)
    this.lengthBytes = lengthBytes
    this.start = start
  }

  get end(): number {
    return this.start + this.lengthBytes
  }

  /** This memory as one region of an address space. */
  region(access: Access = ACCESS.readWrite): Region {
    return { start: this.start, lengthBytes: this.lengthBytes, access, mapping: this, mappingOffset: 0 }
  }

  buffer(offset: number, length: number): ArrayBuffer {
    if (offset < 0 || offset + length > this.lengthBytes) throw new RangeError('outside the mapping')
    const buffer = view(this.address, offset, length)
    this.buffers.push(buffer)
    return buffer
  }

  /** Views into the memory at a driver address. */
  dataView(address: number, length: number): DataView {
    return new DataView(this.bytes.buffer, this.bytes.byteOffset + address - this.start, length)
  }

  /** Driver address of `length` unused bytes. */
  allocate(length: number, alignment = 16): number {
    const address = Math.ceil((this.start + this.#allocated) / alignment) * alignment
    this.#allocated = address + length - this.start
    if (this.#allocated > this.lengthBytes) throw new RangeError('the test memory is full')
    return address
  }

  /** What a test sets: accesses to vanished pages. */
  vanished = 0

  guardHits(): number {
    return this.vanished
  }

  [Symbol.dispose](): void {
    this.disposed++
  }
}

/** A mapping of any size whose bytes are never touched: for buffers that are only translated. */
export const emptyMapping = (address: number, lengthBytes: number): Mapping & { disposed: number } => ({
  address,
  lengthBytes,
  disposed: 0,
  buffer: () => {
    throw new Error('nothing reads this mapping')
  },
  guardHits: () => 0,
  [Symbol.dispose]() {
    this.disposed++
  },
})
