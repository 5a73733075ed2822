import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { VHOST_USER_NEED_REPLY, VHOST_USER_REPLY, VHOST_USER_VERSION } from '../../../../src/abi/vhost-user.ts'
import { ProtocolError } from '../../../../src/base/errors.ts'
import { EventFd } from '../../../../src/sys/eventfd.ts'
import { native } from '../../../../src/sys/native.ts'
import { BODY_BYTES_MAX, Connection, MESSAGE_TIMEOUT_MS } from '../../../../src/transport/vhost-user/connection.ts'
import { socketPair } from '../../../support/socket-pair.ts'
import { bodyOf, VhostUserClient } from '../../../support/vhost-user-client.ts'

let connection: Connection
let peer: VhostUserClient

beforeEach(() => {
  const [ours, theirs] = socketPair()
  connection = new Connection(ours, 'requests')
  peer = new VhostUserClient(theirs)
})

afterEach(() => {
  connection[Symbol.dispose]()
  peer[Symbol.dispose]()
})

describe('Connection', () => {
  test('messages come whole, one after the other, with the descriptors that came with them', () => {
    using event = new EventFd()
    peer.send(7, bodyOf(1, 2))
    peer.send(8, bodyOf(3n), { fds: [event.fd, event.fd], flags: VHOST_USER_VERSION | VHOST_USER_NEED_REPLY })
    const first = connection.receive()
    if (first === null || first === 'end') throw new Error('no message')
    expect({ ...first, body: first.body.getUint32(4, true) }).toEqual({
      request: 7,
      needsReply: false,
      body: 2,
      fds: [],
    })
    const second = connection.receive()
    if (second === null || second === 'end') throw new Error('no message')
    expect({ request: second.request, needsReply: second.needsReply, fds: second.fds.length }).toEqual({
      request: 8,
      needsReply: true,
      fds: 2,
    })
    for (const fd of second.fds) native.vn_close(fd)
    expect(connection.receive()).toBeNull()
  })

  test('a message that comes byte by byte is taken when it is there', () => {
    const bytes = bodyOf(7, VHOST_USER_VERSION, 8, 9n)
    for (const at of bytes.keys()) {
      expect(connection.receive()).toBeNull()
      const leftMs = connection.timeoutMs(performance.now())
      if (at === 0) expect(leftMs).toBe(-1)
      else expect(leftMs).toBeGreaterThan(0)
      peer.sendBytes(bytes.subarray(at, at + 1))
    }
    expect(connection.receive()).toMatchObject({ request: 7 })
    expect(connection.timeoutMs(performance.now())).toBe(-1)
  })

  test('a message that has begun is late after its time', () => {
    peer.sendBytes(new Uint8Array([1]))
    expect(connection.receive()).toBeNull()
    const now = performance.now()
    connection.checkDeadlines(now)
    expect(() => connection.checkDeadlines(now + MESSAGE_TIMEOUT_MS)).toThrow(ProtocolError)
  })

  test('the longest body is taken, one byte more is not', () => {
    peer.send(7, new Uint8Array(BODY_BYTES_MAX))
    expect(connection.receive()).toMatchObject({ request: 7 })
    peer.send(7, new Uint8Array(0), { size: BODY_BYTES_MAX + 1 })
    expect(() => connection.receive()).toThrow(ProtocolError)
  })

  test('a hang-up between messages is the end, one inside a message an error', () => {
    {
      const [ours, theirs] = socketPair()
      using quiet = new Connection(ours, 'requests')
      native.vn_close(theirs)
      expect(quiet.receive()).toBe('end')
    }
    const [ours, theirs] = socketPair()
    using cut = new Connection(ours, 'requests')
    new VhostUserClient(theirs).sendBytes(new Uint8Array(5))
    native.vn_close(theirs)
    expect(() => cut.receive()).toThrow(ProtocolError)
  })

  test('who sends requests sends no answers, and the other way round', () => {
    peer.send(1, new Uint8Array(0), { flags: VHOST_USER_VERSION | VHOST_USER_REPLY })
    expect(() => connection.receive()).toThrow('an answer to nothing')
    const [ours, theirs] = socketPair()
    using asking = new Connection(ours, 'answers')
    using answering = new VhostUserClient(theirs)
    asking.request(2, new Uint8Array(0), true)
    expect(answering.receive()).toMatchObject({ request: 2, flags: VHOST_USER_VERSION | VHOST_USER_NEED_REPLY })
    answering.sendAnswer(2, 0n)
    expect(asking.receive()).toMatchObject({ request: 2 })
    answering.send(2)
    expect(() => asking.receive()).toThrow('a request instead of an answer')
  })

  test('answers wait for a peer that does not read, for a while and to a limit', () => {
    // Until the socket is full.
    while (!connection.hasOutput) connection.answer(1, new Uint8Array(4096))
    expect(connection.timeoutMs(performance.now())).toBeGreaterThan(MESSAGE_TIMEOUT_MS - 1_000)
    expect(() => connection.checkDeadlines(performance.now() + MESSAGE_TIMEOUT_MS)).toThrow('not read in time')
    expect(() => {
      for (let i = 0; i < 100; i++) connection.answer(1, new Uint8Array(4096))
    }).toThrow('answers are not read')
  })

  test('answers that waited arrive whole when the peer reads', () => {
    let answers = 0
    for (; !connection.hasOutput; answers++) connection.answer(1, new Uint8Array(4096).fill(answers))
    for (let i = 0; i < answers; i++) {
      expect(peer.answer(1).body.getUint8(4095)).toBe(i & 0xff)
      connection.flush()
    }
    expect(connection.hasOutput).toBeFalse()
  })
})
