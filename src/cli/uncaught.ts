import { EXIT, UserError } from '../base/errors.ts'

/**
 * Imported first, so that an error while loading any other module is reported in the program's own format. An uncaught
 * error is a bug or lack of memory: the process ends, and a supervisor starts it again.
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
