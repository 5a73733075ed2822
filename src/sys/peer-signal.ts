import { readlinkSync } from 'node:fs'
import { native } from './native.ts'

/** Kinds of files to which signals are written. */
const KIND = {
  /** An eventfd of the peer's. */
  eventfd: 0,
  /** A unix socket. */
  socket: 1,
  /** An eventfd of ours. */
  own: 2,
} as const

/**
 * A target for {@link signalPeer}, usable in any thread of this process: a descriptor and its kind as one number. -1
 * for none.
 */
export type SignalTarget = number

const KINDS = 3
const targetOf = (fd: number, kind: number): SignalTarget => fd * KINDS + kind

/** The target of an eventfd that no other process has. */
export const ownTarget = (fd: number): SignalTarget => targetOf(fd, KIND.own)

/**
 * Eight bytes to any kind of file, as front-ends do: docs/interop/vhost-user.rst, "Support for platforms other than
 * Linux".
 */
const ONE = new Uint8Array(new BigUint64Array([1n]).buffer)
const NO_FDS = new Int32Array(0)

/**
 * Signals a target. Never blocks. Errors are ignored: the peer is gone, or a full socket or counter wakes it
 * already.
 */
export const signalPeer = (target: SignalTarget): void => {
  if (target < 0) return
  const fd = Math.floor(target / KINDS)
  switch (target % KINDS) {
    case KIND.eventfd:
      native.vn_peer_eventfd_signal(fd)
      break
    case KIND.socket:
      native.vn_send_fds(fd, ONE, ONE.length, NO_FDS, 0)
      break
    default:
      native.vn_eventfd_signal(fd)
  }
}

/** The link target of a descriptor in /proc; '' if its path is too long. */
const fileOf = (fd: number): string => {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`)
  } catch {
    return ''
  }
}
const EVENTFD = 'anon_inode:[eventfd]'

/** True if the descriptor is an eventfd. */
export const isEventFd = (fd: number): boolean => fileOf(fd) === EVENTFD
/** True if the descriptor is a unix socket. Other sockets can block, since the peer can hold their lock. */
export const isUnixSocket = (fd: number): boolean => native.vn_is_unix_socket(fd) === 1

/**
 * A descriptor by which a peer is signalled, owned by this object: an eventfd (most front-ends) or a unix socket (User
 * Mode Linux). A pipe is neither opened nor written to: its reader can hold its lock.
 */
export class PeerSignal {
  readonly target: SignalTarget
  readonly #fd: number

  private constructor(fd: number, kind: number) {
    this.#fd = fd
    this.target = targetOf(fd, kind)
  }

  /** Takes over `fd`, or closes it and returns null if it is of another kind. */
  static adopt(fd: number): PeerSignal | null {
    if (isEventFd(fd)) return new PeerSignal(fd, KIND.eventfd)
    if (isUnixSocket(fd)) return new PeerSignal(fd, KIND.socket)
    native.vn_close_peer(fd)
    return null
  }

  signal(): void {
    signalPeer(this.target)
  }

  /** Closes the descriptor. No thread may use {@link target} any more. */
  [Symbol.dispose](): void {
    native.vn_close(this.#fd)
  }
}
