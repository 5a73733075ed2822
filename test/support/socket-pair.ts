import { dlopen } from 'bun:ffi'

const libc = dlopen('libc.so.6', { socketpair: { args: ['i32', 'i32', 'i32', 'ptr'], returns: 'i32' } })

/** AF_UNIX, SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET and SOCK_NONBLOCK: linux/socket.h, linux/net.h. */
const AF_UNIX = 1
const KIND = { stream: 1, datagram: 2, packet: 5 } as const
const SOCK_NONBLOCK = 0o4000

/** Descriptors of two connected sockets, by default stream sockets that do not block. */
export const socketPair = (kind: keyof typeof KIND = 'stream', blocks = false): [number, number] => {
  const ends = new Int32Array(2)
  if (libc.symbols.socketpair(AF_UNIX, KIND[kind] | (blocks ? 0 : SOCK_NONBLOCK), 0, ends) !== 0)
    throw new Error('socketpair')
  return [ends[0]!, ends[1]!]
}
