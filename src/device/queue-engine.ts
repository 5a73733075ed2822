import type { Features } from './features.ts'

/** Progress of a split ring: both run freely, 0..65535. VIRTIO 1.2 §2.7. */
export type VqState = { readonly nextAvail: number; readonly nextUsed: number }

/** Where a virtqueue lies, in driver addresses, and where it starts. */
export type VqSpec = {
  /** Entries: a power of two, at most 32768. */
  readonly size: number
  readonly descAddr: number
  readonly availAddr: number
  readonly usedAddr: number
  /** Where to go on; 'used' reads it from the used ring, as after a crash: completions are in order, so that is exact. */
  readonly state: VqState | 'used'
  readonly features: Features
}

/**
 * What the device asks of whatever moves packets. Each call returns only when it is done: after `stop` and `forgetMemory`
 * nothing touches the driver's memory any more.
 */
export interface QueueEngine {
  start(index: number, spec: VqSpec): void
  /** Where the queue stopped. */
  stop(index: number): VqState
  /** Where it is now. */
  state(index: number): VqState
  /** Drops every mapping of the driver's memory. A queue that runs maps again what it needs. */
  forgetMemory(): void
}
