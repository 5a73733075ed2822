import { constants } from 'node:os'
import { DRIVER_FAULT } from '../../base/driver-faults.ts'
import { ProtocolError, SysError } from '../../base/errors.ts'
import type { ControlTransport, TransportEnd } from '../../device/control-transport.ts'
import { native } from '../../sys/native.ts'
import { POLLHUP, POLLIN, type Poller } from '../../sys/poller.ts'
import { connectUnix } from '../../sys/unix-socket.ts'
import type { VhostUserEndpoint } from './endpoint.ts'
import { Session } from './session.ts'
import type { SessionOptions } from './session-state.ts'

const { EAGAIN } = constants.errno

/** Messages of one turn, so that a flood does not keep the thread from its other duties. */
const MESSAGES_PER_TURN = 64
/** A connection is tried again after this long, doubling with each failure. */
const RECONNECT_FIRST_MS = 100
const RECONNECT_LAST_MS = 5_000
/** After an accept that has failed. */
const ACCEPT_AGAIN_MS = 500

/**
 * The control side of a device on a vhost-user socket: one front-end at a time, and the next one after it has gone. A
 * peer that breaks the protocol, or dies, ends its session and nothing else.
 */
export class VhostUserTransport implements ControlTransport {
  ended: TransportEnd | null = null
  readonly #endpoint: VhostUserEndpoint
  readonly #options: SessionOptions
  #session: Session | null = null
  #messagesBefore = 0
  #poller!: Poller
  #listenSlot = -1
  #connectAtMs = 0
  #connectDelayMs = RECONNECT_FIRST_MS
  /** 0: the socket is listened to. */
  #acceptAtMs = 0
  /** Calls of {@link #guarded} that are under way, and why the session is to end, once somebody has found out. */
  #inside = 0
  #verdict: { readonly level: 'info' | 'warning'; readonly text: string } | null = null

  constructor({ endpoint, ...options }: SessionOptions & { readonly endpoint: VhostUserEndpoint }) {
    this.#endpoint = endpoint
    this.#options = options
  }

  get connected(): boolean {
    return this.#session !== null
  }

  get messages(): number {
    return this.#messagesBefore + (this.#session?.messages ?? 0)
  }

  watch(poller: Poller): void {
    this.#poller = poller
    this.#listenSlot = poller.add(this.#endpoint.kind === 'listen' ? this.#endpoint.fd : -1, POLLIN)
    if (this.#endpoint.kind === 'connected') this.#begin(this.#endpoint.fd)
  }

  /** A front-end sets the device up whenever it connects: there is nothing to take over. */
  adopt(): boolean {
    return false
  }

  serve(): void {
    const session = this.#session
    const hungUp = session !== null && (session.heard & POLLHUP) !== 0
    if (session !== null) this.#serveSession(session)
    // A front-end that hangs up and comes back at once is no second one: what it said before is dealt with first.
    if (this.#poller.ready(this.#listenSlot) !== 0 && (this.#session === null || !hungUp)) this.#accept()
  }

  tick(): number {
    const now = performance.now()
    if (this.#session !== null) {
      if (this.#session.timeoutMs(now) === 0) this.#serveSession(this.#session)
      return this.#session === null ? 0 : this.#session.timeoutMs(now)
    }
    if (this.#endpoint.kind === 'listen') return this.#tickListening(now)
    if (this.#endpoint.kind !== 'connect') return -1
    if (now >= this.#connectAtMs) this.#connect(this.#endpoint.path)
    return this.#session === null ? Math.max(1, Math.ceil(this.#connectAtMs - now)) : -1
  }

  configChanged(): void {
    this.#guarded((session) => {
      session.configChanged()
      return true
    })
  }

  queueFailed(index: number, fault: number, text: string): void {
    this.#guarded((session) => {
      session.ringFailed(index)
      // A front-end that takes memory away is not one to wait for.
      if (fault === DRIVER_FAULT.MEMORY_VANISHED) throw new ProtocolError(text)
      return true
    })
  }

  [Symbol.dispose](): void {
    this.#end()
    this.#poller.remove(this.#listenSlot)
  }

  #accept(): void {
    if (this.#endpoint.kind !== 'listen') return
    const fd = native.vn_accept(this.#endpoint.fd)
    if (fd < 0) {
      // Whoever knocked may have gone again. Out of descriptors or memory, nothing is won by trying at once.
      if (fd === -EAGAIN) return
      this.#options.log('warning', `${new SysError('accept', -fd).message}: trying again in ${ACCEPT_AGAIN_MS} ms`)
      this.#acceptAtMs = performance.now() + ACCEPT_AGAIN_MS
      this.#poller.setFd(this.#listenSlot, -1)
      return
    }
    if (this.#session === null) this.#begin(fd)
    else {
      this.#options.log('warning', 'a second front-end was refused: one is being served')
      native.vn_close(fd)
    }
  }

  /** Listens again after an accept that has failed. */
  #tickListening(nowMs: number): number {
    if (this.#acceptAtMs === 0 || this.#endpoint.kind !== 'listen') return -1
    if (nowMs < this.#acceptAtMs) return Math.ceil(this.#acceptAtMs - nowMs)
    this.#acceptAtMs = 0
    this.#poller.setFd(this.#listenSlot, this.#endpoint.fd)
    return -1
  }

  #connect(path: string): void {
    const fd = connectUnix(path)
    if (fd >= 0) {
      this.#begin(fd)
      this.#connectDelayMs = RECONNECT_FIRST_MS
      return
    }
    if (this.#connectDelayMs === RECONNECT_FIRST_MS) {
      this.#options.log('info', `${path}: ${new SysError('connect', -fd).message}; waiting for the front-end to listen`)
    }
    this.#connectDelayMs = Math.min(this.#connectDelayMs * 2, RECONNECT_LAST_MS)
    this.#connectAtMs = performance.now() + this.#connectDelayMs
  }

  #begin(fd: number): void {
    this.#session = new Session(fd, this.#options, this.#poller)
    this.#options.log('info', 'front-end connected')
  }

  #serveSession(session: Session): void {
    this.#guarded(() => session.serve(MESSAGES_PER_TURN))
  }

  /**
   * Does something with the session, and ends it if that says false, or that it is of no more use. What is done may
   * come back here, by way of a queue that fails: the session ends only when nobody is inside it.
   */
  #guarded(act: (session: Session) => boolean): void {
    if (this.#session === null) return
    this.#inside++
    try {
      if (!act(this.#session)) this.#verdict ??= { level: 'info', text: 'front-end disconnected' }
    } catch (error) {
      // Out of descriptors, say: that is no reason to give the card up.
      if (!(error instanceof ProtocolError) && !(error instanceof SysError)) throw error
      this.#verdict ??= { level: 'warning', text: `front-end disconnected by us: ${error.message}` }
    } finally {
      this.#inside--
    }
    const verdict = this.#verdict
    if (verdict === null || this.#inside > 0) return
    this.#verdict = null
    this.#end()
    this.#options.log(verdict.level, verdict.text)
    if (this.#endpoint.kind === 'connected' || this.#endpoint.oneOff)
      this.ended = { why: 'the front-end has gone', failed: false }
  }

  #end(): void {
    if (this.#session === null) return
    this.#messagesBefore += this.#session.messages + 1
    this.#session[Symbol.dispose]()
    this.#session = null
    // Not at once: it may hang up each time.
    this.#connectAtMs = performance.now() + RECONNECT_FIRST_MS
  }
}
