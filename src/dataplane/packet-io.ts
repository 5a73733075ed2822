import { dropReasons } from '../abi/drop-reason.ts'
import { VN_IO, VN_IO_WORDS } from '../abi/vn-io.ts'
import { SysError } from '../base/errors.ts'
import type { Features } from '../device/features.ts'
import { netHeaderBytes } from '../device/net-header.ts'
import type { IovecArena } from '../memory/iovec-arena.ts'
import { addressOf, native } from '../sys/native.ts'

const ETHERNET_HEADER_BYTES = 14
/** A service tag and a customer tag (IEEE 802.1ad): an MTU does not count them. */
const VLAN_TAGS_BYTES = 2 * 4

/** Largest frame without GSO: payload, Ethernet header, two VLAN tags. Bytes. */
export const maxFrameBytes = (mtu: number): number => mtu + ETHERNET_HEADER_BYTES + VLAN_TAGS_BYTES

/**
 * Bound of one {@link PacketIo.discardReceived}: far more than a TAP queue holds, so that a host that keeps sending
 * cannot block the thread.
 */
const DISCARD_MAX = 65_536

/** Where packets and drops are counted: one element a counter. */
export type PacketCounters = {
  /** Elements packets, bytes, gsoPackets, csumPackets in this order. */
  readonly rx: Float64Array
  readonly tx: Float64Array
  /** Indexed like dropReasons. */
  readonly drops: Float64Array
}

/**
 * Moves one queue pair's packets to and from its TAP queue, a batch a call. It owns the block shared with the native
 * library, and adds that block's counts to the counters after each call. Nothing allocates after construction.
 */
export class PacketIo {
  readonly #words = new Uint32Array(VN_IO_WORDS)
  readonly #signed = new Int32Array(this.#words.buffer)
  readonly #written: Uint32Array
  readonly #counters: PacketCounters
  /** Keeps the memory that the block points to alive as long as the handle. */
  readonly arenas: readonly IovecArena[]
  #filter: Uint32Array | null = null
  #scaling: Uint32Array | null = null
  readonly #handle: number

  /** Throws SysError if the native library cannot allocate. */
  constructor(rxArena: IovecArena, txArena: IovecArena, tap: { hasVnetHdr: boolean }, counters: PacketCounters) {
    this.#counters = counters
    this.arenas = [rxArena, txArena]
    this.#written = new Uint32Array(rxArena.chainCapacity)
    this.#signed[VN_IO.tapFd] = -1
    this.#words[VN_IO.tapHasVnetHdr] = tap.hasVnetHdr ? 1 : 0
    this.#setAddress(VN_IO.txChains, txArena.chains)
    this.#setAddress(VN_IO.txIovecs, txArena.iovecs)
    this.#setAddress(VN_IO.rxChains, rxArena.chains)
    this.#setAddress(VN_IO.rxIovecs, rxArena.iovecs)
    this.#setAddress(VN_IO.rxWritten, this.#written)
    this.#words[VN_IO.chainCapacity] = rxArena.chainCapacity
    this.#words[VN_IO.iovecCapacity] = rxArena.iovecCapacity
    this.#handle = native.vn_io_create(addressOf(this.#words))
    if (this.#handle < 0) throw new SysError('vn_io_create', -this.#handle)
  }

  /** -1 while there is no TAP. */
  set tapFd(fd: number) {
    this.#signed[VN_IO.tapFd] = fd
  }

  /** Shared memory of the ReceiveFilter that selects frames; null for all frames. */
  set receiveFilter(buffer: SharedArrayBuffer | null) {
    this.#filter = buffer === null ? null : new Uint32Array(buffer)
    this.#setAddress(VN_IO.rxFilter, this.#filter)
  }

  /** `struct vn_scaling` by which packets are hashed; null for no hash. */
  set receiveScaling(words: Uint32Array | null) {
    this.#scaling = words
    this.#setAddress(VN_IO.rxScaling, this.#scaling)
  }

  /**
   * Sets the negotiated features and the longest frame without GSO (bytes). The features decide the driver's header:
   * its length and the values that it may have.
   */
  setPolicy(features: Features, frameBytes: number): void {
    this.#words[VN_IO.featuresLow] = Number(features & 0xffff_ffffn)
    this.#words[VN_IO.featuresHigh] = Number(features >> 32n)
    this.#words[VN_IO.maxFrameBytes] = frameBytes
    this.#words[VN_IO.headerBytes] = netHeaderBytes(features)
  }

  /** Sends the first `chains` chains. Returns how many are done (sent or dropped); fewer if the TAP is full. */
  transmit(chains: number): number {
    const done = native.vn_tap_tx(this.#handle, 0, chains)
    if (done < 0) throw new SysError('vn_tap_tx', -done)
    this.#add(this.#counters.tx, VN_IO.txPackets)
    this.#foldDrops()
    return done
  }

  /**
   * Delivers at most `packets` packets into the first `chains` chains. Returns how many packets. Results: rxChainsUsed,
   * rxWritten, rxStop.
   */
  receive(chains: number, packets: number): number {
    const delivered = native.vn_tap_rx(this.#handle, 0, chains, packets)
    if (delivered < 0) throw new SysError('vn_tap_rx', -delivered)
    this.#add(this.#counters.rx, VN_IO.rxPackets)
    this.#foldDrops()
    return delivered
  }

  /** Drops the received packet that waits for chains, if any. */
  dropPending(): void {
    native.vn_tap_rx_drop_pending(this.#handle)
    this.#foldDrops()
  }

  /** Drops packets that were received and not delivered, those in the TAP included; counted as rx_no_driver. */
  discardReceived(): void {
    native.vn_tap_rx_discard(this.#handle, DISCARD_MAX)
    this.#foldDrops()
  }

  /** Chains that the last {@link receive} used, from the first. */
  get rxChainsUsed(): number {
    return this.#words[VN_IO.rxChainsUsed]!
  }

  /** RX_STOP of the last {@link receive}. */
  get rxStop(): number {
    return this.#words[VN_IO.rxStop]!
  }

  /** The TAP's errno in the last {@link receive}; 0 unless rxStop is RX_STOP.error. */
  get rxErrno(): number {
    return this.#words[VN_IO.rxErrno]!
  }

  /** The TAP's last errno in the last {@link transmit}; 0 for none. */
  get txErrno(): number {
    return this.#words[VN_IO.txErrno]!
  }

  /** Bytes written into a chain by the last {@link receive}. */
  rxWritten(chain: number): number {
    return this.#written[chain]!
  }

  countDrops(reason: number, packets: number): void {
    this.#counters.drops[reason]! += packets
  }

  [Symbol.dispose](): void {
    native.vn_io_destroy(this.#handle)
  }

  /** packets, bytes, gsoPackets and csumPackets are adjacent in the block and in the counters. */
  #add(counters: Float64Array, from: number): void {
    const words = this.#words
    for (let i = 0; i < 4; i++) {
      counters[i]! += words[from + i]!
      words[from + i] = 0
    }
  }

  #foldDrops(): void {
    const words = this.#words
    const drops = this.#counters.drops
    for (let reason = 0; reason < dropReasons.length; reason++) {
      drops[reason]! += words[VN_IO.drops + reason]!
      words[VN_IO.drops + reason] = 0
    }
  }

  #setAddress(word: number, array: Uint32Array | null): void {
    const address = array === null ? 0 : addressOf(array)
    this.#words[word] = address % 2 ** 32
    this.#words[word + 1] = Math.floor(address / 2 ** 32)
  }
}
