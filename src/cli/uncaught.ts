import { EXIT, UserError } from '../base/errors.ts'

/**
 * The first import of the program, and one that imports no other part of it: also an error of a part that cannot be
 * loaded is told in our words. An error that nobody catches is a bug, or lack of memory: the process ends, and a
 * supervisor starts it again.
 */
const die = (error: unknown): void => {
  const text =
    error instanceof UserError
      ? `vduse-net: ${error.message}\nhint: ${error.hint}\n`
      : `vduse-net: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`
  process.stderr.write(text)
  process.exit(error instanceof UserError ? error.exitCode : EXIT.runtime)
}

process.on('uncaughtException', die)
process.on('unhandledRejection', die)
