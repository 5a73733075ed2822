import { AssertionError, assert } from '../base/assert.ts'
import type { IovecArena } from './iovec-arena.ts'
import { ACCESS, type Access, NO_SOURCE, type Region, type RegionSource } from './region.ts'
import { type MappedRegion, TableWindow } from './ring-view.ts'

/** The most that a VDUSE device has: max_iotlb_entries in drivers/vdpa/vdpa_user/iova_domain.c. */
const REGIONS_MAX = 2048

/**
 * Bytes of one window for reading indirect tables. Windows are made on demand, since the garbage collector counts the
 * bytes of a view as allocated. A multiple of a descriptor's size: an aligned descriptor never crosses two windows.
 */
const WINDOW_BYTES = 16 * 1024 * 1024

/**
 * Most windows. When more are needed, one in READS_PER_WINDOW reads replaces the oldest window; the others read without
 * one.
 */
const WINDOWS_MAX = 256
const READS_PER_WINDOW = 64

/** Results of {@link AddressSpace.translate}. */
export const TRANSLATED = { ok: 0, fault: 1, noRoom: 2 } as const
export type Translated = (typeof TRANSLATED)[keyof typeof TRANSLATED]

/** See {@link AddressSpace.lastRegion}. */
export type LastRegion = {
  readonly start: number
  readonly end: number
  readonly delta: number
  readonly access: number
}

/**
 * The driver's memory as one queue worker sees it: sorted, disjoint regions of driver addresses, each mapped into this
 * process. On a miss the source is asked once.
 *
 * Addresses are numbers below 2^53; the reader of a descriptor refuses larger ones first.
 */
export class AddressSpace {
  readonly #source: RegionSource
  readonly #starts = new Float64Array(REGIONS_MAX)
  readonly #ends = new Float64Array(REGIONS_MAX)
  /** Host address minus driver address. */
  readonly #deltas = new Float64Array(REGIONS_MAX)
  readonly #accesses = new Uint8Array(REGIONS_MAX)
  readonly #mapped: MappedRegion[] = []
  /** Row of the last hit; it may be beyond the last region. */
  #lastHit = 0
  /** A copy of that row in one object, for the fast path. */
  readonly #last = { start: 0, end: 0, delta: 0, access: 0 }
  #generation = 0
  /** All windows. Once there are WINDOWS_MAX the oldest is at {@link #oldestWindow}. */
  readonly #windows: { readonly of: MappedRegion; readonly which: number }[] = []
  #oldestWindow = 0
  #readsWithout = 0

  constructor(source: RegionSource = NO_SOURCE) {
    this.#source = source
  }

  /** Grows when regions or windows are removed: references into them are then stale. */
  get generation(): number {
    return this.#generation
  }

  get regionCount(): number {
    return this.#mapped.length
  }

  /**
   * Takes a region and its mapping over. False, with the mapping left to the caller, if it overlaps another region, is
   * empty, ends above 2^53, exceeds its mapping, or is one too many.
   */
  add(region: Region): boolean {
    const { start, lengthBytes, mapping, mappingOffset } = region
    const end = start + lengthBytes
    if (!(lengthBytes > 0) || start < 0 || end > Number.MAX_SAFE_INTEGER) return false
    if (mappingOffset < 0 || mappingOffset + lengthBytes > mapping.lengthBytes) return false
    const count = this.#mapped.length
    if (count === REGIONS_MAX) return false
    const at = this.#lowerBound(start)
    if (at > 0 && this.#ends[at - 1]! > start) return false
    if (at < count && this.#starts[at]! < end) return false
    for (const column of [this.#starts, this.#ends, this.#deltas, this.#accesses]) column.copyWithin(at + 1, at, count)
    this.#starts[at] = start
    this.#ends[at] = end
    this.#deltas[at] = mapping.address + mappingOffset - start
    this.#accesses[at] = region.access
    this.#mapped.splice(at, 0, { region, windows: new Map(), ringViews: 0 })
    this.#hit(at)
    return true
  }

  /**
   * Appends the host pieces of `length` bytes (at least 1) at `address` to the arena's open chain. A buffer that
   * crosses into an adjacent region becomes several pieces. Returns `fault` if a part is unmapped or not mapped for
   * `access`, `noRoom` if the arena is full; the caller then abandons the open chain.
   */
  translate(address: number, length: number, access: Access, arena: IovecArena): Translated {
    // Fast path: nearly always the buffer lies within the region of the previous one.
    const last = this.#last
    if (address < last.start || address + length > last.end || (last.access & access) !== access) {
      return this.#translatePieces(address, length, access, arena)
    }
    return arena.append(address + last.delta, length) ? TRANSLATED.ok : TRANSLATED.noRoom
  }

  /**
   * The region of the last hit: driver addresses [start, end), host minus driver address, and access. Always the same
   * object, updated in place; it contains no address while there is no region.
   */
  get lastRegion(): LastRegion {
    return this.#last
  }

  /**
   * The region that holds all of [address, address + length) for `access`, or undefined. For rings, not for packets.
   */
  locate(address: number, length: number, access: Access): MappedRegion | undefined {
    const index = this.#find(address)
    if (index < 0 || address + length > this.#ends[index]!) return undefined
    return (this.#accesses[index]! & access) === access ? this.#mapped[index] : undefined
  }

  /**
   * The window around a readable `address`; undefined if it is unmapped, not readable, or must be read without a
   * window.
   */
  tableWindow(address: number): TableWindow | undefined {
    const index = this.#find(address)
    if (index < 0 || (this.#accesses[index]! & ACCESS.read) === 0) return undefined
    const mapped = this.#mapped[index]!
    const which = Math.floor((address - mapped.region.start) / WINDOW_BYTES)
    return mapped.windows.get(which) ?? this.#newWindow(mapped, which)
  }

  #newWindow(of: MappedRegion, which: number): TableWindow | undefined {
    let place = this.#windows.length
    if (place === WINDOWS_MAX) {
      this.#readsWithout = (this.#readsWithout + 1) % READS_PER_WINDOW
      if (this.#readsWithout !== 0) return undefined
      place = this.#oldestWindow
      this.#oldestWindow = (place + 1) % WINDOWS_MAX
      const oldest = this.#windows[place]!
      oldest.of.windows.get(oldest.which)?.detach()
      oldest.of.windows.delete(oldest.which)
      this.#generation++
    }
    const window = new TableWindow(of.region, which * WINDOW_BYTES, WINDOW_BYTES)
    of.windows.set(which, window)
    this.#windows[place] = { of, which }
    return window
  }

  /** Removes the windows of a region that goes. */
  #dropWindows(of: MappedRegion): void {
    for (const window of of.windows.values()) window.detach()
    of.windows.clear()
    const kept = this.#windows.filter((window) => window.of !== of)
    this.#windows.length = 0
    this.#windows.push(...kept)
    this.#oldestWindow = 0
  }

  /**
   * Unmaps every region that overlaps [start, last]. The caller has disposed of rings in them, and uses no address
   * translated in them any more.
   */
  forget(start: number, last: number): void {
    let kept = 0
    for (let index = 0; index < this.#mapped.length; index++) {
      const mapped = this.#mapped[index]!
      if (this.#starts[index]! <= last && this.#ends[index]! > start) {
        assert(mapped.ringViews === 0, 'unmapping memory under a ring')
        // SAFETY: views first; a stale view must never reach unmapped pages.
        this.#dropWindows(mapped)
        mapped.region.mapping[Symbol.dispose]()
        continue
      }
      this.#starts[kept] = this.#starts[index]!
      this.#ends[kept] = this.#ends[index]!
      this.#deltas[kept] = this.#deltas[index]!
      this.#accesses[kept] = this.#accesses[index]!
      this.#mapped[kept] = mapped
      kept++
    }
    if (kept === this.#mapped.length) return
    // A row beyond the last region contains no address.
    this.#ends.fill(0, kept, this.#mapped.length)
    this.#mapped.length = kept
    this.#hit(0)
    this.#generation++
  }

  /** The driver address of a host address from {@link translate}. */
  driverAddress(host: number): number {
    for (let index = 0; index < this.#mapped.length; index++) {
      const address = host - this.#deltas[index]!
      if (address >= this.#starts[index]! && address < this.#ends[index]!) return address
    }
    throw new AssertionError('a host address of no region')
  }

  /** Accesses so far to vanished pages of the present regions. */
  guardHits(): number {
    let hits = 0
    for (let index = 0; index < this.#mapped.length; index++) hits += this.#mapped[index]!.region.mapping.guardHits()
    return hits
  }

  /** Unmaps everything, under the conditions of {@link forget}. */
  clear(): void {
    this.forget(0, Number.MAX_SAFE_INTEGER)
  }

  #translatePieces(address: number, length: number, access: Access, arena: IovecArena): Translated {
    let at = address
    let left = length
    while (left > 0) {
      const index = this.#find(at)
      if (index < 0 || (this.#accesses[index]! & access) !== access) return TRANSLATED.fault
      const piece = Math.min(left, this.#ends[index]! - at)
      if (!arena.append(at + this.#deltas[index]!, piece)) return TRANSLATED.noRoom
      at += piece
      left -= piece
    }
    return TRANSLATED.ok
  }

  /** Index of the region that contains `address`, mapped from the source if needed; -1 if there is none. */
  #find(address: number): number {
    const last = this.#lastHit
    if (address >= this.#starts[last]! && address < this.#ends[last]!) return last
    const index = this.#lowerBound(address + 1) - 1
    if (index >= 0 && address < this.#ends[index]!) {
      this.#hit(index)
      return index
    }
    return this.#resolve(address)
  }

  #hit(index: number): void {
    this.#lastHit = index
    this.#last.start = this.#starts[index]!
    this.#last.end = this.#ends[index]!
    this.#last.delta = this.#deltas[index]!
    this.#last.access = this.#accesses[index]!
  }

  #resolve(address: number): number {
    const generation = this.#generation
    const region = this.#source.resolve(address)
    assert(generation === this.#generation, 'a region source changed the address space')
    if (region === undefined) return -1
    // The source may answer with a region near the address, or with one that replaced a region not yet forgotten here.
    const usable = address >= region.start && address < region.start + region.lengthBytes && this.add(region)
    if (usable) return this.#lastHit
    region.mapping[Symbol.dispose]()
    return -1
  }

  /** Index of the first region whose start is not below `address`. */
  #lowerBound(address: number): number {
    let low = 0
    let high = this.#mapped.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#starts[middle]! < address) low = middle + 1
      else high = middle
    }
    return low
  }
}
