import { closeSync, mkdirSync, openSync, writeSync } from 'node:fs'
import { dirname } from 'node:path'

/** The output of a program, with the timing that a user sees. */
export interface Transcript {
  lines: readonly string[]
  /** The longest time without a line, s. */
  silenceSeconds: number
  /** After which line that was. */
  silenceAfter: string
  seconds: number
  code: number
}

/** Runs a program to its end; all that it prints goes into the file `log` as well, and each line to `onLine`. */
export const transcribe = async (
  argv: readonly string[],
  log: string,
  onLine: (line: string) => void,
): Promise<Transcript> => {
  mkdirSync(dirname(log), { recursive: true })
  const file = openSync(log, 'a')
  const lines: string[] = []
  const started = performance.now()
  let last = started
  let silence = 0
  let silenceAfter = ''
  const take = (line: string): void => {
    const now = performance.now()
    if (now - last > silence) {
      silence = now - last
      silenceAfter = lines.at(-1) ?? ''
    }
    last = now
    lines.push(line)
    onLine(line)
  }
  // One stream, so that the order of lines is the user's.
  const child = Bun.spawn(['sh', '-c', 'exec "$@" 2>&1', 'sh', ...argv], { stdin: 'ignore', stdout: 'pipe' })
  try {
    const decoder = new TextDecoder()
    let partial = ''
    for await (const bytes of child.stdout) {
      writeSync(file, bytes)
      const pieces = (partial + decoder.decode(bytes, { stream: true })).split('\n')
      partial = pieces.pop() ?? ''
      for (const piece of pieces) take(piece)
    }
    take(partial)
    const code = await child.exited
    const seconds = (performance.now() - started) / 1000
    return { lines, silenceSeconds: silence / 1000, silenceAfter, seconds, code }
  } finally {
    child.kill('SIGKILL')
    closeSync(file)
  }
}
