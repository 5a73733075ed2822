import { closeSync, mkdirSync, openSync, readdirSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { cacheRoot } from './cache.ts'

/** Logs of failed guests that are kept. */
const KEPT_LOGS = 20

/** Printed by /init on the console. Earlier messages of trouble are the kernel's, about emulated hardware. */
const INIT_MARKER = 'lab: init'

const PROBLEM = new RegExp(
  [
    'BUG: ',
    'WARNING: ',
    'Oops',
    'Call Trace',
    'Kernel panic',
    'general protection fault',
    'nable to handle',
    'blocked for more than',
    'detected stall',
    'refcount_t: ',
    'UBSAN: ',
    'list_(add|del) corruption',
    'double free',
    'lab: ',
  ].join('|'),
)

let logCount = 0

/** The serial console of a guest: every line goes to a log file, those that report trouble are also kept. */
export class Console {
  /** The log. `close` removes it unless the kernel reported a problem or the caller asks to keep it. */
  readonly logFile: string
  readonly #fd: number
  readonly #onLine: (line: string) => void
  readonly #problems: string[] = []
  #recent: string[] = []
  #partial = ''
  #started = false

  constructor(kernelRelease: string, onLine: (line: string) => void) {
    const folder = join(cacheRoot(), 'logs')
    mkdirSync(folder, { recursive: true })
    for (const old of readdirSync(folder).sort().slice(0, -KEPT_LOGS)) rmSync(join(folder, old), { force: true })
    const time = new Date().toISOString().replaceAll(':', '').slice(0, 17)
    this.logFile = join(folder, `${time}-${kernelRelease}-${process.pid}-${logCount++}.log`)
    this.#fd = openSync(this.logFile, 'wx')
    this.#onLine = onLine
  }

  /** Takes what came from the serial port. */
  write(bytes: Uint8Array): void {
    writeSync(this.#fd, bytes)
    const lines = (this.#partial + Buffer.from(bytes).toString('latin1')).split(/\r?\n/)
    this.#partial = lines.pop() ?? ''
    for (const line of lines) {
      this.#onLine(line)
      this.#recent = [...this.#recent.slice(-39), line]
      if (line === INIT_MARKER) this.#started = true
      else if (this.#started && PROBLEM.test(line)) this.#problems.push(line)
    }
  }

  /** The lines since /init began in which the kernel, or the lab's own /init, complains. */
  problems(): string[] {
    return [...this.#problems]
  }

  /** The last lines, for error messages. */
  tail(): string {
    return [...this.#recent, this.#partial].join('\n').trim()
  }

  /** Ends the log. */
  close(keep: boolean): void {
    closeSync(this.#fd)
    if (!keep && this.#problems.length === 0) rmSync(this.logFile, { force: true })
  }
}
