/** What the admin API of a program says that runs beside a front-end. */

/** The answer to a GET of its admin socket. */
export const adminGet = async <T>(socket: string, path: string): Promise<T> =>
  (await (await fetch(`http://localhost${path}`, { unix: socket })).json()) as T

/** Frames that it dropped, by reason. */
export const drops = async (socket: string): Promise<Record<string, number>> =>
  (await adminGet<{ drops: Record<string, number> }>(socket, '/v1/stats')).drops

/** Names of the feature bits that its driver has acknowledged. */
export const negotiated = async (socket: string): Promise<string[]> =>
  (await adminGet<{ features: { negotiated: string[] } }>(socket, '/v1/device')).features.negotiated
