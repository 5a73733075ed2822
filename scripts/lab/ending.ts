import { constants } from 'node:os'

/** Signals that the kernel or the program itself raises because something in it is broken. */
const CRASHES: ReadonlySet<string> = new Set(['SIGABRT', 'SIGBUS', 'SIGFPE', 'SIGILL', 'SIGSEGV', 'SIGSYS', 'SIGTRAP'])

/** The exit code of a process as a shell says it: 128 + the number of the signal that ended it. */
export const exitCodeOf = (code: number | null, signal: NodeJS.Signals | null): number =>
  code ?? 128 + (signal === null ? 0 : constants.signals[signal])

/**
 * How a process ended, in words that follow its name: `crashed (SIGSEGV)`, `was ended by SIGTERM`, `ended with exit
 * code 1`.
 */
export const describeEnding = (code: number): string => {
  const [signal] = Object.entries(constants.signals).find(([, number]) => 128 + number === code) ?? []
  if (signal === undefined) return `ended with exit code ${code}`
  return CRASHES.has(signal) ? `crashed (${signal})` : `was ended by ${signal}`
}
