/** Lines of one kind that are written at once. */
const BURST = 10
/**
 * After the burst a kind gets one line in each gap. The gap doubles with every line, from the first to the last value.
 */
const GAP_FIRST_MS = 1_000
const GAP_LAST_MS = 60_000
/** After this time without a line a kind gets its burst again. */
const QUIET_MS = 300_000
/** Most kinds with a budget of their own; all further kinds share one. */
const KINDS_MAX = 256

/** State of one kind of line. */
type Kind<Line> = {
  written: number
  gapMs: number
  nextAtMs: number
  lastMs: number
  /** The newest line past the budget; it is written when the gap has passed. */
  held: Line | null
  /** Lines that {@link held} has replaced. */
  leftOut: number
}

const newKind = <Line>(): Kind<Line> => ({
  written: 0,
  gapMs: GAP_FIRST_MS,
  nextAtMs: 0,
  lastMs: Number.NEGATIVE_INFINITY,
  held: null,
  leftOut: 0,
})

/**
 * The kind of a text: the part before its first colon, without long numbers. Lines of one flood differ behind the colon
 * or by a number. An index of up to two digits is part of the kind, so that each queue has its own.
 */
export const kindOfText = (text: string): string => text.split(': ', 1)[0]!.replace(/0x[0-9a-f]+|\d{3,}/gi, '#')

/** The note appended to a line after others of its kind were left out; empty if none were. */
export const leftOutNote = (leftOut: number): string =>
  leftOut === 0 ? '' : ` (${leftOut} more line${leftOut === 1 ? '' : 's'} of this kind left out)`

/**
 * Bounds a log against drivers, front-ends and clients. Each kind of line has its own budget, so that a flood of one
 * kind never silences another. Of the lines past the budget the newest is held, and written when the gap has passed,
 * with the number of those left out. Memory is bounded: one held line a kind.
 */
export class LogLimit<Line> {
  readonly #kinds = new Map<string, Kind<Line>>()
  readonly #overflow = newKind<Line>()
  readonly #kindOf: (line: Line) => string
  readonly #write: (line: Line, leftOut: number) => void
  readonly #nowMs: () => number
  #leftOut = 0

  /** `write` receives each line that passes, and how many of its kind were left out before it. It must not throw. */
  constructor(
    kindOf: (line: Line) => string,
    write: (line: Line, leftOut: number) => void,
    nowMs: () => number = () => performance.now(),
  ) {
    this.#kindOf = kindOf
    this.#write = write
    this.#nowMs = nowMs
  }

  /** Lines left out since the start. Only grows. */
  get leftOut(): number {
    return this.#leftOut
  }

  /** Writes a line, or holds it back. */
  log(line: Line): void {
    const now = this.#nowMs()
    const kind = this.#find(this.#kindOf(line), now)
    if (kind.held === null && now - kind.lastMs >= QUIET_MS) {
      kind.written = 0
      kind.gapMs = GAP_FIRST_MS
    }
    kind.lastMs = now
    if (kind.written < BURST) {
      kind.written++
      kind.nextAtMs = now + kind.gapMs
      this.#write(line, 0)
      return
    }
    if (kind.held !== null) {
      kind.leftOut++
      this.#leftOut++
    }
    kind.held = line
    if (now >= kind.nextAtMs) this.#writeHeld(kind, now)
  }

  /**
   * Writes the held lines whose gap has passed. Returns the milliseconds until the next one is due; -1 if none is held.
   */
  tick(): number {
    const now = this.#nowMs()
    let nextAtMs = Number.POSITIVE_INFINITY
    for (const kind of [...this.#kinds.values(), this.#overflow]) {
      if (kind.held === null) continue
      if (now >= kind.nextAtMs) this.#writeHeld(kind, now)
      else nextAtMs = Math.min(nextAtMs, kind.nextAtMs)
    }
    return nextAtMs === Number.POSITIVE_INFINITY ? -1 : Math.ceil(nextAtMs - now)
  }

  /** Writes all held lines, at the end of the process or thread. */
  flush(): void {
    const now = this.#nowMs()
    for (const kind of [...this.#kinds.values(), this.#overflow]) if (kind.held !== null) this.#writeHeld(kind, now)
  }

  #writeHeld(kind: Kind<Line>, nowMs: number): void {
    const { held, leftOut } = kind
    if (held === null) return
    kind.held = null
    kind.leftOut = 0
    kind.gapMs = Math.min(kind.gapMs * 2, GAP_LAST_MS)
    kind.nextAtMs = nowMs + kind.gapMs
    this.#write(held, leftOut)
  }

  #find(name: string, nowMs: number): Kind<Line> {
    const known = this.#kinds.get(name)
    if (known !== undefined) return known
    if (this.#kinds.size === KINDS_MAX) this.#forgetQuiet(nowMs)
    if (this.#kinds.size === KINDS_MAX) return this.#overflow
    const kind = newKind<Line>()
    this.#kinds.set(name, kind)
    return kind
  }

  /** Removes one quiet kind, if any. */
  #forgetQuiet(nowMs: number): void {
    for (const [name, kind] of this.#kinds) {
      if (kind.held !== null || nowMs - kind.lastMs < QUIET_MS) continue
      this.#kinds.delete(name)
      return
    }
  }
}
