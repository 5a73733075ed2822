import { constants } from 'node:os'
import { POLLFD, POLLIN } from '../abi/linux.ts'
import {
  AF_NETLINK,
  NETLINK_CAP_ACK,
  NETLINK_EXT_ACK,
  NLM_F_ACK,
  NLM_F_DUMP,
  NLM_F_DUMP_INTR,
  NLM_F_REQUEST,
  NLMSG_DONE,
  NLMSG_ERROR,
  NLMSG_NOOP,
  SOCK_NONBLOCK,
  SOCK_RAW,
  SOCKADDR_NL,
  SOL_NETLINK,
} from '../abi/netlink.ts'
import { assert } from '../base/assert.ts'
import { errnoName, SysError } from '../base/errors.ts'
import { native } from './native.ts'
import { decodeMessages, decodeResult, encodeMessage, type NetlinkMessage } from './netlink-message.ts'

/** More than the kernel puts into one datagram: dumps are cut at 32 KiB (net/netlink/af_netlink.c, netlink_recvmsg). */
const RECEIVE_BYTES = 64 * 1024
/** How long the kernel may take to answer after it has taken the request. */
const ANSWER_TIMEOUT_MS = 5000
/** Most datagrams that one drain() reads: a storm of changes by others does not block the caller. */
const DRAIN_MAX = 256
const DUMP_RETRIES = 8

const { EAGAIN, ENOBUFS, ETIMEDOUT, EINTR, EBADMSG } = constants.errno

/** The kernel refused a request. `errno` is positive; `extack` is the kernel's error text, or ''. */
export class NetlinkError extends SysError {
  override name = 'NetlinkError'
  readonly extack: string
  constructor(errno: number, extack: string) {
    super('netlink', errno)
    this.extack = extack
    this.message = `netlink: ${this.reason}`
  }

  /** Error text and errno name, for a message that names the request. */
  get reason(): string {
    return this.extack === '' ? errnoName(this.errno) : `${this.extack} (${errnoName(this.errno)})`
  }
}

/** Sends requests to the kernel: a {@link NetlinkSocket}, or a substitute in tests. */
export type NetlinkRequester = {
  /**
   * Sends one request and returns the answer's messages without the acknowledgement. Blocks while the kernel works on
   * it. Throws {@link NetlinkError} if it is refused, SysError if there is no answer.
   */
  request(type: number, parts: readonly Uint8Array[], kind?: 'do' | 'dump'): NetlinkMessage[]
}

/**
 * A netlink socket to the kernel. It stays in the network namespace in which it was made. The kernel works on a request
 * inside the sender's write: a vdpa add waits there for the driver's probe.
 */
export class NetlinkSocket implements NetlinkRequester {
  /** For a poller: readable when {@link drain} has something. */
  readonly fd: number
  readonly #buffer = new Uint8Array(RECEIVE_BYTES)
  #sequence = 0

  /** `groups`: RTMGRP_* bits of the notifications to receive. Throws SysError. */
  constructor(protocol: number, groups = 0) {
    const fd = native.vn_socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, protocol)
    if (fd < 0) throw new SysError('socket(AF_NETLINK)', -fd)
    this.fd = fd
    // Errors are ignored: kernels before 4.12 lack these options and answer without texts.
    native.vn_setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, 1)
    native.vn_setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, 1)
    // nl_pid 0: the kernel chooses our address.
    const address = new Uint8Array(SOCKADDR_NL.sizeBytes)
    const view = new DataView(address.buffer)
    view.setUint16(SOCKADDR_NL.nl_family, AF_NETLINK, true)
    view.setUint32(SOCKADDR_NL.nl_groups, groups, true)
    const bound = native.vn_bind(fd, address, address.length)
    if (bound < 0) {
      this[Symbol.dispose]()
      throw new SysError('bind(AF_NETLINK)', -bound)
    }
  }

  request(type: number, parts: readonly Uint8Array[], kind: 'do' | 'dump' = 'do'): NetlinkMessage[] {
    for (let attempt = 0; attempt < DUMP_RETRIES; attempt++) {
      const answer = this.#requestOnce(type, parts, kind)
      if (answer !== 'interrupted') return answer
    }
    throw new SysError('netlink dump', EINTR)
  }

  /**
   * Passes the waiting messages to `onMessage`, without blocking. `lost`: the kernel dropped some since the last call,
   * so the caller must query the state. The messages are views of a buffer that the next call reuses.
   */
  drain(onMessage: (message: NetlinkMessage) => void): { lost: boolean } {
    let lost = false
    for (let i = 0; i < DRAIN_MAX; i++) {
      const received = native.vn_read(this.fd, this.#buffer, RECEIVE_BYTES)
      if (received === -EAGAIN) break
      if (received === -ENOBUFS) {
        lost = true
        continue
      }
      if (received < 0) throw new SysError('read(AF_NETLINK)', -received)
      const messages = decodeMessages(this.#buffer.subarray(0, received))
      if (messages === null) lost = true
      else for (const message of messages) onMessage(message)
    }
    return { lost }
  }

  [Symbol.dispose](): void {
    assert(native.vn_close(this.fd) === 0)
  }

  #requestOnce(type: number, parts: readonly Uint8Array[], kind: 'do' | 'dump'): NetlinkMessage[] | 'interrupted' {
    this.#sequence = (this.#sequence + 1) >>> 0
    const sequence = this.#sequence
    const flags = NLM_F_REQUEST | (kind === 'dump' ? NLM_F_DUMP : NLM_F_ACK)
    const bytes = encodeMessage(type, flags, sequence, ...parts)
    const sent = native.vn_write(this.fd, bytes, bytes.length)
    if (sent < 0) throw new SysError('write(AF_NETLINK)', -sent)
    const answer: NetlinkMessage[] = []
    let interrupted = false
    const deadline = performance.now() + ANSWER_TIMEOUT_MS
    while (true) {
      const received = this.#receive(deadline)
      const messages = decodeMessages(this.#buffer.subarray(0, received))
      if (messages === null) throw new SysError('read(AF_NETLINK)', EBADMSG)
      for (const message of messages) {
        // A late answer to an earlier request that timed out, or a notification.
        if (message.sequence !== sequence) continue
        if ((message.flags & NLM_F_DUMP_INTR) !== 0) interrupted = true
        if (message.type === NLMSG_ERROR || message.type === NLMSG_DONE) {
          const { errno, extack } = decodeResult(message, message.type === NLMSG_DONE)
          if (errno !== 0) throw new NetlinkError(errno, extack)
          return interrupted ? 'interrupted' : answer
        }
        if (message.type !== NLMSG_NOOP) answer.push({ ...message, body: message.body.slice() })
      }
    }
  }

  #receive(deadline: number): number {
    while (true) {
      const received = native.vn_read(this.fd, this.#buffer, RECEIVE_BYTES)
      if (received >= 0) return received
      if (received !== -EAGAIN) throw new SysError('read(AF_NETLINK)', -received)
      const remainingMs = Math.ceil(deadline - performance.now())
      if (remainingMs <= 0) throw new SysError('read(AF_NETLINK)', ETIMEDOUT)
      const pollfd = new DataView(new ArrayBuffer(POLLFD.sizeBytes))
      pollfd.setInt32(POLLFD.fd, this.fd, true)
      pollfd.setInt16(POLLFD.events, POLLIN, true)
      const ready = native.vn_poll(new Uint8Array(pollfd.buffer), 1, remainingMs)
      if (ready < 0) throw new SysError('poll', -ready)
    }
  }
}
