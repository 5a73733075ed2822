import type { BorrowedArea } from '../../sys/mapping.ts'
import type { SignalTarget } from '../../sys/peer-signal.ts'

/**
 * What a session sets of a vring besides the device's own state: kick and call, enabled or not, inflight region and
 * dirty log. Implemented by the device worker.
 */
export interface VringHost {
  /** The kick eventfd, from the ring's next start on. */
  setKick(index: number, fd: number): void
  /** The call target, from now on; -1 for none. On return the old target is not used any more. */
  setCall(index: number, target: SignalTarget): void
  /** A disabled ring discards what the driver sends, and receives nothing. */
  setEnabled(index: number, enabled: boolean): void
  /** The region that records chains in flight, from the ring's next start on; null for none. */
  setInflight(index: number, area: BorrowedArea | null): void
  /** Makes the queue workers release all memory, and map again what they need. */
  forgetMemory(): void
  /**
   * The dirty log and what to signal after logging (-1 for nothing), from now on; null for no log. On return the old
   * log and signal are not used any more.
   */
  setLog(log: BorrowedArea | null, signal: SignalTarget): void
  /** Guest address under which writes to the used ring are logged; -1 for none. */
  setUsedLog(index: number, address: number): void
}
