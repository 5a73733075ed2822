import { constants } from 'node:os'
import type { QueueBlock } from '../channel/queue-block.ts'

const { EAGAIN, EBADF, EBUSY, EFAULT, EINVAL, EIO, ENODEV, ENOBUFS, ENOMEM, ENXIO, EPIPE } = constants.errno
/** linux/errno.h; node:os does not have it. */
const EBADFD = 77

/**
 * Answers of a TAP that have a reason of their own among the drops: it is full, down or gone, or short of memory. To a
 * read EFAULT is how Linux says that the interface was deleted.
 */
// biome-ignore format: one line reads as the list that it is
const EXPECTED: ReadonlySet<number> = new Set([
  EAGAIN, EBADF, EBADFD, EBUSY, EFAULT, EINVAL, EIO, ENODEV, ENOBUFS, ENOMEM, ENXIO, EPIPE,
])

/** The device worker is woken for what is noted here no more often than this. */
const TELL_MS = 1_000

/**
 * Errnos of the TAP that nobody has planned for: they are noted for the device worker, which writes them to the log.
 */
export class TapErrors {
  readonly #tell: () => void
  readonly #nowMs: () => number
  #toldMs = Number.NEGATIVE_INFINITY

  /** `tell` wakes the device worker. */
  constructor(tell: () => void, nowMs: () => number = () => performance.now()) {
    this.#tell = tell
    this.#nowMs = nowMs
  }

  /** The TAP has answered the queue of `block` with an errno; 0 for none. */
  note(block: QueueBlock, errno: number): void {
    if (errno === 0 || EXPECTED.has(errno)) return
    block.noteTapError(errno)
    const nowMs = this.#nowMs()
    if (nowMs - this.#toldMs < TELL_MS) return
    this.#toldMs = nowMs
    this.#tell()
  }
}
