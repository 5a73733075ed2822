import { DriverFault } from '../base/errors.ts'
import type { Access, Mapping, Region } from './region.ts'

/**
 * The one file that makes views over mapped memory. Fields are little-endian, as VIRTIO 1.2 §1.4 says, and so are the
 * hosts that Bun runs on.
 */

/** A region of an address space, and the views made of it. */
export type MappedRegion = {
  readonly region: Region
  /** Windows by their index from the start of the region. */
  readonly windows: Map<number, TableWindow>
  /** Count of living ring views: the mapping must outlive them. */
  ringViews: number
}

/** Finds the memory of a ring view: implemented by `AddressSpace`. */
export interface RegionLookup {
  /** The region that holds all of [address, address + length) for `access`, or undefined. */
  locate(address: number, length: number, access: Access): MappedRegion | undefined
}

const makeBuffer = (region: Region, offset: number, lengthBytes: number): ArrayBuffer =>
  region.mapping.buffer(region.mappingOffset + offset, lengthBytes)

// SAFETY: a detached view reads as undefined; a view of unmapped pages would crash the process.
const detach = (buffer: ArrayBuffer): void => {
  buffer.transfer()
}

/** A view of one area of a ring (descriptor table, avail ring, used ring), wholly inside one mapping. */
export class RingView {
  readonly u16: Uint16Array
  /** Empty if the area is not aligned to 4. */
  readonly u32: Uint32Array
  /** The same words, signed: a word whose highest bit is set stays an int32 in the engine. */
  readonly i32: Int32Array
  readonly #buffer: ArrayBuffer
  readonly #mapped: MappedRegion

  /**
   * `lengthBytes` at driver address `address`, a multiple of `alignment`.
   * @throws DriverFault RING_MISALIGNED or RING_UNMAPPED
   */
  constructor(space: RegionLookup, address: number, lengthBytes: number, alignment: 2 | 4 | 16, access: Access) {
    if (address % alignment !== 0) {
      throw new DriverFault('RING_MISALIGNED', `0x${address.toString(16)} is not a multiple of ${alignment}`)
    }
    const mapped = space.locate(address, lengthBytes, access)
    if (mapped === undefined) {
      throw new DriverFault('RING_UNMAPPED', `no mapping holds ${lengthBytes} bytes at 0x${address.toString(16)}`)
    }
    const offset = address - mapped.region.start
    // Atomics need the host address aligned too; it is, unless a region is mapped at an odd offset.
    if ((mapped.region.mapping.address + mapped.region.mappingOffset + offset) % alignment !== 0) {
      throw new DriverFault('RING_MISALIGNED', `0x${address.toString(16)} is mapped at an unaligned host address`)
    }
    this.#buffer = makeBuffer(mapped.region, offset, lengthBytes)
    this.u16 = new Uint16Array(this.#buffer)
    const words = alignment === 2 ? 0 : lengthBytes >>> 2
    this.u32 = new Uint32Array(this.#buffer, 0, words)
    this.i32 = new Int32Array(this.#buffer, 0, words)
    this.#mapped = mapped
    mapped.ringViews++
  }

  /** Detaches the view. Afterwards the memory may be unmapped. */
  [Symbol.dispose](): void {
    if (this.#buffer.detached) return
    detach(this.#buffer)
    this.#mapped.ringViews--
  }
}

/** A byte view of a whole mapping that is not driver memory but a log for the front-end. */
export class LogView {
  readonly bytes: Uint8Array
  readonly #buffer: ArrayBuffer

  constructor(mapping: Mapping) {
    this.#buffer = mapping.buffer(0, mapping.lengthBytes)
    this.bytes = new Uint8Array(this.#buffer)
  }

  detach(): void {
    detach(this.#buffer)
  }
}

/** A view of a whole record of chains in flight, as bytes, half-words and words. Its address is aligned to 4. */
export class RecordView {
  readonly u8: Uint8Array
  readonly u16: Uint16Array
  readonly u32: Uint32Array
  readonly #buffer: ArrayBuffer

  constructor(mapping: Mapping) {
    this.#buffer = mapping.buffer(0, mapping.lengthBytes)
    this.u8 = new Uint8Array(this.#buffer)
    this.u16 = new Uint16Array(this.#buffer)
    this.u32 = new Uint32Array(this.#buffer)
  }

  detach(): void {
    detach(this.#buffer)
  }
}

/** A part of a region through which indirect descriptor tables are read. The address space owns it. */
export class TableWindow {
  /** Driver addresses [start, end). */
  readonly start: number
  readonly end: number
  /** Words from `start` on; empty if the host address is not aligned to 4. */
  readonly words: Uint32Array
  readonly #buffer: ArrayBuffer

  constructor(region: Region, offset: number, windowBytes: number) {
    const lengthBytes = Math.min(windowBytes, region.lengthBytes - offset)
    this.#buffer = makeBuffer(region, offset, lengthBytes)
    const aligned = (region.mapping.address + region.mappingOffset + offset) % 4 === 0
    this.start = region.start + offset
    this.end = this.start + lengthBytes
    this.words = new Uint32Array(this.#buffer, 0, aligned ? lengthBytes >>> 2 : 0)
  }

  detach(): void {
    detach(this.#buffer)
  }
}
