import type { EventFd } from '../../sys/eventfd.ts'
import { native } from '../../sys/native.ts'
import type { PeerSignal } from '../../sys/peer-signal.ts'

/** A range of guest addresses. */
export type GuestRange = { readonly start: number; readonly lengthBytes: number }

/** True if the ranges have an address in common. */
export const overlap = (a: GuestRange, b: GuestRange): boolean =>
  a.start < b.start + b.lengthBytes && b.start < a.start + a.lengthBytes

/** A session's state of one vring, in addition to the device's. */
export class SessionVring {
  /** The front-end's kick descriptor, or the in-band one. */
  kickFd = -1
  call: PeerSignal | null = null
  /** SET_VRING_CALL came without a descriptor: no calls on this ring. */
  callDeclined = false
  err: PeerSignal | null = null
  /** The last SET_VRING_ENABLE; null before the first. */
  enabled: boolean | null = null
  /** It has been kicked or given a kick descriptor since it last stopped. */
  kicked = false
  /** It has started in this session. */
  started = false
  /** Descriptor table, avail ring and used ring. */
  areas: readonly GuestRange[] = []
  /** Guest address under which writes to the used ring are logged; -1 for none. */
  usedLog = -1
  usedBytes = 0
  /** Signalled by the queue worker for each call to send as VRING_CALL; polled in `inBandCallSlot`. */
  inBandCall: EventFd | null = null
  inBandCallSlot = -1

  /** Takes ownership of a kick descriptor and closes the old one. */
  setKick(fd: number): void {
    if (this.kickFd >= 0) native.vn_close(this.kickFd)
    this.kickFd = fd
  }

  /** Precondition: the queue has stopped, and its worker has no call target. */
  [Symbol.dispose](): void {
    this.setKick(-1)
    this.call?.[Symbol.dispose]()
    this.err?.[Symbol.dispose]()
    this.inBandCall?.[Symbol.dispose]()
  }
}
