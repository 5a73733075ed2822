import { check, libc } from './libc.ts'

// asm-generic/socket.h, linux/socket.h, linux/udp.h
const AF_INET = 2
const AF_INET6 = 10
const SOCK_DGRAM = 2
const SOL_SOCKET = 1
const SO_RCVBUF = 8
const SO_RCVTIMEO = 20
const SOL_UDP = 17
const UDP_SEGMENT = 103

const DATAGRAM_MAX = 65536
/** Longer than an echo takes in the slowest guest; what has not come by then is lost. */
const PATIENCE_SECONDS = 5

const ipv6Bytes = (address: string): number[] => {
  const [head = '', tail] = address.split('::')
  const words = (part: string): string[] => part.split(':').filter((word) => word !== '')
  const front = words(head)
  const back = words(tail ?? '')
  const all = [...front, ...Array<string>(8 - front.length - back.length).fill('0'), ...back]
  return all.flatMap((word) => [Number.parseInt(word, 16) >> 8, Number.parseInt(word, 16) & 0xff])
}

/** `struct sockaddr_in` or `struct sockaddr_in6`. */
const socketAddress = (address: string, port: number): { family: number; bytes: Uint8Array } => {
  const isIpv6 = address.includes(':')
  const family = isIpv6 ? AF_INET6 : AF_INET
  const bytes = new Uint8Array(isIpv6 ? 28 : 16)
  const view = new DataView(bytes.buffer)
  view.setUint16(0, family, true)
  view.setUint16(2, port)
  bytes.set(isIpv6 ? ipv6Bytes(address) : address.split('.').map(Number), isIpv6 ? 8 : 4)
  return { family, bytes }
}

const openSocket = (family: number): number => {
  const fd = check('socket', libc.socket(family, SOCK_DGRAM, 0))
  check('SO_RCVBUF', libc.setsockopt(fd, SOL_SOCKET, SO_RCVBUF, Int32Array.of(1 << 20), 4))
  return fd
}

/** `udp-echo ADDRESS PORT`: says `listening` and sends every datagram back to its sender, until it is killed. */
export const echo = (address = '', port = ''): never => {
  const here = socketAddress(address, Number(port))
  const fd = openSocket(here.family)
  check('bind', libc.bind(fd, here.bytes, here.bytes.length))
  console.log('listening')
  const datagram = new Uint8Array(DATAGRAM_MAX)
  const from = new Uint8Array(28)
  const fromLength = new Uint32Array(1)
  for (;;) {
    fromLength[0] = from.length
    const length = check('recvfrom', libc.recvfrom(fd, datagram, datagram.length, 0, from, fromLength))
    // An echo that cannot be sent is missed by the prober.
    libc.sendto(fd, datagram, length, 0, from, fromLength[0]!)
  }
}

/**
 * What came back of the datagrams sent: how many, how many bytes, and the hash over all of them in order, both ways.
 */
export type Probed = { sent: number; returned: number; bytes: number; sentSha256: string; returnedSha256: string }

/**
 * `udp-probe ADDRESS PORT COUNT SIZES [BATCH]`: sends COUNT datagrams of each of the SIZES (bytes, separated by commas)
 * to an echo, BATCH at a time as one message that is segmented on its way (UDP_SEGMENT), and waits for what comes back
 * after each. Datagrams are compared in the order of their numbers.
 */
export const probe = (address = '', port = '', count = '', sizes = '', batch = '1'): Probed => {
  const there = socketAddress(address, Number(port))
  const fd = openSocket(there.family)
  const patience = new BigInt64Array([BigInt(PATIENCE_SECONDS), 0n])
  check('SO_RCVTIMEO', libc.setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, patience, 16))
  check('connect', libc.connect(fd, there.bytes, there.bytes.length))
  const segments = Number(batch)

  const sentHash = new Bun.CryptoHasher('sha256')
  const returnedHash = new Bun.CryptoHasher('sha256')
  const datagram = new Uint8Array(DATAGRAM_MAX)
  const result: Probed = { sent: 0, returned: 0, bytes: 0, sentSha256: '', returnedSha256: '' }
  const exchange = (now: number, bytes: number): void => {
    const message = new Uint8Array(now * bytes)
    for (let at = 0; at < message.length; at += 65536) crypto.getRandomValues(message.subarray(at, at + 65536))
    const view = new DataView(message.buffer)
    for (let i = 0; i < now; i++) view.setUint32(i * bytes, result.sent + i)
    check('send', libc.send(fd, message, message.length, 0))
    sentHash.update(message)
    result.sent += now

    const back = new Map<number, Uint8Array>()
    while (back.size < now) {
      const length = Number(libc.recv(fd, datagram, datagram.length, 0))
      if (length < 0) break
      back.set(new DataView(datagram.buffer).getUint32(0), datagram.slice(0, length))
    }
    for (const number of [...back.keys()].sort((a, b) => a - b)) {
      returnedHash.update(back.get(number)!)
      result.returned++
      result.bytes += back.get(number)!.length
    }
  }
  for (const bytes of sizes.split(',').map(Number)) {
    if (segments > 1) check('UDP_SEGMENT', libc.setsockopt(fd, SOL_UDP, UDP_SEGMENT, Int32Array.of(bytes), 4))
    for (let left = Number(count); left > 0; left -= segments) exchange(Math.min(segments, left), bytes)
  }
  result.sentSha256 = sentHash.digest('hex')
  result.returnedSha256 = returnedHash.digest('hex')
  return result
}
