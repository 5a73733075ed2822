import { type ChildProcess, type StdioOptions, spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import type { Socket } from 'node:net'
import type { Readable } from 'node:stream'
import { onDeath } from '../lab/cleanup.ts'
import { LabError } from '../lab/command.ts'
import { describeEnding, exitCodeOf } from '../lab/ending.ts'
import { environmentWithoutLab } from '../lab/environment.ts'

/** What to run beside the device: a frontend, a peer, a generator. */
export interface NativeProcessSpec {
  /** Begins every error message about it. */
  name: string
  argv: readonly string[]
  /** Name of the network namespace, of those that `ip netns` knows. */
  netns: string
  env?: Record<string, string>
  /**
   * Puts the process and all its children into a PID namespace of their own, which dies as a whole. For programs whose
   * children would outlive them.
   */
  family?: boolean
  /** Gives the process a stream socket as descriptor 3: {@link NativeProcess.socket}. */
  socket?: boolean
  /** A file that the process finds open as descriptor 4. The caller closes its own. */
  fileFd?: number
  /** Gets its raw output besides. */
  onOutput?: (bytes: Buffer) => void
  /** Gets each line of it, stdout and stderr. */
  onLine?: (line: string) => void
}

/** How long to wait for what must come. It bounds hangs, not speed. */
const PATIENCE_MS = 120_000

/** How long a program may take to end once it has been asked or killed. */
const END_MS = 60_000

/** The last lines that a program said, for error messages; a debugging run of it can be talkative. */
const LINES_KEPT = 2000

/** `promise`, or a `LabError` made of `what` when it takes longer than `timeoutMs`. */
export const within = async <T>(timeoutMs: number, promise: Promise<T>, what: () => string): Promise<T> => {
  let timer: Timer | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new LabError(what())), timeoutMs)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

/**
 * Waits until `condition` returns something other than undefined or false, asking again every few milliseconds, and
 * returns that. Throws with `what` after `timeoutMs`.
 */
export const until = async <T>(
  what: string,
  condition: () => T | undefined | false | Promise<T | undefined | false>,
  timeoutMs = PATIENCE_MS,
): Promise<T> => {
  const deadline = performance.now() + timeoutMs
  for (;;) {
    const value = await condition()
    if (value !== undefined && value !== false) return value
    if (performance.now() > deadline) throw new LabError(`${what}: not in ${timeoutMs} ms`)
    await Bun.sleep(5)
  }
}

/** The processes that `pid` has started. */
const childrenOf = (pid: number): number[] =>
  readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8')
    .split(' ')
    .filter((word) => word !== '')
    .map(Number)

/** A native program in a network namespace. It ends with `stop`, or with this process, however that ends. */
export class NativeProcess implements AsyncDisposable {
  readonly name: string
  /** Exit code, or 128 + signal number. */
  readonly exited: Promise<number>
  readonly #child: ChildProcess
  readonly #family: boolean
  readonly #onLine: NativeProcessSpec['onLine']
  readonly #lines: string[] = []
  readonly #waiters = new Set<() => void>()
  #over = false
  #code = 127

  constructor(spec: NativeProcessSpec) {
    this.name = spec.name
    this.#family = spec.family ?? false
    this.#onLine = spec.onLine
    // The kernel kills it when this process is gone: after a SIGKILL no code of this process runs.
    const wrapped = ['setpriv', '--pdeathsig', 'KILL', 'ip', 'netns', 'exec', spec.netns]
    if (this.#family) wrapped.push('unshare', '--pid', '--fork', '--kill-child=KILL')
    const stdio: StdioOptions = ['pipe', 'pipe', 'pipe', spec.socket === true ? 'pipe' : 'ignore']
    if (spec.fileFd !== undefined) stdio.push(spec.fileFd)
    const [program, ...words] = [...wrapped, ...spec.argv]
    const child = spawn(program!, words, { stdio, env: { ...environmentWithoutLab(), LC_ALL: 'C', ...spec.env } })
    this.#child = child
    const forget = onDeath(() => child.kill('SIGKILL'))
    // It may end between a look at it and a command written to it.
    child.stdin!.on('error', () => {})
    const ended = Promise.withResolvers<number>()
    this.exited = ended.promise
    child.on('error', (error) => {
      this.#lines.push(String(error))
      ended.resolve(127)
    })
    child.on('close', (code, signal) => {
      forget()
      this.#over = true
      this.#code = exitCodeOf(code, signal)
      ended.resolve(this.#code)
      for (const waiter of [...this.#waiters]) waiter()
    })
    for (const stream of [child.stdout!, child.stderr!]) this.#follow(stream, spec.onOutput)
  }

  /** The process that runs the program. */
  get pid(): number {
    const pid = this.#child.pid
    if (pid === undefined) throw new LabError(`${this.name}: did not start`)
    if (!this.#family) return pid
    const [child] = childrenOf(pid)
    if (child === undefined) throw new LabError(`${this.name}: has ended`)
    return child
  }

  /** How it ended, in words that follow its name; only once it has. */
  get ending(): string {
    return describeEnding(this.#code)
  }

  /** Has it not ended yet? */
  get alive(): boolean {
    return !this.#over
  }

  /** The other end of descriptor 3. */
  get socket(): Socket {
    return this.#child.stdio[3] as unknown as Socket
  }

  /** Number of lines so far: a mark for {@link line}'s `from`. */
  get lineCount(): number {
    return this.#dropped + this.#lines.length
  }

  #dropped = 0

  /** Its output since mark `from`, stdout and stderr, as far as it is kept. */
  linesSince(from: number): string[] {
    return this.#lines.slice(Math.max(0, from - this.#dropped))
  }

  /** The last lines, for a message. */
  tail(): string {
    return this.#lines.slice(-40).join('\n')
  }

  /**
   * The first line since mark `from`, past or to come, that matches. Rejects if the program ends without one, or after
   * `timeoutMs`.
   */
  async line(pattern: RegExp, options: { from?: number; timeoutMs?: number } = {}): Promise<RegExpExecArray> {
    const { from = 0, timeoutMs = PATIENCE_MS } = options
    const { promise, resolve, reject } = Promise.withResolvers<RegExpExecArray>()
    const look = (): void => {
      for (const line of this.linesSince(from)) {
        const match = pattern.exec(line)
        if (match === null) continue
        resolve(match)
        return
      }
      if (this.#over)
        reject(new LabError(`${this.name} ${this.ending} before a line like ${pattern}; last it said:\n${this.tail()}`))
    }
    this.#waiters.add(look)
    look()
    try {
      return await within(timeoutMs, promise, () => {
        return `${this.name}: no line like ${pattern} in ${timeoutMs} ms; last it said:\n${this.tail()}`
      })
    } finally {
      this.#waiters.delete(look)
    }
  }

  /** Writes to its standard input. */
  write(text: string): void {
    this.#child.stdin!.write(text)
  }

  /** Signals the program, not its children. Nothing happens once it has ended. */
  signal(signal: NodeJS.Signals): void {
    if (this.#over) return
    if (!this.#family) this.#child.kill(signal)
    else process.kill(this.pid, signal)
  }

  /** Waits for its end, which must come within `timeoutMs`. */
  ended(timeoutMs = END_MS): Promise<number> {
    return within(timeoutMs, this.exited, () => `${this.name}: does not end; last it said:\n${this.tail()}`)
  }

  /** Kills it, and its children where it has a family, and waits until nothing of it is left. */
  async stop(): Promise<void> {
    if (!this.#over) this.#child.kill('SIGKILL')
    await this.ended()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }

  #follow(stream: Readable, onOutput: ((bytes: Buffer) => void) | undefined): void {
    let partial = ''
    const decoder = new TextDecoder()
    stream.on('data', (bytes: Buffer) => {
      onOutput?.(bytes)
      const pieces = (partial + decoder.decode(bytes, { stream: true })).split('\n')
      partial = pieces.pop() ?? ''
      this.#take(pieces)
    })
    stream.on('end', () => this.#take(partial === '' ? [] : [partial]))
  }

  #take(lines: readonly string[]): void {
    this.#lines.push(...lines)
    const excess = this.#lines.length - LINES_KEPT
    if (excess > 0) {
      this.#lines.splice(0, excess)
      this.#dropped += excess
    }
    for (const line of lines) this.#onLine?.(line)
    for (const waiter of [...this.#waiters]) waiter()
  }
}
