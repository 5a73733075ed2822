import { describeEnding } from './ending.ts'

/** What the lab reports about long work, on stderr: stdout belongs to the commands run in the guest. */
export const progress = (text: string): void => {
  process.stderr.write(`lab: ${text}\n`)
}

/** Something the lab needs is missing or failed: what and why, then one line on what to do. */
export class LabError extends Error {
  override name = 'LabError'

  constructor(what: string, hint?: string) {
    super(hint === undefined ? what : `${what}\nhint: ${hint}`)
  }
}

/** Options of `run`. */
export interface RunOptions {
  cwd?: string
  env?: Record<string, string>
  /** Said when the command cannot be started or fails. */
  hint?: string
}

/** Runs a program to its end and returns its stdout; a `LabError` with its stderr when it fails. */
export const run = async (argv: readonly string[], options: RunOptions = {}): Promise<Buffer> => {
  const program = argv[0] ?? ''
  if (Bun.which(program) === null) {
    throw new LabError(`${program}: not found`, options.hint ?? 'run: node scripts/setup.mjs lab')
  }
  const child = Bun.spawn([...argv], {
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    env: { ...process.env, LC_ALL: 'C', ...options.env },
    stdin: 'ignore',
    stdout: 'pipe',
    stderr: 'pipe',
  })
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).arrayBuffer(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  if (code !== 0) throw new LabError(`${argv.join(' ')}: ${describeEnding(code)}\n${stderr.trim()}`, options.hint)
  return Buffer.from(stdout)
}
