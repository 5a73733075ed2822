import type { Socket } from 'node:net'
import { LabError } from './command.ts'

/** The frame kinds of scripts/lab/guest/agent.zig. */
const SPAWN = 1
const SIGNAL = 2
const HELLO = 10
const STDOUT = 11
const STDERR = 12
const EXITED = 13
const REFUSED = 14

const HEADER_BYTES = 12

/** The agent's limit on one frame; script and stdin of a command travel in one. */
const MAX_FRAME_BYTES = 32 << 20

/** Where a piece of output came from. */
export type Stream = 'stdout' | 'stderr'

/** A command that runs in the guest. */
export interface RemoteCommand {
  /** Exit code, or 128 + signal number. Rejects when the command could not be started or the guest died. */
  exited: Promise<number>
  /** Signals the command and all its children (its session's process group). Nothing happens once it has ended. */
  signal(number: number): void
}

interface Running {
  onOutput: (stream: Stream, bytes: Buffer) => void
  resolve: (code: number) => void
  reject: (error: Error) => void
}

/** The host's end of the guest agent: commands by number over one byte stream. */
export class Agent {
  /** Resolves when the guest is up. */
  readonly ready: Promise<void>
  readonly #socket: Socket
  readonly #running = new Map<number, Running>()
  readonly #markReady: () => void
  readonly #failReady: (error: Error) => void
  #chunks: Buffer[] = []
  #receivedBytes = 0
  #neededBytes = HEADER_BYTES
  #nextId = 1
  #failure: Error | undefined

  constructor(socket: Socket) {
    this.#socket = socket
    const ready = Promise.withResolvers<void>()
    this.ready = ready.promise
    this.#markReady = ready.resolve
    this.#failReady = ready.reject
    this.ready.catch(() => {})
    socket.on('data', (bytes: Buffer) => this.#receive(bytes))
  }

  /** Runs `script` with /bin/sh; it reads `stdin` and then end of file. */
  spawn(script: string, stdin: Uint8Array, onOutput: Running['onOutput']): RemoteCommand {
    const { promise, resolve, reject } = Promise.withResolvers<number>()
    // A caller that only signals a command and never awaits its end must not cause an unhandled rejection.
    promise.catch(() => {})
    const id = this.#nextId++
    const text = Buffer.from(script)
    if (this.#failure !== undefined) reject(this.#failure)
    else if (text.includes(0)) reject(new LabError('a command for the guest cannot hold a NUL character'))
    else if (text.length + stdin.length + 8 > MAX_FRAME_BYTES) {
      reject(new LabError(`a command for the guest cannot take ${stdin.length} bytes of input`, 'push a file'))
    } else {
      this.#running.set(id, { onOutput, resolve, reject })
      const length = Buffer.alloc(4)
      length.writeUInt32LE(text.length)
      this.#send(id, SPAWN, Buffer.concat([length, text, Buffer.alloc(1), stdin]))
    }
    const signal = (number: number): void => {
      if (!this.#running.has(id)) return
      const payload = Buffer.alloc(4)
      payload.writeInt32LE(number)
      this.#send(id, SIGNAL, payload)
    }
    return { exited: promise, signal }
  }

  /** Ends every command with `error`, those to come included: the guest is gone. */
  fail(error: Error): void {
    if (this.#failure !== undefined) return
    this.#failure = error
    this.#failReady(error)
    for (const running of this.#running.values()) running.reject(error)
    this.#running.clear()
    this.#socket.destroy()
  }

  #send(id: number, kind: number, payload: Buffer): void {
    const header = Buffer.alloc(HEADER_BYTES)
    header.writeUInt32LE(payload.length, 0)
    header.writeUInt32LE(id, 4)
    header.writeUInt32LE(kind, 8)
    this.#socket.write(Buffer.concat([header, payload]))
  }

  #receive(bytes: Buffer): void {
    this.#chunks.push(bytes)
    this.#receivedBytes += bytes.length
    while (this.#receivedBytes >= this.#neededBytes) {
      const buffer = Buffer.concat(this.#chunks)
      this.#chunks = [buffer]
      const end = HEADER_BYTES + buffer.readUInt32LE(0)
      this.#neededBytes = end
      if (buffer.length < end) return
      this.#dispatch(buffer.readUInt32LE(4), buffer.readUInt32LE(8), buffer.subarray(HEADER_BYTES, end))
      this.#chunks = [buffer.subarray(end)]
      this.#receivedBytes = buffer.length - end
      this.#neededBytes = HEADER_BYTES
    }
  }

  #dispatch(id: number, kind: number, payload: Buffer): void {
    if (kind === HELLO) this.#markReady()
    // Output of a daemon may follow the end of the command that has started it. It is discarded.
    const running = this.#running.get(id)
    if (running === undefined) return
    switch (kind) {
      case STDOUT:
        running.onOutput('stdout', payload)
        break
      case STDERR:
        running.onOutput('stderr', payload)
        break
      case EXITED:
        this.#running.delete(id)
        running.resolve(payload.readUInt32LE(0))
        break
      case REFUSED:
        this.#running.delete(id)
        running.reject(new LabError(`the guest did not start a command: ${payload.toString()}`))
        break
      default:
        this.fail(new LabError(`the guest agent sent a frame of unknown kind ${kind}`))
    }
  }
}
