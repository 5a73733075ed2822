/**
 * A front-end that breaks the vhost-user protocol, against the running program: the inputs by number, each with the reaction
 * that it must have. After each of them the program holds no more than before, and serves the next front-end.
 */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { closeSync, openSync } from 'node:fs'
import {
  VHOST_USER_GET_FEATURES,
  VHOST_USER_GET_MAX_MEM_SLOTS,
  VHOST_USER_GET_PROTOCOL_FEATURES,
  VHOST_USER_GET_QUEUE_NUM,
  VHOST_USER_GET_VRING_BASE,
  VHOST_USER_NET_SET_MTU,
  VHOST_USER_SEND_RARP,
  VHOST_USER_SET_FEATURES,
  VHOST_USER_SET_MEM_TABLE,
  VHOST_USER_SET_OWNER,
  VHOST_USER_SET_PROTOCOL_FEATURES,
  VHOST_USER_SET_STATUS,
  VHOST_USER_SET_VRING_ADDR,
  VHOST_USER_SET_VRING_BASE,
  VHOST_USER_SET_VRING_CALL,
  VHOST_USER_SET_VRING_ENABLE,
  VHOST_USER_SET_VRING_ERR,
  VHOST_USER_SET_VRING_KICK,
  VHOST_USER_SET_VRING_NUM,
  VHOST_USER_VERSION,
} from '../../src/abi/vhost-user.ts'
import { EventFd } from '../../src/sys/eventfd.ts'
import { noRealTaps } from '../support/network-namespace.ts'
import { numberOf, testFrame } from '../support/packet-socket.ts'
import { Backend, type Resources } from '../support/vhost-user-backend.ts'
import { bodyOf, Frontend, VhostUserClient } from '../support/vhost-user-client.ts'

describe.skipIf(noRealTaps !== null)('vhost-user input', () => {
  let backend: Backend
  let idle: Resources

  beforeAll(async () => {
    backend = await Backend.start()
    serveNext()
    await backend.logged(/front-end disconnected/)
    idle = backend.resources()
  })

  afterAll(async () => {
    await backend[Symbol.asyncDispose]()
  })

  let frames = 1000

  /** A well-behaved front-end gets its packets both ways. */
  const serveNext = (): void => {
    using frontend = Frontend.start(backend.socketPath)
    passTraffic(frontend)
  }

  const passTraffic = (frontend: Frontend): void => {
    const sent = ++frames
    frontend.transmit(testFrame(sent))
    const out = backend.wire.receive()
    expect(out === null ? null : numberOf(out)).toBe(sent)
    frontend.used(frontend.tx)
    receiveOne(frontend)
  }

  const receiveOne = (frontend: Frontend): void => {
    const wanted = ++frames
    const buffers = frontend.provide(8)
    backend.wire.send(testFrame(wanted))
    for (;;) {
      const { id, length } = frontend.used(frontend.rx)
      const at = buffers.get(id)! - frontend.memory.start
      if (numberOf(frontend.memory.bytes.slice(at + 12, at + length)) === wanted) return
    }
  }

  /** An input: what it does, and then that nothing came of it. */
  const input = (title: string, act: () => void | Promise<void>, timeoutMs = 20_000): void => {
    test(
      title,
      async () => {
        await act()
        serveNext()
        await backend.releases(idle)
        expect(backend.exitCode).toBeNull()
      },
      timeoutMs,
    )
  }

  const connect = (): VhostUserClient => VhostUserClient.connect(backend.socketPath)

  /** One that is past negotiation, with REPLY_ACK. */
  const negotiated = (): Frontend => {
    const frontend = new Frontend(connect())
    frontend.negotiate()
    return frontend
  }

  input('84: a message longer than any closes the connection', () => {
    for (const size of [0xffff_ffff, 0x7fff_ffff, 4097]) {
      using client = connect()
      client.send(VHOST_USER_GET_FEATURES, new Uint8Array(0), { size })
      expect(client.isClosed()).toBeTrue()
    }
  })

  const fixedSizes: readonly [string, number, number][] = [
    ['GET_FEATURES', VHOST_USER_GET_FEATURES, 0],
    ['SET_FEATURES', VHOST_USER_SET_FEATURES, 8],
    ['SET_OWNER', VHOST_USER_SET_OWNER, 0],
    ['GET_PROTOCOL_FEATURES', VHOST_USER_GET_PROTOCOL_FEATURES, 0],
    ['SET_PROTOCOL_FEATURES', VHOST_USER_SET_PROTOCOL_FEATURES, 8],
    ['SET_VRING_NUM', VHOST_USER_SET_VRING_NUM, 8],
    ['SET_VRING_ADDR', VHOST_USER_SET_VRING_ADDR, 40],
    ['SET_VRING_BASE', VHOST_USER_SET_VRING_BASE, 8],
    ['GET_VRING_BASE', VHOST_USER_GET_VRING_BASE, 8],
    ['SET_VRING_ENABLE', VHOST_USER_SET_VRING_ENABLE, 8],
    ['GET_QUEUE_NUM', VHOST_USER_GET_QUEUE_NUM, 0],
    ['SEND_RARP', VHOST_USER_SEND_RARP, 8],
    ['NET_SET_MTU', VHOST_USER_NET_SET_MTU, 8],
    ['GET_MAX_MEM_SLOTS', VHOST_USER_GET_MAX_MEM_SLOTS, 0],
    ['SET_STATUS', VHOST_USER_SET_STATUS, 8],
  ]
  input("85: a body of another size than the request's is refused", () => {
    {
      using frontend = negotiated()
      for (const [name, request, size] of fixedSizes) {
        for (const wrong of [size - 1, size + 1]) {
          if (wrong < 0) continue
          expect([name, wrong, frontend.client.carriesOut(request, new Uint8Array(wrong))]).toEqual([
            name,
            wrong,
            false,
          ])
        }
      }
    }
    using hasty = negotiated()
    hasty.client.send(VHOST_USER_SET_VRING_NUM, new Uint8Array(7))
    expect(hasty.client.isClosed()).toBeTrue()
  })

  input('86: another version, or an answer to nothing, closes the connection', () => {
    for (const flags of [0, 2, 3, 0x5, 0xd]) {
      using client = connect()
      client.send(VHOST_USER_GET_FEATURES, new Uint8Array(0), { flags })
      expect(client.isClosed()).toBeTrue()
    }
  })

  input('87: an unknown request is refused', () => {
    using frontend = negotiated()
    for (const request of [0, 26, 33, 44, 100, 0xffff_ffff]) expect(frontend.client.carriesOut(request)).toBeFalse()
    expect(frontend.client.carriesOut(100, new Uint8Array(4096))).toBeFalse()
    frontend.client.send(100)
    expect(frontend.client.isClosed()).toBeTrue()
  })

  input('88: a connection may end inside a message', () => {
    const message = bodyOf(VHOST_USER_SET_FEATURES, VHOST_USER_VERSION, 8, 0n)
    for (const bytes of [1, 11, 12, 19]) {
      using client = connect()
      client.sendBytes(message.subarray(0, bytes))
    }
  })

  input(
    '89: a message that takes longer than 5 s closes the connection',
    () => {
      using client = connect()
      const began = performance.now()
      const message = bodyOf(VHOST_USER_SET_FEATURES, VHOST_USER_VERSION, 8, 0n)
      let closed = false
      for (let at = 0; at < message.length && !closed; at++) {
        if (!client.sendBytes(message.subarray(at, at + 1))) break
        closed = client.isClosed(1_000)
      }
      expect(closed).toBeTrue()
      expect(performance.now() - began).toBeGreaterThan(4_500)
      expect(performance.now() - began).toBeLessThan(9_000)
    },
    40_000,
  )

  input('90: descriptors with a request that has none close the connection', () => {
    for (const request of [VHOST_USER_GET_FEATURES, VHOST_USER_SET_OWNER, VHOST_USER_SET_VRING_NUM, 100]) {
      using client = connect()
      using event = new EventFd()
      client.send(request, new Uint8Array(request === VHOST_USER_SET_VRING_NUM ? 8 : 0), { fds: [event.fd, event.fd] })
      expect(client.isClosed()).toBeTrue()
    }
  })

  input('91: another number of descriptors than the request has closes the connection', () => {
    for (const request of [VHOST_USER_SET_VRING_KICK, VHOST_USER_SET_VRING_CALL, VHOST_USER_SET_VRING_ERR]) {
      for (const [value, count] of [
        [0n, 0],
        [0n, 2],
        [0x100n, 1],
      ] as const) {
        using frontend = negotiated()
        frontend.client.send(request, bodyOf(value), { fds: Array<number>(count).fill(frontend.tx.kick.fd) })
        expect(frontend.client.isClosed()).toBeTrue()
      }
    }
    using frontend = negotiated()
    const table = new Uint8Array(8 + 2 * 32)
    table[0] = 2
    frontend.client.send(VHOST_USER_SET_MEM_TABLE, table, { fds: [frontend.memory.fd] })
    expect(frontend.client.isClosed()).toBeTrue()
  })

  input('92: more descriptors than a message may have close the connection, all of them closed', () => {
    for (const count of [9, 100, 253]) {
      using frontend = negotiated()
      frontend.client.send(VHOST_USER_SET_MEM_TABLE, new Uint8Array(8), {
        fds: Array<number>(count).fill(frontend.memory.fd),
      })
      expect(frontend.client.isClosed()).toBeTrue()
    }
  })

  input('93: a kick that is no eventfd is refused', () => {
    using frontend = negotiated()
    frontend.shareMemory()
    frontend.placeRing(frontend.tx)
    for (const path of ['/', '/dev/zero', '/dev/null', '/proc/self/status']) {
      const fd = openSync(path, 'r')
      expect(frontend.client.carriesOut(VHOST_USER_SET_VRING_KICK, bodyOf(1n), [fd])).toBeFalse()
      closeSync(fd)
    }
    expect(frontend.client.carriesOut(VHOST_USER_SET_VRING_KICK, bodyOf(1n), [frontend.client.fd])).toBeFalse()
    expect(frontend.client.carriesOut(VHOST_USER_SET_VRING_KICK, bodyOf(1n), [frontend.tx.kick.fd])).toBeTrue()
  })
})
