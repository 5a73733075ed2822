import { dlopen } from 'bun:ffi'

const libc = dlopen('libc.so.6', { socketpair: { args: ['i32', 'i32', 'i32', 'ptr'], returns: 'i32' } })

/** AF_UNIX, and SOCK_STREAM with SOCK_NONBLOCK: linux/socket.h, linux/net.h. */
const AF_UNIX = 1
const STREAM_NONBLOCK = 1 | 0o4000

/** Descriptors of two connected stream sockets that do not block. */
export const socketPair = (): [number, number] => {
  const ends = new Int32Array(2)
  if (libc.symbols.socketpair(AF_UNIX, STREAM_NONBLOCK, 0, ends) !== 0) throw new Error('socketpair')
  return [ends[0]!, ends[1]!]
}
