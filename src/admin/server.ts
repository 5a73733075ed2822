import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { assert } from '../base/assert.ts'
import { EXIT, UserError } from '../base/errors.ts'
import { formatListenAddress, type ListenAddress } from '../base/listen-address.ts'
import type { LogLosses } from '../base/log.ts'
import type { Card } from '../card/card.ts'
import { createApp } from './app.ts'
import { bridge, refuseSocket } from './http-bridge.ts'
import { problem } from './problem.ts'
import { placeSocket } from './unix-socket.ts'

const HEADERS_MAX_BYTES = 8 * 1024
const CONNECTIONS_MAX = 32
const EXCHANGE_TIMEOUT_MS = 10_000
const KEEP_ALIVE_MS = 5_000
/** How long `close` waits for answers in progress. */
const CLOSE_TIMEOUT_MS = 1_000

/** How to serve the admin API. */
export interface AdminOptions {
  readonly listen: ListenAddress
  /** The bearer token, required for TCP; null on a unix socket, whose mode decides who may connect. */
  readonly token: string | null
  readonly card: Card
  readonly version: string
  readonly logLosses: () => LogLosses
  /** For tests: how long one exchange may take. */
  readonly exchangeTimeoutMs?: number
}

/** A serving admin API. */
export interface AdminServer {
  /** Where it listens; the port is the one that the kernel has chosen. */
  readonly address: ListenAddress
  /** Stops listening, lets answers finish for a second, and removes the socket. */
  close(): Promise<void>
}

/** The problem for a request that could not be parsed, by the parser's error code. */
const unreadable = (code: string | undefined) => {
  if (code === 'HPE_HEADER_OVERFLOW') return problem(431, `the headers are larger than ${HEADERS_MAX_BYTES} bytes`)
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT') return problem(408, 'the request took too long')
  return problem(400, 'not an HTTP/1.1 request')
}

/**
 * node:http, not Bun.serve: on Bun 1.4.5 Bun.serve has no limit of connections, reads headers of up to 16 KiB whatever
 * is configured, and answers malformed requests itself. docs/decisions/0004-node-http.md.
 */
const newServer = (timeoutMs: number): Server => {
  const server = createServer({
    maxHeaderSize: HEADERS_MAX_BYTES,
    headersTimeout: timeoutMs,
    keepAliveTimeout: KEEP_ALIVE_MS,
    connectionsCheckingInterval: Math.min(1000, timeoutMs),
    // The guard answers a missing Host like a wrong one.
    requireHostHeader: false,
  })
  server.maxConnections = CONNECTIONS_MAX
  server.on('clientError', (error: NodeJS.ErrnoException, socket) => refuseSocket(socket, unreadable(error.code)))
  server.on('upgrade', (_, socket) => refuseSocket(socket, problem(400, 'no protocol to upgrade to')))
  server.on('connect', (_, socket) => refuseSocket(socket, problem(405, 'not a proxy')))
  return server
}

const listening = (server: Server, where: Parameters<Server['listen']>[0]): Promise<void> =>
  new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen(where, () => {
      server.off('error', reject)
      resolve()
    })
  })

const listenTcp = async (
  server: Server,
  address: ListenAddress & { kind: 'tcp' },
): Promise<ListenAddress & { kind: 'tcp' }> => {
  // The command line has refused any other address already, with a message.
  assert(address.host === '127.0.0.1' || address.host === '::1', 'the admin API listens on loopback only')
  try {
    await listening(server, { host: address.host, port: address.port })
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? String(error)
    throw new UserError(
      `--admin: ${formatListenAddress(address)}: ${code}`,
      'choose another port, or 0 for any that is free',
      code === 'EACCES' ? EXIT.permission : EXIT.runtime,
    )
  }
  return { ...address, port: (server.address() as AddressInfo).port }
}

const hostsOf = (address: ListenAddress): ReadonlySet<string> => {
  if (address.kind !== 'tcp') return new Set(['localhost'])
  const names = ['localhost', '127.0.0.1', '[::1]']
  // A client omits the default port.
  return new Set([...names.map((name) => `${name}:${address.port}`), ...(address.port === 80 ? names : [])])
}

const closing = (server: Server): Promise<void> =>
  new Promise((resolve) => {
    const timer = setTimeout(() => server.closeAllConnections(), CLOSE_TIMEOUT_MS)
    server.close(() => {
      clearTimeout(timer)
      resolve()
    })
    server.closeIdleConnections()
  })

/**
 * Serves the admin API on the event loop of this thread; null if it is off.
 * @throws {UserError} if it cannot listen there.
 */
export const startAdmin = async (options: AdminOptions): Promise<AdminServer | null> => {
  const { listen, token, card, version, logLosses, exchangeTimeoutMs = EXCHANGE_TIMEOUT_MS } = options
  if (listen.kind === 'off') return null
  assert((listen.kind === 'tcp') === (token !== null), 'TCP, and nothing else, has a token')

  const server = newServer(exchangeTimeoutMs)
  let address: ListenAddress = listen
  let remove = (): void => undefined
  if (listen.kind === 'tcp') address = await listenTcp(server, listen)
  else {
    const placed = await placeSocket(listen.path, (path) => listening(server, path))
    remove = () => placed[Symbol.dispose]()
  }
  const app = createApp({ card, hosts: hostsOf(address), token, version, logLosses })
  server.on(
    'request',
    bridge((request) => app.fetch(request), exchangeTimeoutMs),
  )
  return {
    address,
    close: async () => {
      // Remove the name first, so that no client connects any more.
      remove()
      await closing(server)
    },
  }
}
