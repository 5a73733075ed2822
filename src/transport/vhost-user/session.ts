import {
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
} from '../../abi/vhost-user.ts'
import { ProtocolError } from '../../base/errors.ts'
import { OwnedFd } from '../../sys/fd.ts'
import { native } from '../../sys/native.ts'
import { isUnixSocket } from '../../sys/peer-signal.ts'
import { POLLIN, POLLOUT, type Poller } from '../../sys/poller.ts'
import { BackendChannel } from './backend-channel.ts'
import { ConfigRequests } from './config-requests.ts'
import { Connection, type Message } from './connection.ts'
import { DirtyLogging } from './dirty-logging.ts'
import { InflightRequests } from './inflight-requests.ts'
import { MemoryRequests } from './memory-requests.ts'
import { MigrationRequests } from './migration-requests.ts'
import { NegotiationRequests } from './negotiation-requests.ts'
import { rarpFrame } from './rarp.ts'
import {
  type Decoded,
  decode,
  type Handlers,
  type Outcome,
  type Request,
  type RequestFields,
  type RequestName,
  u64Reply,
} from './requests.ts'
import { type SessionOptions, SessionState } from './session-state.ts'
import { VringRequests } from './vring-requests.ts'

/**
 * A refusal of one of these ends the session unless it was acknowledged (REPLY_ACK). The front-end would wait for an
 * answer that does not come, or assume other memory, another inflight buffer or other messages than the card.
 */
const ENDS_SESSION_IF_REFUSED: ReadonlySet<string> = new Set<RequestName>([
  'SET_PROTOCOL_FEATURES',
  'SET_MEM_TABLE',
  'ADD_MEM_REG',
  'REM_MEM_REG',
  'SET_LOG_BASE',
  'GET_INFLIGHT_FD',
  'SET_INFLIGHT_FD',
  'GET_VRING_BASE',
])

/** A refusal of one of these leaves a vring half set up. */
const SETS_UP_VRING: ReadonlySet<string> = new Set<RequestName>([
  'SET_VRING_NUM',
  'SET_VRING_ADDR',
  'SET_VRING_BASE',
  'SET_VRING_KICK',
  'SET_VRING_CALL',
])

/**
 * One front-end's connection from accept to close: receives requests, passes each to its handler, and answers.
 * docs/interop/vhost-user.rst.
 */
export class Session {
  /** Requests carried out or refused. */
  messages = 0
  readonly #connection: Connection
  readonly #poller: Poller
  readonly #slot: number
  readonly #backendSlot: number
  readonly #state: SessionState
  readonly #logging: DirtyLogging
  readonly #memory: MemoryRequests
  readonly #inflight: InflightRequests
  readonly #migration: MigrationRequests
  readonly #vrings: VringRequests
  readonly #negotiation: NegotiationRequests
  readonly #handlers: Handlers
  /** `device.resets` when a driver was last asked to announce itself. */
  #announcedAtReset = -1

  /** Takes over the descriptor of a connected, non-blocking socket. */
  constructor(fd: number, options: SessionOptions, poller: Poller) {
    this.#connection = new Connection(fd, 'requests')
    this.#poller = poller
    this.#slot = poller.add(fd, POLLIN)
    this.#backendSlot = poller.add(-1, POLLIN)
    const state = new SessionState(options)
    this.#state = state
    this.#logging = new DirtyLogging(state.vrings, options.host, options.memory)
    this.#memory = new MemoryRequests(state, this.#logging)
    this.#inflight = new InflightRequests(state)
    this.#migration = new MigrationRequests(state, this.#logging)
    this.#vrings = new VringRequests(state, poller, this.#logging, this.#inflight)
    this.#negotiation = new NegotiationRequests(state, this.#vrings, this.#logging)
    this.#handlers = {
      ...this.#negotiation.handlers,
      ...this.#vrings.handlers,
      ...this.#memory.handlers,
      ...this.#inflight.handlers,
      ...this.#migration.handlers,
      ...new ConfigRequests(state).handlers,
      SET_BACKEND_REQ_FD: ({ fd }) => this.#setBackend(fd),
      SEND_RARP: ({ mac }) => {
        options.sendFrame(rarpFrame(mac))
        return null
      },
    }
  }

  /** POLL* bits of the connection in the last poll. */
  get readyEvents(): number {
    return this.#poller.ready(this.#slot)
  }

  /** Milliseconds until the next deadline; -1 for none. */
  timeoutMs(nowMs: number): number {
    const ofBackend = this.#state.backend?.timeoutMs(nowMs) ?? -1
    const times = [this.#connection.timeoutMs(nowMs), ofBackend].filter((ms) => ms >= 0)
    return times.length === 0 ? -1 : Math.min(...times)
  }

  /**
   * Handles at most `count` messages that have arrived. False when the front-end has closed the connection.
   * @throws ProtocolError when the connection cannot be used any more.
   */
  serve(count: number): boolean {
    this.#vrings.serveInBandCalls()
    if (this.#state.backend !== null) this.#serveBackend(this.#state.backend)
    this.#connection.flush()
    for (let i = 0; i < count && !this.#connection.hasOutput; i++) {
      const message = this.#connection.receive()
      if (message === 'end') return false
      if (message === null) break
      this.#carryOut(message)
      this.#state.options.device.settle()
      this.#announceResumption()
    }
    this.#connection.checkDeadlines(performance.now())
    // While answers are unread, no further request is read.
    this.#poller.setEvents(this.#slot, this.#connection.hasOutput ? POLLOUT : POLLIN)
    const { backend } = this.#state
    if (backend !== null) this.#poller.setEvents(this.#backendSlot, backend.hasOutput ? POLLIN | POLLOUT : POLLIN)
    return true
  }

  /** Sends CONFIG_CHANGE_MSG if CONFIG was negotiated. */
  configChanged(): void {
    if (this.#state.negotiated(VHOST_USER_PROTOCOL_F_CONFIG)) this.#state.backend?.configChanged()
  }

  /** A ring was quarantined: signals its err descriptor (or sends VRING_ERR), and sets DEVICE_NEEDS_RESET. */
  ringFailed(index: number): void {
    const { vrings, backend, options } = this.#state
    const vring = vrings[index]
    if (vring?.err !== null) vring?.err.signal()
    else if (this.#state.negotiated(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS)) backend?.ringFailed(index)
    options.device.needReset()
    this.configChanged()
  }

  /** Stops the rings, unmaps the memory, closes every descriptor. */
  [Symbol.dispose](): void {
    const { device } = this.#state.options
    device.setStatus(0)
    device.setMtu(null)
    this.#logging[Symbol.dispose]()
    this.#inflight[Symbol.dispose]()
    this.#migration[Symbol.dispose]()
    this.#memory[Symbol.dispose]()
    this.#vrings[Symbol.dispose]()
    // Remove the poll slots before closing: the descriptor numbers may be reused at once.
    this.#poller.remove(this.#backendSlot)
    this.#poller.remove(this.#slot)
    this.#state.backend?.[Symbol.dispose]()
    this.#connection[Symbol.dispose]()
  }

  /** Asks a driver that resumes here to announce itself: after a migration its neighbours do not know its new place. */
  #announceResumption(): void {
    const { device } = this.#state.options
    if (!this.#state.resumes || !device.driverOk) return
    this.#state.resumes = false
    // Each resumed ring sets `resumes`; the driver is asked once.
    if (this.#announcedAtReset === device.resets || !this.#state.negotiated(VHOST_USER_PROTOCOL_F_CONFIG)) return
    this.#announcedAtReset = device.resets
    if (device.announce()) this.configChanged()
  }

  #carryOut(message: Message): void {
    this.messages++
    const { request, outcome } = this.#run(message)
    if (outcome !== null && typeof outcome === 'object') {
      this.#connection.answer(message.request, outcome.reply, outcome.fds)
      return
    }
    if (outcome !== null) this.#state.options.log('warning', `${request.name} refused: ${outcome}`)
    if (message.needsReply && this.#state.negotiated(VHOST_USER_PROTOCOL_F_REPLY_ACK))
      this.#connection.answer(message.request, u64Reply(outcome === null ? 0n : 1n).reply)
    else if (outcome !== null) this.#continueAfterRefusal(request, outcome)
  }

  /** Descriptors that no handler has kept are closed on return, or will be by a thread that may wait for that. */
  #run(message: Message): { readonly request: Decoded; readonly outcome: Outcome } {
    const fds = message.fds.map((fd) => new OwnedFd(fd, native.vn_close_peer))
    try {
      const request = decode(message, fds, this.#state.protocolFeatures)
      return { request, outcome: 'refusal' in request ? request.refusal : this.#handle(request) }
    } finally {
      for (const fd of fds) fd[Symbol.dispose]()
    }
  }

  #handle({ name, fields }: Request): Outcome {
    const handle = this.#handlers[name] as (fields: RequestFields[RequestName]) => Outcome
    return handle(fields)
  }

  /**
   * After a refusal without an answer the front-end assumes success. The driver or ring of the request is then treated
   * as not set up, so that none runs half configured; the front-end may set it up again.
   * @throws ProtocolError where the front-end cannot continue
   */
  #continueAfterRefusal(request: Decoded, refusal: string): void {
    if ('refusal' in request || ENDS_SESSION_IF_REFUSED.has(request.name))
      throw new ProtocolError(`${request.name} was refused, and no answer was requested: ${refusal}`)
    if (request.name === 'SET_FEATURES') this.#negotiation.abandonDriver()
    else if (SETS_UP_VRING.has(request.name) && 'index' in request.fields) this.#vrings.abandon(request.fields.index)
  }

  #setBackend(fd: OwnedFd): Outcome {
    if (!isUnixSocket(fd.fd)) return 'not a unix socket'
    this.#state.backend?.[Symbol.dispose]()
    this.#state.backend = new BackendChannel(fd.release())
    this.#poller.setFd(this.#backendSlot, this.#state.backend.fd)
    return null
  }

  #serveBackend(backend: BackendChannel): void {
    try {
      if (backend.serve()) return
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
      this.#state.options.log('warning', `the back-end channel: ${error.message}`)
    }
    // A ring that is called by messages needs the channel.
    if (this.#state.vrings.some((vring) => vring.inBandCall !== null))
      throw new ProtocolError('the back-end channel is closed, and a ring has no call descriptor')
    this.#poller.setFd(this.#backendSlot, -1)
    backend[Symbol.dispose]()
    this.#state.backend = null
  }
}
