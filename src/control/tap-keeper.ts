import { SysError, UserError } from '../base/errors.ts'
import type { LogLevel } from '../channel/worker-messages.ts'
import { POLLIN, type Poller } from '../sys/poller.ts'
import type { LinkState, TapLinkMonitor } from '../tap/link-monitor.ts'
import type { Tap } from '../tap/tap.ts'
import { Retry } from './retry.ts'

/** A TAP that moves again and again is not run after for ever. */
const MOVES_MAX = 8

/** Whom the keeper tells of the TAP. */
export type TapListener = {
  /** Packets pass through these descriptors from now on; nowhere if there are none. */
  readonly useTap: (fds: readonly number[]) => void
  /** Its link, its index or its MTU may be another one. */
  readonly tapChanged: () => void
  readonly log: (level: LogLevel, text: string) => void
}

/** What driver and operator want of the TAP. */
export type TapWishes = {
  /** The driver's, without the receive offloads that it has switched off. */
  readonly features: bigint
  readonly carrier: boolean
  /** By what the host chooses a queue; null: as it likes. */
  readonly scaling: Uint32Array | null
}

/**
 * Keeps the TAP as it should be while the card runs: follows its link, makes it again after it was deleted, puts it
 * back into its bridge after that was, and tells it what driver and operator want. Everything here but {@link notice}
 * may wait for the kernel's RTNL lock.
 */
export class TapKeeper {
  readonly #tap: Tap
  readonly #poller: Poller
  readonly #listener: TapListener
  readonly #tapSlot: number
  readonly #monitorSlot: number
  #monitor: TapLinkMonitor
  #told: TapWishes = { features: 0n, carrier: true, scaling: null }
  /** The interface is gone. */
  #lost = false
  /** Then: when to make it again, if it can be. */
  #reopen: Retry | null = null
  /** While its bridge is gone, and it is a port of none: when to put it back. */
  #rejoin: Retry | null = null

  /** Throws SysError or UserError. */
  constructor(tap: Tap, poller: Poller, listener: TapListener) {
    this.#tap = tap
    this.#poller = poller
    this.#listener = listener
    tap.keep()
    this.#monitor = tap.openLinkMonitor()
    this.#monitorSlot = poller.add(this.#monitor.fd, POLLIN)
    // Without events: POLLERR alone, the TUN driver's answer once the interface is deleted, which no lock is needed
    // for. The monitor's news of that wakes the thread.
    this.#tapSlot = poller.add(tap.fds[0] ?? -1, 0)
  }

  /** There is an interface. */
  get present(): boolean {
    return !this.#lost
  }

  /** Administratively up. */
  get up(): boolean {
    return this.#monitor.state.up
  }

  /** The driver can be told that its link is up. What cannot be followed is taken for up. */
  get linkUp(): boolean {
    const { exists, up } = this.#monitor.state
    return this.present && (up || !exists)
  }

  /** For the end of a log line that says what has replaced something: what the TAP has not from the one before. */
  get lostAddresses(): string {
    return this.#tap.created ? `; ${this.#tap.name} is a new one, without the addresses that the one before had` : ''
  }

  get index(): number {
    return this.#tap.index
  }

  /** Bytes; 0 while it is not known. */
  get mtu(): number {
    return this.#monitor.state.mtu
  }

  /** Whole milliseconds until {@link serve} has something to do that nothing wakes the thread for; -1 for never. */
  timeoutMs(nowMs: number): number {
    return (this.#reopen ?? this.#rejoin)?.timeoutMs(nowMs) ?? -1
  }

  /** Polls the interface's news from now on, or leaves them for later. */
  listen(on: boolean): void {
    this.#poller.setFd(this.#monitorSlot, on ? this.#monitor.fd : -1)
  }

  /** Takes note of the end of the interface. Takes no lock. */
  notice(): void {
    if (this.#poller.ready(this.#tapSlot) === 0) return
    this.#lost = true
    this.#reopen = this.#tap.replaceable ? new Retry(performance.now()) : null
    this.#rejoin = null
    this.#poller.setFd(this.#tapSlot, -1)
    this.#listener.useTap([])
    const outlook = this.#tap.replaceable ? 'until it is there again' : 'for good: start again with another --tap-fd'
    this.#listener.log('warning', `${this.#tap.name} was deleted: the link is down ${outlook}`)
    this.#listener.tapChanged()
  }

  /** Does what is due. */
  serve(wishes: TapWishes): void {
    if (this.#poller.ready(this.#monitorSlot) !== 0) this.#follow()
    this.configure(wishes)
    if (this.#reopen?.isDue(performance.now()) === true) this.#reopenTap(this.#reopen)
    if (this.#rejoin?.isDue(performance.now()) === true) this.#rejoinBridge(this.#rejoin)
  }

  /** Tells the TAP what is wanted of it now; one that is gone, so that the next one is like that. */
  configure(wishes: TapWishes): void {
    const told = this.#told
    this.#told = wishes
    if (wishes.features !== told.features) this.#tap.setOffloads(wishes.features)
    if (wishes.carrier !== told.carrier) this.#tap.setCarrier(wishes.carrier)
    if (wishes.scaling !== told.scaling) this.#tap.steer(wishes.scaling)
  }

  [Symbol.dispose](): void {
    this.#monitor[Symbol.dispose]()
    this.#tap[Symbol.dispose]()
  }

  #follow(): void {
    const before = this.#monitor.state
    if (this.#monitor.drain() === before) return
    if (!this.#monitor.state.exists && this.#tap.isAttached()) this.#followMove()
    this.#compare(before, this.#monitor.state)
    this.#listener.tapChanged()
  }

  #compare(before: LinkState, state: LinkState): void {
    if (!state.exists) return
    if (state.up !== before.up) this.#listener.log('info', `${state.name} is ${state.up ? 'up' : 'down'}`)
    if (state.mtu !== before.mtu) this.#tap.noteMtu(state.mtu)
    if (before.master === 0 || state.master !== 0) return
    if (!this.#tap.lacksBridge()) return
    this.#rejoin = new Retry(performance.now())
    this.#listener.log('warning', `${state.name}: its bridge was deleted; it joins that again when it is there`)
  }

  /** The TAP has gone to another network namespace, perhaps on to a next one meanwhile. */
  #followMove(): void {
    try {
      for (let moves = 0; moves < MOVES_MAX && !this.#monitor.state.exists && this.#tap.isAttached(); moves++) {
        this.#renewMonitor()
      }
      this.#listener.log('info', `${this.#tap.name} has moved to another network namespace`)
    } catch (error) {
      if (!(error instanceof UserError) && !(error instanceof SysError)) throw error
      // Packets pass all the same.
      const text = `${this.#tap.name} has moved, and is taken for up from now on: ${error.message}`
      this.#listener.log('warning', text)
    }
  }

  /** A monitor where the TAP is now. */
  #renewMonitor(): void {
    const monitor = this.#tap.openLinkMonitor()
    this.#monitor[Symbol.dispose]()
    this.#monitor = monitor
  }

  #reopenTap(retry: Retry): void {
    try {
      this.#tap.reopen()
      // Where it was made, which need not be where it was deleted.
      this.#renewMonitor()
    } catch (error) {
      this.#tryLater(retry, error)
      return
    }
    this.#lost = false
    this.#reopen = null
    this.#poller.setFd(this.#tapSlot, this.#tap.fds[0] ?? -1)
    this.#listener.useTap(this.#tap.fds)
    this.#listener.log('info', `${this.#tap.name} is there again${this.lostAddresses}`)
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

  /** Throws what is not for the user, or the kernel, to change. */
  #tryLater(retry: Retry, error: unknown): void {
    if (!(error instanceof UserError) && !(error instanceof SysError)) throw error
    const hint = error instanceof UserError ? ` (${error.hint})` : ''
    if (retry.isFirst) this.#listener.log('warning', `${error.message}${hint}; trying again`)
    retry.failed(performance.now())
  }
}
