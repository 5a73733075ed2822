/** How the card connects with front-ends. */
export type VhostUserEndpoint =
  /** A listening socket that the main thread has made. */
  | { readonly kind: 'listen'; readonly fd: number; readonly path: string; readonly oneOff: boolean }
  /** The front-end listens; the card connects, and reconnects whenever the connection is lost. */
  | { readonly kind: 'connect'; readonly path: string; readonly oneOff: boolean }
  /** An inherited connection. The card ends with it. */
  | { readonly kind: 'connected'; readonly fd: number }
