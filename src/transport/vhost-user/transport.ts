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

/** Most messages handled in one turn, so that a flood does not starve the thread's other work. */
const MESSAGES_PER_TURN = 64
/** Delay before the next connection attempt; it doubles with each failure. */
const RECONNECT_FIRST_MS = 100
const RECONNECT_LAST_MS = 5_000
/** Delay after a failed accept. */
const ACCEPT_AGAIN_MS = 500

/**
 * The control transport of a device on a vhost-user socket: one front-end at a time. A front-end that breaks the
 * protocol or dies ends its session only; the next one may connect.
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
  /** When accept is tried again; 0 while the listening socket is polled. */
  #acceptAtMs = 0
  /** Depth of nested {@link #runInSession} calls, and why the session must end (null if it must not). */
  #depth = 0
  #ending: { readonly level: 'info' | 'warning'; readonly text: string } | null = null

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

  /** Nothing to adopt: a front-end sets the device up whenever it connects. */
  adopt(): boolean {
    return false
  }

  serve(): void {
    const session = this.#session
    const hungUp = session !== null && (session.readyEvents & POLLHUP) !== 0
    if (session !== null) this.#serveSession(session)
    // A front-end that closes and reconnects at once is not a second one: finish its old session first.
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
    this.#runInSession((session) => {
      session.configChanged()
      return true
    })
  }

  queueFailed(index: number, fault: number, text: string): void {
    this.#runInSession((session) => {
      session.ringFailed(index)
      // The front-end has truncated its memory: end the session.
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
      // EAGAIN: the peer has gone. Other errors (no descriptors, no memory) last a while, so retry later.
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

  /** Polls the listening socket again after a failed accept. */
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
    this.#runInSession(() => session.serve(MESSAGES_PER_TURN))
  }

  /**
   * Runs `act` on the session, and ends the session if `act` returns false or throws. `act` may re-enter through
   * queueFailed(); only the outermost call ends the session.
   */
  #runInSession(act: (session: Session) => boolean): void {
    if (this.#session === null) return
    this.#depth++
    try {
      if (!act(this.#session)) this.#ending ??= { level: 'info', text: 'front-end disconnected' }
    } catch (error) {
      // A SysError (for example, no descriptors) ends the session, not the card.
      if (!(error instanceof ProtocolError) && !(error instanceof SysError)) throw error
      this.#ending ??= { level: 'warning', text: `front-end disconnected by us: ${error.message}` }
    } finally {
      this.#depth--
    }
    const ending = this.#ending
    if (ending === null || this.#depth > 0) return
    this.#ending = null
    this.#end()
    this.#options.log(ending.level, ending.text)
    if (this.#endpoint.kind === 'connected' || this.#endpoint.oneOff)
      this.ended = { why: 'the front-end has gone', failed: false }
  }

  #end(): void {
    if (this.#session === null) return
    this.#messagesBefore += this.#session.messages + 1
    this.#session[Symbol.dispose]()
    this.#session = null
    // Wait before reconnecting: the front-end may close each time.
    this.#connectAtMs = performance.now() + RECONNECT_FIRST_MS
  }
}
