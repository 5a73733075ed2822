import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import {
  VHOST_USER_ADD_MEM_REG,
  VHOST_USER_GET_CONFIG,
  VHOST_USER_GET_FEATURES,
  VHOST_USER_GET_INFLIGHT_FD,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_REM_MEM_REG,
  VHOST_USER_SEND_RARP,
  VHOST_USER_SET_CONFIG,
  VHOST_USER_SET_DEVICE_STATE_FD,
  VHOST_USER_SET_FEATURES,
  VHOST_USER_SET_LOG_BASE,
  VHOST_USER_SET_MEM_TABLE,
  VHOST_USER_SET_VRING_ADDR,
  VHOST_USER_SET_VRING_CALL,
  VHOST_USER_SET_VRING_ENABLE,
  VHOST_USER_SET_VRING_KICK,
  VHOST_USER_SET_VRING_NUM,
  VHOST_USER_VRING_KICK,
} from '../../../../src/abi/vhost-user.ts'
import { ProtocolError } from '../../../../src/base/errors.ts'
import { EventFd } from '../../../../src/sys/eventfd.ts'
import type { OwnedFd } from '../../../../src/sys/fd.ts'
import { type Decoded, decode } from '../../../../src/transport/vhost-user/requests.ts'
import { Random, runSeed } from '../../../support/random.ts'
import { bodyOf } from '../../../support/vhost-user-client.ts'

const ALL = 2n ** 64n - 1n

let fds: readonly OwnedFd[]

beforeEach(() => {
  fds = Array.from({ length: 9 }, () => new EventFd())
})

afterEach(() => {
  for (const fd of fds) fd[Symbol.dispose]()
})

const decoded = (request: number, body: Uint8Array, count = 0, features = ALL): Decoded =>
  decode({ request, needsReply: false, body: new DataView(body.buffer), fds: [] }, fds.slice(0, count), features)

const region = [0x1000n, 0x2000n, 0x7000_1000n, 0x3000n] as const
const told = { guestAddress: 0x1000, lengthBytes: 0x2000, userAddress: 0x7000_1000, mmapOffset: 0x3000 }

describe('a request', () => {
  test('is what its bytes say', () => {
    expect(decoded(VHOST_USER_GET_FEATURES, bodyOf())).toEqual({ name: 'GET_FEATURES', fields: {} })
    expect(decoded(VHOST_USER_SET_FEATURES, bodyOf(ALL))).toEqual({ name: 'SET_FEATURES', fields: { features: ALL } })
    expect(decoded(VHOST_USER_SET_VRING_NUM, bodyOf(7, 256))).toEqual({
      name: 'SET_VRING_NUM',
      fields: { index: 7, size: 256 },
    })
    expect(decoded(VHOST_USER_SET_VRING_ENABLE, bodyOf(7, 1))).toEqual({
      name: 'SET_VRING_ENABLE',
      fields: { index: 7, enabled: true },
    })
    expect(decoded(VHOST_USER_SET_VRING_ADDR, bodyOf(2, 0, 1n, 2n, 3n, 4n))).toEqual({
      name: 'SET_VRING_ADDR',
      fields: { index: 2, desc: 1, used: 2, avail: 3, log: -1 },
    })
    expect(decoded(VHOST_USER_SET_VRING_ADDR, bodyOf(2, 1, 1n, 2n, 3n, 4n))).toMatchObject({ fields: { log: 4 } })
    expect(decoded(VHOST_USER_SEND_RARP, new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8]))).toEqual({
      name: 'SEND_RARP',
      fields: { mac: new Uint8Array([1, 2, 3, 4, 5, 6]) },
    })
    expect(decoded(VHOST_USER_GET_CONFIG, new Uint8Array([...bodyOf(6, 2, 9), 0, 0]))).toEqual({
      name: 'GET_CONFIG',
      fields: { offset: 6, size: 2, flags: 9 },
    })
    expect(decoded(VHOST_USER_SET_CONFIG, new Uint8Array([...bodyOf(6, 2, 9), 8, 7]))).toEqual({
      name: 'SET_CONFIG',
      fields: { offset: 6, bytes: new Uint8Array([8, 7]) },
    })
    for (const bytes of [20, 24])
      expect(decoded(VHOST_USER_GET_INFLIGHT_FD, new Uint8Array(bytes))).toMatchObject({
        fields: { answerBytes: bytes },
      })
  })

  test('has the descriptors that came with it', () => {
    const [first, second] = fds
    expect(decoded(VHOST_USER_SET_VRING_KICK, bodyOf(3n), 1)).toEqual({
      name: 'SET_VRING_KICK',
      fields: { index: 3, fd: first! },
    })
    expect(decoded(VHOST_USER_SET_VRING_CALL, bodyOf(0x103n))).toEqual({
      name: 'SET_VRING_CALL',
      fields: { index: 3, fd: null },
    })
    expect(decoded(VHOST_USER_SET_LOG_BASE, bodyOf(64n, 8n), 1)).toMatchObject({
      fields: { fd: first!, lengthBytes: 64, offset: 8 },
    })
    expect(decoded(VHOST_USER_SET_MEM_TABLE, bodyOf(2, 0, ...region, ...region), 2)).toEqual({
      name: 'SET_MEM_TABLE',
      fields: {
        regions: [
          { ...told, fd: first!.fd },
          { ...told, fd: second!.fd },
        ],
      },
    })
    expect(decoded(VHOST_USER_ADD_MEM_REG, bodyOf(0n, ...region), 1)).toMatchObject({
      fields: { region: { ...told, fd: first!.fd } },
    })
    for (const count of [0, 1])
      expect(decoded(VHOST_USER_REM_MEM_REG, bodyOf(0n, ...region), count)).toMatchObject({
        fields: { region: { ...told, fd: -1 } },
      })
  })

  test.each([
    ['unknown', 200, bodyOf(), 0],
    ['8 bytes', VHOST_USER_GET_FEATURES, bodyOf(1n), 0],
    ['4 bytes', VHOST_USER_SET_FEATURES, bodyOf(1), 0],
    ['enable 2', VHOST_USER_SET_VRING_ENABLE, bodyOf(0, 2), 0],
    ['reserved 1', VHOST_USER_VRING_KICK, bodyOf(0, 1), 0],
    ['no ring 0x200', VHOST_USER_SET_VRING_KICK, bodyOf(0x200n), 1],
    ['40 bytes for 2 regions', VHOST_USER_SET_MEM_TABLE, bodyOf(2, 0, ...region), 2],
    ['size and length do not agree', VHOST_USER_GET_CONFIG, bodyOf(0, 2, 0), 0],
    ['size and length do not agree', VHOST_USER_SET_CONFIG, new Uint8Array([...bodyOf(0, 0, 0), 1]), 0],
  ])('that is none is refused: %s', (refusal, request, body, count) => {
    expect(decoded(request, body, count)).toMatchObject({ refusal })
  })

  test('is refused without the protocol feature that it is of', () => {
    for (const [request, body, count, feature] of [
      [VHOST_USER_VRING_KICK, bodyOf(0, 0), 0, VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS],
      [VHOST_USER_GET_INFLIGHT_FD, new Uint8Array(24), 0, VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD],
    ] as const) {
      expect(decoded(request, body, count, ALL & ~(1n << BigInt(feature)))).toMatchObject({
        refusal: 'its protocol feature was not negotiated',
      })
      expect(decoded(request, body, count, 1n << BigInt(feature))).toHaveProperty('fields')
    }
  })

  test.each([
    ['none with a kick that has one', VHOST_USER_SET_VRING_KICK, bodyOf(1n), 0],
    ['one with a kick that has none', VHOST_USER_SET_VRING_KICK, bodyOf(0x101n), 1],
    ['two with a call', VHOST_USER_SET_VRING_CALL, bodyOf(1n), 2],
    ['one with a question', VHOST_USER_GET_FEATURES, bodyOf(), 1],
    ['one with an unknown request', 200, bodyOf(), 1],
    ['one for two regions', VHOST_USER_SET_MEM_TABLE, bodyOf(2, 0, ...region, ...region), 1],
    ['no region', VHOST_USER_SET_MEM_TABLE, bodyOf(0, 0), 0],
    ['nine regions', VHOST_USER_SET_MEM_TABLE, bodyOf(9, 0), 8],
    ['no state channel', VHOST_USER_SET_DEVICE_STATE_FD, bodyOf(0, 0), 0],
  ])('whose descriptors do not fit breaks the protocol: %s', (_title, request, body, count) => {
    expect(() => decoded(request, body, count)).toThrow(ProtocolError)
  })

  test('of any bytes is decoded, refused, or breaks the protocol, and leaves descriptors alone', () => {
    const seed = runSeed()
    console.log(`seed ${seed}`)
    const random = new Random(seed)
    const outcomes = { fields: 0, refusal: 0, protocol: 0 }
    const before = readdirSync('/proc/self/fd').length
    for (let i = 0; i < 20_000; i++) {
      const body = new Uint8Array(random.below(4) === 0 ? random.below(300) : 8 * random.below(6))
      for (let at = 0; at < body.length; at++) body[at] = random.below(3) === 0 ? random.below(256) : 0
      try {
        const what = decoded(random.below(48), body, random.below(3))
        outcomes['fields' in what ? 'fields' : 'refusal']++
      } catch (error) {
        expect(error).toBeInstanceOf(ProtocolError)
        outcomes.protocol++
      }
    }
    for (const count of Object.values(outcomes)) expect(count).toBeGreaterThan(100)
    expect(readdirSync('/proc/self/fd').length).toBe(before)
  })
})
