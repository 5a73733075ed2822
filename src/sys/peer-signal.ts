import { constants, readlinkSync } from 'node:fs'
import { openRaw } from './fd.ts'
import { native } from './native.ts'

/** What kind of file a signal is written to. */
const KIND = {
  /** An eventfd of the peer's. */
  eventfd: 0,
  /** A pipe, opened anew here. */
  pipe: 1,
  /** A socket. */
  socket: 2,
  /** An eventfd of ours. */
  own: 3,
} as const

/**
 * Where a signal goes, as one number that any thread of this process can use with {@link signalPeer}: a descriptor and
 * its kind. -1 for nowhere.
 */
export type SignalTarget = number

const KINDS = 4
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
      // A pipe opened here has flags of its own, like an eventfd of ours.
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
/** Is the descriptor a socket? */
export const isSocket = (fd: number): boolean => fileOf(fd).startsWith('socket:')

/**
 * A descriptor by which a peer wants to be signalled: an eventfd (all but User Mode Linux), a socket (User Mode Linux),
 * or the writing end of a pipe. It belongs to this object.
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
    const file = fileOf(fd)
    if (file === EVENTFD) return new PeerSignal(fd, KIND.eventfd)
    if (file.startsWith('socket:')) return new PeerSignal(fd, KIND.socket)
    // The peer has its flags, O_NONBLOCK among them, and we have ours.
    const own = file.startsWith('pipe:')
      ? openRaw(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_NONBLOCK)
      : -1
    native.vn_close(fd)
    return own < 0 ? null : new PeerSignal(own, KIND.pipe)
  }

  signal(): void {
    signalPeer(this.target)
  }

  /** No thread uses {@link target} any more. */
  [Symbol.dispose](): void {
    native.vn_close(this.#fd)
  }
}
