import { constants } from 'node:os'
import {
  VHOST_USER_HEADER,
  VHOST_USER_NEED_REPLY,
  VHOST_USER_REPLY,
  VHOST_USER_VERSION,
  VHOST_USER_VERSION_MASK,
} from '../../abi/vhost-user.ts'
import { ProtocolError } from '../../base/errors.ts'
import { addressOf, native } from '../../sys/native.ts'

const { EAGAIN } = constants.errno

/** Longest body of any request, bytes: SET_CONFIG over the largest configuration space. */
export const BODY_BYTES_MAX = 4096
/** Most descriptors that one message may carry. */
const FDS_MAX = 8
/** A message must be complete, and an answer must be read, within this time. */
export const MESSAGE_TIMEOUT_MS = 5_000
/** Limit of unread output, bytes. A front-end waits for its answers, so a correct one leaves few unread. */
const OUTPUT_BYTES_MAX = 64 * 1024

/** One message from the peer. The receiver owns the descriptors. */
export type Message = {
  readonly request: number
  readonly needsReply: boolean
  /** The body, `size` bytes long, valid until the next message. */
  readonly body: DataView
  readonly fds: readonly number[]
}

type Output = { readonly bytes: Uint8Array; readonly fds: Int32Array; sent: number }

/**
 * A vhost-user connection as a stream of messages: non-blocking, each message complete, with the descriptors that came
 * with it. Broken framing throws a ProtocolError; after that only {@link Symbol.dispose} may be called.
 */
export class Connection {
  readonly fd: number
  /** What the peer sends: requests, or answers to our requests. */
  readonly #peerSends: 'requests' | 'answers'
  readonly #bytes = new Uint8Array(VHOST_USER_HEADER.sizeBytes + BODY_BYTES_MAX)
  readonly #view = new DataView(this.#bytes.buffer)
  /** {count, truncated, fds}, written by vn_recv_fds. */
  readonly #received = new Int32Array(2 + FDS_MAX)
  #have = 0
  #fds: number[] = []
  /** When the message being received must be complete. */
  #deadlineMs = 0
  readonly #output: Output[] = []
  #outputBytes = 0
  #outputDeadlineMs = 0

  /** Takes over the descriptor of a connected, non-blocking socket. */
  constructor(fd: number, peerSends: 'requests' | 'answers') {
    this.fd = fd
    this.#peerSends = peerSends
  }

  /** True while the peer has not read all output. */
  get hasOutput(): boolean {
    return this.#output.length > 0
  }

  /** Milliseconds until the next deadline; -1 for none. */
  timeoutMs(nowMs: number): number {
    const deadlines = [this.#have > 0 ? this.#deadlineMs : 0, this.hasOutput ? this.#outputDeadlineMs : 0].filter(
      (ms) => ms > 0,
    )
    return deadlines.length === 0 ? -1 : Math.max(0, Math.ceil(Math.min(...deadlines) - nowMs))
  }

  /** @throws ProtocolError if a message or an answer is late. */
  checkDeadlines(nowMs: number): void {
    if (this.#have > 0 && nowMs >= this.#deadlineMs) throw new ProtocolError('a message did not arrive whole in time')
    if (this.hasOutput && nowMs >= this.#outputDeadlineMs) throw new ProtocolError('an answer was not read in time')
  }

  /**
   * The next message; null if it is not complete yet, 'end' if the peer has closed the connection. @throws
   * ProtocolError
   */
  receive(): Message | null | 'end' {
    const headerBytes = VHOST_USER_HEADER.sizeBytes
    for (;;) {
      const size = this.#have < headerBytes ? 0 : this.#view.getUint32(VHOST_USER_HEADER.size, true)
      if (size > BODY_BYTES_MAX) throw new ProtocolError(`message of ${size} bytes`)
      const want = headerBytes + size
      if (this.#have === want) return this.#take(size)
      // Never read past the end of a message: descriptors arrive with the first byte of their message.
      const length = native.vn_recv_fds(
        this.fd,
        addressOf(this.#bytes) + this.#have,
        want - this.#have,
        addressOf(this.#received),
      )
      if (length === -EAGAIN) return null
      if (length < 0) return 'end'
      this.#keepFds()
      if (length === 0) {
        if (this.#have > 0) throw new ProtocolError('the connection ended inside a message')
        return 'end'
      }
      if (this.#have === 0) this.#deadlineMs = performance.now() + MESSAGE_TIMEOUT_MS
      this.#have += length
    }
  }

  /** Sends an answer. @throws ProtocolError if the peer does not read its answers. */
  answer(request: number, body: Uint8Array, fds: readonly number[] = []): void {
    this.#send(request, VHOST_USER_REPLY, body, fds)
  }

  /** Sends a request of ours. @throws ProtocolError if the peer does not read them. */
  request(request: number, body: Uint8Array, needsReply: boolean): void {
    this.#send(request, needsReply ? VHOST_USER_NEED_REPLY : 0, body, [])
  }

  #send(request: number, flags: number, body: Uint8Array, fds: readonly number[]): void {
    const bytes = new Uint8Array(VHOST_USER_HEADER.sizeBytes + body.length)
    const view = new DataView(bytes.buffer)
    view.setUint32(VHOST_USER_HEADER.request, request, true)
    view.setUint32(VHOST_USER_HEADER.flags, VHOST_USER_VERSION | flags, true)
    view.setUint32(VHOST_USER_HEADER.size, body.length, true)
    bytes.set(body, VHOST_USER_HEADER.sizeBytes)
    this.#outputBytes += bytes.length
    if (this.#outputBytes > OUTPUT_BYTES_MAX) throw new ProtocolError('answers are not read')
    if (!this.hasOutput) this.#outputDeadlineMs = performance.now() + MESSAGE_TIMEOUT_MS
    this.#output.push({ bytes, fds: Int32Array.from(fds), sent: 0 })
    this.flush()
  }

  /** Writes as much output as the socket accepts now. */
  flush(): void {
    for (let next = this.#output[0]; next !== undefined; next = this.#output[0]) {
      const { bytes, fds, sent } = next
      const fdCount = sent === 0 ? fds.length : 0
      const written = native.vn_send_fds(this.fd, addressOf(bytes) + sent, bytes.length - sent, fds, fdCount)
      if (written === -EAGAIN) return
      // The peer has closed the connection: the next receive() reports it.
      if (written < 0) this.#output.length = 0
      else {
        next.sent += written
        if (next.sent < bytes.length) continue
        this.#output.shift()
        this.#outputBytes -= bytes.length
        this.#outputDeadlineMs = performance.now() + MESSAGE_TIMEOUT_MS
      }
    }
  }

  [Symbol.dispose](): void {
    for (const fd of this.#fds) native.vn_close_peer(fd)
    this.#fds = []
    native.vn_close(this.fd)
  }

  #take(size: number): Message {
    const flags = this.#view.getUint32(VHOST_USER_HEADER.flags, true)
    if ((flags & VHOST_USER_VERSION_MASK) !== VHOST_USER_VERSION) throw new ProtocolError(`version ${flags & 3}`)
    const isAnswer = (flags & VHOST_USER_REPLY) !== 0
    if (isAnswer !== (this.#peerSends === 'answers'))
      throw new ProtocolError(isAnswer ? 'an answer to nothing' : 'a request instead of an answer')
    const fds = this.#fds
    this.#fds = []
    this.#have = 0
    return {
      request: this.#view.getUint32(VHOST_USER_HEADER.request, true),
      needsReply: (flags & VHOST_USER_NEED_REPLY) !== 0,
      body: new DataView(this.#bytes.buffer, VHOST_USER_HEADER.sizeBytes, size),
      fds,
    }
  }

  #keepFds(): void {
    const [count, truncated] = this.#received
    for (let i = 0; i < count!; i++) this.#fds.push(this.#received[2 + i]!)
    if (truncated !== 0 || this.#fds.length > FDS_MAX)
      throw new ProtocolError('more descriptors than a message may have')
  }
}
