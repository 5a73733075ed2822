import type { VirtqueueConfig, VqBase } from '../virtqueue/virtqueue-config.ts'

/**
 * What the device asks of whatever moves packets. Each call returns only when it is done: after `stop` and
 * `forgetMemory` nothing touches the driver's memory any more.
 */
export interface QueueEngine {
  start(index: number, config: VirtqueueConfig): void
  /** Where the queue stopped. */
  stop(index: number): VqBase
  /** Where it is now. */
  base(index: number): VqBase
  /** Drops every mapping of the driver's memory. A queue that runs maps again what it needs. */
  forgetMemory(): void
}
