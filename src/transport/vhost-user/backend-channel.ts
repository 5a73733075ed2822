import {
  VHOST_USER_BACKEND_CONFIG_CHANGE_MSG,
  VHOST_USER_BACKEND_VRING_CALL,
  VHOST_USER_BACKEND_VRING_ERR,
  VHOST_VRING_STATE,
} from '../../abi/vhost-user.ts'
import { native } from '../../sys/native.ts'
import { Connection } from './connection.ts'

const aboutRing = (index: number): Uint8Array => {
  const body = new Uint8Array(VHOST_VRING_STATE.sizeBytes)
  new DataView(body.buffer).setUint32(VHOST_VRING_STATE.index, index, true)
  return body
}

/**
 * The connection on which requests go the other way, from us to the front-end: SET_BACKEND_REQ_FD. Calls wait for their
 * answer, one at a time for each ring, so that a front-end that is slow is not buried in them.
 */
export class BackendChannel {
  readonly #connection: Connection
  /** Rings whose calls have not been answered yet, in the order of the calls. */
  readonly #unanswered: number[] = []
  /** Those of them that are to be called once more. */
  readonly #again = new Set<number>()

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

  /** Milliseconds until something is too late, -1 for never. */
  timeoutMs(nowMs: number): number {
    return this.#connection.timeoutMs(nowMs)
  }

  /**
   * Deals with answers. False when the front-end has hung up. @throws ProtocolError when the connection is of no more
   * use.
   */
  serve(): boolean {
    this.#connection.flush()
    for (;;) {
      const answer = this.#connection.receive()
      if (answer === 'end') return false
      if (answer === null) break
      for (const fd of answer.fds) native.vn_close(fd)
      const ring = answer.request === VHOST_USER_BACKEND_VRING_CALL ? this.#unanswered.shift() : undefined
      if (ring !== undefined && this.#again.delete(ring)) this.call(ring)
    }
    this.#connection.checkDeadlines(performance.now())
    return true
  }

  configChanged(): void {
    this.#connection.request(VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, new Uint8Array(0), false)
  }

  /** Instead of the ring's call descriptor. */
  call(ring: number): void {
    if (this.#unanswered.includes(ring)) {
      this.#again.add(ring)
      return
    }
    this.#unanswered.push(ring)
    this.#connection.request(VHOST_USER_BACKEND_VRING_CALL, aboutRing(ring), true)
  }

  /** Instead of the ring's error descriptor. */
  ringFailed(ring: number): void {
    this.#connection.request(VHOST_USER_BACKEND_VRING_ERR, aboutRing(ring), false)
  }

  [Symbol.dispose](): void {
    this.#connection[Symbol.dispose]()
  }
}
