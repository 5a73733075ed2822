import {
  VHOST_USER_BACKEND_CONFIG_CHANGE_MSG,
  VHOST_USER_BACKEND_VRING_CALL,
  VHOST_USER_BACKEND_VRING_ERR,
  VHOST_VRING_STATE,
} from '../../abi/vhost-user.ts'
import { native } from '../../sys/native.ts'
import { Connection } from './connection.ts'

const vringStateBody = (index: number): Uint8Array => {
  const body = new Uint8Array(VHOST_VRING_STATE.sizeBytes)
  new DataView(body.buffer).setUint32(VHOST_VRING_STATE.index, index, true)
  return body
}

/**
 * The back-end channel (SET_BACKEND_REQ_FD): requests from this program to the front-end. A ring has at most one
 * unanswered call, so that a slow front-end does not get more calls than it can answer.
 */
export class BackendChannel {
  readonly #connection: Connection
  /** Rings with an unanswered call, in the order of the calls. */
  readonly #unanswered: number[] = []
  /** Rings that need another call once theirs is answered. */
  readonly #callAgain = new Set<number>()

  /** Takes over the descriptor of a stream socket. */
  constructor(fd: number) {
    native.vn_set_nonblock(fd, 1)
    this.#connection = new Connection(fd, 'answers')
  }

  get fd(): number {
    return this.#connection.fd
  }

  get hasOutput(): boolean {
    return this.#connection.hasOutput
  }

  /** Milliseconds until the next deadline; -1 for none. */
  timeoutMs(nowMs: number): number {
    return this.#connection.timeoutMs(nowMs)
  }

  /**
   * Handles answers. False when the front-end has closed the channel. @throws ProtocolError when the channel cannot be
   * used any more.
   */
  serve(): boolean {
    this.#connection.flush()
    for (;;) {
      const answer = this.#connection.receive()
      if (answer === 'end') return false
      if (answer === null) break
      for (const fd of answer.fds) native.vn_close_peer(fd)
      const ring = answer.request === VHOST_USER_BACKEND_VRING_CALL ? this.#unanswered.shift() : undefined
      if (ring !== undefined && this.#callAgain.delete(ring)) this.call(ring)
    }
    this.#connection.checkDeadlines(performance.now())
    return true
  }

  configChanged(): void {
    this.#connection.request(VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, new Uint8Array(0), false)
  }

  /** Sends VRING_CALL, in place of a signal on the ring's call descriptor. */
  call(ring: number): void {
    if (this.#unanswered.includes(ring)) {
      this.#callAgain.add(ring)
      return
    }
    this.#unanswered.push(ring)
    this.#connection.request(VHOST_USER_BACKEND_VRING_CALL, vringStateBody(ring), true)
  }

  /** Sends VRING_ERR, in place of a signal on the ring's err descriptor. */
  ringFailed(ring: number): void {
    this.#connection.request(VHOST_USER_BACKEND_VRING_ERR, vringStateBody(ring), false)
  }

  [Symbol.dispose](): void {
    this.#connection[Symbol.dispose]()
  }
}
