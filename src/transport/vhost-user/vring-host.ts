import type { BorrowedArea } from '../../sys/mapping.ts'
import type { SignalTarget } from '../../sys/peer-signal.ts'

/**
 * Runs the vrings for a session: what the transport sets of a ring beside the device. Where they signal, whether they
 * are enabled, and where they note what they do.
 */
export interface VringHost {
  /** The eventfd that the front-end signals at a kick, from the ring's next start on. */
  setKick(index: number, fd: number): void
  /** Where to signal a call, from now on; -1 for nowhere. On return the one before is not used any more. */
  setCall(index: number, target: SignalTarget): void
  /** A ring that is not enabled discards what the driver sends, and receives nothing. */
  setEnabled(index: number, enabled: boolean): void
  /** Where to note chains in flight, from the ring's next start on; null for nowhere. */
  setInflight(index: number, area: BorrowedArea | null): void
  /** Makes the queue workers let go of all memory, and map again what they need. */
  forgetMemory(): void
  /**
   * Where to note pages that are written, from now on, and what to signal then (-1 for nothing); null for nowhere. On
   * return neither of those before is used any more.
   */
  setLog(log: BorrowedArea | null, signal: SignalTarget): void
  /** Guest address of the used ring in the log; -1 for not to log writes to it. */
  setUsedLog(index: number, address: number): void
}
