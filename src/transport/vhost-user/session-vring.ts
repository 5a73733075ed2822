import type { EventFd } from '../../sys/eventfd.ts'
import { native } from '../../sys/native.ts'
import type { PeerSignal } from '../../sys/peer-signal.ts'

/** A range of guest addresses. */
export type GuestRange = { readonly start: number; readonly lengthBytes: number }

/** Do the ranges have an address in common? */
export const overlap = (a: GuestRange, b: GuestRange): boolean =>
  a.start < b.start + b.lengthBytes && b.start < a.start + a.lengthBytes

/** What a session keeps of one vring beside what the device knows of it. */
export class SessionVring {
  /** The front-end's kick descriptor, or the in-band one. */
  kickFd = -1
  call: PeerSignal | null = null
  /** The front-end has said that it does not want calls on this ring. */
  callDeclined = false
  err: PeerSignal | null = null
  /** What SET_VRING_ENABLE has said, null as long as it has said nothing. */
  enabled: boolean | null = null
  /** It has a kick and could run. */
  kicked = false
  /** It has had a kick in this session. */
  started = false
  /** Where its parts lie. */
  areas: readonly GuestRange[] = []
  /** Guest address to log writes to the used ring by, or -1 for not to log them. */
  usedLog = -1
  usedBytes = 0
  /** Signalled by a queue worker that wants a call made as a message; polled in this slot. */
  inBandCall: EventFd | null = null
  inBandCallSlot = -1

  /** Takes over a kick descriptor. */
  setKick(fd: number): void {
    if (this.kickFd >= 0) native.vn_close(this.kickFd)
    this.kickFd = fd
  }

  /** The queue has stopped, and its worker was told that it has nothing to call any more. */
  [Symbol.dispose](): void {
    this.setKick(-1)
    this.call?.[Symbol.dispose]()
    this.err?.[Symbol.dispose]()
    this.inBandCall?.[Symbol.dispose]()
  }
}
