import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'

/** What the command line needs of the machine, so that a test can be any machine. */
export interface Host {
  readonly env: Readonly<Record<string, string | undefined>>
  /** Data for the user, on stdout. */
  out(text: string): void
  /** The text of a small file, or null if it cannot be read. */
  readText(path: string): string | null
  hostname(): string
}

/** The text of a file, or null if it cannot be read. */
export const readTextOrNull = (path: string): string | null => {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return null
  }
}

/** Writes to stdout. A reader that has gone (`| head`) has seen enough: that is no failure. */
const out = (text: string): void => {
  try {
    process.stdout.write(text)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPIPE') throw error
  }
}

/** This machine and this process. */
export const thisHost: Host = {
  env: process.env,
  out,
  readText: readTextOrNull,
  hostname,
}
