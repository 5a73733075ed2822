import { SysError, UserError } from '../base/errors.ts'
import type { LogLevel } from '../channel/worker-messages.ts'
import { POLLIN, type Poller } from '../sys/poller.ts'
import type { LinkState, TapLinkMonitor } from '../tap/link-monitor.ts'
import type { Tap } from '../tap/tap.ts'
import { Retry } from './retry.ts'

/** Bound on the moves to other network namespaces that are followed in one turn. */
const MOVES_MAX = 8

/** Receives changes of the TAP. */
export type TapListener = {
  /** Packets pass through these descriptors from now on; nowhere if there are none. */
  readonly useTap: (fds: readonly number[]) => void
  /** Its link, index or MTU may have changed. */
  readonly tapChanged: () => void
  readonly log: (level: LogLevel, text: string) => void
}

/** How the driver and the operator want the TAP set. */
export type TapSettings = {
  /** The negotiated features, without the receive offloads that the driver has switched off. */
  readonly features: bigint
  readonly carrier: boolean
  /** `struct vn_scaling` by which the host steers packets to queues; null: the host's own choice. */
  readonly scaling: Uint32Array | null
}

/**
 * Keeps the TAP as it should be while the card runs: follows its link, makes it again after a deletion, puts it back
 * into its bridge after the bridge was deleted, and applies the settings of driver and operator. Everything here but
 * {@link checkDeletion} may wait for the kernel's RTNL lock.
 */
export class TapKeeper {
  readonly #tap: Tap
  readonly #poller: Poller
  readonly #listener: TapListener
  readonly #tapSlot: number
  readonly #monitorSlot: number
  #monitor: TapLinkMonitor
  #applied: TapSettings = { features: 0n, carrier: true, scaling: null }
  /** True while the interface is deleted. */
  #lost = false
  /** While it is deleted: when to make it again; null if that is not possible (an inherited descriptor). */
  #reopen: Retry | null = null
  /** While its bridge is deleted and it is a port of no other: when to put it back. */
  #rejoin: Retry | null = null

  /** Throws SysError or UserError. */
  constructor(tap: Tap, poller: Poller, listener: TapListener) {
    this.#tap = tap
    this.#poller = poller
    this.#listener = listener
    tap.keep()
    this.#monitor = tap.openLinkMonitor()
    this.#monitorSlot = poller.add(this.#monitor.fd, POLLIN)
    // No events: only POLLERR, which the TUN driver reports without a lock once the interface is deleted. The monitor
    // wakes the thread for it.
    this.#tapSlot = poller.add(tap.fds[0] ?? -1, 0)
  }

  /** True while the interface exists. */
  get present(): boolean {
    return !this.#lost
  }

  /** True while the interface is administratively up. */
  get up(): boolean {
    return this.#monitor.state.up
  }

  /** True if the driver can be told that its link is up. An interface whose state cannot be read counts as up. */
  get linkUp(): boolean {
    const { exists, up } = this.#monitor.state
    return this.present && (up || !exists)
  }

  /**
   * The end of a log line about a new TAP: a note that the addresses of the old one are lost; '' if the TAP was not
   * created here.
   */
  get lostAddressesNote(): string {
    return this.#tap.created ? `; ${this.#tap.name} is a new interface, without the addresses of the deleted one` : ''
  }

  get index(): number {
    return this.#tap.index
  }

  /** Bytes; 0 while unknown. */
  get mtu(): number {
    return this.#monitor.state.mtu
  }

  /** Whole milliseconds until {@link serve} has timed work; -1 for never. */
  timeoutMs(nowMs: number): number {
    return (this.#reopen ?? this.#rejoin)?.timeoutMs(nowMs) ?? -1
  }

  /** Polls the link monitor from now on, or stops polling it. */
  pollLink(on: boolean): void {
    this.#poller.setFd(this.#monitorSlot, on ? this.#monitor.fd : -1)
  }

  /** Handles the deletion of the interface, if it was deleted. Takes no lock. */
  checkDeletion(): void {
    if (this.#poller.ready(this.#tapSlot) === 0) return
    this.#lost = true
    this.#reopen = this.#tap.replaceable ? new Retry(performance.now()) : null
    this.#rejoin = null
    this.#poller.setFd(this.#tapSlot, -1)
    this.#listener.useTap([])
    const outlook = this.#tap.replaceable ? 'until it exists again' : 'for good: start again with another --tap-fd'
    this.#listener.log('warning', `${this.#tap.name} was deleted: the link is down ${outlook}`)
    this.#listener.tapChanged()
  }

  /** Does what is due. */
  serve(settings: TapSettings): void {
    if (this.#poller.ready(this.#monitorSlot) !== 0) this.#follow()
    this.configure(settings)
    if (this.#reopen?.isDue(performance.now()) === true) this.#reopenTap(this.#reopen)
    if (this.#rejoin?.isDue(performance.now()) === true) this.#rejoinBridge(this.#rejoin)
  }

  /** Applies the settings that have changed. A deleted TAP keeps them for the next one. */
  configure(settings: TapSettings): void {
    const applied = this.#applied
    this.#applied = settings
    if (settings.features !== applied.features) this.#tap.setOffloads(settings.features)
    if (settings.carrier !== applied.carrier) this.#tap.setCarrier(settings.carrier)
    if (settings.scaling !== applied.scaling) this.#tap.steer(settings.scaling)
  }

  [Symbol.dispose](): void {
    this.#monitor[Symbol.dispose]()
    this.#tap[Symbol.dispose]()
  }

  #follow(): void {
    const before = this.#monitor.state
    if (this.#monitor.drain() === before) return
    if (!this.#monitor.state.exists && this.#tap.isAttached()) this.#followMove()
    this.#noteChanges(before, this.#monitor.state)
    this.#listener.tapChanged()
  }

  #noteChanges(before: LinkState, state: LinkState): void {
    if (!state.exists) return
    if (state.up !== before.up) this.#listener.log('info', `${state.name} is ${state.up ? 'up' : 'down'}`)
    if (state.mtu !== before.mtu) this.#tap.noteMtu(state.mtu)
    if (before.master === 0 || state.master !== 0) return
    if (!this.#tap.lacksBridge()) return
    this.#rejoin = new Retry(performance.now())
    this.#listener.log('warning', `${state.name}: its bridge was deleted; the TAP joins it again once it exists`)
  }

  /** The TAP has moved to another network namespace, perhaps more than once. */
  #followMove(): void {
    try {
      for (let moves = 0; moves < MOVES_MAX && !this.#monitor.state.exists && this.#tap.isAttached(); moves++) {
        this.#renewMonitor()
      }
      this.#listener.log('info', `${this.#tap.name} has moved to another network namespace`)
    } catch (error) {
      if (!(error instanceof UserError) && !(error instanceof SysError)) throw error
      // Packets pass without a monitor.
      const text = `${this.#tap.name} has moved, its link state cannot be read and counts as up: ${error.message}`
      this.#listener.log('warning', text)
    }
  }

  /** Opens a monitor in the namespace where the TAP is now. */
  #renewMonitor(): void {
    const monitor = this.#tap.openLinkMonitor()
    this.#monitor[Symbol.dispose]()
    this.#monitor = monitor
  }

  #reopenTap(retry: Retry): void {
    try {
      this.#tap.reopen()
      // The namespace in which it was made may differ from the one in which it was deleted.
      this.#renewMonitor()
    } catch (error) {
      this.#tryLater(retry, error)
      return
    }
    this.#lost = false
    this.#reopen = null
    this.#poller.setFd(this.#tapSlot, this.#tap.fds[0] ?? -1)
    this.#listener.useTap(this.#tap.fds)
    this.#listener.log('info', `${this.#tap.name} exists again${this.lostAddressesNote}`)
    for (const warning of this.#tap.warnings) this.#listener.log('warning', warning)
    this.#listener.tapChanged()
  }

  #rejoinBridge(retry: Retry): void {
    if (this.#tap.lacksBridge()) {
      retry.failed(performance.now())
      return
    }
    try {
      this.#tap.rejoinBridge()
    } catch (error) {
      this.#tryLater(retry, error)
      return
    }
    this.#rejoin = null
    this.#listener.log('info', `${this.#tap.name} is in its bridge again`)
    for (const warning of this.#tap.warnings) this.#listener.log('warning', warning)
  }

  /** Schedules another attempt. Throws what is neither a UserError nor a SysError. */
  #tryLater(retry: Retry, error: unknown): void {
    if (!(error instanceof UserError) && !(error instanceof SysError)) throw error
    const hint = error instanceof UserError ? ` (${error.hint})` : ''
    if (retry.isFirst) this.#listener.log('warning', `${error.message}${hint}; trying again`)
    retry.failed(performance.now())
  }
}
