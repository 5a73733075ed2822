import { dlopen } from 'bun:ffi'
import { expect, test } from 'bun:test'
import { closeSync, existsSync, openSync, readSync } from 'node:fs'
import { until } from '../../../scripts/frontends/native-process.ts'
import { EventFd } from '../../../src/sys/eventfd.ts'
import { native } from '../../../src/sys/native.ts'
import { isEventFd, ownTarget, PeerSignal, signalPeer } from '../../../src/sys/peer-signal.ts'

/** linux/socket.h. */
const AF_INET = 2
const SOCK_STREAM = 1

const libc = dlopen('libc.so.6', {
  pipe: { args: ['ptr'], returns: 'i32' },
  socketpair: { args: ['i32', 'i32', 'i32', 'ptr'], returns: 'i32' },
  dup: { args: ['i32'], returns: 'i32' },
})

/** Two ends that block. */
const socketPair = (): { reading: number; writing: number } => {
  const ends = new Int32Array(2)
  if (libc.symbols.socketpair(1, 1, 0, ends) !== 0) throw new Error('socketpair')
  return { reading: ends[0]!, writing: ends[1]! }
}

test('an eventfd with a full counter that blocks takes signals all the same', () => {
  using event = new EventFd()
  native.vn_set_nonblock(event.fd, 0)
  const full = new BigUint64Array([2n ** 64n - 2n])
  expect(native.vn_write(event.fd, full, 8)).toBe(8)
  using signal = PeerSignal.adopt(libc.symbols.dup(event.fd))!
  for (let i = 0; i < 200; i++) signal.signal()
  event.drain()
  signal.signal()
  const count = new BigUint64Array(1)
  expect(native.vn_read(event.fd, count, 8)).toBe(8)
  expect(count[0]).toBe(1n)
})

test('a socket that blocks and is full takes signals all the same', () => {
  const { reading, writing } = socketPair()
  const peers = libc.symbols.dup(writing)
  const signal = PeerSignal.adopt(writing)!
  native.vn_set_nonblock(peers, 0)
  signal.signal()
  const bytes = Buffer.alloc(8)
  expect(readSync(reading, bytes)).toBe(8)
  expect(bytes.readBigUInt64LE()).toBe(1n)
  for (let i = 0; i < 100_000; i++) signal.signal()
  signal[Symbol.dispose]()
  for (const fd of [reading, peers]) closeSync(fd)
})

test('a socket whose reader has gone does no harm', () => {
  const { reading, writing } = socketPair()
  using signal = PeerSignal.adopt(writing)!
  closeSync(reading)
  signal.signal()
})

test('a file, a pipe and a TCP socket are nothing to signal, and closed', async () => {
  const ends = new Int32Array(2)
  expect(libc.symbols.pipe(ends)).toBe(0)
  const [reading, writing] = [ends[0]!, ends[1]!]
  for (const fd of [openSync('/proc/self/status', 'r'), writing, native.vn_socket(AF_INET, SOCK_STREAM, 0)]) {
    expect(isEventFd(fd)).toBeFalse()
    expect(PeerSignal.adopt(fd)).toBeNull()
    await until(`descriptor ${fd} to be closed`, () => !existsSync(`/proc/self/fdinfo/${fd}`))
  }
  closeSync(reading)
})

test('nowhere, and an eventfd of our own', () => {
  signalPeer(-1)
  using event = new EventFd()
  expect(isEventFd(event.fd)).toBeTrue()
  signalPeer(ownTarget(event.fd))
  const count = new BigUint64Array(1)
  expect(native.vn_read(event.fd, count, 8)).toBe(8)
  expect(count[0]).toBe(1n)
})
