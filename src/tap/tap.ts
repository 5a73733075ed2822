import { assert } from '../base/assert.ts'
import { formatMac, type Mac } from '../base/mac.ts'
import { native } from '../sys/native.ts'
import { type AppliedSettings, applyHostSettings, type HostSettings, restore } from './host-settings.ts'
import type { TapLinkMonitor } from './link-monitor.ts'
import { getLink, type Link } from './links.ts'
import { NO_OFFLOADS, type Offloads, offloadsOf } from './offloads.ts'
import { Steering } from './steering.ts'
import { TapInterface, VNET_HDR_BYTES } from './tap-interface.ts'
import type { TapOptions } from './tap-options.ts'

/**
 * The desired state of the TAP, and the interface that has it, if there is one. {@link reopen} applies the whole state
 * to the new interface, including what was set while there was none. Used by one thread; any thread may use the
 * descriptors.
 */
export class Tap {
  readonly #options: TapOptions
  /** Null after a {@link reopen} that failed. */
  #interface: TapInterface | null
  #applied: AppliedSettings
  #name: string
  #index: number
  /** The driver's negotiated features, which decide the offloads. */
  #features = 0n
  #carrier = true
  /** By queue: attached, so that the host may send to it. */
  readonly #attached: boolean[]
  /** `struct vn_scaling` for steering; null for the kernel's own choice of queues. */
  #scaling: Uint32Array | null = null
  /** Created interfaces are made persistent: {@link keep} was called, and `persist` is set. */
  #kept = false
  /** MAC for a created interface. */
  #mac: Mac | null
  /** Last MTU of the interface, bytes: a new interface gets at least this. */
  #mtu = 0
  /** Loaded on first use, for several queues only; or the errno of the attempt. */
  #steering: Steering | number | null = null

  /** Opens the TAP and applies the options. Throws UserError, and then leaves nothing behind. */
  constructor(options: TapOptions) {
    assert(options.queues >= 1 && (options.queues === 1 || 'name' in options.source))
    this.#options = options
    this.#attached = new Array<boolean>(options.queues).fill(true)
    this.#mac = options.mac
    const [made, applied] = this.#make()
    this.#interface = made
    this.#applied = applied
    this.#name = made.name
    this.#index = made.index
    this.#mtu = applied.mtu
    // A new interface gets the same MAC, which the guest's neighbour table contains.
    const link = made.link()
    if (!made.created && link !== null) this.#mac = formatMac(link.address)
  }

  /** One descriptor a queue, non-blocking. Empty after a {@link reopen} that failed. */
  get fds(): readonly number[] {
    return this.#interface?.fds ?? []
  }

  /** The name at open; {@link TapLinkMonitor} follows a rename. */
  get name(): string {
    return this.#name
  }

  get index(): number {
    return this.#interface?.index ?? this.#index
  }

  /** True if this process has created the interface. It is deleted at close unless it persists. */
  get created(): boolean {
    return this.#interface?.created ?? false
  }

  /** Each frame has a 12-byte virtio-net header in front, little-endian. */
  get hasVnetHdr(): boolean {
    return this.#interface?.hasVnetHdr ?? false
  }

  /** What {@link setOffloads} can switch on; nothing without a vnet header. */
  get supportedOffloads(): Offloads {
    return this.#interface?.supportedOffloads ?? NO_OFFLOADS
  }

  /** Side effects of the last open on the host, a line each. */
  get warnings(): readonly string[] {
    return this.#applied.warnings
  }

  /** The interface's current state; null if it is not in its namespace any more. */
  link(): Link | null {
    return this.#interface?.link() ?? null
  }

  /** Switches on the offloads for a driver with these negotiated features, as far as the TAP has them; returns them. */
  setOffloads(features: bigint): Offloads {
    this.#features = features
    return this.#interface?.setOffloads(offloadsOf(features)) ?? NO_OFFLOADS
  }

  /** Without carrier the host sends nothing, so no stale packets wait in the queue. */
  setCarrier(on: boolean): void {
    this.#carrier = on
    this.#interface?.setCarrier(on)
  }

  /**
   * Attaches or detaches one of several queues. The host sends nothing to a detached queue. Queue 0 is always attached.
   */
  setQueueAttached(queue: number, attached: boolean): void {
    if (this.#attached[queue] === attached) return
    this.#attached[queue] = attached
    if (this.#interface === null) return
    this.#interface.setQueueAttached(queue, attached)
    this.#steer(this.#interface)
  }

  /** Records a changed MTU of the interface, bytes: a new interface gets at least this. */
  noteMtu(mtu: number): void {
    this.#mtu = mtu
  }

  /** 0 if {@link steer} works, else the errno of loading the program. */
  steeringErrno(): number {
    this.#steering ??= Steering.load()
    return typeof this.#steering === 'number' ? this.#steering : 0
  }

  /**
   * Makes the kernel steer each packet by `scaling` (`struct vn_scaling`, unchanged until the next call); null for the
   * kernel's own choice.
   */
  steer(scaling: Uint32Array | null): void {
    this.#scaling = scaling
    if (this.#interface !== null) this.#steer(this.#interface)
  }

  /** Sends a frame as if the driver had sent it. It is lost if the TAP does not accept it now. */
  send(frame: Uint8Array): void {
    const [fd] = this.fds
    if (fd === undefined) return
    const bytes = new Uint8Array((this.hasVnetHdr ? VNET_HDR_BYTES : 0) + frame.length)
    bytes.set(frame, bytes.length - frame.length)
    native.vn_write(fd, bytes, bytes.length)
  }

  /** True while the descriptors have an interface, also after it has moved to another network namespace. */
  isAttached(): boolean {
    return this.#interface?.isAttached() ?? false
  }

  /** A new monitor of the interface, in its current network namespace. The caller disposes of it. */
  openLinkMonitor(): TapLinkMonitor {
    assert(this.#interface !== null, 'there is no TAP')
    return this.#interface.openLinkMonitor()
  }

  /** True if {@link reopen} works: an inherited descriptor cannot be opened again. */
  get replaceable(): boolean {
    return 'name' in this.#options.source
  }

  /**
   * Opens the interface again after it was deleted, and applies the desired state: new descriptors, a new index. Throws
   * UserError or SysError if that fails, and then leaves nothing behind; the caller decides when to try again.
   */
  reopen(): void {
    assert(this.replaceable, 'there is no name to open the TAP by')
    this.#interface?.[Symbol.dispose]()
    this.#interface = null
    const [made, applied] = this.#make()
    this.#interface = made
    this.#applied = applied
    this.#index = made.index
    this.#mtu = applied.mtu
  }

  /** True if the bridge that the TAP should be in does not exist. */
  lacksBridge(): boolean {
    const { bridge } = this.#options
    return bridge !== null && this.#interface !== null && getLink(this.#interface.netlink, bridge) === null
  }

  /** Joins the bridge again, with at least the bridge's MTU. Throws UserError or SysError. */
  rejoinBridge(): void {
    const tap = this.#interface
    if (tap === null) return
    const applied = applyHostSettings(tap, this.#settings(tap))
    this.#applied = { ...applied, undo: { ...this.#applied.undo, ...applied.undo } }
    this.#mtu = applied.mtu
  }

  /**
   * Applies `persist` to the interface and to those of later {@link reopen} calls. Called once a failed start cannot
   * leave the interface behind any more.
   */
  keep(): void {
    this.#kept = this.#options.persist
    if (this.#kept && this.#interface?.created === true) this.#interface.persist()
  }

  /**
   * Closes everything. On an interface that remains, offloads and steering are switched off, and unless it persists for
   * this card its MTU and bridge are restored.
   */
  [Symbol.dispose](): void {
    const tap = this.#interface
    if (tap !== null) {
      if ((this.#kept || !tap.created) && tap.isAttached()) {
        tap.setOffloads(NO_OFFLOADS)
        tap.setSteering(-1)
        if (!this.#kept) restore(tap, this.#applied.undo)
      }
      tap[Symbol.dispose]()
      this.#interface = null
    }
    if (this.#steering instanceof Steering) this.#steering[Symbol.dispose]()
  }

  /** Opens an interface and applies the whole desired state, or leaves nothing behind. */
  #make(): [TapInterface, AppliedSettings] {
    const tap = new TapInterface(this.#options)
    try {
      if (!this.#carrier) tap.setCarrier(false)
      for (const [queue, attached] of this.#attached.entries()) tap.setQueueAttached(queue, attached)
      this.#steer(tap)
      tap.setOffloads(offloadsOf(this.#features))
      const applied = applyHostSettings(tap, this.#settings(tap))
      // Last, so that a failed attempt deletes its interface.
      if (this.#kept && tap.created) tap.persist()
      return [tap, applied]
    } catch (error) {
      tap[Symbol.dispose]()
      throw error
    }
  }

  #settings(tap: TapInterface): HostSettings {
    const { mtu, bridge, source } = this.#options
    // The owner of an inherited descriptor decides when its interface is up.
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
