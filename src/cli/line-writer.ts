import type { LineSink } from './line-sink.ts'

/** Bytes of lines that wait for the reader of stderr; what does not fit is dropped and counted. */
const BACKLOG_MAX_BYTES = 256 * 1024

/** How soon a sink without room is tried again. */
const RETRY_MS = 20

/**
 * Lines to a reader who may be slow, gone or stuck: `write` never throws and never waits. Lines go out whole and in
 * order; when the backlog is full they are dropped and counted, and the count is written as soon as there is room
 * again.
 */
export class LineWriter {
  readonly #sink: LineSink
  readonly #backlog: Uint8Array[] = []
  #backlogBytes = 0
  #dropped = 0
  #reported = 0
  /** The last write has failed: what is written now would be lost as well. */
  #gone = false
  #timer: ReturnType<typeof setTimeout> | null = null
  readonly #report: (droppedLines: number) => string

  /** `report` makes the line that tells of drops. */
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
      this.#reportLosses()
    }
  }

  /** Waits until all lines have reached the reader, at most for `timeoutMs`: for the end. */
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

  /**
   * Behind the lines that wait, so that it stands where the others are missing; true if there was something to tell.
   */
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

  /** Bytes taken of the first line, or null: the reader is gone (EPIPE, EIO), and so is the backlog. */
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
