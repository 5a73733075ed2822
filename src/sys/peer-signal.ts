import { readlinkSync } from 'node:fs'
import { native } from './native.ts'

/** What kind of file a signal is written to. */
const KIND = {
  /** An eventfd of the peer's. */
  eventfd: 0,
  /** A unix socket. */
  socket: 1,
  /** An eventfd of ours. */
  own: 2,
} as const

/**
 * Where a signal goes, as one number that any thread of this process can use with {@link signalPeer}: a descriptor and
 * its kind. -1 for nowhere.
 */
export type SignalTarget = number

const KINDS = 3
const targetOf = (fd: number, kind: number): SignalTarget => fd * KINDS + kind

/** The target of an eventfd that nobody else has. */
export const ownTarget = (fd: number): SignalTarget => targetOf(fd, KIND.own)

/**
 * Front-ends write 8 bytes whatever the file is, and so do we: docs/interop/vhost-user.rst, "Support for platforms
 * other than Linux".
 */
const ONE = new Uint8Array(new BigUint64Array([1n]).buffer)
const NO_FDS = new Int32Array(0)

/** Signals. Never blocks, and nothing comes of a peer that has gone or does not read: it has had its signal then. */
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

/** What the kernel calls the file of a descriptor; nothing for one whose path is too long to be told. */
const fileOf = (fd: number): string => {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`)
  } catch {
    return ''
  }
}
const EVENTFD = 'anon_inode:[eventfd]'

/** Is the descriptor an eventfd? */
export const isEventFd = (fd: number): boolean => fileOf(fd) === EVENTFD
/** Is the descriptor a unix socket? Any other one could block, since the peer can hold its lock. */
export const isUnixSocket = (fd: number): boolean => native.vn_is_unix_socket(fd) === 1

/**
 * A descriptor by which a peer wants to be signalled: an eventfd (all but User Mode Linux), or a unix socket (User Mode
 * Linux). It belongs to this object. A pipe is neither opened nor written to: its reader can hold its lock.
 */
export class PeerSignal {
  readonly target: SignalTarget
  readonly #fd: number

  private constructor(fd: number, kind: number) {
    this.#fd = fd
    this.target = targetOf(fd, kind)
  }

  /** Takes over `fd`, or closes it and returns null if it is something else. */
  static adopt(fd: number): PeerSignal | null {
    if (isEventFd(fd)) return new PeerSignal(fd, KIND.eventfd)
    if (isUnixSocket(fd)) return new PeerSignal(fd, KIND.socket)
    native.vn_close_peer(fd)
    return null
  }

  signal(): void {
    signalPeer(this.target)
  }

  /** No thread uses {@link target} any more. */
  [Symbol.dispose](): void {
    native.vn_close(this.#fd)
  }
}
