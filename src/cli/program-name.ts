import { relative } from 'node:path'
import { isCompiled } from '../base/build-info.ts'

/** How whoever started this program can start it again: after a build it need not be on PATH. */
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

/** A text for a user in which commands of ours are to be typed as `name`, not as they are called on paper. */
export const withProgramName = (text: string, name: string): string =>
  text.replace(/\bvduse-net(?= (?:--|-s |doctor\b|completion\b|help\b|run\b|\[))/g, () => name)
