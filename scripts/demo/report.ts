import { COLUMNS, wrap } from './layout.ts'

/** A step of the demonstration has failed. The message is complete for the user. */
export class StepFailure extends Error {
  override name = 'StepFailure'
}

/**
 * How the demonstration looks: the same words on a terminal and in a log, at most 80 columns wide, with colours only on
 * the former.
 */
export class Report {
  /** When it began, ms since 1970: what the seconds of steps count from. */
  readonly startedMs: number
  readonly #colours = process.stdout.isTTY === true && (process.env.NO_COLOR ?? '') === ''

  constructor(startedMs = Date.now()) {
    this.startedMs = startedMs
  }

  title(text: string): void {
    for (const line of wrap(text, COLUMNS, 0)) this.#write(`${this.#paint('1', line)}\n`)
  }

  /** A new step, with the seconds since the start. */
  step(text: string): void {
    const seconds = ((Date.now() - this.startedMs) / 1000).toFixed(1).padStart(6)
    const mark = `[${seconds} s]`
    const [first = '', ...others] = wrap(text, COLUMNS - mark.length - 1, 0)
    this.#write(`\n${this.#paint('2', mark)} ${this.#paint('1', first)}\n`)
    for (const line of others) this.#write(`${' '.repeat(mark.length + 1)}${this.#paint('1', line)}\n`)
  }

  /** Something that the demonstration itself has to say. */
  note(text: string): void {
    for (const line of wrap(text, COLUMNS - 4)) this.#write(`    ${line}`.trimEnd().concat('\n'))
  }

  /** A command that is run, and where if there is more than one place. */
  command(text: string, where = ''): void {
    // Two columns are for the backslash of a line that goes on.
    const lines = wrap(`${where}# ${text}`, COLUMNS - 6)
    for (const [index, line] of lines.entries()) {
      this.#write(`    ${this.#paint('36', index < lines.length - 1 ? `${line} \\` : line)}\n`)
    }
  }

  /** A line of a program's output. */
  output(line: string): void {
    if (line.trim() === '') return
    for (const part of wrap(line, COLUMNS - 6)) this.#write(`      ${this.#paint('2', part)}\n`)
  }

  /** What a step has shown. */
  proven(text: string): void {
    for (const [index, line] of wrap(text, COLUMNS - 8, 0).entries()) {
      this.#write(`    ${index === 0 ? this.#paint('32', 'ok') : '  '}  ${line}\n`)
    }
  }

  #paint(code: string, text: string): string {
    return this.#colours ? `\u001b[${code}m${text}\u001b[0m` : text
  }

  #write(text: string): void {
    process.stdout.write(text)
  }
}
