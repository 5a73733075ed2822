/** Traffic between a guest with real drivers and this machine. */
import { expect } from 'bun:test'
import type { Socket } from 'bun'
import { within } from '../../scripts/frontends/native-process.ts'
import type { Lab } from '../../scripts/lab/lab.ts'
import { withNetns } from '../../src/sys/netns.ts'

/** Bound of one transfer. */
const TRAFFIC_MS = 120_000

/** Pings from the guest, fifty a second, of which none may be lost. */
export const ping = async (
  guest: Lab,
  address: string,
  options: { count: number; sizeBytes?: number; fragment?: boolean },
): Promise<void> => {
  const { count, sizeBytes = 56, fragment = true } = options
  const flags = `-q -c ${count} -i 0.02 -W 5 -s ${sizeBytes} ${fragment ? '' : '-M do'}`
  const { stdout, stderr } = await guest.sh(`ping ${flags} ${address}`)
  expect(`${stdout}${stderr}`).toContain(`${count} packets transmitted, ${count} received`)
}

/** SHA-256 of what one end sent and the other received. */
export interface Exchange {
  sent: string
  received: string
}

const sha256 = (chunks: readonly Uint8Array[]): string => {
  const hash = new Bun.CryptoHasher('sha256')
  for (const chunk of chunks) hash.update(chunk)
  return hash.digest('hex')
}

/** getrandom(2) gives no more at once. */
const RANDOM_BYTES = 65_536

const randomBytes = (length: number): Uint8Array => {
  const bytes = new Uint8Array(length)
  for (let at = 0; at < length; at += RANDOM_BYTES) crypto.getRandomValues(bytes.subarray(at, at + RANDOM_BYTES))
  return bytes
}

/** Moves random bytes over TCP and hashes them at both ends. The guest connects to a namespace, over IPv4 or IPv6. */
export const exchange = async (
  rig: { readonly netns: string },
  guest: Lab,
  options: { direction: 'to the guest' | 'from the guest'; host: string; bytes: number },
): Promise<Exchange> => {
  const { direction, host, bytes } = options
  const content = direction === 'to the guest' ? randomBytes(bytes) : new Uint8Array(0)
  const received: Uint8Array[] = []
  const over = Promise.withResolvers<void>()
  let sent = 0
  const send = (socket: Socket): void => {
    while (sent < content.length) {
      const written = socket.write(content.subarray(sent, sent + (1 << 20)))
      if (written <= 0) return
      sent += written
    }
    socket.end()
  }
  // A socket belongs to the namespace in which it was made.
  const server = withNetns(rig.netns, () =>
    Bun.listen({
      hostname: host,
      port: 0,
      allowHalfOpen: true,
      socket: {
        open: (socket) => {
          if (content.length > 0) send(socket)
        },
        drain: send,
        data: (_, chunk) => void received.push(Buffer.from(chunk)),
        end: (socket) => {
          if (content.length === 0) socket.end()
        },
        close: () => over.resolve(),
        error: (_, error) => over.reject(error),
      },
    }),
  )
  try {
    const connect = `nc ${host} ${server.port}`
    const script =
      direction === 'to the guest'
        ? `${connect} < /dev/null | sha256sum`
        : `head -c ${bytes} /dev/urandom > /tmp/content && ${connect} < /tmp/content && sha256sum < ` +
          '/tmp/content && rm /tmp/content'
    const output = await guest.ok(script, { timeoutMs: TRAFFIC_MS })
    await within(TRAFFIC_MS, over.promise, () => 'the connection was not closed')
    const there = output.slice(0, 64)
    return direction === 'to the guest'
      ? { sent: sha256([content]), received: there }
      : { sent: there, received: sha256(received) }
  } finally {
    server.stop(true)
  }
}

/** Sends `bytes` both ways over TCP, and expects at each end what the other has sent. */
export const expectIntact = async (
  rig: { readonly netns: string },
  guest: Lab,
  options: { host: string; bytes: number },
): Promise<void> => {
  for (const direction of ['to the guest', 'from the guest'] as const) {
    const { sent, received } = await exchange(rig, guest, { direction, ...options })
    expect(received).toBe(sent)
  }
}
