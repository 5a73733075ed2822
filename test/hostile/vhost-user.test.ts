/**
 * A front-end that breaks the vhost-user protocol, against the running program: the inputs by number, each with the
 * reaction that it must have. After each of them the program holds no more than before, and serves the next front-end.
 */

import { dlopen } from 'bun:ffi'
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { until } from '../../scripts/frontends/native-process.ts'
import { POLLIN, POLLOUT } from '../../src/abi/linux.ts'
import {
  VHOST_TRANSFER_STATE_DIRECTION_LOAD,
  VHOST_TRANSFER_STATE_DIRECTION_SAVE,
  VHOST_TRANSFER_STATE_PHASE_STOPPED,
  VHOST_USER_ADD_MEM_REG,
  VHOST_USER_CHECK_DEVICE_STATE,
  VHOST_USER_GET_FEATURES,
  VHOST_USER_GET_INFLIGHT_FD,
  VHOST_USER_GET_MAX_MEM_SLOTS,
  VHOST_USER_GET_PROTOCOL_FEATURES,
  VHOST_USER_GET_QUEUE_NUM,
  VHOST_USER_GET_VRING_BASE,
  VHOST_USER_NEED_REPLY,
  VHOST_USER_NET_SET_MTU,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_REM_MEM_REG,
  VHOST_USER_SEND_RARP,
  VHOST_USER_SET_BACKEND_REQ_FD,
  VHOST_USER_SET_DEVICE_STATE_FD,
  VHOST_USER_SET_FEATURES,
  VHOST_USER_SET_INFLIGHT_FD,
  VHOST_USER_SET_LOG_BASE,
  VHOST_USER_SET_LOG_FD,
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
  VHOST_USER_VRING_KICK,
} from '../../src/abi/vhost-user.ts'
import { EventFd } from '../../src/sys/eventfd.ts'
import { OwnedFd } from '../../src/sys/fd.ts'
import { native } from '../../src/sys/native.ts'
import { bit } from '../support/bits.ts'
import { SplitDriver } from '../support/driver-model.ts'
import { GuestMemory } from '../support/guest-memory.ts'
import { LingeringSocket } from '../support/lingering-socket.ts'
import { fileOfLongPath } from '../support/long-path.ts'
import { noRealTaps } from '../support/network-namespace.ts'
import { HANG_MS, TEST_MS } from '../support/patience.ts'
import { socketPair } from '../support/socket-pair.ts'
import { HEADER_BYTES } from '../support/tap-lab.ts'
import { Backend, type Resources } from '../support/vhost-user-backend.ts'
import {
  bodyOf,
  Frontend,
  type FrontendOptions,
  memRegOf,
  poll,
  tableOf,
  VhostUserClient,
} from '../support/vhost-user-client.ts'
import { Traffic } from '../support/vhost-user-traffic.ts'

setDefaultTimeout(TEST_MS)

const { EAGAIN, ECONNRESET, EPIPE } = constants.errno
const libc = dlopen('libc.so.6', {
  eventfd: { args: ['u32', 'i32'], returns: 'i32' },
  pipe: { args: ['ptr'], returns: 'i32' },
})
/** How long a TCP socket lingers. */
const LINGER_S = 60
/** sys/eventfd.h. */
const EFD_SEMAPHORE = 1
/** Never sent by us, nor offered. */
const VHOST_USER_IOTLB_MSG = 22
const INFLIGHT = bit(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)
const REPLY_ACK = bit(VHOST_USER_PROTOCOL_F_REPLY_ACK)
const DEVICE_STATE = bit(VHOST_USER_PROTOCOL_F_DEVICE_STATE)
const SAVE = VHOST_TRANSFER_STATE_DIRECTION_SAVE
const LOAD = VHOST_TRANSFER_STATE_DIRECTION_LOAD
const STATE = '{"vduse-net":1,"mtu":1500,"queuePairs":1}'

describe.skipIf(noRealTaps !== null)('vhost-user input', () => {
  let backend: Backend
  let traffic: Traffic
  let idle: Resources

  beforeAll(async () => {
    backend = await Backend.start({ args: ['--in-band'] })
    traffic = new Traffic(backend)
    // Each thread gets what it keeps on its first signal.
    {
      using frontend = Frontend.start(backend.socketPath)
      traffic.pass(frontend)
      frontend.tx.driver.availIdx = 1000
      frontend.tx.kick.signal()
      expect(poll(frontend.tx.err.fd, POLLIN, HANG_MS)).toBe(POLLIN)
    }
    await backend.logged(/front-end disconnected/)
    idle = backend.resources()
  })

  afterAll(async () => {
    await backend[Symbol.asyncDispose]()
  })

  /** An input: what it does, and then that nothing came of it. */
  const input = (title: string, act: () => void | Promise<void>): void => {
    test(title, async () => {
      await act()
      traffic.serveNext()
      await backend.releases(idle)
      expect(backend.exitCode).toBeNull()
    })
  }

  const connect = (): VhostUserClient => VhostUserClient.connect(backend.socketPath)

  /** One that is past negotiation, with REPLY_ACK. */
  const negotiated = (options: FrontendOptions = {}): Frontend => {
    const frontend = new Frontend(connect(), options)
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

  input('89: a message that takes longer than 5 s closes the connection', () => {
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
    expect(performance.now() - began).toBeLessThan(18_000)
  })

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

  /** Asks of the card's queues. */
  const queue = async (index: number): Promise<{ kicks: number; quarantined: string | null }> => {
    const { queues } = (await backend.ask('/v1/queues')) as { queues: { kicks: number; quarantined: string | null }[] }
    return queues[index]!
  }

  input('93: a descriptor whose path is too long to be told is refused, whatever it is for', () => {
    using frontend = negotiated({ protocolFeatures: REPLY_ACK | bit(VHOST_USER_PROTOCOL_F_BACKEND_REQ) })
    frontend.shareMemory()
    frontend.placeRing(frontend.tx)
    using file = fileOfLongPath()
    for (const request of [
      VHOST_USER_SET_VRING_KICK,
      VHOST_USER_SET_VRING_CALL,
      VHOST_USER_SET_VRING_ERR,
      VHOST_USER_SET_LOG_FD,
      VHOST_USER_SET_BACKEND_REQ_FD,
    ])
      expect([request, frontend.client.carriesOut(request, bodyOf(1n), [file.fd])]).toEqual([request, false])
  })

  input('93: a descriptor that cannot be closed at once keeps nobody waiting, whatever it comes with', () => {
    for (const [request, body] of [
      [VHOST_USER_SET_VRING_KICK, bodyOf(1n)],
      [VHOST_USER_SET_VRING_CALL, bodyOf(1n)],
      [VHOST_USER_SET_BACKEND_REQ_FD, bodyOf(0n)],
      [VHOST_USER_GET_FEATURES, new Uint8Array(0)],
    ] as const) {
      using lingering = new LingeringSocket(LINGER_S)
      const began = performance.now()
      {
        using frontend = negotiated()
        const message = Buffer.concat([bodyOf(request, VHOST_USER_VERSION, body.length), body])
        frontend.client.sendBytes(message.subarray(0, 1), [lingering.socket.fd])
        // The card's is the last one: it keeps the descriptor until the message is whole.
        lingering.socket[Symbol.dispose]()
        frontend.client.sendBytes(message.subarray(1))
        if (request === VHOST_USER_GET_FEATURES) expect(frontend.client.isClosed()).toBeTrue()
      }
      traffic.serveNext()
      expect(performance.now() - began).toBeLessThan((LINGER_S * 1000) / 2)
    }
  })

  input('93: a kick that is readable for ever is listened to now and then only', async () => {
    using frontend = Frontend.start(backend.socketPath)
    // One read takes 1 of a semaphore, and there are very many.
    const semaphore = new OwnedFd(libc.symbols.eventfd(0, EFD_SEMAPHORE))
    const many = new BigUint64Array([2n ** 63n])
    expect(native.vn_write(semaphore.fd, many, 8)).toBe(8)
    const ring = frontend.tx
    frontend.stopRing(ring)
    expect(frontend.client.carriesOut(VHOST_USER_SET_VRING_KICK, bodyOf(1n), [semaphore.fd])).toBeTrue()
    const before = (await queue(1)).kicks
    const began = performance.now()
    await until('the ring to be kicked for a while', () => performance.now() - began > 500)
    const perSecond = ((await queue(1)).kicks - before) / ((performance.now() - began) / 1000)
    expect(perSecond).toBeGreaterThan(0)
    // 256 kicks each 5 ms.
    expect(perSecond).toBeLessThan(60_000)
    traffic.pass(frontend)
    semaphore[Symbol.dispose]()
  })

  input('94: a front-end that makes shared eventfds block does not block the card', () => {
    using frontend = Frontend.start(backend.socketPath)
    for (const ring of frontend.rings) for (const event of [ring.kick, ring.call]) native.vn_set_nonblock(event.fd, 0)
    // Calls into a counter that is full.
    const full = new BigUint64Array([2n ** 64n - 2n])
    for (const ring of frontend.rings) expect(native.vn_write(ring.call.fd, full, 8)).toBe(8)
    for (let i = 0; i < 20; i++) {
      frontend.transmit(traffic.frame())
      frontend.usedWithoutCall(frontend.tx)
    }
    backend.wire.drain()
    // Kicks that somebody else has read before the card does.
    for (let i = 0; i < 20_000; i++) {
      frontend.tx.kick.signal()
      frontend.tx.kick.drain()
    }
    expect(frontend.stopRing(frontend.tx)).toBe(20)
    expect(frontend.stopRing(frontend.rx)).toBeGreaterThanOrEqual(0)
  })

  input('95: a call descriptor that is full loses nothing', () => {
    using frontend = Frontend.start(backend.socketPath)
    const full = new BigUint64Array([2n ** 64n - 2n])
    expect(native.vn_write(frontend.tx.call.fd, full, 8)).toBe(8)
    for (let i = 0; i < 20; i++) {
      frontend.transmit(traffic.frame())
      frontend.usedWithoutCall(frontend.tx)
    }
    backend.wire.drain()
    frontend.tx.call.drain()
    traffic.pass(frontend)
  })

  input('96: a ring that does not exist is refused, whatever its index becomes when it is cut', () => {
    using frontend = negotiated()
    frontend.shareMemory()
    for (const index of [3, 7, 255, 0x100, 0x1_0000, 0x1_0001, 0x8000_0000, 0xffff_ffff]) {
      const { client } = frontend
      for (const request of [
        VHOST_USER_SET_VRING_NUM,
        VHOST_USER_SET_VRING_BASE,
        VHOST_USER_GET_VRING_BASE,
        VHOST_USER_SET_VRING_ENABLE,
      ]) {
        expect([request, index, client.carriesOut(request, bodyOf(index, 1))]).toEqual([request, index, false])
      }
      const addresses = frontend.addressesOf(frontend.tx)
      new DataView(addresses.buffer).setUint32(0, index, true)
      expect(client.carriesOut(VHOST_USER_SET_VRING_ADDR, addresses)).toBeFalse()
      // Bit 8 says that there is no descriptor.
      if ((index & 0x100) !== 0) continue
      for (const request of [VHOST_USER_SET_VRING_KICK, VHOST_USER_SET_VRING_CALL, VHOST_USER_SET_VRING_ERR]) {
        expect(client.carriesOut(request, bodyOf(BigInt(index)), [frontend.tx.kick.fd])).toBeFalse()
      }
    }
  })

  input('97: a ring size that cannot be is refused', () => {
    using frontend = negotiated()
    for (const size of [0, 3, 1023, 1025, 2048, 32769, 0x1_0040, 0x8000_0000, 0xffff_ffff]) {
      expect([size, frontend.client.carriesOut(VHOST_USER_SET_VRING_NUM, bodyOf(0, size))]).toEqual([size, false])
    }
    for (const size of [1, 2, 1024])
      expect(frontend.client.carriesOut(VHOST_USER_SET_VRING_NUM, bodyOf(0, size))).toBeTrue()
  })

  input('97: the size of a ring that runs and is enabled is refused, and the ring goes on', () => {
    using frontend = Frontend.start(backend.socketPath)
    traffic.pass(frontend)
    for (const { index, driver } of frontend.rings)
      for (const size of [driver.size, driver.size / 2])
        expect(frontend.client.carriesOut(VHOST_USER_SET_VRING_NUM, bodyOf(index, size))).toBeFalse()
    traffic.pass(frontend)
  })

  input(
    '97: the size of a ring that runs and is disabled stops it, to be set up anew as by a driver bound again',
    () => {
      using frontend = Frontend.start(backend.socketPath)
      const { client, memory, tx } = frontend
      traffic.pass(frontend)
      const smaller = new SplitDriver(memory, { size: tx.driver.size / 2 })
      const addresses = (driver: SplitDriver): Uint8Array => {
        const places = [driver.descAddr, driver.usedAddr, driver.availAddr].map((at) => BigInt(memory.user(at)))
        return bodyOf(tx.index, 0, ...places, 0n)
      }
      // Only the size says that it is to begin anew: without that its addresses and its base stay.
      frontend.enable(tx, false)
      expect(client.carriesOut(VHOST_USER_SET_VRING_ADDR, addresses(smaller))).toBeFalse()
      expect(client.carriesOut(VHOST_USER_SET_VRING_BASE, bodyOf(tx.index, 0))).toBeFalse()
      expect(client.carriesOut(VHOST_USER_SET_VRING_NUM, bodyOf(tx.index, smaller.size))).toBeTrue()

      // It has stopped: what is made available in the old ring stays there, enabled or not.
      const { usedIdx } = tx.driver
      frontend.transmit(traffic.frame())
      frontend.enable(tx, true)
      frontend.settle()
      tx.kick.signal()
      expect(backend.wire.receive(50)).toBeNull()
      expect(tx.driver.usedIdx).toBe(usedIdx)
      traffic.in(frontend)

      // The new one, from its beginning.
      expect(client.carriesOut(VHOST_USER_SET_VRING_BASE, bodyOf(tx.index, 0))).toBeTrue()
      expect(client.carriesOut(VHOST_USER_SET_VRING_ADDR, addresses(smaller))).toBeTrue()
      frontend.giveKick(tx)
      const frame = traffic.frame()
      const buffer = memory.allocate(HEADER_BYTES + frame.length)
      memory.bytes(buffer + HEADER_BYTES, frame.length).set(frame)
      const id = smaller.add([{ address: buffer, length: HEADER_BYTES + frame.length }])
      smaller.publish()
      tx.call.drain()
      tx.kick.signal()
      traffic.arrives(frame)
      expect(tx.called()).toBeTrue()
      expect(smaller.reap()).toEqual({ id, length: 0 })
      expect(frontend.stopRing(tx)).toBe(1)
    },
  )

  input('98: what is said again a thousand times leaks nothing', () => {
    using frontend = Frontend.start(backend.socketPath)
    const before = backend.resources()
    for (let i = 0; i < 1000; i++) {
      const { client, rings } = frontend
      client.send(VHOST_USER_SET_VRING_CALL, bodyOf(1n), { fds: [rings[1]!.call.fd] })
      client.send(VHOST_USER_SET_VRING_ERR, bodyOf(1n), { fds: [rings[1]!.err.fd] })
      frontend.shareMemory()
      if (i % 50 === 0) frontend.settle()
    }
    for (let i = 0; i < 100; i++) {
      frontend.stopRing(frontend.tx)
      frontend.startRing(frontend.tx)
    }
    frontend.settle()
    const after = backend.resources()
    expect(after.fds.length).toBe(before.fds.length)
    expect(after.guestMaps).toBe(before.guestMaps)
  })

  input('99: a kick before memory, addresses or size is refused; ENABLE may come at any time', () => {
    using frontend = negotiated()
    const { client, tx } = frontend
    const kick = (): boolean => client.carriesOut(VHOST_USER_SET_VRING_KICK, bodyOf(1n), [tx.kick.fd])
    expect(kick()).toBeFalse()
    expect(client.carriesOut(VHOST_USER_SET_VRING_ADDR, frontend.addressesOf(tx))).toBeFalse()
    expect(client.carriesOut(VHOST_USER_SET_VRING_NUM, bodyOf(1, tx.driver.size))).toBeTrue()
    expect(client.carriesOut(VHOST_USER_SET_VRING_ADDR, frontend.addressesOf(tx))).toBeFalse()
    expect(kick()).toBeFalse()
    // QEMU does so before anything else.
    expect(client.carriesOut(VHOST_USER_SET_VRING_ENABLE, bodyOf(1, 1))).toBeTrue()
    expect(client.carriesOut(VHOST_USER_SET_VRING_ENABLE, bodyOf(1, 2))).toBeFalse()
    frontend.shareMemory()
    expect(kick()).toBeFalse()
    expect(client.carriesOut(VHOST_USER_SET_VRING_ADDR, frontend.addressesOf(tx))).toBeTrue()
    expect(kick()).toBeTrue()
  })

  /** The addresses of a ring with one of them moved: descriptor table 0, used ring 1, avail ring 2. */
  const moved = (frontend: Frontend, which: number, by: bigint): Uint8Array => {
    const body = frontend.addressesOf(frontend.tx)
    const view = new DataView(body.buffer)
    view.setBigUint64(8 + which * 8, BigInt.asUintN(64, view.getBigUint64(8 + which * 8, true) + by), true)
    return body
  }

  input('100: misaligned ring addresses are refused', () => {
    using frontend = negotiated()
    frontend.shareMemory()
    frontend.placeRing(frontend.tx)
    for (const [which, steps] of [
      [0, [1n, 2n, 4n, 8n]],
      [1, [1n, 2n]],
      [2, [1n]],
    ] as const) {
      for (const step of steps)
        expect([
          which,
          step,
          frontend.client.carriesOut(VHOST_USER_SET_VRING_ADDR, moved(frontend, which, step)),
        ]).toEqual([which, step, false])
    }
  })

  input('101: a ring whose end lies outside of its region is refused', () => {
    using frontend = negotiated()
    frontend.shareMemory()
    frontend.placeRing(frontend.tx)
    const size = frontend.tx.driver.size
    const end = BigInt(frontend.memory.user(frontend.memory.end))
    for (const [which, bytes] of [
      [0, 16 * size],
      [1, 6 + 8 * size],
      [2, 6 + 2 * size],
    ] as const) {
      for (const at of [end - BigInt(bytes) + 16n, end - 16n, end, 0n, 2n ** 64n - 16n, 2n ** 53n]) {
        const body = frontend.addressesOf(frontend.tx)
        new DataView(body.buffer).setBigUint64(8 + which * 8, at & ~15n, true)
        expect([which, at, frontend.client.carriesOut(VHOST_USER_SET_VRING_ADDR, body)]).toEqual([which, at, false])
      }
    }
  })

  input('102: no memory region, or more than 8, close the connection', () => {
    for (const count of [0, 9, 0xffff_ffff]) {
      using frontend = negotiated()
      frontend.client.send(VHOST_USER_SET_MEM_TABLE, new Uint8Array([...bodyOf(count, 0), ...new Uint8Array(8 * 32)]), {
        fds: Array<number>(Math.min(count, 8)).fill(frontend.memory.fd),
      })
      expect(frontend.client.isClosed()).toBeTrue()
    }
  })

  /** SET_MEM_TABLE of regions as given: guest address, length, user address, offset. */
  const tableOfNumbers = (...regions: readonly (readonly [bigint, bigint, bigint, bigint])[]): Uint8Array =>
    new Uint8Array(Buffer.concat([bodyOf(regions.length, 0), ...regions.map((region) => bodyOf(...region))]))

  const M = 1n << 20n

  input('103: a region that ends beyond all addresses closes the connection', () => {
    const top = 2n ** 64n
    for (const region of [
      [top - 4096n, M, 0n, 0n],
      [0n, top - 1n, 0n, 0n],
      [0n, M, top - 4096n, 0n],
      [0n, M, 0n, top - 4096n],
      [2n ** 53n, M, 0n, 0n],
      [0n, 0n, 0n, 0n],
    ] as const) {
      using frontend = negotiated()
      frontend.client.send(VHOST_USER_SET_MEM_TABLE, tableOfNumbers(region), { fds: [frontend.memory.fd] })
      expect(frontend.client.isClosed()).toBeTrue()
    }
  })

  input('104: regions that overlap close the connection', () => {
    for (const second of [
      [M / 2n, M, 16n * M, 0n],
      [16n * M, M, M / 2n, 0n],
      [0n, M, 0n, 0n],
    ] as const) {
      using frontend = negotiated()
      frontend.client.send(VHOST_USER_SET_MEM_TABLE, tableOfNumbers([0n, M, 0n, 0n], second), {
        fds: [frontend.memory.fd, frontend.memory.fd],
      })
      expect(frontend.client.isClosed()).toBeTrue()
    }
  })

  input('105, 106: a region larger than its file, or than any guest, is refused', () => {
    using frontend = negotiated()
    const sets = (table: Uint8Array, fd: number): boolean =>
      frontend.client.carriesOut(VHOST_USER_SET_MEM_TABLE, table, [fd])
    expect(sets(tableOfNumbers([0n, 2n ** 45n, 0n, 0n]), frontend.memory.fd)).toBeFalse()
    expect(sets(tableOfNumbers([0n, M + 1n, 0n, 0n]), frontend.memory.fd)).toBeFalse()
    expect(sets(tableOfNumbers([0n, M, 0n, 4096n]), frontend.memory.fd)).toBeFalse()
    for (const path of ['/dev/zero', '/', '/dev/null']) {
      const fd = openSync(path, 'r')
      expect(sets(tableOfNumbers([0n, M, 0n, 0n]), fd)).toBeFalse()
      closeSync(fd)
    }
    const readOnly = openSync(`/proc/self/fd/${frontend.memory.fd}`, 'r')
    expect(sets(tableOfNumbers([0n, M, 0n, 0n]), readOnly)).toBeFalse()
    closeSync(readOnly)
    expect(sets(tableOfNumbers([0n, M, 0n, 0n]), frontend.memory.fd)).toBeTrue()
  })

  input(
    '107: a front-end that truncates its memory under traffic loses its connection, and nothing else happens',
    () => {
      for (let round = 0; round < 10; round++) {
        using frontend = Frontend.start(backend.socketPath)
        traffic.pass(frontend)
        frontend.provide(8)
        frontend.transmit(traffic.frame(), { kick: false })
        frontend.memory.truncate(round % 2 === 0 ? 0 : 4096)
        for (let i = 0; i < 4; i++) backend.wire.send(traffic.frame())
        frontend.tx.kick.signal()
        expect(frontend.client.isClosed()).toBeTrue()
        expect((poll(frontend.tx.err.fd, POLLIN, 0) | poll(frontend.rx.err.fd, POLLIN, 0)) & POLLIN).toBe(POLLIN)
      }
      backend.wire.drain()
    },
  )

  input('108: memory that turns out not to be there, as when huge pages run out, ends the connection', () => {
    const folder = mkdtempSync(join(tmpdir(), 'vduse-net-full-'))
    const mounted = Bun.spawnSync(['mount', '-t', 'tmpfs', '-o', 'size=256k', 'none', folder])
    expect(mounted.stderr.toString()).toBe('')
    try {
      using frontend = new Frontend(connect(), { memory: { file: join(folder, 'guest') } })
      frontend.negotiate()
      frontend.shareMemory()
      for (const ring of frontend.rings) frontend.startRing(ring)
      frontend.settle()
      // Behind what the file system has room for: the front-end itself never touches it.
      const beyond = frontend.memory.end - 16 * 4096
      for (let i = 0; i < 8; i++) frontend.rx.driver.add([{ address: beyond + i * 4096, length: 2048, writable: true }])
      const filler = openSync(join(folder, 'filler'), 'w')
      expect(() => {
        for (;;) writeSync(filler, new Uint8Array(4096))
      }).toThrow('ENOSPC')
      closeSync(filler)
      frontend.rx.publish()
      for (let i = 0; i < 8; i++) backend.wire.send(traffic.frame())
      expect(frontend.client.isClosed()).toBeTrue()
    } finally {
      Bun.spawnSync(['umount', folder])
      rmSync(folder, { recursive: true })
    }
  })

  input('109: the memory table is replaced under traffic, and no packet is lost', () => {
    using frontend = Frontend.start(backend.socketPath)
    for (let i = 0; i < 200; i++) {
      frontend.shareMemory()
      const sent = traffic.frame()
      frontend.transmit(sent)
      frontend.shareMemory()
      traffic.arrives(sent)
      frontend.used(frontend.tx)
    }
    traffic.in(frontend)
    frontend.settle()
    expect(backend.resources().guestMaps).toBe(1)
  })

  input('109: a table without the memory of a running ring quarantines that ring, until it is set up anew', () => {
    using frontend = Frontend.start(backend.socketPath)
    using other = new GuestMemory(1 << 20, { start: 0x8000_0000 })
    traffic.pass(frontend)
    frontend.client.send(VHOST_USER_SET_MEM_TABLE, tableOf(other), { fds: [other.fd] })
    for (const ring of frontend.rings) expect(poll(ring.err.fd, POLLIN, HANG_MS)).toBe(POLLIN)
    frontend.shareMemory()
    for (const ring of frontend.rings) frontend.startRing(ring, frontend.stopRing(ring))
    frontend.settle()
    traffic.pass(frontend)
  })

  input('110: a region that is unknown or in use is not removed, one that is there not added again', () => {
    using frontend = Frontend.start(backend.socketPath)
    using more = new GuestMemory(1 << 20, { start: 0x8000_0000 })
    const { client } = frontend
    const add = (memory: GuestMemory): boolean =>
      client.carriesOut(VHOST_USER_ADD_MEM_REG, memRegOf(memory), [memory.fd])
    const remove = (memory: GuestMemory): boolean => client.carriesOut(VHOST_USER_REM_MEM_REG, memRegOf(memory))
    expect(remove(more)).toBeFalse()
    expect(add(more)).toBeTrue()
    expect(add(more)).toBeFalse()
    expect(remove(frontend.memory)).toBeFalse()
    traffic.pass(frontend)
    expect(remove(more)).toBeTrue()
    expect(remove(more)).toBeFalse()
    for (const ring of frontend.rings) frontend.stopRing(ring)
    expect(remove(frontend.memory)).toBeTrue()
  })

  input('111: a log that has no room for every page is refused', () => {
    using frontend = negotiated({ protocolFeatures: REPLY_ACK | bit(VHOST_USER_PROTOCOL_F_LOG_SHMFD) })
    frontend.shareMemory()
    const { client, memory } = frontend
    const needed = BigInt(memory.end / 4096 / 8)
    using log = new GuestMemory(1 << 20)
    const setLog = (bytes: bigint, offset: bigint): boolean => {
      client.send(VHOST_USER_SET_LOG_BASE, bodyOf(bytes, offset), {
        fds: [log.fd],
        flags: VHOST_USER_VERSION | VHOST_USER_NEED_REPLY,
      })
      return client.answer(VHOST_USER_SET_LOG_BASE).body.getBigUint64(0, true) === 0n
    }
    for (const [bytes, offset] of [
      [0n, 0n],
      [needed - 1n, 0n],
      [(1n << 20n) + 1n, 0n],
      [1n << 20n, 1n],
      [needed, 1n << 20n],
      [2n ** 64n - 1n, 1n],
      [needed, 2n ** 64n - needed],
    ] as const)
      expect([bytes, offset, setLog(bytes, offset)]).toEqual([bytes, offset, false])
    expect(setLog(needed, 3n)).toBeTrue()
    frontend.placeRing(frontend.tx)
    const beyond = Number(needed) * 8 * 4096
    for (const at of [beyond, beyond - 100, 2 ** 53])
      expect(client.carriesOut(VHOST_USER_SET_VRING_ADDR, frontend.addressesOf(frontend.tx, 1, at))).toBeFalse()
    expect(client.carriesOut(VHOST_USER_SET_VRING_ADDR, frontend.addressesOf(frontend.tx, 1, beyond - 4096))).toBeTrue()
    // A smaller one, once there is a ring in it.
    expect(setLog(needed - 1n, 0n)).toBeFalse()
  })

  const inflightOf = (bytes: bigint, offset: bigint, queues: number, size: number): Uint8Array => {
    const body = new Uint8Array(24)
    body.set(bodyOf(bytes, offset))
    new DataView(body.buffer).setUint16(16, queues, true)
    new DataView(body.buffer).setUint16(18, size, true)
    return body
  }

  input('98: GET_INFLIGHT_FD again and again leaks nothing', () => {
    using frontend = negotiated({ protocolFeatures: REPLY_ACK | INFLIGHT })
    const { client } = frontend
    const before = backend.resources()
    const get = (): number => {
      const { fds, body } = client.request(VHOST_USER_GET_INFLIGHT_FD, inflightOf(0n, 0n, 2, 64))
      expect(fds.length).toBe(1)
      for (const fd of fds) native.vn_close(fd)
      return Number(body.getBigUint64(0, true))
    }
    for (let i = 0; i < 500; i++) expect(get()).toBe(2 * (Math.ceil((16 + 16 * 64) / 64) * 64))
    const after = backend.resources()
    // One is kept, for a front-end that asks for what it has.
    expect(after.fds.length).toBe(before.fds.length + 1)
    expect(after.sharedMaps).toBe(before.sharedMaps + 1)
  })

  input('112: a record of chains in flight that lies is refused', () => {
    using frontend = negotiated({ protocolFeatures: REPLY_ACK | INFLIGHT })
    const { client } = frontend
    const region = Math.ceil((16 + 16 * 64) / 64) * 64
    using file = new GuestMemory(1 << 16)
    const sets = (bytes: number | bigint, offset: number | bigint, queues: number, size: number): boolean =>
      client.carriesOut(VHOST_USER_SET_INFLIGHT_FD, inflightOf(BigInt(bytes), BigInt(offset), queues, size), [file.fd])
    for (const [bytes, offset, queues, size] of [
      [2 * region, 0, 0, 64],
      [2 * region, 0, 2, 0],
      [2 * region - 1, 0, 2, 64],
      [2 * region, 0, 4, 64],
      [2 * region, 0, 2, 65535],
      [1 << 20, 0, 9, 64],
      [1 << 17, 1 << 16, 2, 64],
      [2 * region, 1, 2, 64],
      [2n ** 64n - 64n, 0, 2, 64],
      [2 * region, 2n ** 64n - 64n, 2, 64],
    ] as const)
      expect([bytes, offset, queues, size, sets(bytes, offset, queues, size)]).toEqual([
        bytes,
        offset,
        queues,
        size,
        false,
      ])
    // version, features, more entries than fit, a descriptor that is not there.
    const view = file.dataView(file.start, 1 << 16)
    const lies: readonly (readonly [number, number])[] = [
      [8, 2],
      [0, 1],
      [10, 65],
      [12, 64],
    ]
    for (const [at, value] of lies) {
      for (const base of [0, region]) {
        view.setUint16(base + 8, 1, true)
        view.setUint16(base + 10, 64, true)
        view.setUint16(base + at, value, true)
        expect([at, base, sets(2 * region, 0, 2, 64)]).toEqual([at, base, false])
        for (let i = 0; i < 16; i++) view.setUint8(base + i, 0)
      }
    }
    expect(sets(2 * region, 0, 2, 64)).toBeTrue()
    const fd = openSync('/', 'r')
    expect(client.carriesOut(VHOST_USER_SET_INFLIGHT_FD, inflightOf(BigInt(2 * region), 0n, 2, 64), [fd])).toBeFalse()
    closeSync(fd)
  })

  input('112: a record that lies about a ring quarantines it when it starts', () => {
    const region = Math.ceil((16 + 16 * 64) / 64) * 64
    for (const [at, value] of [
      // For a ring of another size; a batch that no ring of this size can have had.
      [10, 32],
      [14, 1000],
    ] as const) {
      using frontend = negotiated({ protocolFeatures: REPLY_ACK | INFLIGHT })
      using file = new GuestMemory(1 << 16)
      const view = file.dataView(file.start, 1 << 16)
      view.setUint16(region + 8, 1, true)
      view.setUint16(region + 10, 64, true)
      view.setUint16(region + at, value, true)
      frontend.shareMemory()
      expect(
        frontend.client.carriesOut(VHOST_USER_SET_INFLIGHT_FD, inflightOf(BigInt(2 * region), 0n, 2, 64), [file.fd]),
      ).toBeTrue()
      for (const ring of frontend.rings) frontend.startRing(ring)
      expect(poll(frontend.tx.err.fd, POLLIN, HANG_MS)).toBe(POLLIN)
      traffic.in(frontend)
    }
  })

  for (const packed of [false, true]) {
    input(`112: a record that is too short for its ring quarantines it: ${packed ? 'packed' : 'split'}`, () => {
      using frontend = negotiated({ protocolFeatures: REPLY_ACK | INFLIGHT, packed, ringSize: 256 })
      frontend.shareMemory()
      const made = frontend.client.request(VHOST_USER_GET_INFLIGHT_FD, inflightOf(0n, 0n, 1, 4))
      using file = new OwnedFd(made.fds[0]!)
      const bytes = made.body.getBigUint64(0, true)
      const set = inflightOf(bytes, 0n, 1, 4)
      expect(frontend.client.carriesOut(VHOST_USER_SET_INFLIGHT_FD, set, [file.fd])).toBeTrue()
      for (const ring of frontend.rings) frontend.startRing(ring)
      expect(poll(frontend.rx.err.fd, POLLIN, HANG_MS)).toBe(POLLIN)
      traffic.out(frontend)
    })
  }

  input('113: in-band notifications without what they need close the connection', () => {
    for (const features of [0n, REPLY_ACK, bit(VHOST_USER_PROTOCOL_F_BACKEND_REQ)]) {
      using client = connect()
      client.send(VHOST_USER_SET_PROTOCOL_FEATURES, bodyOf(features | bit(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS)))
      expect(client.isClosed()).toBeTrue()
    }
  })

  input('a kick by message does not wait for room in a kick descriptor that blocks', () => {
    const needed = bit(VHOST_USER_PROTOCOL_F_BACKEND_REQ) | bit(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS)
    using frontend = new Frontend(connect(), { protocolFeatures: REPLY_ACK | needed })
    const { rx, tx } = frontend
    frontend.negotiate()
    frontend.shareMemory()
    frontend.startRing(tx)
    // Not enabled, it does not run: nothing empties the counter.
    frontend.placeRing(rx)
    frontend.giveKick(rx)
    frontend.settle()
    native.vn_set_nonblock(rx.kick.fd, 0)
    expect(native.vn_write(rx.kick.fd, new BigUint64Array([2n ** 64n - 2n]), 8)).toBe(8)
    frontend.client.send(VHOST_USER_VRING_KICK, bodyOf(rx.index, 0))
    frontend.settle()
    traffic.out(frontend)
  })

  input('114: a protocol feature that was not offered is refused', () => {
    using frontend = negotiated()
    // CONFIG is kept from those who do not want it, and taken from those who do.
    const offered = frontend.client.u64(VHOST_USER_GET_PROTOCOL_FEATURES) | bit(VHOST_USER_PROTOCOL_F_CONFIG)
    for (let feature = 0; feature < 64; feature++) {
      if ((offered & bit(feature)) !== 0n) continue
      expect(frontend.client.carriesOut(VHOST_USER_SET_PROTOCOL_FEATURES, bodyOf(REPLY_ACK | bit(feature)))).toBeFalse()
    }
  })

  input('115: a second front-end is refused, and the first does not notice', () => {
    using frontend = Frontend.start(backend.socketPath)
    for (let i = 0; i < 20; i++) {
      using second = connect()
      expect(second.isClosed()).toBeTrue()
    }
    traffic.pass(frontend)
  })

  input('116: a hundred thousand messages at once keep nothing else from being done', async () => {
    using frontend = Frontend.start(backend.socketPath)
    const one = bodyOf(VHOST_USER_SET_OWNER, VHOST_USER_VERSION, 0)
    const enable = bodyOf(VHOST_USER_SET_VRING_ENABLE, VHOST_USER_VERSION, 8, 1, 1)
    const block = new Uint8Array(Buffer.concat(Array.from({ length: 1000 }, (_, i) => (i % 2 === 0 ? one : enable))))
    for (let i = 0; i < 100; i++) {
      frontend.client.sendBytes(block)
      if (i % 10 === 5) {
        traffic.pass(frontend)
        expect(((await backend.ask('/v1/device')) as { status: { bits: number } }).status.bits).toBe(15)
      }
    }
    traffic.pass(frontend)
  })

  input('117: a front-end that does not read its answers for 5 s loses its connection', () => {
    using client = connect()
    const request = bodyOf(VHOST_USER_GET_FEATURES, VHOST_USER_VERSION, 0)
    const block = new Uint8Array(Buffer.concat(Array<Uint8Array>(1000).fill(request)))
    const began = performance.now()
    let sent = 0
    do {
      sent = native.vn_send_fds(client.fd, block, block.length, new Int32Array(0), 0)
      if (sent === -EAGAIN) poll(client.fd, POLLOUT, 1_000)
    } while (sent !== -EPIPE && sent !== -ECONNRESET && performance.now() - began < HANG_MS)
    expect(performance.now() - began).toBeGreaterThan(4_000)
    expect(performance.now() - began).toBeLessThan(HANG_MS)
  })

  input('118: IOTLB messages are refused', () => {
    using frontend = negotiated()
    for (const permission of [0, 1, 3, 255])
      expect(frontend.client.carriesOut(VHOST_USER_IOTLB_MSG, bodyOf(0n, 4096n, 0n, permission, 2))).toBeFalse()
  })

  input('119: GET_VRING_BASE says the same when it is asked again', () => {
    using frontend = Frontend.start(backend.socketPath)
    for (let i = 0; i < 5; i++) {
      frontend.transmit(traffic.frame())
      frontend.used(frontend.tx)
    }
    backend.wire.drain()
    expect(frontend.stopRing(frontend.tx)).toBe(5)
    expect(frontend.stopRing(frontend.tx)).toBe(5)
    // Stopped: what is made available now waits.
    const waiting = traffic.frame()
    frontend.transmit(waiting)
    expect(frontend.stopRing(frontend.tx)).toBe(5)
    expect(backend.wire.receive(100)).toBeNull()
    frontend.startRing(frontend.tx, 5)
    frontend.settle()
    traffic.arrives(waiting)
  })

  /** Ends of a pipe that blocks: for reading, for writing. */
  const pipe = (): readonly [OwnedFd, OwnedFd] => {
    const ends = new Int32Array(2)
    expect(libc.symbols.pipe(ends)).toBe(0)
    return [new OwnedFd(ends[0]!), new OwnedFd(ends[1]!)]
  }

  /** One that may hand over states. */
  const migrating = (): Frontend => negotiated({ protocolFeatures: REPLY_ACK | DEVICE_STATE })

  /** SET_DEVICE_STATE_FD: what is answered, and the channel that comes with it. */
  const beginState = (
    { client }: Frontend,
    direction: number,
    options: { readonly phase?: number; readonly fd?: number } = {},
  ): { readonly answer: bigint; readonly fds: readonly number[] } => {
    const { phase = VHOST_TRANSFER_STATE_PHASE_STOPPED, fd = client.fd } = options
    const { body, fds } = client.request(VHOST_USER_SET_DEVICE_STATE_FD, bodyOf(direction, phase), [fd])
    return { answer: body.getBigUint64(0, true), fds }
  }

  /** As {@link beginState} when it must go well: the channel. */
  const channelOf = (frontend: Frontend, direction: number, fd?: number): OwnedFd => {
    const { answer, fds } = beginState(frontend, direction, fd === undefined ? {} : { fd })
    expect([answer, fds.length]).toEqual([0n, 1])
    return new OwnedFd(fds[0]!)
  }

  const checkState = ({ client }: Frontend): bigint => client.u64(VHOST_USER_CHECK_DEVICE_STATE)

  const saves = (frontend: Frontend, fd?: number): void => {
    using channel = channelOf(frontend, SAVE, fd)
    expect(readFileSync(channel.fd, 'utf8')).toBe(STATE)
    expect(checkState(frontend)).toBe(0n)
  }

  /** The front-end's end stays open while it asks what became of the text. */
  const loads = (frontend: Frontend, text: string, fd?: number): bigint => {
    using channel = channelOf(frontend, LOAD, fd)
    writeFileSync(channel.fd, text)
    return checkState(frontend)
  }

  input(
    'DEVICE_STATE: whatever is offered as a channel is closed, and neither read nor written nor waited for',
    async () => {
      using frontend = migrating()
      using cleanup = new DisposableStack()
      const folder = mkdtempSync(join(tmpdir(), 'vduse-net-channels-'))
      cleanup.defer(() => rmSync(folder, { recursive: true }))
      const file = join(folder, 'file')
      writeFileSync(file, 'untouched')
      const [silentEnd, silent] = pipe()
      const [fullEnd, full] = pipe()
      const [unread, widow] = pipe()
      const [orphan, unwritten] = pipe()
      const [near, far] = socketPair()
      for (const end of [silentEnd, silent, fullEnd, full, widow, orphan]) cleanup.use(end)
      for (const end of [unread, unwritten]) end[Symbol.dispose]()
      native.vn_set_nonblock(full.fd, 1)
      while (native.vn_write(full.fd, new Uint8Array(4096), 4096) > 0);
      native.vn_set_nonblock(full.fd, 0)
      const event = cleanup.use(new EventFd())
      native.vn_set_nonblock(event.fd, 0)
      const opened = [openSync('/', 'r'), openSync(file, 'r+'), openSync('/dev/zero', 'r+'), near, far]
      for (const fd of opened) cleanup.defer(() => closeSync(fd))
      const pipes = [silentEnd, silent, fullEnd, full, widow, orphan].map(({ fd }) => fd)
      const before = backend.resources()
      for (const fd of [...opened, ...pipes, event.fd]) {
        saves(frontend, fd)
        expect(loads(frontend, STATE, fd)).toBe(0n)
        // It may answer before it has closed the last one.
        await backend.releases(before)
      }
      expect(readFileSync(file, 'utf8')).toBe('untouched')
      expect([poll(event.fd, POLLIN, 0), poll(silentEnd.fd, POLLIN, 0), poll(near, POLLIN, 0)]).toEqual([0, 0, 0])
      expect(poll(full.fd, POLLOUT, 0)).toBe(0)
    },
  )

  input('DEVICE_STATE: an unknown direction or phase is refused, and so is a transfer while a ring runs', () => {
    const refused = { answer: 0x101n, fds: [] }
    {
      using frontend = migrating()
      for (const direction of [2, 0x100, 0xffff_ffff]) expect(beginState(frontend, direction)).toEqual(refused)
      for (const phase of [1, 0x8000_0000]) expect(beginState(frontend, SAVE, { phase })).toEqual(refused)
      saves(frontend)
    }
    using running = Frontend.start(backend.socketPath, { protocolFeatures: REPLY_ACK | DEVICE_STATE })
    for (const ring of running.rings) {
      for (const direction of [SAVE, LOAD]) expect(beginState(running, direction)).toEqual(refused)
      traffic.pass(running)
      for (const other of running.rings) if (other !== ring) running.stopRing(other)
      for (const direction of [SAVE, LOAD]) expect(beginState(running, direction)).toEqual(refused)
      running.stopRing(ring)
      saves(running)
      for (const stopped of running.rings) running.startRing(stopped, stopped.driver.usedIdx)
      running.settle()
    }
    traffic.pass(running)
  })

  input('DEVICE_STATE: a text that is not ours, or of a card that this one cannot replace, is refused', () => {
    using frontend = migrating()
    for (const text of [
      '',
      'virtiofsd',
      STATE.slice(0, -1),
      STATE.replace('1', '2'),
      STATE.padEnd(4097),
      'x'.repeat(16 << 20),
      STATE.replace('1500', '9000'),
      STATE.replace(':1}', ':2}'),
    ])
      expect([text.slice(0, 50), loads(frontend, text)]).toEqual([text.slice(0, 50), 1n])
    for (const text of [STATE, STATE.padEnd(4096), STATE.replace('1500', '1280')])
      expect([text, loads(frontend, text)]).toEqual([text, 0n])
  })

  input('DEVICE_STATE: there is nothing to check before a transfer, or after it has been checked', () => {
    using frontend = migrating()
    expect(checkState(frontend)).toBe(1n)
    saves(frontend)
    expect(checkState(frontend)).toBe(1n)
    expect(loads(frontend, STATE)).toBe(0n)
    expect(checkState(frontend)).toBe(1n)
    expect(beginState(frontend, 2).answer).toBe(0x101n)
    expect(checkState(frontend)).toBe(1n)
  })

  input('DEVICE_STATE: a transfer takes the place of the one before, a thousand times', () => {
    using frontend = migrating()
    using first = channelOf(frontend, LOAD)
    writeFileSync(first.fd, STATE)
    const one = backend.resources()
    for (let i = 0; i < 1000; i++) channelOf(frontend, i % 2 === 0 ? SAVE : LOAD)[Symbol.dispose]()
    expect(backend.resources().fds.length).toBe(one.fds.length)
    expect(checkState(frontend)).toBe(1n)
    // Refused, it still ends the one before.
    using second = channelOf(frontend, LOAD)
    writeFileSync(second.fd, STATE)
    expect(beginState(frontend, 2).answer).toBe(0x101n)
    expect(checkState(frontend)).toBe(1n)
  })

  input('DEVICE_STATE: a front-end that goes in the middle of a transfer leaves nothing behind', () => {
    for (const direction of [SAVE, LOAD]) {
      using frontend = migrating()
      using _channel = channelOf(frontend, direction)
    }
    // It does not even take the answer.
    using hasty = migrating()
    hasty.client.send(VHOST_USER_SET_DEVICE_STATE_FD, bodyOf(LOAD, 0), { fds: [hasty.client.fd] })
  })

  input('DEVICE_STATE: a request of another form, or that was not negotiated, is refused', () => {
    for (const fds of [0, 2]) {
      using frontend = migrating()
      frontend.client.send(VHOST_USER_SET_DEVICE_STATE_FD, bodyOf(SAVE, 0), {
        fds: Array<number>(fds).fill(frontend.client.fd),
      })
      expect(frontend.client.isClosed()).toBeTrue()
    }
    for (const protocolFeatures of [REPLY_ACK, REPLY_ACK | DEVICE_STATE]) {
      using frontend = negotiated({ protocolFeatures })
      const { client, memory } = frontend
      const sets = (body: Uint8Array): boolean => client.carriesOut(VHOST_USER_SET_DEVICE_STATE_FD, body, [memory.fd])
      for (const bytes of [0, 7, 9]) expect(sets(new Uint8Array(bytes))).toBeFalse()
      expect(client.carriesOut(VHOST_USER_CHECK_DEVICE_STATE, new Uint8Array(1))).toBeFalse()
      if (protocolFeatures !== REPLY_ACK) continue
      expect(sets(bodyOf(SAVE, VHOST_TRANSFER_STATE_PHASE_STOPPED))).toBeFalse()
      expect(client.carriesOut(VHOST_USER_CHECK_DEVICE_STATE)).toBeFalse()
    }
  })
})
