import type { GuestMemory } from '../guest-memory.ts'
import type { FrontendRing } from '../vhost-user-client.ts'

export type Transport = 'vhost-user' | 'vhost-vdpa'
export type Layout = 'split' | 'packed'

/**
 * A card as a transport shows it to a driver. What a transport refuses with an error and what it silently ignores is
 * the same here.
 */
export interface CardLink extends Disposable {
  readonly transport: Transport
  /** The driver's memory, all of which the card can reach. */
  readonly memory: GuestMemory
  /** Has a failed device the bit DEVICE_NEEDS_RESET? Otherwise it shows a link that is down. */
  readonly showsNeedsReset: boolean
  /** Bits of the device, without any of the transport's own. */
  offeredFeatures(): bigint
  /** False if that was refused, which may come out at FEATURES_OK only. */
  setFeatures(features: bigint): boolean
  getStatus(): number
  /** True if the status then is what was set. */
  setStatus(status: number): boolean
  readConfig(offset: number, length: number): Uint8Array
  /** Tells the card of a ring: size, place, where it starts, eventfds. The driver uses it. */
  setUpRing(ring: FrontendRing): void
  /** Where a ring is, asked of a device that is running. Over vhost-user that stops it. */
  ringBase(index: number): number
  /** Waits for a configuration change notification; false if none comes in time. */
  configCalled(timeoutMs: number): boolean
}
