/** A step did not come out as it should. The message says all that there is to say. */
export class StepFailure extends Error {
  override name = 'StepFailure'
}

/** How the demonstration looks: the same words on a terminal and in a log, with colours only on the former. */
export class Report {
  /** When it began, ms since 1970: what the seconds of steps count from. */
  readonly startedMs: number
  readonly #colours = process.stdout.isTTY === true && (process.env.NO_COLOR ?? '') === ''

  constructor(startedMs = Date.now()) {
    this.startedMs = startedMs
  }

  title(text: string): void {
    this.#write(`${this.#paint('1', text)}\n`)
  }

  /** A new step, with the seconds since the start. */
  step(text: string): void {
    const seconds = ((Date.now() - this.startedMs) / 1000).toFixed(1).padStart(6)
    this.#write(`\n${this.#paint('2', `[${seconds} s]`)} ${this.#paint('1', text)}\n`)
  }

  /** Something that the demonstration itself has to say. */
  note(text: string): void {
    this.#write(`    ${text}\n`)
  }

  /** A command that is run, and where if there is more than one place. */
  command(text: string, where = ''): void {
    this.#write(`    ${this.#paint('36', `${where}# ${text}`)}\n`)
  }

  /** A line of a program's output. */
  output(line: string): void {
    if (line.trim() !== '') this.#write(`      ${this.#paint('2', line)}\n`)
  }

  /** What a step has shown. */
  proven(text: string): void {
    this.#write(`    ${this.#paint('32', 'ok')}  ${text}\n`)
  }

  #paint(code: string, text: string): string {
    return this.#colours ? `\u001b[${code}m${text}\u001b[0m` : text
  }

  #write(text: string): void {
    process.stdout.write(text)
  }
}
