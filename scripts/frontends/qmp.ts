import { connect, type Socket } from 'node:net'
import { LabError } from '../lab/command.ts'
import { until } from './native-process.ts'

type Answer = { return?: unknown; error?: { desc: string }; QMP?: unknown; event?: string }

/** A connection to QEMU's monitor: docs/interop/qmp-spec.rst. QEMU has it with `-qmp unix:PATH,server=on,wait=off`. */
export class Qmp implements Disposable {
  readonly #socket: Socket
  readonly #answers: Answer[] = []
  #partial = ''
  #closed = false

  private constructor(socket: Socket) {
    this.#socket = socket
    socket.on('error', () => {})
    socket.on('close', () => {
      this.#closed = true
    })
    socket.on('data', (bytes: Buffer) => {
      const lines = (this.#partial + bytes.toString()).split('\n')
      this.#partial = lines.pop() ?? ''
      for (const line of lines) {
        if (line.trim() === '') continue
        const answer = JSON.parse(line) as Answer
        if (answer.event === undefined) this.#answers.push(answer)
      }
    })
  }

  /** Connects and leaves the monitor's negotiation mode. */
  static async connect(path: string): Promise<Qmp> {
    const qmp = new Qmp(connect(path))
    await qmp.#next('the greeting')
    await qmp.run('qmp_capabilities')
    return qmp
  }

  /** Runs one command at a time and returns what it returns. */
  async run(command: string, options: Record<string, unknown> = {}): Promise<unknown> {
    this.#socket.write(`${JSON.stringify({ execute: command, arguments: options })}\n`)
    const answer = await this.#next(`the answer to ${command}`)
    if (answer.error !== undefined) throw new LabError(`QEMU: ${command}: ${answer.error.desc}`)
    return answer.return
  }

  [Symbol.dispose](): void {
    this.#socket.destroy()
  }

  #next(what: string): Promise<Answer> {
    return until(`QEMU's monitor: ${what}`, () => {
      const answer = this.#answers.shift()
      if (answer === undefined && this.#closed) throw new LabError(`QEMU's monitor closed before ${what}`)
      return answer
    })
  }
}
