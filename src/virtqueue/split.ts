import { dropReasons } from '../abi/drop-reason.ts'
import {
  VRING_AVAIL_ALIGN_SIZE,
  VRING_AVAIL_F_NO_INTERRUPT,
  VRING_DESC_ALIGN_SIZE,
  VRING_DESC_BYTES,
  VRING_SPLIT_SIZE_MAX,
  VRING_USED_ALIGN_SIZE,
  VRING_USED_F_NO_NOTIFY,
} from '../abi/virtio-ring.ts'
import { assert } from '../base/assert.ts'
import { DriverFault } from '../base/errors.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import { ACCESS, type Access } from '../memory/region.ts'
import { RingView } from '../memory/ring-view.ts'
import { CHAIN_NO_ROOM, CHAIN_OK, ChainWalker } from './descriptor-chain.ts'
import { needEvent } from './event-index.ts'
import { type Direction, POP, type PopResult, type Virtqueue } from './virtqueue.ts'

/** Words of struct vring_avail and struct vring_used, as u16: flags, idx, then the ring. */
const FLAGS = 0
const IDX = 1
const AVAIL_RING = 2

export type SplitQueueConfig = {
  /** Entries: a power of two, at most 32768. */
  readonly size: number
  /** Driver addresses of the three parts. */
  readonly descAddr: number
  readonly availAddr: number
  readonly usedAddr: number
  /**
   * Where to start; 'used' goes on from the used ring's idx, which is exact because chains are used in order. A `nextUsed` left
   * out is the used ring's idx too.
   */
  readonly state: { readonly nextAvail: number; readonly nextUsed?: number } | 'used'
  /** VIRTIO_F_INDIRECT_DESC was negotiated. */
  readonly indirect: boolean
  /** VIRTIO_F_EVENT_IDX was negotiated. */
  readonly eventIdx: boolean
  /** Counts dropped chains: one element for each of dropReasons. */
  readonly drops: Uint32Array | Float64Array
}

/** A split virtqueue. VIRTIO 1.2 §2.7. */
export class SplitQueue implements Virtqueue {
  readonly size: number
  readonly #mask: number
  readonly #eventIdx: boolean
  readonly #drops: Uint32Array | Float64Array
  readonly #walker: ChainWalker
  readonly #views: readonly RingView[]
  readonly #descriptors: Uint32Array
  readonly #avail: Uint16Array
  readonly #used: Uint16Array
  /** The used ring in words: flags and idx, then {id, len} of each element. */
  readonly #usedElements: Uint32Array

  /**
   * What was popped and not yet used, oldest first: a FIFO whose slots are those of the avail ring. The avail ring itself is
   * the driver's, who may change it.
   */
  readonly #heads: Uint16Array
  /** CHAIN_OK, or the reason why the chain in the same slot is dropped. */
  readonly #outcomes: Int8Array
  /** Popped and not used: chains in flight, and malformed ones that wait for older ones. */
  #outstanding = 0
  #inFlight = 0
  /** 1 for a head that is outstanding. */
  readonly #headBusy: Uint8Array

  /** All indices run freely, 0..65535. */
  #nextAvail: number
  /** avail.idx as last read and checked. */
  #seenAvail: number
  #nextUsed: number
  /** used.idx as the driver sees it. */
  #publishedUsed: number
  /** used.idx when a call was last considered. */
  #consideredUsed: number
  /** What a predecessor that died published may never have been signalled: call once, whatever the driver asks. */
  #callDue: boolean
  #quarantined = false

  /** @throws DriverFault RING_MISALIGNED or RING_UNMAPPED */
  constructor(space: AddressSpace, config: SplitQueueConfig) {
    const { size } = config
    assert(size > 0 && size <= VRING_SPLIT_SIZE_MAX && (size & (size - 1)) === 0, 'a split ring has 2^n entries')
    assert(config.drops.length >= dropReasons.length)
    this.size = size
    this.#mask = size - 1
    this.#eventIdx = config.eventIdx
    this.#drops = config.drops
    this.#walker = new ChainWalker(space, config.indirect)
    using views = new DisposableStack()
    const part = (address: number, lengthBytes: number, alignment: 2 | 4 | 16, access: Access): RingView =>
      views.use(new RingView(space, address, lengthBytes, alignment, access))
    const descriptors = part(config.descAddr, VRING_DESC_BYTES * size, VRING_DESC_ALIGN_SIZE, ACCESS.read)
    const avail = part(config.availAddr, 6 + 2 * size, VRING_AVAIL_ALIGN_SIZE, ACCESS.read)
    const used = part(config.usedAddr, 6 + 8 * size, VRING_USED_ALIGN_SIZE, ACCESS.write)
    views.move()
    this.#views = [descriptors, avail, used]
    this.#descriptors = descriptors.u32
    this.#avail = avail.u16
    this.#used = used.u16
    this.#usedElements = used.u32
    this.#heads = new Uint16Array(size)
    this.#outcomes = new Int8Array(size)
    this.#headBusy = new Uint8Array(size)
    const given = config.state === 'used' ? undefined : config.state.nextUsed
    const usedIdx = given === undefined ? Atomics.load(this.#used, IDX) : given & 0xffff
    this.#nextAvail = config.state === 'used' ? usedIdx : config.state.nextAvail & 0xffff
    this.#seenAvail = this.#nextAvail
    this.#nextUsed = usedIdx
    this.#publishedUsed = usedIdx
    this.#consideredUsed = usedIdx
    this.#callDue = config.state === 'used'
  }

  get inFlight(): number {
    return this.#inFlight
  }

  get quarantined(): boolean {
    return this.#quarantined
  }

  get nextAvail(): number {
    return (this.#nextAvail - this.#outstanding) & 0xffff
  }

  get base(): number {
    return this.nextAvail
  }

  get pending(): number {
    return this.#quarantined ? 0 : (Atomics.load(this.#avail, IDX) - this.#nextAvail) & 0xffff
  }

  get nextUsed(): number {
    return this.#nextUsed
  }

  popInto(arena: IovecArena, direction: Direction): PopResult {
    if (this.#nextAvail === this.#seenAvail && !this.#look()) return POP.empty
    const slot = this.#nextAvail & this.#mask
    const head = this.#avail[AVAIL_RING + slot]!
    if (head >= this.size) throw this.#fault('HEAD_OUT_OF_RANGE', `${head} in a ring of ${this.size}`)
    // Two used elements for one head would make the driver free it twice.
    if (this.#headBusy[head] === 1)
      throw this.#fault('HEAD_IN_FLIGHT', `${head} made available again before it was used`)
    const outcome = this.#walker.walk(this.#descriptors, this.size, head, direction, arena)
    if (outcome === CHAIN_NO_ROOM) return POP.full
    this.#heads[slot] = head
    this.#outcomes[slot] = outcome
    this.#headBusy[head] = 1
    this.#nextAvail = (this.#nextAvail + 1) & 0xffff
    this.#outstanding++
    if (outcome === CHAIN_OK) {
      this.#inFlight++
      return POP.chain
    }
    if (this.#inFlight === 0) this.#stageDropped()
    return POP.dropped
  }

  unpop(count: number): void {
    assert(count <= this.#inFlight, 'giving back more chains than were popped')
    let left = count
    while (left > 0) {
      this.#nextAvail = (this.#nextAvail - 1) & 0xffff
      const slot = this.#nextAvail & this.#mask
      this.#headBusy[this.#heads[slot]!] = 0
      this.#outstanding--
      if (this.#outcomes[slot] === CHAIN_OK) left--
    }
    this.#inFlight -= count
  }

  stageUsed(lengthBytes: number): void {
    assert(this.#inFlight > 0, 'no chain is in flight')
    this.#inFlight--
    this.#stageOldest(lengthBytes)
    if (this.#outstanding > this.#inFlight) this.#stageDropped()
  }

  publishUsed(): void {
    if (this.#nextUsed === this.#publishedUsed || this.#quarantined) return
    // ORDERING: used elements first, idx second; also before the used_event read that follows.
    Atomics.store(this.#used, IDX, this.#nextUsed)
    this.#publishedUsed = this.#nextUsed
  }

  needsCall(): boolean {
    if (this.#quarantined) return false
    const next = this.#publishedUsed
    const prev = this.#consideredUsed
    this.#consideredUsed = next
    if (this.#callDue) {
      this.#callDue = false
      return true
    }
    if (next === prev) return false
    // ORDERING: both loads come after the store of used.idx: either the driver sees it, or its wish is seen here.
    // VIRTIO 1.2 §2.7.7.2: with EVENT_IDX flags are ignored, without it used_event is.
    if (this.#eventIdx) return needEvent(Atomics.load(this.#avail, AVAIL_RING + this.size), next, prev)
    return (Atomics.load(this.#avail, FLAGS) & VRING_AVAIL_F_NO_INTERRUPT) === 0
  }

  disableNotification(): void {
    // With EVENT_IDX flags stay 0; an avail_event left behind is passed once, and then suppresses by itself.
    if (!this.#eventIdx && !this.#quarantined) Atomics.store(this.#used, FLAGS, VRING_USED_F_NO_NOTIFY)
  }

  enableNotification(): boolean {
    if (this.#quarantined) return false
    if (this.#eventIdx) Atomics.store(this.#used, 2 + 4 * this.size, this.#seenAvail)
    else Atomics.store(this.#used, FLAGS, 0)
    // ORDERING: store, then load: a driver that adds a chain in between either sees our wish and kicks, or is seen here.
    return Atomics.load(this.#avail, IDX) !== this.#seenAvail
  }

  quarantine(): void {
    this.#quarantined = true
    // Nothing more is popped: popInto looks at the ring again only when it has done all that it saw.
    this.#seenAvail = this.#nextAvail
  }

  [Symbol.dispose](): void {
    this.quarantine()
    for (const view of this.#views) view[Symbol.dispose]()
  }

  /** Reads avail.idx. False if there is nothing new. */
  #look(): boolean {
    if (this.#quarantined) return false
    // ORDERING: acquires avail.idx before ring[] and descriptors are read.
    const idx = Atomics.load(this.#avail, IDX)
    const pending = (idx - this.#nextAvail) & 0xffff
    if (pending === 0) return false
    // What the driver has not been given back it cannot make available again. An idx that goes back looks like a large step.
    const held = this.#outstanding + ((this.#nextUsed - this.#publishedUsed) & 0xffff)
    if (pending > this.size - held) {
      throw this.#fault('AVAIL_OVERRUN', `${pending} new entries and ${held} held in a ring of ${this.size}`)
    }
    this.#seenAvail = idx
    return true
  }

  /** Stages malformed chains that no older chain holds back. */
  #stageDropped(): void {
    while (this.#outstanding > 0) {
      const outcome = this.#outcomes[(this.#nextAvail - this.#outstanding) & this.#mask]!
      if (outcome === CHAIN_OK) return
      this.#drops[outcome]!++
      this.#stageOldest(0)
    }
  }

  #stageOldest(lengthBytes: number): void {
    const head = this.#heads[(this.#nextAvail - this.#outstanding) & this.#mask]!
    const at = 1 + 2 * (this.#nextUsed & this.#mask)
    if (!this.#quarantined) {
      this.#usedElements[at] = head
      this.#usedElements[at + 1] = lengthBytes
    }
    this.#headBusy[head] = 0
    this.#outstanding--
    this.#nextUsed = (this.#nextUsed + 1) & 0xffff
  }

  #fault(code: string, detail: string): DriverFault {
    this.quarantine()
    return new DriverFault(code, detail)
  }
}
