import type { VirtqueueConfig, VqBase } from '../virtqueue/virtqueue-config.ts'

/**
 * Runs the device's queues. Each call returns when it is complete: after `stop` and `forgetMemory` nothing accesses
 * that driver memory any more.
 */
export interface QueueEngine {
  start(index: number, config: VirtqueueConfig): void
  /** Stops the queue. Returns its base. */
  stop(index: number): VqBase
  /** The queue's base, running or not. */
  base(index: number): VqBase
  /** Unmaps all driver memory. A running queue makes its ring again over new mappings. */
  forgetMemory(): void
}
