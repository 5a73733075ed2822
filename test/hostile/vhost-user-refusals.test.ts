/**
 * Requests that are refused though the front-end has not asked what becomes of them, against the running program. Where
 * the front-end can go on, the session does: what was refused counts as not set up, and nothing runs on what was said
 * before. docs/interop/vhost-user.rst.
 */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { openSync } from 'node:fs'
import {
  VHOST_USER_F_PROTOCOL_FEATURES,
  VHOST_USER_GET_INFLIGHT_FD,
  VHOST_USER_GET_VRING_BASE,
  VHOST_USER_NET_SET_MTU,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_USER_REM_MEM_REG,
  VHOST_USER_SET_BACKEND_REQ_FD,
  VHOST_USER_SET_FEATURES,
  VHOST_USER_SET_INFLIGHT_FD,
  VHOST_USER_SET_LOG_BASE,
  VHOST_USER_SET_LOG_FD,
  VHOST_USER_SET_MEM_TABLE,
  VHOST_USER_SET_PROTOCOL_FEATURES,
  VHOST_USER_SET_STATUS,
  VHOST_USER_SET_VRING_ADDR,
  VHOST_USER_SET_VRING_BASE,
  VHOST_USER_SET_VRING_CALL,
  VHOST_USER_SET_VRING_ENABLE,
  VHOST_USER_SET_VRING_KICK,
  VHOST_USER_SET_VRING_NUM,
} from '../../src/abi/vhost-user.ts'
import { OwnedFd } from '../../src/sys/fd.ts'
import { bit } from '../support/bits.ts'
import { GuestMemory } from '../support/guest-memory.ts'
import { noRealTaps } from '../support/network-namespace.ts'
import { Backend, type Resources } from '../support/vhost-user-backend.ts'
import { bodyOf, DRIVER_FEATURES, Frontend, memRegOf, VhostUserClient } from '../support/vhost-user-client.ts'
import { Traffic } from '../support/vhost-user-traffic.ts'

// For hangs.
setDefaultTimeout(120_000)

const PROTOCOL_FEATURES = [
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
].reduce((set, number) => set | bit(number), 0n)

describe.skipIf(noRealTaps !== null)('a request that is refused unasked', () => {
  let backend: Backend
  let traffic: Traffic
  let idle: Resources

  beforeAll(async () => {
    backend = await Backend.start()
    traffic = new Traffic(backend)
    traffic.serveNext()
    await backend.logged(/front-end disconnected/)
    idle = backend.resources()
  })

  afterAll(async () => {
    await backend[Symbol.asyncDispose]()
  })

  const start = (): Frontend => Frontend.start(backend.socketPath, { protocolFeatures: PROTOCOL_FEATURES })

  /** A file that is no eventfd, no socket and no pipe. */
  const other = (): OwnedFd => new OwnedFd(openSync('/dev/null', 'r'))

  type Say = (frontend: Frontend) => void
  const refused =
    (request: number, body: Uint8Array): Say =>
    ({ client }) =>
      void client.send(request, body)
  const refusedFd =
    (request: number, body: Uint8Array): Say =>
    ({ client }) => {
      using fd = other()
      client.send(request, body, { fds: [fd.fd] })
    }

  const harmless: readonly (readonly [string, Say])[] = [
    ['NET_SET_MTU of more than the card has', refused(VHOST_USER_NET_SET_MTU, bodyOf(9000n))],
    ['NET_SET_MTU of less than IPv4 needs', refused(VHOST_USER_NET_SET_MTU, bodyOf(67n))],
    ['SET_BACKEND_REQ_FD without a socket', refusedFd(VHOST_USER_SET_BACKEND_REQ_FD, bodyOf(0n))],
    ['SET_LOG_FD that cannot be signalled', refusedFd(VHOST_USER_SET_LOG_FD, new Uint8Array(0))],
    ['SET_STATUS that clears bits', refused(VHOST_USER_SET_STATUS, bodyOf(1n))],
    ['SET_STATUS of more than a byte', refused(VHOST_USER_SET_STATUS, bodyOf(0x100n))],
    ['SET_VRING_NUM of a ring that is not there', refused(VHOST_USER_SET_VRING_NUM, bodyOf(40, 64))],
    ['SET_VRING_BASE of a ring that is not there', refused(VHOST_USER_SET_VRING_BASE, bodyOf(0x1_0001, 0))],
    ['SET_VRING_ENABLE of a ring that is not there', refused(VHOST_USER_SET_VRING_ENABLE, bodyOf(40, 1))],
    ['SET_VRING_KICK of a ring that is not there', refusedFd(VHOST_USER_SET_VRING_KICK, bodyOf(40n))],
  ]
  for (const [title, say] of harmless) {
    test(`leaves everything as it was: ${title}`, async () => {
      {
        using frontend = start()
        traffic.pass(frontend)
        for (let i = 0; i < 3; i++) say(frontend)
        traffic.pass(frontend)
      }
      traffic.serveNext()
      await backend.releases(idle)
    })
  }

  test('leaves everything as it was: SET_VRING_ENABLE without protocol features', () => {
    using frontend = Frontend.start(backend.socketPath, { protocolFeatures: null })
    traffic.pass(frontend)
    for (const ring of frontend.rings) frontend.enable(ring, true)
    traffic.pass(frontend)
  })

  const addresses = (frontend: Frontend, by: bigint): Uint8Array => {
    const body = frontend.addressesOf(frontend.tx)
    const view = new DataView(body.buffer)
    view.setBigUint64(8, view.getBigUint64(8, true) + by, true)
    return body
  }

  /** About the transmit ring; some while it runs. */
  const ofRing: readonly (readonly [string, Say])[] = [
    ['SET_VRING_NUM that is too large', refused(VHOST_USER_SET_VRING_NUM, bodyOf(1, 2048))],
    ['SET_VRING_NUM that is no power of two', refused(VHOST_USER_SET_VRING_NUM, bodyOf(1, 63))],
    [
      'SET_VRING_ADDR misaligned',
      (frontend) => frontend.client.send(VHOST_USER_SET_VRING_ADDR, addresses(frontend, 8n)),
    ],
    [
      'SET_VRING_ADDR outside of memory',
      (frontend) => frontend.client.send(VHOST_USER_SET_VRING_ADDR, addresses(frontend, 1n << 40n)),
    ],
    ['SET_VRING_CALL that cannot be signalled', refusedFd(VHOST_USER_SET_VRING_CALL, bodyOf(1n))],
    ['SET_VRING_KICK that is no eventfd', refusedFd(VHOST_USER_SET_VRING_KICK, bodyOf(1n))],
    ['SET_VRING_KICK without a descriptor', refused(VHOST_USER_SET_VRING_KICK, bodyOf(0x101n))],
  ]
  for (const [title, say] of ofRing) {
    for (const running of [true, false]) {
      test(`the ring does not use what it had, while it ${running ? 'runs' : 'is stopped'}: ${title}`, async () => {
        {
          using frontend = start()
          const { tx } = frontend
          traffic.pass(frontend)
          if (!running) frontend.stopRing(tx)
          say(frontend)
          // The place of before is the guest's again: a kick must not bring the card back to it.
          frontend.giveKick(tx)
          frontend.settle()
          const before = tx.driver.usedIdx
          frontend.transmit(traffic.frame())
          frontend.settle()
          expect(backend.wire.receive(30)).toBeNull()
          expect(tx.driver.usedIdx).toBe(before)
          traffic.in(frontend)

          frontend.restartAnew(tx)
          frontend.settle()
          for (let i = 0; i < 3; i++) traffic.pass(frontend)
        }
        traffic.serveNext()
        await backend.releases(idle)
      })
    }
  }

  test('features that change while rings run stop them, and the driver is set up anew', () => {
    using frontend = start()
    traffic.pass(frontend)
    const own = bit(VHOST_USER_F_PROTOCOL_FEATURES)
    frontend.client.send(VHOST_USER_SET_FEATURES, bodyOf(bit(32) | own))
    frontend.settle()
    const before = frontend.tx.driver.usedIdx
    frontend.transmit(traffic.frame())
    expect(backend.wire.receive(30)).toBeNull()
    expect(frontend.tx.driver.usedIdx).toBe(before)
    for (const features of [bit(32), DRIVER_FEATURES]) {
      for (const ring of frontend.rings) frontend.stopRing(ring)
      frontend.choose(features)
      for (const ring of frontend.rings) frontend.restartAnew(ring)
      frontend.settle()
      traffic.pass(frontend)
    }
  })

  test('with STATUS, DRIVER_OK before FEATURES_OK is not taken, and can be read to be so', () => {
    const protocolFeatures = PROTOCOL_FEATURES | bit(VHOST_USER_PROTOCOL_F_STATUS)
    using frontend = new Frontend(VhostUserClient.connect(backend.socketPath), { protocolFeatures })
    frontend.negotiate()
    frontend.shareMemory()
    const status = (value: number): void => void frontend.client.send(VHOST_USER_SET_STATUS, bodyOf(BigInt(value)))
    for (const value of [3, 7]) status(value)
    for (const ring of frontend.rings) frontend.startRing(ring)
    frontend.transmit(traffic.frame())
    expect(backend.wire.receive(30)).toBeNull()
    for (const value of [0, 3]) status(value)
    frontend.choose(DRIVER_FEATURES)
    for (const value of [11, 15]) status(value)
    for (const ring of frontend.rings) frontend.restartAnew(ring)
    frontend.settle()
    traffic.pass(frontend)
  })

  const inflight = (queues: number, size: number): Uint8Array => {
    const body = new Uint8Array(24)
    const view = new DataView(body.buffer)
    view.setUint16(16, queues, true)
    view.setUint16(18, size, true)
    return body
  }

  const ending: readonly (readonly [string, Say])[] = [
    ['SET_PROTOCOL_FEATURES that were not offered', refused(VHOST_USER_SET_PROTOCOL_FEATURES, bodyOf(1n << 60n))],
    [
      'SET_MEM_TABLE of a file that is too short',
      (frontend) => {
        using short = new GuestMemory(4096)
        const body = new Uint8Array([...bodyOf(1, 0), ...bodyOf(0n, 1n << 20n, 1n << 40n, 0n)])
        frontend.client.send(VHOST_USER_SET_MEM_TABLE, body, { fds: [short.fd] })
      },
    ],
    [
      'REM_MEM_REG of a region that is not there',
      (frontend) => {
        using unknown = new GuestMemory(4096, { start: 0x7000_0000 })
        frontend.client.send(VHOST_USER_REM_MEM_REG, memRegOf(unknown))
      },
    ],
    ['SET_LOG_BASE that is no file', refusedFd(VHOST_USER_SET_LOG_BASE, bodyOf(4096n, 0n))],
    ['GET_INFLIGHT_FD of no rings', refused(VHOST_USER_GET_INFLIGHT_FD, inflight(0, 64))],
    ['SET_INFLIGHT_FD that is no file', refusedFd(VHOST_USER_SET_INFLIGHT_FD, inflight(2, 64))],
    ['GET_VRING_BASE of a ring that is not there', refused(VHOST_USER_GET_VRING_BASE, bodyOf(40, 0))],
  ]
  for (const [title, say] of ending) {
    test(`ends the session where the front-end cannot go on: ${title}`, async () => {
      {
        using frontend = start()
        traffic.pass(frontend)
        say(frontend)
        expect(frontend.client.isClosed()).toBeTrue()
      }
      traffic.serveNext()
      await backend.releases(idle)
    })
  }
})
