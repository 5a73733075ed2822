import { closeSync, constants, fstatSync, openSync, writeSync } from 'node:fs'

/** Bytes of lines that wait for the reader of stderr; what does not fit is dropped and counted. */
const BACKLOG_MAX_BYTES = 256 * 1024

/** How soon a full pipe is tried again. */
const RETRY_MS = 20

/** Writes bytes: how many were taken, 0 when there is no room now. Any other failure throws. */
export type WriteSome = (bytes: Uint8Array) => number

const errorCode = (error: unknown): string | undefined => (error as NodeJS.ErrnoException).code

/**
 * A descriptor as something that never blocks this thread. A pipe or terminal is opened a second time with O_NONBLOCK: setting the flag on
 * the descriptor itself would set it for every process that shares it. A file or socket is used as it is.
 */
export const nonblockingWriter = (fd: number): { write: WriteSome; [Symbol.dispose](): void } => {
  let own: number | null = null
  try {
    const status = fstatSync(fd)
    if (status.isFIFO() || status.isCharacterDevice())
      own = openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOCTTY)
  } catch {
    // Another user's pipe after a change of user, or no /proc: the shared descriptor has to do.
  }
  return {
    write: (bytes) => {
      try {
        return writeSync(own ?? fd, bytes)
      } catch (error) {
        if (errorCode(error) === 'EAGAIN') return 0
        throw error
      }
    },
    [Symbol.dispose]() {
      if (own !== null) closeSync(own)
      own = null
    },
  }
}

/**
 * Lines to a reader who may be slow, gone or stuck: `write` never throws and never waits. Lines go out whole and in order; when the
 * backlog is full they are dropped and counted, and the count is written as soon as there is room again.
 */
export class LineWriter {
  readonly #writeSome: WriteSome
  readonly #backlog: Uint8Array[] = []
  #backlogBytes = 0
  #droppedLines = 0
  #reportedLines = 0
  #timer: ReturnType<typeof setTimeout> | null = null
  readonly #report: (droppedLines: number) => string

  /** `report` makes the line that tells of drops. */
  constructor(writeSome: WriteSome, report: (droppedLines: number) => string) {
    this.#writeSome = writeSome
    this.#report = report
  }

  /** Lines lost since the start. */
  get droppedLines(): number {
    return this.#droppedLines
  }

  /** Takes one line, its line feed included. */
  write(line: string): void {
    const bytes = Buffer.from(line)
    if (this.#backlogBytes + bytes.length > BACKLOG_MAX_BYTES) this.#droppedLines++
    else this.#push(bytes)
    if (this.#timer === null) this.flush()
  }

  /** Writes what the reader takes now; the rest is tried again later. */
  flush(): void {
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
    while (this.#backlog.length > 0) {
      const [first] = this.#backlog
      if (first === undefined) break
      const written = this.#try(first)
      if (written === null) continue
      this.#backlogBytes -= written
      if (written < first.length) {
        this.#backlog[0] = first.subarray(written)
        this.#timer = setTimeout(() => this.flush(), RETRY_MS)
        this.#timer.unref()
        return
      }
      this.#backlog.shift()
      if (this.#backlog.length === 0 && this.#droppedLines > this.#reportedLines) {
        this.#push(Buffer.from(this.#report(this.#droppedLines - this.#reportedLines)))
        this.#reportedLines = this.#droppedLines
      }
    }
  }

  #push(bytes: Uint8Array): void {
    this.#backlog.push(bytes)
    this.#backlogBytes += bytes.length
  }

  /** Bytes taken of the first line, or null: the reader is gone (EPIPE, EIO), and so is the backlog. */
  #try(line: Uint8Array): number | null {
    try {
      return this.#writeSome(line)
    } catch {
      this.#droppedLines += this.#backlog.length
      this.#backlog.length = 0
      this.#backlogBytes = 0
      return null
    }
  }
}
