import { assert } from '../../base/assert.ts'
import { ProtocolError, SysError } from '../../base/errors.ts'
import type { Refusal } from '../../device/virtio-net-device.ts'
import { ACCESS, type Region, type RegionSource } from '../../memory/region.ts'
import { BorrowedMapping, OwnedMapping } from '../../sys/mapping.ts'
import { refuseMemoryFile } from '../../sys/memory-file.ts'

/** Most regions of one front-end at a time; the answer to GET_MAX_MEM_SLOTS. */
export const MEMORY_SLOTS = 256
/** Limit of all regions together, bytes: more than any guest has, less than the process's address space. */
const MEMORY_BUDGET_BYTES = 2 ** 44

/** A region as the front-end describes it. `fd` is the caller's to close. */
export type MemoryRegionMessage = {
  readonly guestAddress: number
  readonly lengthBytes: number
  /** The front-end's own address of the region. */
  readonly userAddress: number
  readonly mmapOffset: number
  readonly fd: number
}

type Slot = MemoryRegionMessage & { readonly mapping: OwnedMapping }

/** The block: a sequence number (odd while it is written), the count, and numbers for each region. */
const HEADER_BYTES = 8
const NUMBERS_PER_REGION = 4

/** Bytes of the block that {@link MemoryTable} and {@link memoryTableSource} share. */
export const MEMORY_BLOCK_BYTES = HEADER_BYTES + MEMORY_SLOTS * NUMBERS_PER_REGION * 8

const viewsOf = (block: SharedArrayBuffer): { words: Int32Array; numbers: Float64Array } => ({
  words: new Int32Array(block, 0, 2),
  numbers: new Float64Array(block, HEADER_BYTES),
})

const overlaps = (a: number, aLength: number, b: number, bLength: number): boolean => a < b + bLength && b < a + aLength

/** What is wrong with a region's addresses, or null. */
const placementFault = (region: MemoryRegionMessage, others: readonly MemoryRegionMessage[]): string | null => {
  const { guestAddress, lengthBytes, userAddress, mmapOffset } = region
  const ends = [guestAddress + lengthBytes, userAddress + lengthBytes, mmapOffset + lengthBytes]
  if (lengthBytes === 0 || !ends.every(Number.isSafeInteger)) return 'memory region without length, or beyond 2^53'
  for (const other of others) {
    if (overlaps(guestAddress, lengthBytes, other.guestAddress, other.lengthBytes)) return 'guest addresses overlap'
    if (overlaps(userAddress, lengthBytes, other.userAddress, other.lengthBytes)) return 'user addresses overlap'
  }
  return null
}

/**
 * The front-end's memory, mapped once, by the device worker. Queue workers borrow the mappings through the shared
 * block. A region is unmapped only after `forget` has made every borrower release the old table.
 */
export class MemoryTable {
  readonly #words: Int32Array
  readonly #numbers: Float64Array
  #slots: Slot[] = []

  constructor(block: SharedArrayBuffer) {
    const { words, numbers } = viewsOf(block)
    this.#words = words
    this.#numbers = numbers
  }

  get regionCount(): number {
    return this.#slots.length
  }

  /** Guest address of the end of the last region. */
  get guestEnd(): number {
    return this.#slots.reduce((end, slot) => Math.max(end, slot.guestAddress + slot.lengthBytes), 0)
  }

  /**
   * Replaces the whole table. A refusal leaves the old table in use.
   * @throws ProtocolError for regions that overlap or end beyond 2^53.
   */
  replace(regions: readonly MemoryRegionMessage[], forget: () => void): Refusal {
    for (const [index, region] of regions.entries()) {
      const wrong = placementFault(region, regions.slice(0, index))
      if (wrong !== null) throw new ProtocolError(wrong)
    }
    const slots: Slot[] = []
    for (const region of regions) {
      const refusal = this.#refuse(region, slots) ?? this.#map(region, slots)
      if (refusal === null) continue
      for (const slot of slots) slot.mapping[Symbol.dispose]()
      return refusal
    }
    this.#change(slots, forget)
    return null
  }

  /** Adds a region. */
  add(region: MemoryRegionMessage, forget: () => void): Refusal {
    const slots = [...this.#slots]
    const refusal = placementFault(region, slots) ?? this.#refuse(region, slots) ?? this.#map(region, slots)
    if (refusal === null) this.#change(slots, forget)
    return refusal
  }

  /** Removes the region with exactly these addresses and this length. */
  remove(region: Omit<MemoryRegionMessage, 'fd' | 'mmapOffset'>, forget: () => void): Refusal {
    const kept = this.#slots.filter(
      (slot) =>
        slot.guestAddress !== region.guestAddress ||
        slot.userAddress !== region.userAddress ||
        slot.lengthBytes !== region.lengthBytes,
    )
    if (kept.length === this.#slots.length) return 'no such memory region'
    this.#change(kept, forget)
    return null
  }

  /** Unmaps all regions. */
  clear(forget: () => void): void {
    this.#change([], forget)
  }

  /**
   * The guest address of the front-end's `userAddress`, if `length` bytes from there lie in one region; null otherwise.
   */
  toGuest(userAddress: number, length: number): number | null {
    for (const slot of this.#slots) {
      const offset = userAddress - slot.userAddress
      if (offset >= 0 && offset + length <= slot.lengthBytes) return slot.guestAddress + offset
    }
    return null
  }

  #refuse({ lengthBytes, mmapOffset, fd }: MemoryRegionMessage, others: readonly Slot[]): Refusal {
    if (others.length >= MEMORY_SLOTS) return `more than ${MEMORY_SLOTS} memory regions`
    const total = others.reduce((sum, slot) => sum + slot.lengthBytes, lengthBytes)
    if (total > MEMORY_BUDGET_BYTES) return `memory regions of ${total} bytes together`
    const refusal = refuseMemoryFile(fd, mmapOffset, lengthBytes)
    return refusal === null ? null : `a memory region: ${refusal}`
  }

  #map(region: MemoryRegionMessage, slots: Slot[]): Refusal {
    try {
      slots.push({ ...region, mapping: new OwnedMapping(region.fd, region.lengthBytes, region.mmapOffset) })
      return null
    } catch (error) {
      if (error instanceof SysError) return error.message
      throw error
    }
  }

  #change(slots: Slot[], forget: () => void): void {
    const old = this.#slots
    this.#slots = slots
    this.#publish()
    forget()
    // SAFETY: every borrower has released the old table.
    for (const slot of old) if (!slots.includes(slot)) slot.mapping[Symbol.dispose]()
  }

  #publish(): void {
    assert(this.#slots.length <= MEMORY_SLOTS)
    Atomics.add(this.#words, 0, 1)
    for (const [index, { guestAddress, lengthBytes, mapping }] of this.#slots.entries()) {
      const at = index * NUMBERS_PER_REGION
      this.#numbers[at] = guestAddress
      this.#numbers[at + 1] = lengthBytes
      this.#numbers[at + 2] = mapping.address
      this.#numbers[at + 3] = mapping.guardSlot
    }
    Atomics.store(this.#words, 1, this.#slots.length)
    Atomics.add(this.#words, 0, 1)
  }
}

/** A queue worker's side of the block. */
export const memoryTableSource = (block: SharedArrayBuffer): RegionSource => {
  const { words, numbers } = viewsOf(block)
  const find = (address: number): Region | undefined => {
    const count = Atomics.load(words, 1)
    for (let index = 0; index < count; index++) {
      const at = index * NUMBERS_PER_REGION
      const [start, lengthBytes] = [numbers[at]!, numbers[at + 1]!]
      if (address < start || address >= start + lengthBytes) continue
      const mapping = new BorrowedMapping({ address: numbers[at + 2]!, lengthBytes, guardSlot: numbers[at + 3]! })
      return { start, lengthBytes, access: ACCESS.readWrite, mapping, mappingOffset: 0 }
    }
    return undefined
  }
  return {
    resolve(address: number): Region | undefined {
      for (;;) {
        // ORDERING: a sequence lock. A read during which the sequence number changed is discarded. A write takes
        // microseconds.
        const before = Atomics.load(words, 0)
        if (before % 2 !== 0) continue
        const region = find(address)
        if (Atomics.load(words, 0) === before) return region
        region?.mapping[Symbol.dispose]()
      }
    },
  }
}
