import { constants } from 'node:os'
import { assert } from '../base/assert.ts'
import { native } from './native.ts'

/** linux/socket.h. */
const AF_UNIX = 1
const SOCK_STREAM = 1
/** Longest path of a unix socket, its NUL not counted. Bytes. */
export const SOCKET_PATH_BYTES_MAX = 107

const { EAGAIN } = constants.errno

/** `struct sockaddr_un` for a path. */
const addressOfPath = (path: string): Uint8Array => {
  const bytes = new TextEncoder().encode(path)
  assert(bytes.length > 0 && bytes.length <= SOCKET_PATH_BYTES_MAX && !path.includes('\0'), 'path of a unix socket')
  const address = new Uint8Array(2 + bytes.length + 1)
  new DataView(address.buffer).setUint16(0, AF_UNIX, true)
  address.set(bytes, 2)
  return address
}

const newSocket = (): number => native.vn_socket(AF_UNIX, SOCK_STREAM, 0)

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

/** A non-blocking socket connected to `path`, or -errno (ECONNREFUSED, ENOENT, EACCES). A full backlog is ECONNREFUSED too. */
export const connectUnix = (path: string): number => {
  const fd = newSocket()
  if (fd < 0) return fd
  const address = addressOfPath(path)
  // Set before: connecting to a unix socket blocks only while the listener's backlog is full.
  native.vn_set_nonblock(fd, 1)
  const result = native.vn_connect(fd, address, address.length)
  if (result >= 0) return fd
  native.vn_close(fd)
  return result === -EAGAIN ? -constants.errno.ECONNREFUSED : result
}
