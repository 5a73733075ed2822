import type { DropReason } from '../../src/abi/drop-reason.ts'
import {
  Bytes,
  type ExpectedPop,
  ReferenceChain,
  type ReferenceRegion,
  type Room,
  tableOf,
  type Walk,
} from './reference-chain.ts'

/**
 * A second, slow implementation of the split ring: BigInt addresses, a search for every byte, plain arrays. Fuzzing
 * compares the real one with it. They share no code.
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
    const chain = new ReferenceChain(this.#bytes, writable, room)
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
        const entries = tableOf(address, length, this.#indirect, !more)
        if (typeof entries !== 'bigint') return entries
        inTable = true
        base = address
        count = entries
        index = 0n
        visited = -1n
        continue
      }
      const result = chain.buffer(address, length, (flags & 2) !== 0)
      if (result !== undefined) return result
      if (!more) return chain.end()
      if (next >= count) return { drop: 'chain_next_out_of_range' }
      index = next
    }
  }

  #u16(address: bigint): number {
    return Number(this.#bytes.read(address, 2)!)
  }
}
