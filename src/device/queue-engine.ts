import type { Features } from './features.ts'

/**
 * Where a queue is, as one number. Split ring: the free-running index of the next avail entry; the used index is in the ring.
 * Packed ring: next avail slot and wrap counter in bits 0..15, next used slot and wrap counter in bits 16..31, each counter the
 * highest bit. This is what vhost-user calls a ring's base.
 */
export type VqBase = number

/** Where a virtqueue lies, in driver addresses, and where it starts. */
export type VqSpec = {
  /** Entries: a power of two, at most 32768. */
  readonly size: number
  readonly descAddr: number
  readonly availAddr: number
  readonly usedAddr: number
  /** Where to go on; 'used' is where the used ring ends, as after a crash: completions are in order, so that is exact. */
  readonly base: VqBase | 'used'
  readonly features: Features
}

/**
 * What the device asks of whatever moves packets. Each call returns only when it is done: after `stop` and `forgetMemory`
 * nothing touches the driver's memory any more.
 */
export interface QueueEngine {
  start(index: number, spec: VqSpec): void
  /** Where the queue stopped. */
  stop(index: number): VqBase
  /** Where it is now. */
  base(index: number): VqBase
  /** Drops every mapping of the driver's memory. A queue that runs maps again what it needs. */
  forgetMemory(): void
}
