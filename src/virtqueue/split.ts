import { VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC } from '../abi/virtio.ts'
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
import type { DriverFaultCode } from '../base/driver-faults.ts'
import { DriverFault } from '../base/errors.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import { ACCESS, type Access } from '../memory/region.ts'
import { RingView } from '../memory/ring-view.ts'
import { ChainFifo } from './chain-fifo.ts'
import { CHAIN_NO_ROOM, CHAIN_OK } from './descriptor-chain.ts'
import { needEvent } from './event-index.ts'
import type { SplitInflight } from './inflight-record.ts'
import { SplitBurst } from './split-burst.ts'
import { SplitChainWalker } from './split-chain.ts'
import { type BufferDirection, POP, type PopResult, type Virtqueue } from './virtqueue.ts'
import { negotiated, type VirtqueueConfig, type VqBase } from './virtqueue-config.ts'

/** Words of struct vring_avail and struct vring_used, as u16: flags, idx, then the ring. */
const FLAGS = 0
const IDX = 1
const AVAIL_RING = 2

const NONE = new Uint16Array(0)

/** Configuration of a split ring. */
export type SplitQueueConfig = VirtqueueConfig & {
  /** Counts dropped chains: one element for each of dropReasons. */
  readonly drops: Uint32Array | Float64Array
  /** The record of chains in flight, or none. Unless it is new, it decides where to start. */
  readonly inflight?: SplitInflight | null
}

/**
 * The index at which both rings start. Chains are used in order, so both share it, and used.idx is what the driver has
 * seen. The front-end's base may be that of an earlier start; DPDK's virtio-user always sends 0. If avail.idx is out of
 * reach of used.idx, no device wrote used.idx (the ring was not reset), and the base counts.
 * docs/decisions/0010-where-a-ring-goes-on.md
 */
const startOf = (base: VqBase | 'used', usedIdx: number, availIdx: number, size: number): number => {
  const said = base === 'used' ? usedIdx : base & 0xffff
  const fits = (index: number): boolean => ((availIdx - index) & 0xffff) <= size
  return fits(said) && !fits(usedIdx) ? said : usedIdx
}

/** A split virtqueue. VIRTIO 1.2 §2.7. */
export class SplitQueue implements Virtqueue {
  readonly size: number
  readonly resumed: boolean
  readonly #mask: number
  readonly #eventIdx: boolean
  readonly #walker: SplitChainWalker
  readonly #burst: SplitBurst
  readonly #views: readonly RingView[]
  readonly #descriptors: Uint32Array
  readonly #avail: Uint16Array
  readonly #used: Uint16Array
  /** The used ring in words: flags and idx, then {id, len} of each element. */
  readonly #usedElements: Uint32Array

  /** Indices are avail indices: `popped` is the next avail entry. */
  readonly #held: ChainFifo
  /** 1 for each held head. */
  readonly #headBusy: Uint8Array
  /** avail.idx as last read and checked. */
  #seenAvail: number
  /** used.idx at the last {@link needsCall}. */
  #consideredUsed: number
  /** A predecessor may have died between publishing and calling: call once, whatever the driver requests. */
  #callDue: boolean
  #quarantined = false
  readonly #inflight: SplitInflight | null
  /**
   * Heads of the chains from avail index #resubmitFrom on, in place of the avail ring's: a predecessor has popped them.
   */
  #resubmit: Uint16Array = NONE
  readonly #resubmitFrom: number

  /** @throws DriverFault RING_MISALIGNED, RING_UNMAPPED or INFLIGHT_INVALID */
  constructor(space: AddressSpace, config: SplitQueueConfig) {
    const { size } = config
    assert(size > 0 && size <= VRING_SPLIT_SIZE_MAX && (size & (size - 1)) === 0, 'a split ring has 2^n entries')
    this.size = size
    this.#mask = size - 1
    this.#eventIdx = negotiated(config.features, VIRTIO_RING_F_EVENT_IDX)
    const indirect = negotiated(config.features, VIRTIO_RING_F_INDIRECT_DESC)
    this.#walker = new SplitChainWalker(space, indirect)
    using views = new DisposableStack()
    const part = (address: number, lengthBytes: number, alignment: 2 | 4 | 16, access: Access): RingView =>
      views.use(new RingView(space, address, lengthBytes, alignment, access))
    const descriptors = part(config.descAddr, VRING_DESC_BYTES * size, VRING_DESC_ALIGN_SIZE, ACCESS.read)
    const avail = part(config.availAddr, 6 + 2 * size, VRING_AVAIL_ALIGN_SIZE, ACCESS.read)
    const used = part(config.usedAddr, 6 + 8 * size, VRING_USED_ALIGN_SIZE, ACCESS.write)
    const usedIdx = Atomics.load(used.u16, IDX)
    const start = startOf(config.base, usedIdx, Atomics.load(avail.u16, IDX), size)
    this.#inflight = config.inflight ?? null
    const recorded = this.#inflight?.start(size, start) ?? false
    views.move()
    this.#views = [descriptors, avail, used]
    this.#descriptors = descriptors.u32
    this.#avail = avail.u16
    this.#used = used.u16
    this.#usedElements = used.u32
    this.resumed = recorded || config.base !== 0 || start !== 0
    this.#resubmit = this.#inflight?.resubmitted ?? NONE
    this.#resubmitFrom = start
    this.#held = new ChainFifo(size, start, config.drops)
    this.#headBusy = new Uint8Array(size)
    this.#burst = new SplitBurst(
      space,
      indirect,
      this.#descriptors,
      this.#avail.subarray(AVAIL_RING),
      this.#held,
      this.#headBusy,
    )
    this.#seenAvail = start
    this.#consideredUsed = start
    this.#callDue = recorded || config.base !== start
  }

  get inFlight(): number {
    return this.#held.inFlight
  }

  get quarantined(): boolean {
    return this.#quarantined
  }

  get nextAvail(): number {
    return this.#held.staged
  }

  get base(): number {
    return this.#held.published
  }

  get pending(): number {
    return this.#quarantined ? 0 : (Atomics.load(this.#avail, IDX) - this.#held.popped) & 0xffff
  }

  get nextUsed(): number {
    return this.#held.staged
  }

  popInto(arena: IovecArena, direction: BufferDirection): PopResult {
    const next = this.#held.popped
    if (next === this.#seenAvail && !this.#readAvail()) return POP.empty
    const again = this.#resubmit.length === 0 ? undefined : this.#resubmit[(next - this.#resubmitFrom) & 0xffff]
    const head = again ?? this.#avail[AVAIL_RING + (next & this.#mask)]!
    if (head >= this.size) throw this.#fault('HEAD_OUT_OF_RANGE', `${head} in a ring of ${this.size}`)
    // Two used elements for one head would make the driver free it twice.
    if (this.#headBusy[head] === 1)
      throw this.#fault('HEAD_IN_FLIGHT', `${head} made available again before it was used`)
    const outcome = this.#walker.walk(this.#descriptors, this.size, head, direction, arena)
    if (outcome === CHAIN_NO_ROOM) return POP.full
    this.#headBusy[head] = 1
    if (again === undefined) this.#inflight?.take(head)
    this.#held.push(head, outcome, 0)
    return outcome === CHAIN_OK ? POP.chain : POP.dropped
  }

  popBurst(arena: IovecArena, direction: BufferDirection, chainsMax: number, bytesMax: number): number {
    // Only popInto() writes to the record of chains in flight.
    if (this.#inflight !== null || (this.#held.popped === this.#seenAvail && !this.#readAvail())) return 0
    return this.#burst.take(this.#seenAvail, arena, direction, chainsMax, bytesMax)
  }

  unpop(count: number): void {
    const held = this.#held
    for (let left = held.unpop(count); left > 0; left--) {
      const chain = held.popped + left - 1
      const head = held.ids[chain & held.mask]!
      this.#headBusy[head] = 0
      // A predecessor's chains stay in the record: the avail ring has lost them.
      if (((chain - this.#resubmitFrom) & 0xffff) >= this.#resubmit.length) this.#inflight?.giveBack(head)
    }
  }

  stageUsed(lengthBytes: number): void {
    this.#held.stage(lengthBytes)
  }

  publishUsed(): void {
    const held = this.#held
    if (held.published === held.staged || this.#quarantined) return
    const elements = this.#usedElements
    for (let chain = held.published; chain !== held.staged; chain = (chain + 1) & 0xffff) {
      const place = chain & held.mask
      const head = held.ids[place]!
      const at = 1 + 2 * (chain & this.#mask)
      elements[at] = head
      elements[at + 1] = held.lengths[place]!
      this.#headBusy[head] = 0
      this.#inflight?.batch(head)
    }
    const first = held.published
    held.publish()
    // ORDERING: used elements first, idx second; also before the used_event read that follows.
    Atomics.store(this.#used, IDX, this.#held.published)
    if (this.#inflight !== null) this.#noteUsed(this.#inflight, first)
  }

  needsCall(): boolean {
    if (this.#quarantined) return false
    const next = this.#held.published
    const prev = this.#consideredUsed
    this.#consideredUsed = next
    if (this.#callDue) {
      this.#callDue = false
      return true
    }
    if (next === prev) return false
    // ORDERING: both loads come after the store of used.idx: either the driver sees it, or its request is seen here.
    // VIRTIO 1.2 §2.7.7.2: with EVENT_IDX flags are ignored, without it used_event is.
    if (this.#eventIdx) return needEvent(Atomics.load(this.#avail, AVAIL_RING + this.size), next, prev)
    return (Atomics.load(this.#avail, FLAGS) & VRING_AVAIL_F_NO_INTERRUPT) === 0
  }

  disableNotification(): void {
    // With EVENT_IDX flags stay 0: a stale avail_event causes at most one kick, and then suppresses.
    if (!this.#eventIdx && !this.#quarantined) Atomics.store(this.#used, FLAGS, VRING_USED_F_NO_NOTIFY)
  }

  enableNotification(): boolean {
    if (this.#quarantined) return false
    if (this.#eventIdx) Atomics.store(this.#used, 2 + 4 * this.size, this.#seenAvail)
    else Atomics.store(this.#used, FLAGS, 0)
    // ORDERING: store, then load: a driver that adds a chain in between either sees the request and kicks, or its chain
    // is seen here.
    return Atomics.load(this.#avail, IDX) !== this.#seenAvail
  }

  quarantine(): void {
    this.#quarantined = true
    // Pops stop at once: popInto reads avail.idx again only when it has popped all that it saw.
    this.#seenAvail = this.#held.popped
  }

  [Symbol.dispose](): void {
    this.quarantine()
    for (const view of this.#views) view[Symbol.dispose]()
  }

  /** Records that the chains from `first` on were published. */
  #noteUsed(inflight: SplitInflight, first: number): void {
    const held = this.#held
    for (let chain = first; chain !== held.published; chain = (chain + 1) & 0xffff) {
      inflight.used(held.ids[chain & held.mask]!)
    }
    inflight.endBatch(this.#held.published)
    if (((held.published - this.#resubmitFrom) & 0xffff) >= this.#resubmit.length) this.#resubmit = NONE
  }

  /** Reads and checks avail.idx. False if there is nothing new. */
  #readAvail(): boolean {
    if (this.#quarantined) return false
    // ORDERING: acquires avail.idx before ring[] and descriptors are read.
    const idx = Atomics.load(this.#avail, IDX)
    const pending = (idx - this.#held.popped) & 0xffff
    if (pending === 0) return false
    // The driver cannot make held chains available again. An idx that moves backwards shows as a large step.
    const held = this.#held.held
    if (pending > this.size - held) {
      throw this.#fault('AVAIL_OVERRUN', `${pending} new entries and ${held} held in a ring of ${this.size}`)
    }
    this.#seenAvail = idx
    return true
  }

  #fault(code: DriverFaultCode, detail: string): DriverFault {
    this.quarantine()
    return new DriverFault(code, detail)
  }
}
