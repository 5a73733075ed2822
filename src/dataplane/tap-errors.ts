import { constants } from 'node:os'
import type { QueueBlock } from '../channel/queue-block.ts'

const { EAGAIN, EBADF, EBUSY, EFAULT, EINVAL, EIO, ENODEV, ENOBUFS, ENOMEM, ENXIO, EPIPE } = constants.errno
/** linux/errno.h; node:os does not have it. */
const EBADFD = 77

/**
 * TAP errors that have a drop reason of their own: it is full, down or gone, or memory is short. A read answers EFAULT
 * after the interface was deleted.
 */
// biome-ignore format: one line reads as the list that it is
const EXPECTED: ReadonlySet<number> = new Set([
  EAGAIN, EBADF, EBADFD, EBUSY, EFAULT, EINVAL, EIO, ENODEV, ENOBUFS, ENOMEM, ENXIO, EPIPE,
])

/** The device worker is woken at most once in this time. */
const WAKE_INTERVAL_MS = 1_000

/** Reports unexpected TAP errnos to the device worker, which logs them. */
export class TapErrors {
  readonly #wakeDeviceWorker: () => void
  readonly #nowMs: () => number
  #wokenMs = Number.NEGATIVE_INFINITY

  /** `wakeDeviceWorker` is called when there is something to log. */
  constructor(wakeDeviceWorker: () => void, nowMs: () => number = () => performance.now()) {
    this.#wakeDeviceWorker = wakeDeviceWorker
    this.#nowMs = nowMs
  }

  /** Records the errno of a TAP call for the queue of `block`; 0 for none. */
  note(block: QueueBlock, errno: number): void {
    if (errno === 0 || EXPECTED.has(errno)) return
    block.noteTapError(errno)
    const nowMs = this.#nowMs()
    if (nowMs - this.#wokenMs < WAKE_INTERVAL_MS) return
    this.#wokenMs = nowMs
    this.#wakeDeviceWorker()
  }
}
