/** How a path's turn ended, and so what to wait for before the next. */
export const TURN = {
  /** Nothing more to do until the other side has something new. */
  idle: 0,
  /** The turn was used up: there may be more. */
  more: 1,
  /** Receive: the driver has given no (or too few) buffers. */
  noBuffers: 2,
  /** Transmit: the TAP takes no more for now. */
  blocked: 3,
  /** The TAP answered with an error: it may be gone. */
  tapError: 4,
} as const
export type Turn = (typeof TURN)[keyof typeof TURN]
