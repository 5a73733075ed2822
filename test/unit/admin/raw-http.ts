import { connect, type Socket } from 'node:net'
import { constants } from 'node:os'
import { OwnedFd } from '../../../src/sys/fd.ts'
import { check, native } from '../../../src/sys/native.ts'
import { connectUnix } from '../../../src/sys/unix-socket.ts'
import { HANG_MS } from '../../support/patience.ts'

const { EAGAIN, ECONNRESET } = constants.errno

/** A client that sends bytes as it likes and collects what comes back. */
export class RawClient {
  readonly #socket: Socket
  #received = ''
  #closed = false
  #changed = Promise.withResolvers<void>()

  private constructor(socket: Socket) {
    this.#socket = socket
    const note = (): void => {
      this.#changed.resolve()
      this.#changed = Promise.withResolvers()
    }
    socket.setEncoding('latin1')
    socket.on('data', (text: string) => {
      this.#received += text
      note()
    })
    // A reset by a server that has refused is an end like any other.
    socket.on('error', () => undefined)
    socket.on('close', () => {
      this.#closed = true
      note()
    })
  }

  static open(where: string | { host: string; port: number }): Promise<RawClient> {
    return new Promise((resolve, reject) => {
      const socket = typeof where === 'string' ? connect(where) : connect(where.port, where.host)
      const client = new RawClient(socket)
      socket.once('connect', () => resolve(client))
      socket.once('error', reject)
    })
  }

  get received(): string {
    return this.#received
  }

  get closed(): boolean {
    return this.#closed
  }

  send(text: string): void {
    this.#socket.write(text, 'latin1')
  }

  /** Waits until `condition` holds of what was received. */
  async until(condition: (received: string, closed: boolean) => boolean, timeoutMs = HANG_MS): Promise<string> {
    const deadline = performance.now() + timeoutMs
    while (!condition(this.#received, this.#closed)) {
      const left = deadline - performance.now()
      if (left <= 0) throw new Error(`not in ${timeoutMs} ms; closed: ${this.#closed}; received: ${this.#received}`)
      let timer: ReturnType<typeof setTimeout> | undefined
      const timeout = new Promise<void>((resolve) => {
        timer = setTimeout(resolve, left)
      })
      await Promise.race([this.#changed.promise, timeout])
      clearTimeout(timer)
    }
    return this.#received
  }

  /** Waits until the server has closed. */
  end(timeoutMs?: number): Promise<string> {
    return this.until((_, closed) => closed, timeoutMs)
  }

  close(): void {
    this.#socket.destroy()
  }
}

/** Sends one request, waits until the server closes, and returns what it has said. */
export const rawExchange = async (where: Parameters<typeof RawClient.open>[0], bytes: string): Promise<string> => {
  const client = await RawClient.open(where)
  try {
    client.send(bytes)
    return await client.end()
  } finally {
    client.close()
  }
}

/** How often {@link trickle} sends. */
const TRICKLE_MS = 20

/**
 * Sends `head`, then `more` again and again until the server has closed, and returns what it has said. By system calls:
 * a socket of node:net that cannot send any more forgets what it has not read yet.
 */
export const trickle = async (path: string, head: string, more: string): Promise<string> => {
  using socket = new OwnedFd(check('connect', connectUnix(path)))
  const buffer = Buffer.alloc(4096)
  const deadline = performance.now() + HANG_MS
  let said = ''
  for (let bytes = Buffer.from(head); performance.now() < deadline; bytes = Buffer.from(more)) {
    native.vn_write(socket.fd, bytes, bytes.length)
    const read = native.vn_read(socket.fd, buffer, buffer.length)
    if (read === 0 || read === -ECONNRESET) return said
    if (read > 0) said += buffer.toString('latin1', 0, read)
    else if (read === -EAGAIN) await Bun.sleep(TRICKLE_MS)
    else check('read', read)
  }
  throw new Error(`the server has not closed in ${HANG_MS} ms; it said: ${said}`)
}

/** Status code of a response as it came. */
export const statusOf = (response: string): number => Number(/^HTTP\/1\.1 ([0-9]{3}) /.exec(response)?.[1])

/** `GET path` with more header lines, that asks the server to close after its answer. */
export const getRequest = (path: string, ...headers: string[]): string =>
  [`GET ${path} HTTP/1.1`, 'Host: localhost', 'Connection: close', ...headers, '', ''].join('\r\n')

/** `PATCH /v1/device` with a JSON body. */
export const patchRequest = (body: string, ...headers: string[]): string =>
  [
    'PATCH /v1/device HTTP/1.1',
    'Host: localhost',
    'Connection: close',
    'Content-Type: application/json',
    `Content-Length: ${Buffer.byteLength(body)}`,
    ...headers,
    '',
    body,
  ].join('\r\n')
