/** What the device may do with a region, as bits. The values are those of VDUSE_ACCESS_* in linux/vduse.h. */
export const ACCESS = { read: 1, write: 2, readWrite: 3 } as const
export type Access = (typeof ACCESS)[keyof typeof ACCESS]

/** Memory of the driver mapped into this process, with one owner. `OwnedMapping` of src/sys is one. */
export interface Mapping {
  /** Host address of the first byte, below 2^53. */
  readonly address: number
  readonly lengthBytes: number
  /**
   * A new ArrayBuffer over [offset, offset + length), which must lie inside. The caller detaches it before disposal.
   */
  buffer(offset: number, length: number): ArrayBuffer
  /** Accesses so far to vanished pages; these read as zeroes. */
  guardHits(): number
  [Symbol.dispose](): void
}

/** A range of driver addresses backed by one mapping. */
export type Region = {
  /** First driver address, and length in bytes; the end is at most 2^53. */
  readonly start: number
  readonly lengthBytes: number
  readonly access: Access
  /** Owned and disposed of by the address space once `add` has accepted the region. */
  readonly mapping: Mapping
  /** Where in the mapping the region starts, in bytes. */
  readonly mappingOffset: number
}

/** Supplies regions that an address space does not have yet. */
export interface RegionSource {
  /**
   * The region that contains `address`, newly mapped, or undefined if there is none. Called on the data path: it must
   * not block for long, and must not change the address space.
   */
  resolve(address: number): Region | undefined
}

/** For an address space whose regions are all added at the start. */
export const NO_SOURCE: RegionSource = { resolve: () => undefined }
