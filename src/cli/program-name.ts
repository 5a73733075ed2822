import { relative } from 'node:path'
import { isCompiled } from '../base/build-info.ts'

/** The command with which this program was started. It need not be on PATH. */
export const programName = (): string => {
  if (isCompiled) return process.argv0
  const script = process.argv[1] ?? 'src/main.ts'
  try {
    return `${process.argv0} ${relative(process.cwd(), script)}`
  } catch {
    // The working directory is gone.
    return `${process.argv0} ${script}`
  }
}

/** The text with `vduse-net` replaced by `name` in each command line that a user may type. */
export const withProgramName = (text: string, name: string): string =>
  text.replace(/\bvduse-net(?= (?:--|-s |doctor\b|completion\b|help\b|run\b|\[))/g, () => name)
