/** How a turn ended, which decides what to wait for before the next. */
export const TURN = {
  /** Nothing more to do until new work arrives. */
  idle: 0,
  /** The turn reached its bound: there may be more work. */
  more: 1,
  /** Receive: the ring has no or too few buffers. */
  noBuffers: 2,
  /** Transmit: the TAP is full. */
  blocked: 3,
  /** Receive: a read of the TAP failed: it may be gone. */
  tapError: 4,
} as const
export type Turn = (typeof TURN)[keyof typeof TURN]
