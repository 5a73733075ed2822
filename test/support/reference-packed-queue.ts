import type { DropReason } from '../../src/abi/drop-reason.ts'
import type { RingPlace } from './packed-driver.ts'
import {
  Bytes,
  type ExpectedPop,
  ReferenceChain,
  type ReferenceRegion,
  type Room,
  tableOf,
  type Walk,
} from './reference-chain.ts'

/** A chain as the device holds it. */
type Held = { readonly place: RingPlace; readonly id: number; readonly descriptors: number }

/** A used descriptor that the driver must find. */
export type ExpectedUsed = {
  readonly slot: number
  readonly id: number
  readonly length: number
  readonly flags: number
  /** Where the chain ends. */
  readonly next: RingPlace
}

/** A second, slow implementation of the packed ring, one entry after the other. It shares no code with the real one. */
export class ReferencePackedQueue {
  readonly size: number
  readonly #bytes: Bytes
  readonly #desc: bigint
  readonly #indirect: boolean
  readonly #next: RingPlace
  /** Popped and not used, oldest first; a drop waits for its turn. */
  outstanding: (Held & { readonly drop: DropReason | undefined })[] = []
  /** Used and not yet published. */
  staged: (Held & { readonly length: number })[] = []
  /** Chains used so far, and entries that were published since the last question whether to call. */
  nextUsed = 0
  movedSince = 0
  /** The entry that the next chain published will be found at. */
  readonly published: RingPlace
  /** Entries in front of #next that were seen to be available, since they were given back. */
  #ahead = 0
  readonly drops: Partial<Record<DropReason, number>> = {}

  constructor(options: {
    regions: readonly ReferenceRegion[]
    size: number
    descAddr: number
    start: RingPlace
    indirect: boolean
  }) {
    this.size = options.size
    this.#bytes = new Bytes(options.regions)
    this.#desc = BigInt(options.descAddr)
    this.#indirect = options.indirect
    this.#next = options.start.copy()
    this.published = options.start.copy()
  }

  get inFlight(): number {
    return this.outstanding.filter(({ drop }) => drop === undefined).length
  }

  /** Entries that the driver has not been given back. */
  get heldEntries(): number {
    return [...this.staged, ...this.outstanding].reduce((sum, { descriptors }) => sum + descriptors, 0)
  }

  /** Where the device waits for the driver. */
  get frontier(): RingPlace {
    const place = this.#next.copy()
    place.step(this.#ahead)
    return place
  }

  isAvailable(place: RingPlace): boolean {
    const flags = Number(this.#bytes.read(this.#desc + 16n * BigInt(place.slot) + 14n, 2)!)
    const [avail, used] = [(flags >> 7) & 1, flags >> 15]
    return avail === place.wrap && used !== place.wrap
  }

  pop(writable: boolean, room: Room): ExpectedPop {
    if (!this.isAvailable(this.#next)) {
      this.#ahead = 0
      return { kind: 'empty' }
    }
    if (room.chains === 0) return { kind: 'full' }
    const chain = new ReferenceChain(this.#bytes, writable, room)
    const left = this.size - this.heldEntries
    const place = this.#next.copy()
    let walk: Walk | undefined
    let id = 0
    let descriptors = 0
    for (let more = true; more; place.step()) {
      if (!this.isAvailable(place)) return { kind: 'fault', code: 'TAIL_NOT_AVAILABLE' }
      if (descriptors === left) return { kind: 'fault', code: 'AVAIL_OVERRUN' }
      const raw = this.#bytes.read(this.#desc + 16n * BigInt(place.slot), 16)!
      const flags = Number(raw >> 112n)
      more = (flags & 1) !== 0
      walk ??= this.#buffer(chain, raw, flags, more || descriptors > 0)
      if (walk === 'full') return { kind: 'full' }
      id = Number((raw >> 96n) & 0xffffn)
      descriptors++
    }
    walk ??= chain.end()
    if (walk === 'full') return { kind: 'full' }
    const held = { place: this.#next.copy(), id, descriptors }
    this.#next.step(descriptors)
    this.#ahead = Math.max(0, this.#ahead - descriptors)
    if ('pieces' in walk) {
      this.outstanding.push({ ...held, drop: undefined })
      return { kind: 'chain', head: id, pieces: walk.pieces }
    }
    this.outstanding.push({ ...held, drop: walk.drop })
    this.#flush()
    return { kind: 'dropped', head: id }
  }

  unpop(count: number): void {
    for (let left = count; left > 0; ) {
      const { drop, place, descriptors } = this.outstanding.pop()!
      if (drop === undefined) left--
      this.#next.slot = place.slot
      this.#next.wrap = place.wrap
      this.#ahead += descriptors
    }
  }

  stage(length: number): void {
    this.#use(this.outstanding.shift()!, length)
    this.#flush()
  }

  /** What the driver must find now, oldest first. */
  publish(): ExpectedUsed[] {
    const used = this.staged.map(({ place, id, length, descriptors }) => {
      this.published.step(descriptors)
      this.movedSince += descriptors
      const flags = (length === 0 ? 0 : 2) | (place.wrap === 1 ? 0x8080 : 0)
      return { slot: place.slot, id, length, flags, next: this.published.copy() }
    })
    this.staged = []
    return used
  }

  #use(held: Held, length: number): void {
    this.staged.push({ ...held, length })
    this.nextUsed = (this.nextUsed + 1) % 65_536
  }

  #flush(): void {
    while (this.outstanding[0]?.drop !== undefined) {
      const held = this.outstanding.shift()!
      this.drops[held.drop!] = (this.drops[held.drop!] ?? 0) + 1
      this.#use(held, 0)
    }
  }

  /** Takes what a descriptor of the ring points to; undefined if that was all right. */
  #buffer(chain: ReferenceChain, raw: bigint, flags: number, hasOthers: boolean): Walk | undefined {
    const address = raw & 0xffff_ffff_ffff_ffffn
    const length = (raw >> 64n) & 0xffff_ffffn
    if ((flags & 4) === 0) return chain.buffer(address, length, (flags & 2) !== 0)
    const entries = tableOf(address, length, this.#indirect, !hasOthers)
    if (typeof entries !== 'bigint') return entries
    for (let entry = 0n; entry < entries; entry++) {
      const inner = this.#bytes.read(address + 16n * entry, 16)
      if (inner === undefined) return { drop: 'chain_address_unmapped' }
      const writable = ((inner >> 112n) & 2n) !== 0n
      const result = chain.buffer(inner & 0xffff_ffff_ffff_ffffn, (inner >> 64n) & 0xffff_ffffn, writable)
      if (result !== undefined) return result
    }
    return undefined
  }
}
