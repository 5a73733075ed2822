import { OwnedFd } from './fd.ts'
import { check, native } from './native.ts'

/**
 * An eventfd: non-blocking, closed on exec. Any thread of the process may signal and poll it by number; the owner
 * disposes of it. A hot path calls `native.vn_eventfd_signal(fd)` and `native.vn_eventfd_drain(fd)` directly.
 */
export class EventFd extends OwnedFd {
  /** Throws SysError. */
  constructor() {
    super(check('eventfd', native.vn_eventfd()))
  }

  /** Makes the descriptor readable. Throws SysError. */
  signal(): void {
    check('eventfd write', native.vn_eventfd_signal(this.fd))
  }

  /** Makes the descriptor unreadable. Throws SysError. */
  drain(): void {
    check('eventfd read', native.vn_eventfd_drain(this.fd))
  }
}
