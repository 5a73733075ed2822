import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'
import { PROBLEM_TYPE, type Problem, problem } from './problem.ts'

/** Largest accepted request body, bytes. */
const BODY_MAX_BYTES = 64 * 1024

/**
 * Bytes of a too large body that are read and discarded before the answer 413. Closing a socket with unread bytes
 * resets the connection, and the client would not get the answer. A larger body gets no answer.
 */
const DISCARD_MAX_BYTES = 1024 * 1024

/** An application: `app.fetch` of Hono. */
export type Fetch = (request: Request) => Response | Promise<Response>

const refuse = (response: ServerResponse, value: Problem): void => {
  const body = Buffer.from(`${JSON.stringify(value)}\n`)
  response.writeHead(value.status, {
    'content-type': PROBLEM_TYPE,
    'content-length': body.length,
    'cache-control': 'no-store',
    connection: 'close',
  })
  response.end(body)
}

/** Writes a problem to a connection whose request could not be parsed, and closes it. */
export const refuseSocket = (socket: Duplex, value: Problem): void => {
  if (!socket.writable) return void socket.destroy()
  const body = `${JSON.stringify(value)}\n`
  socket.end(
    `HTTP/1.1 ${value.status} ${value.title}\r\nContent-Type: ${PROBLEM_TYPE}\r\nContent-Length: ` +
      `${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`,
  )
}

/** The whole body; null if it is larger than allowed. Rejects when the client disconnects. */
const readBody = async (message: IncomingMessage): Promise<Buffer | null> => {
  const parts: Buffer[] = []
  if (Number(message.headers['content-length'] ?? 0) > DISCARD_MAX_BYTES) return null
  let bytes = 0
  for await (const part of message.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    bytes += part.length
    if (bytes > DISCARD_MAX_BYTES) return null
    if (bytes <= BODY_MAX_BYTES) parts.push(part)
  }
  return bytes > BODY_MAX_BYTES ? null : Buffer.concat(parts)
}

/** The message as a Request. The URL's host is constant; the guard checks the Host header. */
const toRequest = (message: IncomingMessage, target: string, body: Buffer): Request => {
  const headers = new Headers()
  for (const [name, values] of Object.entries(message.headersDistinct)) {
    for (const value of values ?? []) headers.append(name, value)
  }
  const method = message.method ?? 'GET'
  const bodyless = method === 'GET' || method === 'HEAD'
  return new Request(`http://localhost${target}`, { method, headers, body: bodyless ? null : body })
}

/** The body of an answer. JSON gets a final line feed, for terminals. */
const bodyOf = async (answer: Response): Promise<Buffer> => {
  const bytes = Buffer.from(await answer.arrayBuffer())
  const isJson = /^application\/(?:[a-z.]+\+)?json\b/.test(answer.headers.get('content-type') ?? '')
  return isJson && bytes.length > 0 ? Buffer.concat([bytes, Buffer.from('\n')]) : bytes
}

const exchange = async (message: IncomingMessage, response: ServerResponse, fetch: Fetch): Promise<void> => {
  const target = message.url ?? ''
  if (!target.startsWith('/')) return refuse(response, problem(400, 'the request target is not a path'))
  const body = await readBody(message)
  if (body === null) {
    return refuse(response, problem(413, `the body is larger than ${BODY_MAX_BYTES} bytes`))
  }
  const answer = await fetch(toRequest(message, target, body))
  const bytes = await bodyOf(answer)
  if (response.headersSent || response.destroyed) return
  for (const [name, value] of answer.headers) response.appendHeader(name, value)
  response.setHeader('content-length', bytes.length)
  response.writeHead(answer.status)
  response.end(message.method === 'HEAD' ? undefined : bytes)
}

/**
 * A request listener for node:http that calls an application. An exchange, from its headers to the last byte of its
 * answer, may take `timeoutMs`; then the connection is closed, after a problem if the answer has not begun.
 */
export const bridge = (fetch: Fetch, timeoutMs: number): RequestListener => {
  return (message, response) => {
    const { socket } = message
    const timer = setTimeout(() => {
      if (response.headersSent) return void socket.destroy()
      const late = message.complete
        ? problem(503, 'the answer took too long')
        : problem(408, 'the request took too long')
      refuse(response, late)
      // The client may not read either: close in any case.
      setTimeout(() => socket.destroy(), timeoutMs / 10)
    }, timeoutMs)
    response.on('close', () => clearTimeout(timer))
    exchange(message, response, fetch).catch(() => socket.destroy())
  }
}
