import type { Poller } from '../sys/poller.ts'

/** Why a transport has ended. `failed`: false if its purpose is fulfilled. */
export type TransportEnd = { readonly why: string; readonly failed: boolean }

/**
 * What carries control messages between the driver's side and the device: VDUSE or vhost-user. The device worker owns
 * it and calls it from its one loop; nothing in it blocks.
 */
export interface ControlTransport {
  /** Count of answered requests. */
  readonly messages: number
  /** True while the driver's side is present: over vhost-user, while a front-end is connected. */
  readonly connected: boolean
  /** Set once the transport cannot go on. */
  readonly ended: TransportEnd | null
  /** Adds its descriptors to the poll set of the thread that calls it. Called once, first. */
  watch(poller: Poller): void
  /**
   * Takes over a driver that was set up with an earlier process. True if there is one. Called once, after {@link
   * watch}.
   */
  adopt(): boolean
  /** Handles what the last wait found. */
  serve(): void
  /** Runs due timers. Returns the milliseconds until the next one; -1 for none. */
  tick(): number
  /** Notifies the driver that these bytes of the configuration space have changed. */
  configChanged(offset: number, bytes: Uint8Array): void
  /** A queue was quarantined. `fault`: a number of DRIVER_FAULT; `text`: for people. */
  queueFailed(index: number, fault: number, text: string): void
  [Symbol.dispose](): void
}
