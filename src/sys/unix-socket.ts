import { constants } from 'node:os'
import { assert } from '../base/assert.ts'
import { native } from './native.ts'

/** linux/socket.h, linux/net.h. */
const AF_UNIX = 1
const SOCK_STREAM = 1
const SOCK_DGRAM = 2
/** Longest path of a unix socket without its NUL. Bytes. */
const SOCKET_PATH_BYTES_MAX = 107

const { EAGAIN, ECONNREFUSED, ENOENT } = constants.errno

/** True for the name of an abstract socket, `@NAME`: it has no file and ends with its process (unix(7)). */
export const isAbstract = (path: string): boolean => path.startsWith('@')

/** `struct sockaddr_un` for a path, or for the name of an abstract socket. */
const addressOfPath = (path: string): Uint8Array => {
  const bytes = new TextEncoder().encode(path)
  assert(bytes.length > 0 && bytes.length <= SOCKET_PATH_BYTES_MAX && !path.includes('\0'), 'path of a unix socket')
  // An abstract name starts with a NUL in place of the @, and has none at its end, where it would be part of the name.
  const address = new Uint8Array(2 + bytes.length + (isAbstract(path) ? 0 : 1))
  new DataView(address.buffer).setUint16(0, AF_UNIX, true)
  address.set(bytes, 2)
  if (isAbstract(path)) address[2] = 0
  return address
}

const newSocket = (type = SOCK_STREAM): number => native.vn_socket(AF_UNIX, type, 0)

/** A non-blocking socket that listens at `path`, which must not exist; or -errno (EADDRINUSE, EACCES, ENOENT). */
export const listenUnix = (path: string): number => {
  const fd = newSocket()
  if (fd < 0) return fd
  const address = addressOfPath(path)
  let result = native.vn_bind(fd, address, address.length)
  if (result === 0) result = native.vn_listen(fd, 4)
  if (result === 0) result = native.vn_set_nonblock(fd, 1)
  if (result >= 0) return fd
  native.vn_close(fd)
  return result
}

/**
 * A non-blocking socket connected to `path`, or -errno (ECONNREFUSED, ENOENT, EACCES). A full backlog is ECONNREFUSED
 * too.
 */
export const connectUnix = (path: string): number => {
  const fd = newSocket()
  if (fd < 0) return fd
  const address = addressOfPath(path)
  // Set first: connecting to a unix socket blocks while the listener's backlog is full.
  native.vn_set_nonblock(fd, 1)
  const result = native.vn_connect(fd, address, address.length)
  if (result >= 0) return fd
  native.vn_close(fd)
  return result === -EAGAIN ? -ECONNREFUSED : result
}

/**
 * True if a process has the socket at `path`. The check connects a datagram socket: the kernel's error differs with and
 * without a listening stream socket, and the listener does not notice.
 */
export const isSocketServed = (path: string): boolean => {
  const fd = newSocket(SOCK_DGRAM)
  if (fd < 0) return true
  const address = addressOfPath(path)
  const result = native.vn_connect(fd, address, address.length)
  native.vn_close(fd)
  return result !== -ECONNREFUSED && result !== -ENOENT
}
