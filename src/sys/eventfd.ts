import { OwnedFd } from './fd.ts'
import { check, native } from './native.ts'

/**
 * An eventfd: non-blocking, closed on exec. Any thread that has its number may signal and wait; the owner disposes of
 * it. On a hot path call `native.vn_eventfd_signal(fd)` and `native.vn_eventfd_drain(fd)` at once.
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

  /** Makes it unreadable again. Throws SysError. */
  drain(): void {
    check('eventfd read', native.vn_eventfd_drain(this.fd))
  }
}
