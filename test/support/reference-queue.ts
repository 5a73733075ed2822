import type { DropReason } from '../../src/abi/drop-reason.ts'
import type { TestMemory } from './memory.ts'

/** A region as the reference sees it: bytes at a driver address, readable, writable or both (1, 2, 3). */
export type ReferenceRegion = { readonly memory: TestMemory; readonly access: number }

/** A piece of memory by host address. */
export type HostPiece = { readonly address: number; readonly length: number }

/** What popping must do. */
export type ExpectedPop =
  | { readonly kind: 'empty' | 'full' }
  | { readonly kind: 'dropped'; readonly head: number }
  | { readonly kind: 'chain'; readonly head: number; readonly pieces: readonly HostPiece[] }
  | { readonly kind: 'fault'; readonly code: string }

/** Room left in the arena. */
export type Room = { readonly chains: number; readonly iovecs: number; readonly empty: boolean }

type Walk = { readonly pieces: HostPiece[] } | { readonly drop: DropReason } | 'full'

/** Driver memory, one byte at a time. */
class Bytes {
  readonly #regions: readonly ReferenceRegion[]
  constructor(regions: readonly ReferenceRegion[]) {
    this.#regions = regions
  }

  /** The region that holds the byte, if it may be accessed so. */
  at(address: bigint, access: number): ReferenceRegion | undefined {
    return this.#regions.find(
      (region) =>
        address >= BigInt(region.memory.start) &&
        address < BigInt(region.memory.end) &&
        (region.access & access) === access,
    )
  }

  /** A little-endian number of `length` bytes, or undefined if a byte of it is not readable. */
  read(address: bigint, length: number): bigint | undefined {
    let value = 0n
    for (let index = length - 1; index >= 0; index--) {
      const at = address + BigInt(index)
      const region = this.at(at, 1)
      if (region === undefined) return undefined
      value = (value << 8n) | BigInt(region.memory.bytes[Number(at) - region.memory.start]!)
    }
    return value
  }
}

/**
 * The split ring once more, by the book and slowly: BigInt addresses, a search for every byte, plain arrays. Fuzzing holds the
 * real one against it. The two share no code.
 */
export class ReferenceQueue {
  readonly size: number
  readonly #bytes: Bytes
  readonly #desc: bigint
  readonly #avail: bigint
  readonly #indirect: boolean
  #next: number
  #seen: number
  /** Popped and not used, oldest first; a drop waits for its turn. */
  outstanding: { head: number; drop: DropReason | undefined }[] = []
  /** Used and not yet published. */
  staged: { id: number; length: number }[] = []
  nextUsed: number
  publishedUsed: number
  readonly drops: Partial<Record<DropReason, number>> = {}

  constructor(options: {
    regions: readonly ReferenceRegion[]
    size: number
    descAddr: number
    availAddr: number
    start: number
    indirect: boolean
  }) {
    this.size = options.size
    this.#bytes = new Bytes(options.regions)
    this.#desc = BigInt(options.descAddr)
    this.#avail = BigInt(options.availAddr)
    this.#indirect = options.indirect
    this.#next = options.start
    this.#seen = options.start
    this.nextUsed = options.start
    this.publishedUsed = options.start
  }

  get inFlight(): number {
    return this.outstanding.filter(({ drop }) => drop === undefined).length
  }

  pop(writable: boolean, room: Room): ExpectedPop {
    if (this.#next === this.#seen) {
      const idx = this.#u16(this.#avail + 2n)
      const pending = (idx - this.#next + 65_536) % 65_536
      if (pending === 0) return { kind: 'empty' }
      if (pending + this.outstanding.length + this.staged.length > this.size) {
        return { kind: 'fault', code: 'AVAIL_OVERRUN' }
      }
      this.#seen = idx
    }
    const head = this.#u16(this.#avail + 4n + 2n * BigInt(this.#next % this.size))
    if (head >= this.size) return { kind: 'fault', code: 'HEAD_OUT_OF_RANGE' }
    if (this.outstanding.some((one) => one.head === head) || this.staged.some(({ id }) => id === head))
      return { kind: 'fault', code: 'HEAD_IN_FLIGHT' }
    const walk = this.#walk(head, writable, room)
    if (walk === 'full') return { kind: 'full' }
    this.#next = (this.#next + 1) % 65_536
    if ('pieces' in walk) {
      this.outstanding.push({ head, drop: undefined })
      return { kind: 'chain', head, pieces: walk.pieces }
    }
    this.outstanding.push({ head, drop: walk.drop })
    this.#flush()
    return { kind: 'dropped', head }
  }

  unpop(count: number): void {
    for (let left = count; left > 0; ) {
      if (this.outstanding.pop()!.drop === undefined) left--
      this.#next = (this.#next + 65_535) % 65_536
    }
  }

  stage(length: number): void {
    this.staged.push({ id: this.outstanding.shift()!.head, length })
    this.nextUsed = (this.nextUsed + 1) % 65_536
    this.#flush()
  }

  /** What the driver must find from `publishedUsed` on. */
  publish(): { id: number; length: number }[] {
    const published = this.staged
    this.staged = []
    this.publishedUsed = this.nextUsed
    return published
  }

  #flush(): void {
    while (this.outstanding[0]?.drop !== undefined) {
      const { head, drop } = this.outstanding.shift()!
      this.drops[drop!] = (this.drops[drop!] ?? 0) + 1
      this.staged.push({ id: head, length: 0 })
      this.nextUsed = (this.nextUsed + 1) % 65_536
    }
  }

  #walk(head: number, writable: boolean, room: Room): Walk {
    if (room.chains === 0) return 'full'
    const pieces: HostPiece[] = []
    let total = 0n
    let base = this.#desc
    let count = BigInt(this.size)
    let index = BigInt(head)
    let inTable = false
    for (let visited = 0n; ; visited++) {
      if (visited === count) return { drop: 'chain_loop' }
      const raw = this.#bytes.read(base + 16n * index, 16)
      if (raw === undefined) return { drop: 'chain_address_unmapped' }
      const address = raw & 0xffff_ffff_ffff_ffffn
      const length = (raw >> 64n) & 0xffff_ffffn
      const flags = Number((raw >> 96n) & 0xffffn)
      const next = raw >> 112n
      const more = (flags & 1) !== 0
      if ((flags & 4) !== 0) {
        if (inTable) return { drop: 'indirect_malformed' }
        if (!this.#indirect) return { drop: 'indirect_not_negotiated' }
        if (more || length === 0n || length % 16n !== 0n) return { drop: 'indirect_malformed' }
        if (length / 16n > 1024n) return { drop: 'chain_too_many_segments' }
        if (address + length >= 2n ** 53n) return { drop: 'chain_address_unmapped' }
        inTable = true
        base = address
        count = length / 16n
        index = 0n
        visited = -1n
        continue
      }
      if (length !== 0n) {
        if (((flags & 2) !== 0) !== writable) return { drop: 'chain_wrong_direction' }
        total += length
        if (total > 2n ** 32n) return { drop: 'chain_too_long' }
        const result = this.#pieces(address, length, writable ? 2 : 1, pieces, room)
        if (result !== undefined) return result
      }
      if (!more) return total === 0n ? { drop: 'chain_empty' } : { pieces }
      if (next >= count) return { drop: 'chain_next_out_of_range' }
      index = next
    }
  }

  #pieces(address: bigint, length: bigint, access: number, pieces: HostPiece[], room: Room): Walk | undefined {
    if (address + length >= 2n ** 53n) return { drop: 'chain_address_unmapped' }
    let at = address
    const end = address + length
    while (at < end) {
      const region = this.#bytes.at(at, access)
      if (region === undefined) return { drop: 'chain_address_unmapped' }
      if (pieces.length === room.iovecs) return room.empty ? { drop: 'chain_too_many_segments' } : 'full'
      const regionEnd = BigInt(region.memory.end)
      const until = end < regionEnd ? end : regionEnd
      pieces.push({ address: region.memory.address + Number(at) - region.memory.start, length: Number(until - at) })
      at = until
    }
    return undefined
  }

  #u16(address: bigint): number {
    return Number(this.#bytes.read(address, 2)!)
  }
}
