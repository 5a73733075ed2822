import type { IovecArena } from '../memory/iovec-arena.ts'

/**
 * Direction of a queue's buffers: readable by the device (transmitq), writable (receiveq), or readable ones followed by
 * writable ones (controlq; IovecArena.readableIovecs counts the readable ones).
 */
export const BUFFER_DIRECTION = { readable: 0, writable: 1, mixed: 2 } as const
export type BufferDirection = (typeof BUFFER_DIRECTION)[keyof typeof BUFFER_DIRECTION]

/** Results of {@link Virtqueue.popInto}. */
export const POP = {
  /** No chain is available. */
  empty: 0,
  /** One chain was popped: the arena's new last record. */
  chain: 1,
  /** One malformed chain was popped. It is counted, and used with length 0 in its turn. */
  dropped: 2,
  /** The arena has no room for the next chain, which stays in the ring. */
  full: 3,
} as const
export type PopResult = (typeof POP)[keyof typeof POP]

/**
 * The device's side of one virtqueue of either layout.
 *
 * Chains are always used in the order in which they became available: `stageUsed` uses the oldest popped one.
 * VIRTIO_F_IN_ORDER requires this (VIRTIO 1.2 §2.7.9, §2.8.8), transmit and receive batches finish in order anyway, and
 * it makes the used ring tell exactly where a process that died had stopped.
 *
 * No method allocates, except for the {@link DriverFault} that ends the ring. It is thrown once; from then on the ring
 * is quarantined: neither read nor written.
 */
export interface Virtqueue {
  /** Entries of the ring. */
  readonly size: number
  /**
   * True if the ring was in use before, perhaps by a process that died between publishing and calling. The driver may
   * wait for that call for ever, so it is called at the start; a spurious call is harmless.
   */
  readonly resumed: boolean
  /** Chains popped and neither used nor given back. */
  readonly inFlight: number
  readonly quarantined: boolean
  /** Free-running u16 index of the oldest chain that is not used: the avail index (split) or a count (packed). */
  readonly nextAvail: number
  /** The base at which a successor resumes (a VqBase). Chains that are not published count as not popped. */
  readonly base: number
  /**
   * Available chains, for display: the driver's index is not checked before the next pop. A packed ring has no index: 1
   * if any chain is available, else 0.
   */
  readonly pending: number
  /** Free-running u16 index of the next used element, staged ones included. */
  readonly nextUsed: number

  /**
   * Pops the next available chain, checks it, and appends it to `arena` with host addresses.
   * @throws DriverFault AVAIL_OVERRUN; HEAD_OUT_OF_RANGE or HEAD_IN_FLIGHT (split); TAIL_NOT_AVAILABLE (packed)
   */
  popInto(arena: IovecArena, direction: BufferDirection): PopResult

  /**
   * Pops at most `chainsMax` ordinary chains, until the arena has `bytesMax` bytes. Stops before the first chain that
   * is not ordinary (see Burst), which {@link popInto} handles. Returns how many. Call it through `popBatch`.
   */
  popBurst(arena: IovecArena, direction: BufferDirection, chainsMax: number, bytesMax: number): number

  /**
   * Gives the last `count` chains in flight back to the ring, to be popped again, with malformed chains popped among
   * and after them. The caller removes them from its arena.
   */
  unpop(count: number): void

  /**
   * Uses the oldest chain in flight, to which the device wrote `lengthBytes` (0 on a transmitq). The driver sees it
   * after {@link publishUsed}.
   */
  stageUsed(lengthBytes: number): void

  /** Publishes all staged chains at once. */
  publishUsed(): void

  /** True if the driver wants a call for what was published since the last time this was called. */
  needsCall(): boolean

  /** Asks the driver not to kick. Only a hint. */
  disableNotification(): void

  /**
   * Asks the driver to kick for the next chain that it adds. True if it has already added some: pop again, no kick
   * comes for those. Call it after `popInto` returned POP.empty, even if chains were given back since.
   */
  enableNotification(): boolean

  /** Ends all access to the ring for the life of this object. */
  quarantine(): void

  /** Detaches the views. Afterwards the memory may be unmapped. */
  [Symbol.dispose](): void
}
