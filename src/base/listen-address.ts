/** Where the admin API listens. */
export type ListenAddress =
  | { readonly kind: 'off' }
  | { readonly kind: 'unix'; readonly path: string }
  /** `host` is a loopback literal, `127.0.0.1` or `::1`; port 0 lets the kernel choose. */
  | { readonly kind: 'tcp'; readonly host: '127.0.0.1' | '::1'; readonly port: number }

/**
 * Longest socket path in bytes: sun_path of linux/un.h has 108 with its NUL, and the socket is first bound as
 * `PATH.~PID`.
 */
export const SOCKET_PATH_MAX_BYTES = 107 - 9

/** The program's own folder, for the admin sockets of all its cards. Made when it is missing, removed when empty. */
export const OWN_FOLDER = '/run/vduse-net'

const parseTcp = (text: string): ListenAddress | string => {
  const match = /^(\[[0-9a-fA-F:.]+\]|[^:[\]]*):([0-9]{1,5})$/.exec(text)
  if (match === null) return 'not HOST:PORT, unix:PATH or off'
  const host = (match[1] ?? '').replace(/^\[|\]$/g, '').toLowerCase()
  const port = Number(match[2])
  if (port > 65535) return 'the port is greater than 65535'
  if (host === '127.0.0.1' || host === 'localhost') return { kind: 'tcp', host: '127.0.0.1', port }
  if (host === '::1') return { kind: 'tcp', host: '::1', port }
  return `${host === '' ? 'every address' : host} is not loopback: the admin API is never exposed to a network`
}

/**
 * Parses `unix:/PATH`, `127.0.0.1:PORT`, `[::1]:PORT`, `localhost:PORT` or `off`. A returned string is the reason of a
 * refusal.
 */
export const parseListenAddress = (text: string): ListenAddress | string => {
  if (text === 'off') return { kind: 'off' }
  if (!text.startsWith('unix:')) return parseTcp(text)
  const path = text.slice('unix:'.length)
  if (!path.startsWith('/')) return 'the path of the socket is not absolute'
  if (path.endsWith('/') || path.includes('\0')) return 'the path names no file'
  if (Buffer.byteLength(path) > SOCKET_PATH_MAX_BYTES) return `the path is longer than ${SOCKET_PATH_MAX_BYTES} bytes`
  return { kind: 'unix', path }
}

/** Formats an address so that {@link parseListenAddress} can parse it. */
export const formatListenAddress = (address: ListenAddress): string => {
  switch (address.kind) {
    case 'off':
      return 'off'
    case 'unix':
      return `unix:${address.path}`
    case 'tcp':
      return address.host === '::1' ? `[::1]:${address.port}` : `${address.host}:${address.port}`
  }
}
