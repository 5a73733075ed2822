import { assert } from '../base/assert.ts'
import { formatMac, type Mac } from '../base/mac.ts'
import { native } from '../sys/native.ts'
import { type HostSettings, restore, type Settled, settle } from './host-settings.ts'
import type { TapLinkMonitor } from './link-monitor.ts'
import { getLink, type Link } from './links.ts'
import { NO_OFFLOADS, type Offloads, offloadsOf } from './offloads.ts'
import { Steering } from './steering.ts'
import { TapInterface, VNET_HDR_BYTES } from './tap-interface.ts'
import type { TapOptions } from './tap-options.ts'

/**
 * The TAP as it should be, and the interface that is so as far as there is one. What is set here holds for each
 * interface that {@link reopen} makes, also if it was set while there was none. Used by one thread; the descriptors may
 * be used by any.
 */
export class Tap {
  readonly #options: TapOptions
  /** Null after a {@link reopen} that failed. */
  #interface: TapInterface | null
  #settled: Settled
  #name: string
  #index: number
  /** The driver's features. */
  #features = 0n
  #carrier = true
  /** By queue: the host may send to it. */
  readonly #attached: boolean[]
  /** By what the host chooses a queue; null: as it likes. */
  #scaling: Uint32Array | null = null
  /** An interface that is created persists, if it is to. */
  #kept = false
  /** Of an interface that is created. */
  #mac: Mac | null
  /** Bytes: what the interface had last, of a successor at least. */
  #mtu = 0
  /** Made when it is first asked about, and of no use without several queues; or the errno why it cannot be had. */
  #steering: Steering | number | null = null

  /** Throws UserError with what is wrong and what to do; nothing is left behind then. */
  constructor(options: TapOptions) {
    assert(options.queues >= 1 && (options.queues === 1 || 'name' in options.source))
    this.#options = options
    this.#attached = new Array<boolean>(options.queues).fill(true)
    this.#mac = options.mac
    const [made, settled] = this.#make()
    this.#interface = made
    this.#settled = settled
    this.#name = made.name
    this.#index = made.index
    this.#mtu = settled.mtu
    // A successor is to have the address that the guest's neighbour table knows.
    const link = made.link()
    if (!made.created && link !== null) this.#mac = formatMac(link.address)
  }

  /** One descriptor a queue, non-blocking. Empty after a {@link reopen} that failed. */
  get fds(): readonly number[] {
    return this.#interface?.fds ?? []
  }

  /** At the time when it was opened: {@link TapLinkMonitor} follows a rename. */
  get name(): string {
    return this.#name
  }

  get index(): number {
    return this.#interface?.index ?? this.#index
  }

  /** We have created the interface. It vanishes with us unless it is to persist. */
  get created(): boolean {
    return this.#interface?.created ?? false
  }

  /** Each frame has a 12-byte virtio-net header in front, little-endian. */
  get hasVnetHdr(): boolean {
    return this.#interface?.hasVnetHdr ?? false
  }

  /** What {@link setOffloads} can switch on here: nothing without a vnet header. */
  get supportedOffloads(): Offloads {
    return this.#interface?.supportedOffloads ?? NO_OFFLOADS
  }

  /** What the interface was made with has changed on the host besides, a line each. */
  get warnings(): readonly string[] {
    return this.#settled.warnings
  }

  /** The interface as it is now; null if it is gone from its namespace. */
  link(): Link | null {
    return this.#interface?.link() ?? null
  }

  /** Lets the TAP hand over what a driver with these negotiated features takes, as far as it can; tells what is on. */
  setOffloads(features: bigint): Offloads {
    this.#features = features
    return this.#interface?.setOffloads(offloadsOf(features)) ?? NO_OFFLOADS
  }

  /** Without a carrier the host sends nothing, and nothing stale waits until it is back. */
  setCarrier(on: boolean): void {
    this.#carrier = on
    this.#interface?.setCarrier(on)
  }

  /**
   * Takes a queue of several out of the interface, or puts it back: the host sends nothing to a queue that is out.
   * Queue 0 stays.
   */
  setQueueAttached(queue: number, attached: boolean): void {
    if (this.#attached[queue] === attached) return
    this.#attached[queue] = attached
    if (this.#interface === null) return
    this.#interface.setQueueAttached(queue, attached)
    this.#steer(this.#interface)
  }

  /** Somebody has given the interface this MTU: a successor is not to have less. Bytes. */
  noteMtu(mtu: number): void {
    this.#mtu = mtu
  }

  /** 0 if {@link steer} can be used, else the errno why not. */
  steeringErrno(): number {
    this.#steering ??= Steering.load()
    return typeof this.#steering === 'number' ? this.#steering : 0
  }

  /**
   * Lets the host send each packet to the queue that `scaling` (`struct vn_scaling`, which the caller leaves as it is
   * until the next call) names for it, or as it likes again.
   */
  steer(scaling: Uint32Array | null): void {
    this.#scaling = scaling
    if (this.#interface !== null) this.#steer(this.#interface)
  }

  /** Sends a frame of our own, as if the driver had. A TAP that does not take it now loses it. */
  send(frame: Uint8Array): void {
    const [fd] = this.fds
    if (fd === undefined) return
    const bytes = new Uint8Array((this.hasVnetHdr ? VNET_HDR_BYTES : 0) + frame.length)
    bytes.set(frame, bytes.length - frame.length)
    native.vn_write(fd, bytes, bytes.length)
  }

  /** Is there still an interface behind the descriptors? True after a move to another network namespace too. */
  isAttached(): boolean {
    return this.#interface?.isAttached() ?? false
  }

  /** A new monitor of the interface, in the network namespace where it is now. The caller disposes of it. */
  openLinkMonitor(): TapLinkMonitor {
    assert(this.#interface !== null, 'there is no TAP')
    return this.#interface.openLinkMonitor()
  }

  /** Can {@link reopen} be used? A descriptor that was handed over is the only one there is. */
  get replaceable(): boolean {
    return 'name' in this.#options.source
  }

  /**
   * Opens the interface again after it was deleted, as it should be by now: new descriptors, a new index. Throws
   * UserError or SysError if it cannot be done now, and leaves nothing behind then; it may be called again. When, and
   * how often, is for the caller.
   */
  reopen(): void {
    assert(this.replaceable, 'there is no name to open the TAP by')
    this.#interface?.[Symbol.dispose]()
    this.#interface = null
    const [made, settled] = this.#make()
    this.#interface = made
    this.#settled = settled
    this.#index = made.index
    this.#mtu = settled.mtu
  }

  /** Is it to be in a bridge, and is there none of that name? Of a TAP that is in none. */
  lacksBridge(): boolean {
    const { bridge } = this.#options
    return bridge !== null && this.#interface !== null && getLink(this.#interface.netlink, bridge) === null
  }

  /**
   * Joins its bridge, of which it is no port any more, with no less MTU than that has. Throws UserError or SysError.
   */
  rejoinBridge(): void {
    const tap = this.#interface
    if (tap === null) return
    const settled = settle(tap, this.#settings(tap))
    this.#settled = { ...settled, undo: { ...this.#settled.undo, ...settled.undo } }
    this.#mtu = settled.mtu
  }

  /** The start has come so far that an interface that is to persist does so from now on, and so do its successors. */
  keep(): void {
    this.#kept = this.#options.persist
    if (this.#kept && this.#interface?.created === true) this.#interface.persist()
  }

  /**
   * Closes everything. An interface that stays loses offloads and steering, and unless it is to persist what else we
   * have set.
   */
  [Symbol.dispose](): void {
    const tap = this.#interface
    if (tap !== null) {
      if ((this.#kept || !tap.created) && tap.isAttached()) {
        tap.setOffloads(NO_OFFLOADS)
        tap.setSteering(-1)
        if (!this.#kept) restore(tap, this.#settled.undo)
      }
      tap[Symbol.dispose]()
      this.#interface = null
    }
    if (this.#steering instanceof Steering) this.#steering[Symbol.dispose]()
  }

  /** An interface with all that should be set, or nothing. */
  #make(): [TapInterface, Settled] {
    const tap = new TapInterface(this.#options)
    try {
      if (!this.#carrier) tap.setCarrier(false)
      for (const [queue, attached] of this.#attached.entries()) tap.setQueueAttached(queue, attached)
      this.#steer(tap)
      tap.setOffloads(offloadsOf(this.#features))
      const settled = settle(tap, this.#settings(tap))
      // Last: an attempt that fails takes its interface with it.
      if (this.#kept && tap.created) tap.persist()
      return [tap, settled]
    } catch (error) {
      tap[Symbol.dispose]()
      throw error
    }
  }

  #settings(tap: TapInterface): HostSettings {
    const { mtu, bridge, source } = this.#options
    // Whoever hands a descriptor over decides himself when its interface is up.
    const up = 'name' in source
    return { mac: tap.created ? this.#mac : null, mtu, mtuMin: this.#mtu, bridge, up }
  }

  #steer(tap: TapInterface): void {
    if (tap.fds.length === 1) return
    const scaling = this.#scaling
    const steering = scaling !== null && this.#steering instanceof Steering ? this.#steering : null
    if (scaling !== null) steering?.update(scaling, tap.order)
    tap.setSteering(steering?.fd ?? -1)
  }
}
