const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

const actions = new Set<() => void>()

const runAll = (): void => {
  for (const action of actions) action()
  actions.clear()
}

const onSignal = (signal: NodeJS.Signals): void => {
  // With another listener the program itself decides what a signal means; its exit still comes by here.
  if (process.listenerCount(signal) > 1) return
  runAll()
  stopListening()
  process.kill(process.pid, signal)
}

const stopListening = (): void => {
  process.off('exit', runAll)
  for (const signal of SIGNALS) process.off(signal, onSignal)
}

/**
 * Has `action` run, synchronously, when this process exits or is told to, unless the returned function was called
 * before. The process listens to signals only while something is registered.
 */
export const onDeath = (action: () => void): (() => void) => {
  if (actions.size === 0) {
    process.on('exit', runAll)
    for (const signal of SIGNALS) process.on(signal, onSignal)
  }
  actions.add(action)
  return () => {
    if (actions.delete(action) && actions.size === 0) stopListening()
  }
}
