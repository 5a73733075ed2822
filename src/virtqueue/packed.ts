import { VIRTIO_F_IN_ORDER, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC } from '../abi/virtio.ts'
import {
  VRING_DESC_ALIGN_SIZE,
  VRING_DESC_F_WRITE,
  VRING_PACKED_DESC_BYTES,
  VRING_PACKED_DESC_EVENT_BYTES,
  VRING_PACKED_EVENT_FLAG_DESC,
  VRING_PACKED_EVENT_FLAG_DISABLE,
  VRING_PACKED_EVENT_FLAG_ENABLE,
  VRING_PACKED_SIZE_MAX,
} from '../abi/virtio-ring.ts'
import { assert } from '../base/assert.ts'
import type { DriverFaultCode } from '../base/driver-faults.ts'
import { DriverFault } from '../base/errors.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import { ACCESS, type Access } from '../memory/region.ts'
import { RingView } from '../memory/ring-view.ts'
import { ChainFifo } from './chain-fifo.ts'
import { CHAIN_NO_ROOM, CHAIN_OK, DESC_WORDS } from './descriptor-chain.ts'
import type { PackedInflight } from './inflight-record.ts'
import { PackedBurst } from './packed-burst.ts'
import { CHAIN_OVERRUN, CHAIN_TAIL_NOT_AVAILABLE, PackedChainWalker } from './packed-chain.ts'
import {
  advance,
  distance,
  FLAGS_SHIFT,
  ID_AND_FLAGS,
  OFFSET_MASK,
  offWrapOf,
  type Position,
  positionOf,
  slotOf,
  usedBits,
  WRAP,
} from './packed-descriptor.ts'
import { deviceEventWord, endLength, packedStart } from './packed-start.ts'
import { BUFFER_DIRECTION, type BufferDirection, POP, type PopResult, type Virtqueue } from './virtqueue.ts'
import { negotiated, type VirtqueueConfig, type VqBase } from './virtqueue-config.ts'

/** Descriptors of the longest chains that drivers make for frames. */
const CHAIN_LIKELY_MAX = 32

/** Configuration of a packed ring. */
export type PackedQueueConfig = VirtqueueConfig & {
  /**
   * Start: next entry to become available in bits 0 to 14, its wrap counter in bit 15. Bits 16 to 31 (next entry to
   * use) are ignored: both halves agree at rest, and some front-ends leave them 0. See {@link packedStart}.
   */
  readonly base: VqBase
  /** Counts dropped chains: one element for each of dropReasons. */
  readonly drops: Uint32Array | Float64Array
  /** The record of chains in flight, or none. Unless it is new, it decides where to start. */
  readonly inflight?: PackedInflight | null
}

/**
 * A packed virtqueue. VIRTIO 1.2 §2.8.
 *
 * Driver and device share one ring of descriptors; the wrap bits of a descriptor tell whose it is. Chains are used in
 * order, so a used chain is marked in its own first descriptor.
 */
export class PackedQueue implements Virtqueue {
  readonly size: number
  readonly resumed: boolean
  readonly #eventIdx: boolean
  readonly #walker: PackedChainWalker
  readonly #burst: PackedBurst
  readonly #views: readonly RingView[]
  readonly #words: Uint32Array
  readonly #signedWords: Int32Array
  /** The driver's event suppression structure as one word: off_wrap, then flags. Read only. */
  readonly #driverEvent: Int32Array
  /** The device's event suppression structure as one word. */
  readonly #deviceEvent: Int32Array
  /** RING_EVENT_FLAGS_* that were written to it last. */
  #eventFlags: number = VRING_PACKED_EVENT_FLAG_ENABLE
  /** Indices count from 0 at the start: a packed ring has none of its own. */
  readonly #held: ChainFifo

  /** The position in the front-end's base. */
  readonly #base: Position
  #nextAvail: Position
  /** The first entry at which no chain was found yet; chains before it may have been given back. */
  #frontier: Position
  /** First entry of the oldest held chain. */
  #nextPublished: Position
  /** Of the last pop. */
  #direction: BufferDirection = BUFFER_DIRECTION.mixed
  /** #nextPublished at the last {@link needsCall}, and how many entries it has moved since. */
  #considered: Position
  #movedSince = 0
  #quarantined = false
  readonly #inflight: PackedInflight | null

  /** @throws DriverFault RING_MISALIGNED, RING_UNMAPPED, BASE_OUT_OF_RANGE, BASE_UNKNOWN or INFLIGHT_INVALID */
  constructor(space: AddressSpace, config: PackedQueueConfig) {
    const { size, base } = config
    assert(Number.isInteger(size) && size > 0 && size <= VRING_PACKED_SIZE_MAX, 'a packed ring has 1 to 32768 entries')
    this.size = size
    this.#eventIdx = negotiated(config.features, VIRTIO_RING_F_EVENT_IDX)
    const indirect = negotiated(config.features, VIRTIO_RING_F_INDIRECT_DESC)
    using views = new DisposableStack()
    const part = (address: number, lengthBytes: number, alignment: 4 | 16, access: Access): RingView =>
      views.use(new RingView(space, address, lengthBytes, alignment, access))
    const ring = part(config.descAddr, VRING_PACKED_DESC_BYTES * size, VRING_DESC_ALIGN_SIZE, ACCESS.readWrite)
    // VIRTIO 1.2 §2.8.10.1: the event suppression structures are aligned to their size.
    const driverEvent = part(
      config.availAddr,
      VRING_PACKED_DESC_EVENT_BYTES,
      VRING_PACKED_DESC_EVENT_BYTES,
      ACCESS.read,
    )
    const deviceEvent = part(
      config.usedAddr,
      VRING_PACKED_DESC_EVENT_BYTES,
      VRING_PACKED_DESC_EVENT_BYTES,
      ACCESS.write,
    )
    this.#walker = new PackedChainWalker(space, ring, size, indirect)
    this.#held = new ChainFifo(size, 0, config.drops)
    this.#burst = new PackedBurst(space, indirect, ring, size, this.#held)
    this.#words = ring.u32
    this.#signedWords = ring.i32
    this.#inflight = config.inflight ?? null
    const found = {
      size,
      words: ring.i32,
      deviceEvent: Atomics.load(deviceEvent.i32, 0),
      inOrder: negotiated(config.features, VIRTIO_F_IN_ORDER),
    }
    const toStart = (): Position => packedStart(found, base)
    const start = this.#inflight === null ? toStart() : this.#resume(this.#inflight, toStart)
    this.resumed = start !== 0 || this.#inflight?.resumed === true
    views.move()
    this.#views = [ring, driverEvent, deviceEvent]
    this.#driverEvent = driverEvent.i32
    this.#deviceEvent = deviceEvent.i32
    this.#base = positionOf(base & (OFFSET_MASK | WRAP), size)
    this.#nextAvail = start
    this.#frontier = start
    this.#nextPublished = start
    this.#considered = start
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

  get nextUsed(): number {
    return this.#held.staged
  }

  get base(): number {
    const half = offWrapOf(this.#nextPublished, this.size)
    return (half | (half << 16)) >>> 0
  }

  get pending(): number {
    return !this.#quarantined && this.#walker.isAvailable(this.#nextAvail) ? 1 : 0
  }

  popInto(arena: IovecArena, direction: BufferDirection): PopResult {
    if (this.#quarantined) return POP.empty
    this.#direction = direction
    const position = this.#nextAvail
    const limit = this.size - distance(this.#nextPublished, position, this.size)
    const outcome = this.#walker.walk(position, limit, direction, arena)
    if (outcome <= CHAIN_NO_ROOM) {
      if (outcome === CHAIN_NO_ROOM) return POP.full
      if (outcome === CHAIN_TAIL_NOT_AVAILABLE)
        throw this.#fault('TAIL_NOT_AVAILABLE', 'a chain continues in a descriptor that is not available')
      if (outcome === CHAIN_OVERRUN)
        throw this.#fault(
          'AVAIL_OVERRUN',
          `a chain of more than the ${limit} entries that a ring of ${this.size} has left`,
        )
      this.#frontier = position
      return POP.empty
    }
    this.#held.push(this.#walker.id, outcome, position)
    this.#moveTo(advance(position, this.#walker.descriptors, this.size))
    return outcome === CHAIN_OK ? POP.chain : POP.dropped
  }

  popBurst(arena: IovecArena, direction: BufferDirection, chainsMax: number, bytesMax: number): number {
    if (this.#quarantined) return 0
    this.#direction = direction
    const start = this.#nextAvail
    const limit = this.size - distance(this.#nextPublished, start, this.size)
    const taken = this.#burst.take(start, limit, arena, direction, chainsMax, bytesMax)
    this.#moveTo(this.#burst.end)
    return taken
  }

  unpop(count: number): void {
    const held = this.#held
    if (held.unpop(count) > 0) this.#nextAvail = held.positions[held.popped & held.mask]!
  }

  stageUsed(lengthBytes: number): void {
    this.#held.stage(lengthBytes)
  }

  publishUsed(): void {
    const held = this.#held
    if (held.published === held.staged || this.#quarantined) return
    const end = held.staged === held.popped ? this.#nextAvail : held.positions[held.staged & held.mask]!
    if (this.#inflight === null && this.#direction === BUFFER_DIRECTION.readable) this.#markInOrder(end)
    else this.#markAtOnce(end)
    held.publish()
    this.#movedSince += distance(this.#nextPublished, end, this.size)
    this.#nextPublished = end
    // ORDERING: a plain store after the flags. Its reader runs after the death of this process, when every executed
    // store is visible. RING_EVENT_FLAGS_DESC leaves no room for the note: ENABLE replaces it, and the driver kicks for
    // each chain.
    const isDisabled = this.#eventFlags === VRING_PACKED_EVENT_FLAG_DISABLE
    this.#deviceEvent[0] = this.#eventWord(isDisabled ? this.#eventFlags : VRING_PACKED_EVENT_FLAG_ENABLE)
    this.#inflight?.endBatch(end)
  }

  needsCall(): boolean {
    if (this.#quarantined || this.#movedSince === 0) return false
    const moved = this.#movedSince
    const considered = this.#considered
    this.#movedSince = 0
    this.#considered = this.#nextPublished
    // ORDERING: after the store of the used flags: either the driver sees those, or its request is seen here.
    const event = Atomics.load(this.#driverEvent, 0)
    const flags = (event >>> 16) & 3
    if (flags === VRING_PACKED_EVENT_FLAG_DISABLE) return false
    // Flags that are reserved or not negotiated must not lose a call. VIRTIO 1.2 §2.8.14.
    if (flags !== VRING_PACKED_EVENT_FLAG_DESC || !this.#eventIdx) return true
    const slot = event & OFFSET_MASK
    if (slot >= this.size) return true
    return distance(considered, positionOf(event, this.size), this.size) < moved
  }

  disableNotification(): void {
    if (!this.#quarantined) this.#writeEvent(VRING_PACKED_EVENT_FLAG_DISABLE)
  }

  enableNotification(): boolean {
    if (this.#quarantined) return false
    const byPlace = this.#eventIdx && this.#frontier === this.#nextPublished && !this.#isBeforeBase
    // ORDERING: store, then load: a driver that adds a chain in between either sees the request and kicks, or its chain
    // is seen here.
    this.#writeEvent(byPlace ? VRING_PACKED_EVENT_FLAG_DESC : VRING_PACKED_EVENT_FLAG_ENABLE)
    return this.#walker.isAvailable(this.#frontier)
  }

  quarantine(): void {
    this.#quarantined = true
  }

  [Symbol.dispose](): void {
    // Removes the note: it means that the process died.
    const noted = !this.#quarantined && this.#eventFlags !== VRING_PACKED_EVENT_FLAG_DESC
    if (noted) Atomics.store(this.#deviceEvent, 0, this.#eventFlags << FLAGS_SHIFT)
    this.quarantine()
    for (const view of this.#views) view[Symbol.dispose]()
  }

  /** Moves the position of the next chain to `next`. */
  #moveTo(next: Position): void {
    const from = this.#nextAvail
    if (distance(from, this.#frontier, this.size) < distance(from, next, this.size)) this.#frontier = next
    this.#nextAvail = next
  }

  /**
   * True shortly before the front-end's base, which it would send again after a death. A successor could then take an
   * available chain for the tail of a used one, and a kick position alone would not decide.
   */
  get #isBeforeBase(): boolean {
    const left = distance(this.#nextPublished, this.#base, this.size)
    return left !== 0 && left <= Math.min(CHAIN_LIKELY_MAX, this.size >> 2)
  }

  /** Writes when to kick, with the note of {@link deviceEventWord}. */
  #writeEvent(flags: number): void {
    Atomics.store(this.#deviceEvent, 0, this.#eventWord(flags))
  }

  #eventWord(flags: number): number {
    this.#eventFlags = flags
    return deviceEventWord(flags, this.#nextPublished, this.size)
  }

  /** Writes the length of a used chain. Returns the index of its word for id and flags. */
  #writeUsedLength(chain: number): number {
    const place = chain & this.#held.mask
    const at = slotOf(this.#held.positions[place]!, this.size) * DESC_WORDS
    this.#words[at + 2] = this.#held.lengths[place]!
    return at + ID_AND_FLAGS
  }

  /**
   * Marks sent chains one by one. Each mark notes where its chain ends, so that a death between any two of them leaves
   * a ring that tells its position.
   */
  #markInOrder(end: Position): void {
    const held = this.#held
    for (let chain = held.published; chain !== held.staged; chain = (chain + 1) & 0xffff) {
      const next = (chain + 1) & 0xffff
      const at = this.#writeUsedLength(chain)
      const chainEnd = next === held.staged ? end : held.positions[next & held.mask]!
      if (held.lengths[chain & held.mask] === 0) this.#words[at - 1] = endLength(chainEnd)
      // ORDERING: the length first. The last store also comes before the load of the event suppression structure.
      Atomics.store(this.#signedWords, at, this.#usedIdAndFlags(chain))
    }
  }

  /**
   * Marks a batch so that the driver sees all or none of it: a received packet may lie in several chains, and the
   * inflight record tells of whole batches.
   */
  #markAtOnce(end: Position): void {
    const held = this.#held
    const first = held.published
    if (this.#inflight !== null) this.#noteBatch(this.#inflight, end)
    for (let chain = (first + 1) & 0xffff; chain !== held.staged; chain = (chain + 1) & 0xffff) {
      const at = this.#writeUsedLength(chain)
      this.#signedWords[at] = this.#usedIdAndFlags(chain)
    }
    const at = this.#writeUsedLength(first)
    const notes = this.#direction === BUFFER_DIRECTION.readable && held.lengths[first & held.mask] === 0
    if (notes) this.#words[at - 1] = endLength(end)
    // ORDERING: the flags of the first chain last. The driver reads no chain before the previous one is used, so it
    // sees all or none. This store also comes before the load of the event suppression structure.
    Atomics.store(this.#signedWords, at, this.#usedIdAndFlags(first))
  }

  /** WRITE: the device has written to the chain. VIRTIO 1.2 §2.8.3. */
  #usedIdAndFlags(chain: number): number {
    const place = chain & this.#held.mask
    const written = this.#held.lengths[place] === 0 ? 0 : VRING_DESC_F_WRITE << FLAGS_SHIFT
    return this.#held.ids[place]! | written | usedBits(this.#held.positions[place]!, this.size)
  }

  /** Starts from the record. Descriptors of an unpublished batch are made available again. */
  #resume(inflight: PackedInflight, given: () => Position): Position {
    const { position, undone } = inflight.start(this.size, given, (before) => this.#walker.isAvailable(before))
    for (const { slot, lengthBytes, idAndFlags } of undone) {
      this.#words[slot * DESC_WORDS + 2] = lengthBytes
      Atomics.store(this.#signedWords, slot * DESC_WORDS + ID_AND_FLAGS, idAndFlags | 0)
    }
    inflight.undone(position)
    return position
  }

  /** Records the descriptors that are about to be overwritten, and the position behind the batch. */
  #noteBatch(inflight: PackedInflight, end: Position): void {
    const held = this.#held
    let count = 0
    for (let chain = held.published; chain !== held.staged; chain = (chain + 1) & 0xffff) {
      const slot = slotOf(held.positions[chain & held.mask]!, this.size)
      inflight.save(count++, slot, this.#words[slot * DESC_WORDS + 2]!, this.#words[slot * DESC_WORDS + ID_AND_FLAGS]!)
    }
    inflight.batch(count, end)
  }

  #fault(code: DriverFaultCode, detail: string): DriverFault {
    this.quarantine()
    return new DriverFault(code, detail)
  }
}
