import type { Poller } from '../sys/poller.ts'

/** Why a transport has come to its end: it has failed, or has done all that it was for. */
export type TransportEnd = { readonly why: string; readonly failed: boolean }

/**
 * What carries control messages between the driver's side and the device: VDUSE or vhost-user. The device worker owns
 * it and calls it from its one loop; nothing in it blocks.
 */
export interface ControlTransport {
  /** Requests answered. */
  readonly messages: number
  /** A driver's side is there: over vhost-user a front-end is connected. */
  readonly connected: boolean
  /** Set once nothing more can come of it. */
  readonly ended: TransportEnd | null
  /** Adds what it waits for to the poll set of the thread that will call it. Once, before anything else. */
  watch(poller: Poller): void
  /** True if a driver that set itself up with an earlier process runs on. Once, after {@link watch}. */
  adopt(): boolean
  /** Deals with what the last wait found. */
  serve(): void
  /** Deals with time passing; milliseconds until it wants to be called again, -1 for never. */
  tick(): number
  /** Tells the driver that these bytes of the configuration space have changed. */
  configChanged(offset: number, bytes: Uint8Array): void
  /** A queue was quarantined. `fault` is a number of DRIVER_FAULT, `text` says it to people. */
  queueFailed(index: number, fault: number, text: string): void
  [Symbol.dispose](): void
}
