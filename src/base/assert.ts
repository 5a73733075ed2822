/** A bug in this program: never the fault of a driver, a peer or the host. */
export class AssertionError extends Error {
  override name = 'AssertionError'
}

/** Throws {@link AssertionError} unless `condition` holds. Nothing catches it: the worker dies and is restarted. */
export function assert(condition: boolean, why = 'assertion failed'): asserts condition {
  if (!condition) throw new AssertionError(why)
}
