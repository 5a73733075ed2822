/** A line of progress appears after this time, again and again. */
const STILL_MS = 10_000

/** Awaits `work`, and writes a line to stderr every ten seconds while it runs. */
export const patiently = async <T>(what: string, work: Promise<T>): Promise<T> => {
  const started = performance.now()
  const still = (): void => {
    process.stderr.write(`${what}: ${((performance.now() - started) / 1000).toFixed(0)} s so far\n`)
  }
  const timer = setInterval(still, STILL_MS)
  try {
    return await work
  } finally {
    clearInterval(timer)
  }
}
