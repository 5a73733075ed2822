import type { IovecArena } from '../memory/iovec-arena.ts'

/**
 * Which way the device goes through the buffers of a queue: it reads those of transmitq, and writes those of receiveq.
 * Those of controlq are readable first, then writable: the arena says how many are of the first kind.
 */
export const DIRECTION = { readable: 0, writable: 1, mixed: 2 } as const
export type Direction = (typeof DIRECTION)[keyof typeof DIRECTION]

/** Answers of {@link Virtqueue.popInto}. */
export const POP = {
  /** The driver has made nothing more available. */
  empty: 0,
  /** One chain is the arena's new last record. */
  chain: 1,
  /** One chain was malformed. It is counted and goes back with length 0, in its turn. */
  dropped: 2,
  /** The arena has no room for the next chain, which stays in the ring. */
  full: 3,
} as const
export type PopResult = (typeof POP)[keyof typeof POP]

/**
 * The device's side of one virtqueue, whatever its layout.
 *
 * Chains are used in the order in which they became available, always: `stageUsed` speaks of the oldest one popped.
 * That is what VIRTIO_F_IN_ORDER promises (VIRTIO 1.2 §2.7.9, §2.8.8), it is how a transmit or receive batch finishes
 * anyway, and it makes the used ring tell exactly where a process that died had stopped.
 *
 * No method allocates, but for the fault that ends the ring: it is thrown as {@link DriverFault} once; from then on the
 * ring is quarantined, and neither read nor written.
 */
export interface Virtqueue {
  /** Entries of the ring. */
  readonly size: number
  /**
   * True if the ring was in use before, perhaps by a process that has died. It may not have signalled what it has
   * published, and the driver may wait for that for ever: it is called at the start, since a call too many costs
   * nothing.
   */
  readonly resumed: boolean
  /** Chains popped and neither used nor given back. */
  readonly inFlight: number
  readonly quarantined: boolean
  /**
   * The oldest chain that is not used, running freely, 0..65535: of a split ring the avail index, of a packed one a
   * count.
   */
  readonly nextAvail: number
  /**
   * Where a successor goes on, as one number: what vhost-user calls a ring's base. What the driver was not shown to be
   * used counts as not yet popped.
   */
  readonly base: number
  /**
   * Chains that wait in the ring, as far as the driver's index can be believed: for people, checked at the next pop. A
   * packed ring has no index; there it is 1 if there is any.
   */
  readonly pending: number
  /** Where the next used element goes, staged ones included, running freely like nextAvail. */
  readonly nextUsed: number

  /**
   * Takes the next available chain, checks it, and appends it to `arena` with the addresses of this process.
   * @throws DriverFault AVAIL_OVERRUN; HEAD_OUT_OF_RANGE or HEAD_IN_FLIGHT (split); TAIL_NOT_AVAILABLE (packed)
   */
  popInto(arena: IovecArena, direction: Direction): PopResult

  /**
   * Takes at most `chainsMax` available chains, until the arena has `bytesMax` bytes, and no further than to the first
   * that is in any way unusual: that one is left to {@link popInto}, which says what it is. How many. Use it through
   * `popBatch`.
   */
  popBurst(arena: IovecArena, direction: Direction, chainsMax: number, bytesMax: number): number

  /**
   * Gives the last `count` chains in flight back, to be popped again. Malformed chains popped among and after them go
   * back too. The caller removes them from its arena.
   */
  unpop(count: number): void

  /**
   * Uses the oldest chain in flight, of which the device wrote `lengthBytes`: 0 on a transmitq. The driver does not see
   * it yet.
   */
  stageUsed(lengthBytes: number): void

  /** Shows the driver all that is staged, at once. */
  publishUsed(): void

  /** Whether the driver wants a call for what was published since this was last asked. */
  needsCall(): boolean

  /** Asks the driver not to kick. A hint: it may kick all the same. */
  disableNotification(): void

  /**
   * Asks the driver to kick for the next chain that it adds to those already seen. True if it has added some meanwhile:
   * pop again, no kick will come for those. To be called after `popInto` said EMPTY, even if chains were given back
   * since.
   */
  enableNotification(): boolean

  /** Ends all access to the ring, until the queue is made anew. */
  quarantine(): void

  /** Detaches the views: after this the memory may be unmapped. */
  [Symbol.dispose](): void
}
