/** Where front-ends come from. */
export type VhostUserEndpoint =
  /** A listening socket, made by main. */
  | { readonly kind: 'listen'; readonly fd: number; readonly path: string; readonly oneOff: boolean }
  /** The front-end listens; we connect, again whenever the connection is lost. */
  | { readonly kind: 'connect'; readonly path: string; readonly oneOff: boolean }
  /** A connection that somebody else has made. The card ends with it. */
  | { readonly kind: 'connected'; readonly fd: number }
