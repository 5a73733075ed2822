import type { LineSink } from './line-sink.ts'

/** Limit of unwritten lines, bytes. Further lines are dropped and counted. */
const BACKLOG_MAX_BYTES = 256 * 1024

/** Delay before a full sink is tried again. */
const RETRY_MS = 20

/**
 * Writes lines to a reader that may be slow, stuck or gone: `write` never throws and never blocks. Lines are written
 * whole and in order. When the backlog is full they are dropped and counted; the count is written as soon as there is
 * room.
 */
export class LineWriter {
  readonly #sink: LineSink
  readonly #backlog: Uint8Array[] = []
  #backlogBytes = 0
  #dropped = 0
  #reported = 0
  /** The last write has failed; further lines would be lost as well. */
  #gone = false
  #timer: ReturnType<typeof setTimeout> | null = null
  readonly #report: (droppedLines: number) => string

  /** `report` makes the line that reports dropped lines. */
  constructor(sink: LineSink, report: (droppedLines: number) => string) {
    this.#sink = sink
    this.#report = report
  }

  /** Lines lost since the start. */
  get droppedLines(): number {
    return this.#dropped + this.#sink.lostLines()
  }

  /** Takes one line, its line feed included. */
  write(line: string): void {
    const bytes = Buffer.from(line)
    if (this.#backlogBytes + bytes.length > BACKLOG_MAX_BYTES) this.#dropped++
    else this.#push(bytes)
    if (this.#timer === null) this.flush()
  }

  /** Writes as much as the sink accepts now, and retries the rest later. */
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
      this.#reportLosses()
    }
  }

  /** Waits until all lines are written, at most `timeoutMs`. For the end of the process. */
  async finish(timeoutMs: number): Promise<void> {
    const deadline = performance.now() + timeoutMs
    for (;;) {
      this.flush()
      const isDone = this.#backlog.length === 0 && this.#sink.isIdle()
      if (isDone && !this.#reportLosses()) return
      if (performance.now() >= deadline) return
      if (!isDone) await new Promise((resolve) => setTimeout(resolve, 5))
    }
  }

  /** Queues the report of lost lines, at the place where they are missing. True if there were any. */
  #reportLosses(): boolean {
    const lost = this.droppedLines
    if (this.#backlog.length > 0 || lost === this.#reported || this.#gone || this.#sink.isFailing()) return false
    this.#push(Buffer.from(this.#report(lost - this.#reported)))
    this.#reported = lost
    return true
  }

  #push(bytes: Uint8Array): void {
    this.#backlog.push(bytes)
    this.#backlogBytes += bytes.length
  }

  /** Bytes written of the first line; null if the reader is gone (EPIPE, EIO), which drops the backlog. */
  #try(line: Uint8Array): number | null {
    try {
      const written = this.#sink.write(line)
      this.#gone = false
      return written
    } catch {
      this.#gone = true
      this.#dropped += this.#backlog.length
      this.#backlog.length = 0
      this.#backlogBytes = 0
      return null
    }
  }
}
