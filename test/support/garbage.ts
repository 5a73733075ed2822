/** Objects that nothing else holds: the first garbage collection takes them. */
const collectable = (): WeakRef<object>[] => Array.from({ length: 1000 }, () => new WeakRef({}))

/**
 * Did the garbage collector run during `work`, which is synchronous? It runs once enough has been allocated, so a loop
 * that never makes it run allocates nothing worth mentioning.
 */
export const collectsDuring = async (work: () => void): Promise<boolean> => {
  Bun.gc(true)
  const refs = collectable()
  // A weak reference holds its target until the task that made it ends.
  await new Promise((resolve) => setImmediate(resolve))
  work()
  // At once: the event loop collects on its own when it has nothing else to do.
  return refs.some((ref) => ref.deref() === undefined)
}
