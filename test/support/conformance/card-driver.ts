import { expect } from 'bun:test'
import { POLLIN } from '../../../src/abi/linux.ts'
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_RING_F_EVENT_IDX,
} from '../../../src/abi/virtio.ts'
import { VIRTIO_NET_CONFIG } from '../../../src/abi/virtio-net.ts'
import { VRING_DESC_F_NEXT } from '../../../src/abi/virtio-ring.ts'
import { bit } from '../bits.ts'
import { type Element, SplitDriver, type UsedChain } from '../driver-model.ts'
import { concat, cut, decodeHeader, encodeHeader, type Header } from '../frames.ts'
import { PackedDriver } from '../packed-driver.ts'
import { numberOf, type PacketSocket, testFrame } from '../packet-socket.ts'
import { HANG_MS } from '../patience.ts'
import { HEADER_BYTES } from '../tap-lab.ts'
import { FrontendRing, poll } from '../vhost-user-client.ts'
import type { CardLink, Layout, Transport } from './card-link.ts'

/** Status bytes on the way up. VIRTIO 1.2 §3.1.1. */
export const STARTING = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER
export const NEGOTIATED = STARTING | VIRTIO_CONFIG_S_FEATURES_OK
export const RUNNING = NEGOTIATED | VIRTIO_CONFIG_S_DRIVER_OK

/** How long nothing must happen, to say that it does not. */
const QUIET_MS = 30
const RX_BUFFERS = 8
/** What a buffer that was provided is full of. */
export const UNTOUCHED = 0xee

/** What the tests of the suite run on: a card that nobody uses, of one transport, and the layout to use. */
export interface Bench {
  readonly transport: Transport
  readonly layout: Layout
  /** Sits on the other side of the card's TAP. */
  readonly wire: PacketSocket
  /**
   * Sends to the card a frame whose checksum is open, or that is to be cut: what the kernel does with those of its own.
   */
  sendOffloaded(header: Partial<Header>, frame: Uint8Array): void
  setTapMtu(mtu: number): void
  /** Opens the card. */
  connect(memoryBytes?: number): CardLink
}

export type DriverOptions = {
  /** Feature bits beside VERSION_1, MRG_RXBUF, and those that the layout and the transport need. */
  readonly features?: readonly number[]
  /** Is MRG_RXBUF left out? */
  readonly unmerged?: boolean
  /** The rings that are used; those of the first pair unless told. */
  readonly rings?: readonly number[]
  readonly ringSize?: number
  /** How far the rings have come before. */
  readonly start?: number
  readonly memoryBytes?: number
}

export type TransmitOptions = {
  readonly header?: Partial<Header>
  /** Lengths of the buffers; what is left goes into a last one. */
  readonly pieces?: readonly number[]
  readonly indirect?: boolean
  readonly ring?: FrontendRing
}

/** A packet as the card has delivered it. */
export type Delivered = {
  readonly header: Header
  readonly frame: Uint8Array
  /** Ids of its chains, and how many bytes the card says it has written to each. */
  readonly chains: readonly UsedChain[]
}

let lastFrame = 0

/** A new, unique frame. */
export const newFrame = (bytes?: number): Uint8Array => testFrame(++lastFrame, bytes)

/** The features that every driver chooses here. */
export const featuresOf = (link: CardLink, layout: Layout, options: DriverOptions = {}): bigint =>
  [
    VIRTIO_F_VERSION_1,
    ...(options.unmerged === true ? [] : [VIRTIO_NET_F_MRG_RXBUF]),
    ...((link.offeredFeatures() & bit(VIRTIO_F_ACCESS_PLATFORM)) === 0n ? [] : [VIRTIO_F_ACCESS_PLATFORM]),
    ...(layout === 'packed' ? [VIRTIO_F_RING_PACKED] : []),
    ...(options.features ?? []),
  ].reduce((set, number) => set | bit(number), 0n)

/** A correct driver, unless a test makes it misbehave. It fails the test if the device does not do what it requests. */
export class CardDriver implements Disposable {
  readonly bench: Bench
  readonly link: CardLink
  features = 0n
  #rings: FrontendRing[] = []
  readonly #buffers = new Map<FrontendRing, Map<number, readonly Element[]>>()

  /** Opens the card, and does nothing yet. */
  constructor(bench: Bench, options: DriverOptions = {}) {
    this.bench = bench
    this.link = bench.connect(options.memoryBytes)
  }

  /** Opens the card, and sets it up. */
  static start(bench: Bench, options: DriverOptions = {}): CardDriver {
    const driver = new CardDriver(bench, options)
    driver.setUp(options)
    return driver
  }

  setUp(options: DriverOptions = {}): void {
    this.negotiate(options)
    this.placeRings(options)
    this.go()
  }

  /** Resets the card and negotiates, to FEATURES_OK. */
  negotiate(options: DriverOptions = {}): void {
    this.reset()
    for (const status of [VIRTIO_CONFIG_S_ACKNOWLEDGE, STARTING]) expect(this.link.setStatus(status)).toBeTrue()
    this.features = featuresOf(this.link, this.bench.layout, options)
    expect(this.link.setFeatures(this.features)).toBeTrue()
    expect(this.link.setStatus(NEGOTIATED)).toBeTrue()
  }

  /** Tells the card of new rings. */
  placeRings({ rings = [0, 1], ringSize: size = 64, start = 0 }: DriverOptions = {}): void {
    for (const ring of this.#rings) ring[Symbol.dispose]()
    const options = {
      size,
      packed: this.bench.layout === 'packed',
      eventIdx: (this.features & bit(VIRTIO_RING_F_EVENT_IDX)) !== 0n,
      start,
    }
    this.#rings = rings.map((index) => new FrontendRing(index, this.memory, options))
    for (const ring of this.#rings) this.link.setUpRing(ring)
  }

  /** DRIVER_OK. */
  go(): void {
    expect(this.link.setStatus(RUNNING)).toBeTrue()
  }

  reset(): void {
    expect(this.link.setStatus(0)).toBeTrue()
  }

  get memory(): CardLink['memory'] {
    return this.link.memory
  }

  get rings(): readonly FrontendRing[] {
    return this.#rings
  }

  get rx(): FrontendRing {
    return this.ring(0)
  }

  get tx(): FrontendRing {
    return this.ring(1)
  }

  ring(index: number): FrontendRing {
    const ring = this.#rings.find((one) => one.index === index)
    if (ring === undefined) throw new Error(`ring ${index} is not used here`)
    return ring
  }

  /** The driver of a packed transmit or receive ring. */
  packed(ring = this.tx): PackedDriver {
    if (ring.model instanceof PackedDriver) return ring.model
    throw new Error('a split ring')
  }

  /** One field of the configuration space, little-endian. */
  config(field: 'status' | 'max_virtqueue_pairs' | 'mtu' | 'duplex'): number {
    const bytes = field === 'duplex' ? 1 : 2
    return this.link.readConfig(VIRTIO_NET_CONFIG[field], bytes).reduceRight((value, byte) => value * 256 + byte, 0)
  }

  /** Puts bytes somewhere into memory. */
  put(bytes: Uint8Array): Element {
    const address = this.memory.allocate(bytes.length, 1)
    this.memory.bytes(address, bytes.length).set(bytes)
    return { address, length: bytes.length }
  }

  /** Makes a frame available, and kicks; the chain's id. */
  transmit(frame: Uint8Array, options: TransmitOptions = {}): number {
    const { header = {}, pieces = [], indirect = false, ring = this.tx } = options
    const elements = cut(concat(encodeHeader(header), frame), ...pieces).map((piece) => this.put(piece))
    const id = ring.model.add(elements, indirect ? { indirectFrom: 0 } : {})
    if (id < 0) throw new Error('the ring is full')
    ring.publish()
    return id
  }

  /**
   * Gives the card chains to receive into, each of buffers of these lengths, until it has `count` or a ring full, and
   * kicks.
   */
  provide(count = RX_BUFFERS, lengths: readonly number[] = [2048], ring = this.rx): void {
    const given = this.#buffers.get(ring) ?? new Map<number, readonly Element[]>()
    this.#buffers.set(ring, given)
    while (ring.model.outstanding < Math.min(count, ring.model.size)) {
      const elements = lengths.map((length) => ({ address: this.#blank(length), length, writable: true }))
      const id = ring.model.add(elements)
      if (id < 0) throw new Error('the ring is full')
      given.set(id, elements)
    }
    ring.publish()
  }

  /** Memory that shows where it is written. */
  #blank(length: number): number {
    const address = this.memory.allocate(length)
    this.memory.bytes(address, length).fill(UNTOUCHED)
    return address
  }

  /** The buffers of a chain that was provided, whole. */
  buffersOf(id: number, ring = this.rx): Uint8Array {
    const elements = this.#buffers.get(ring)!.get(id)!
    return concat(...elements.map(({ address, length }) => this.memory.bytes(address, length)))
  }

  /** Waits for the next used chain without touching the call descriptor. */
  used(ring = this.tx): UsedChain {
    const deadline = performance.now() + HANG_MS
    for (;;) {
      const chain = ring.model.reap()
      if (chain !== undefined) return chain
      if (performance.now() > deadline) throw new Error(`ring ${ring.index}: nothing was used`)
      poll(-1, 0, 1)
    }
  }

  /** The next packet that the card delivers, in as many chains as its header says. */
  delivered(ring = this.rx): Delivered {
    return this.#packetFrom(ring, this.used(ring))
  }

  /** The next packet, if there is one. */
  deliveredAlready(ring = this.rx): Delivered | null {
    const chain = ring.model.reap()
    return chain === undefined ? null : this.#packetFrom(ring, chain)
  }

  /** The next packet, watched for without a pause: in the moment in which its first chain is used, so are all. */
  deliveredAtOnce(ring = this.rx): Delivered {
    const untilUsed = this.watch(ring)
    let first = ring.model.reap()
    let usedThen = Number.POSITIVE_INFINITY
    if (first === undefined) {
      const advance = untilUsed()
      // The index of a split ring says how many chains it was; in a packed ring each says it of itself.
      if (ring.model instanceof SplitDriver) usedThen = advance
      first = ring.model.reap()
    }
    const packet = this.#packetFrom(ring, first!, () => ring.model.reap() ?? null)
    if (packet.chains.length > usedThen) throw new Error(`${usedThen} of ${packet.chains.length} chains were used`)
    return packet
  }

  /**
   * What it returns returns as soon as the device uses a chain after now, and by how much the watched word has grown
   * then: the used index, or the flags of a packed ring's entry. All chains that were used before have been reaped.
   */
  watch({ model, index }: FrontendRing): () => number {
    const packed = model instanceof PackedDriver
    const words = packed ? model.ring : (model as SplitDriver).used
    const at = packed ? 16 * model.lastUsed.slot + 14 : 2
    // A plain load in a loop is done once by the compiler.
    const word = new Uint16Array(words.buffer, words.byteOffset + at, 1)
    const before = Atomics.load(word, 0)
    return () => {
      const deadline = performance.now() + HANG_MS
      for (;;) {
        const now = Atomics.load(word, 0)
        if (now !== before) return (now - before) & 0xffff
        if (performance.now() > deadline) throw new Error(`ring ${index}: nothing was used`)
      }
    }
  }

  #packetFrom(ring: FrontendRing, first: UsedChain, next: () => UsedChain | null = () => this.used(ring)): Delivered {
    const chains = [first]
    const bytesOf = ({ id, length }: UsedChain): Uint8Array => this.buffersOf(id, ring).slice(0, length)
    const header = decodeHeader(bytesOf(first))
    while (chains.length < header.num_buffers) {
      const chain = next()
      if (chain === null) throw new Error(`${chains.length} of ${header.num_buffers} chains are used`)
      chains.push(chain)
    }
    return {
      header,
      frame: concat(...chains.map(bytesOf)).slice(HEADER_BYTES),
      chains,
    }
  }

  /** The first packet to come that fits; chains of buffers of `lengths` are provided for it and those before. */
  receive(fits: (frame: Uint8Array) => boolean, lengths?: readonly number[], ring = this.rx): Delivered {
    for (;;) {
      const packet = this.delivered(ring)
      if (fits(packet.frame)) return packet
      this.provide(RX_BUFFERS, lengths, ring)
    }
  }

  /** A frame comes from the wire, and is delivered as it was sent. */
  passIn(frame = newFrame(), lengths?: readonly number[]): Delivered {
    this.provide(RX_BUFFERS, lengths)
    this.bench.wire.send(frame)
    const packet = this.receive((bytes) => numberOf(bytes) === numberOf(frame), lengths)
    expect(packet.frame).toEqual(frame)
    return packet
  }

  /** A frame goes out to the wire, as it was sent, and its chain comes back. */
  passOut(frame = newFrame(), options: TransmitOptions = {}): void {
    const id = this.transmit(frame, options)
    this.arrives(frame)
    expect(this.used(options.ring)).toEqual({ id, length: 0 })
  }

  /** A frame each way. */
  pass(): void {
    this.passOut()
    this.passIn()
  }

  /** The next frame on the wire is this one. */
  arrives(frame: Uint8Array): void {
    expect(this.bench.wire.receive(HANG_MS)).toEqual(frame)
  }

  /** Nothing arrives on the wire, no chain is used, and no call is made. */
  expectSilence(): void {
    expect(this.bench.wire.receive(QUIET_MS)).toBeNull()
    for (const ring of this.#rings) {
      expect(ring.model.reap()).toBeUndefined()
      expect(ring.called(0)).toBeFalse()
    }
  }

  /** True if a call for the ring arrives soon. */
  isCalled(ring: FrontendRing, wanted: boolean): boolean {
    const called = (poll(ring.call.fd, POLLIN, wanted ? HANG_MS : QUIET_MS) & POLLIN) !== 0
    if (called) ring.call.drain()
    return called
  }

  /** Breaks the transmit ring, so that the card must quarantine it. */
  breakTransmitRing(): void {
    const { model } = this.tx
    if (model instanceof SplitDriver) {
      model.availIdx += 1000
      this.tx.kick.signal()
    } else {
      // A ring of nothing but NEXT.
      this.packed().write(Array.from({ length: model.size }, () => ({ flags: VRING_DESC_F_NEXT, length: 64 })))
      this.tx.publish()
    }
  }

  [Symbol.dispose](): void {
    for (const ring of this.#rings) ring[Symbol.dispose]()
    this.link[Symbol.dispose]()
  }
}
