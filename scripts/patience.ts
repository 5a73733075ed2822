/** A line of progress appears after this time, again and again. */
const STILL_MS = 10_000

/** `work`, with a line on stderr every ten seconds that it takes: nobody should wonder whether it still runs. */
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
