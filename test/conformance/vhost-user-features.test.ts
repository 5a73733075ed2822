/**
 * Which features a driver may choose over vhost-user, against the running program: drivers of before VERSION_1,
 * front-ends that do not clear what builds on a feature that they switch off, and sets that are refused.
 * docs/interop/vhost-user.rst, VIRTIO 1.2 §5.1.3.1.
 */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import {
  VHOST_USER_F_PROTOCOL_FEATURES,
  VHOST_USER_GET_FEATURES,
  VHOST_USER_GET_STATUS,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_USER_SET_FEATURES,
  VHOST_USER_SET_STATUS,
} from '../../src/abi/vhost-user.ts'
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_F_VERSION_1,
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_CTRL_MAC_ADDR,
  VIRTIO_NET_F_CTRL_RX,
  VIRTIO_NET_F_CTRL_VLAN,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
  VIRTIO_NET_F_HASH_REPORT,
  VIRTIO_NET_F_HOST_ECN,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_USO,
  VIRTIO_NET_F_MAC,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_F_NOTF_COAL,
  VIRTIO_NET_F_RSS,
  VIRTIO_NET_F_SPEED_DUPLEX,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../../src/abi/virtio.ts'
import {
  VIRTIO_NET_CTRL_MAC,
  VIRTIO_NET_CTRL_MAC_ADDR_SET,
  VIRTIO_NET_CTRL_MAC_TABLE_SET,
  VIRTIO_NET_CTRL_MQ,
  VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
  VIRTIO_NET_CTRL_RX,
  VIRTIO_NET_CTRL_RX_PROMISC,
  VIRTIO_NET_OK,
} from '../../src/abi/virtio-net.ts'
import { bit, bits } from '../support/bits.ts'
import { noRealTaps } from '../support/network-namespace.ts'
import { numberOf } from '../support/packet-socket.ts'
import { Backend } from '../support/vhost-user-backend.ts'
import { bodyOf, DRIVER_FEATURES, Frontend, VhostUserClient } from '../support/vhost-user-client.ts'
import { command } from '../support/vhost-user-control.ts'
import { Traffic } from '../support/vhost-user-traffic.ts'

// For hangs.
setDefaultTimeout(120_000)

const REPLY_ACK = bit(VHOST_USER_PROTOCOL_F_REPLY_ACK)
const STATUS = bit(VHOST_USER_PROTOCOL_F_STATUS)
const OWN = bit(VHOST_USER_F_PROTOCOL_FEATURES)
const DRIVER_FOUND = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER
/** Never offered: VIRTIO_F_NOTIFICATION_DATA. */
const NOT_OFFERED = bit(38)

const USO = bits(VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_USO)

/** How a front-end negotiates: without protocol features, by SET_FEATURES alone, and with the driver's status. */
const WAYS = [
  ['without protocol features', null],
  ['with REPLY_ACK', REPLY_ACK],
  ['with STATUS', REPLY_ACK | STATUS],
] as const

describe.skipIf(noRealTaps !== null)('features over vhost-user', () => {
  let backend: Backend
  let traffic: Traffic

  beforeAll(async () => {
    backend = await Backend.start({ pairs: 2 })
    traffic = new Traffic(backend)
  })

  afterAll(async () => {
    await backend[Symbol.asyncDispose]()
  })

  const setStatus = ({ client }: Frontend, status: number): void => {
    client.send(VHOST_USER_SET_STATUS, bodyOf(BigInt(status)))
  }

  /** Sets a device up, and passes packets each way. */
  const served = (features: bigint, protocolFeatures: bigint | null = REPLY_ACK): void => {
    using frontend = new Frontend(VhostUserClient.connect(backend.socketPath), { features, protocolFeatures })
    frontend.negotiate()
    const withStatus = protocolFeatures !== null && (protocolFeatures & STATUS) !== 0n
    if (withStatus) for (const more of [0, VIRTIO_CONFIG_S_FEATURES_OK]) setStatus(frontend, DRIVER_FOUND | more)
    frontend.shareMemory()
    for (const ring of frontend.rings) frontend.startRing(ring)
    if (withStatus) setStatus(frontend, 15)
    frontend.settle()
    for (let i = 0; i < 20; i++) traffic.pass(frontend)
  }

  const offered = (): bigint => {
    using client = VhostUserClient.connect(backend.socketPath)
    return client.u64(VHOST_USER_GET_FEATURES)
  }

  const legacy: readonly (readonly [string, bigint])[] = [
    ['nothing, a header of 10 bytes', 0n],
    ['MAC', bits(VIRTIO_NET_F_MAC)],
    ['MRG_RXBUF, a header of 12 bytes', bits(VIRTIO_NET_F_MRG_RXBUF)],
    ['EVENT_IDX and INDIRECT_DESC', bits(VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC)],
    ['offloads', bits(VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_GUEST_TSO4)],
  ]
  for (const [what, features] of legacy) {
    for (const [way, protocolFeatures] of WAYS) {
      test(`a driver of before VERSION_1 is served: ${what}, ${way}`, () => served(features, protocolFeatures))
    }
  }

  test('a driver of before VERSION_1 and one of today take turns on one connection', () => {
    using frontend = new Frontend(VhostUserClient.connect(backend.socketPath), { features: 0n })
    frontend.negotiate()
    frontend.shareMemory()
    for (let turn = 0; turn < 6; turn++) {
      const today = turn % 2 === 1
      frontend.choose(today ? DRIVER_FEATURES : 0n)
      for (const ring of frontend.rings) frontend.restartAnew(ring)
      frontend.settle()
      expect(frontend.headerBytes).toBe(today ? 12 : 10)
      for (let i = 0; i < 5; i++) traffic.pass(frontend)
      for (const ring of frontend.rings) frontend.stopRing(ring)
    }
  })

  test('a driver of before VERSION_1 gives commands, and uses as many queue pairs as it asks for', () => {
    const features = bits(VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_MQ)
    using frontend = Frontend.start(backend.socketPath, { features, rings: 5 })
    expect(frontend.headerBytes).toBe(10)
    const gives = (...bytes: readonly number[]): void => expect(command(frontend, bytes)).toBe(VIRTIO_NET_OK)
    const other = [2, 0, 0, 0, 0, 0x77]
    gives(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, ...other)
    // Two tables, each a number of addresses of the driver's endianness, which is this machine's.
    gives(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, ...[1, 0, 0, 0], ...other, ...[0, 0, 0, 0])
    gives(VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, 1)
    gives(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, 2, 0)
    for (const ring of [frontend.rings[1]!, frontend.rings[3]!]) traffic.out(frontend, ring)
    gives(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, 1, 0)
    traffic.pass(frontend)
  })

  const incomplete: readonly (readonly [string, bigint])[] = [
    ['guest_tso4 without guest_csum', bits(VIRTIO_NET_F_GUEST_TSO4)],
    ['guest_tso6 without guest_csum', bits(VIRTIO_NET_F_GUEST_TSO6)],
    ['guest_uso4 without guest_csum', bits(VIRTIO_NET_F_GUEST_USO4)],
    ['guest_uso6 without guest_csum', bits(VIRTIO_NET_F_GUEST_USO6)],
    [
      'guest_ecn without guest_tso4 or guest_tso6',
      bits(VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4),
    ],
    ['host_tso4 without csum', bits(VIRTIO_NET_F_HOST_TSO4)],
    ['host_tso6 without csum', bits(VIRTIO_NET_F_HOST_TSO6)],
    ['host_uso without csum', bits(VIRTIO_NET_F_HOST_USO)],
    ['host_ecn without host_tso4 or host_tso6', bits(VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN)],
    ['speed_duplex without status', bits(VIRTIO_NET_F_SPEED_DUPLEX)],
  ]
  for (const [said, features] of incomplete) {
    for (const version of [bits(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF), 0n]) {
      test(`${said}: what lacks the other is not used, ${version === 0n ? 'before' : 'with'} VERSION_1`, () => {
        const missing = features & ~offered()
        // A TAP takes USO since Linux 6.2.
        expect(missing & ~USO).toBe(0n)
        if (missing !== 0n) return
        for (const [, protocolFeatures] of WAYS) served(features | version, protocolFeatures)
      })
    }
  }

  test('what lacks the other is said once for each set, however often it is chosen', async () => {
    await using fresh = await Backend.start()
    const frames = new Traffic(fresh)
    const choose = (more: bigint, times: number): void => {
      for (let i = 0; i < times; i++) frames.serveNext({ features: DRIVER_FEATURES | more })
    }
    choose(bits(VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_ECN), 3)
    choose(0n, 2)
    choose(bits(VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_ECN), 1)
    choose(bits(VIRTIO_NET_F_HOST_USO), 2)
    choose(bits(VIRTIO_NET_F_HOST_ECN), 1)
    await fresh.logged(/host_ecn without host_tso4 or host_tso6/)
    const said = fresh.log.split('\n').filter((line) => line.includes(' without '))
    expect(said.map((line) => / not complete: (.*);/.exec(line)?.[1])).toEqual([
      'guest_tso4 without guest_csum, guest_ecn without guest_tso4 or guest_tso6',
      'host_uso without csum',
      'host_ecn without host_tso4 or host_tso6',
    ])
  })

  test(
    'a front-end that serves the control queue itself passes on what is for it: nothing is said, ' +
      'all pairs are served',
    async () => {
      const from = backend.log.length
      const features =
        DRIVER_FEATURES |
        bits(
          VIRTIO_NET_F_MQ,
          VIRTIO_NET_F_RSS,
          VIRTIO_NET_F_CTRL_RX,
          VIRTIO_NET_F_CTRL_VLAN,
          VIRTIO_NET_F_CTRL_MAC_ADDR,
          VIRTIO_NET_F_GUEST_ANNOUNCE,
          VIRTIO_NET_F_NOTF_COAL,
        )
      // Receive-side scaling takes the right to load eBPF programs.
      const chosen = offered() & features
      expect(chosen | bits(VIRTIO_NET_F_RSS)).toBe(features | bits(VIRTIO_NET_F_RSS))
      using frontend = Frontend.start(backend.socketPath, { features: chosen, rings: 4 })
      for (const ring of [frontend.rings[1]!, frontend.rings[3]!]) traffic.out(frontend, ring)
      setStatus(frontend, 0xffff)
      await backend.logged(/SET_STATUS refused/, from)
      expect(backend.log.slice(from)).not.toContain('not complete')
    },
  )

  for (const more of [0n, bits(VIRTIO_NET_F_RSS), bits(VIRTIO_NET_F_MQ)]) {
    test(`HASH_REPORT without a control queue: headers of 20 bytes, and no hash: with 0x${more.toString(16)}`, () => {
      const features = DRIVER_FEATURES | bits(VIRTIO_NET_F_HASH_REPORT) | (more & offered())
      using frontend = Frontend.start(backend.socketPath, { features })
      expect(frontend.headerBytes).toBe(20)
      for (let i = 0; i < 10; i++) {
        traffic.out(frontend)
        const frame = traffic.frame()
        frontend.provide(8)
        backend.wire.send(frame)
        let received = frontend.receiveWithHeader()
        while (numberOf(received.subarray(20)) !== numberOf(frame)) received = frontend.receiveWithHeader()
        expect(received.length).toBe(20 + frame.length)
        // num_buffers; hash_value, hash_report (VIRTIO_NET_HASH_REPORT_NONE), padding. VIRTIO 1.2 §5.1.6.4.3.
        expect([...received.subarray(10, 20)]).toEqual([1, 0, 0, 0, 0, 0, 0, 0, 0, 0])
      }
    })
  }

  describe('a set that is refused', () => {
    const refused: readonly (readonly [string, bigint])[] = [
      ['not offered', DRIVER_FEATURES | NOT_OFFERED],
      ['not offered, before VERSION_1', NOT_OFFERED],
      ['all bits', 2n ** 64n - 1n],
    ]
    for (const [what, features] of refused) {
      for (const [way, protocolFeatures] of WAYS) {
        test(`ends no session, and the next choice is served: ${what}, ${way}`, () => {
          using frontend = new Frontend(VhostUserClient.connect(backend.socketPath), { protocolFeatures })
          frontend.negotiate()
          frontend.shareMemory()
          const withStatus = protocolFeatures !== null && (protocolFeatures & STATUS) !== 0n
          const bring = (chosen: bigint): void => {
            frontend.client.send(
              VHOST_USER_SET_FEATURES,
              bodyOf(BigInt.asUintN(64, protocolFeatures === null ? chosen & ~OWN : chosen | OWN)),
            )
            if (withStatus) for (const status of [0, 1, 3, 11]) setStatus(frontend, status)
            if (withStatus) frontend.client.send(VHOST_USER_SET_FEATURES, bodyOf(chosen | OWN))
            if (withStatus) for (const status of [3, 11]) setStatus(frontend, status)
            for (const ring of frontend.rings) frontend.restartAnew(ring)
            if (withStatus) setStatus(frontend, 15)
            frontend.settle()
          }
          for (let attempt = 0; attempt < 3; attempt++) {
            bring(features)
            if (withStatus) expect(frontend.client.u64(VHOST_USER_GET_STATUS) & 0xcn).toBe(0n)
            frontend.transmit(traffic.frame())
            expect(backend.wire.receive(20)).toBeNull()
            expect(frontend.tx.model.reap()).toBeUndefined()
            for (const ring of frontend.rings) expect(frontend.stopRing(ring)).toBe(0)
            if (withStatus) setStatus(frontend, 0)
            bring(DRIVER_FEATURES)
            traffic.pass(frontend)
            for (const ring of frontend.rings) frontend.stopRing(ring)
            if (withStatus) setStatus(frontend, 0)
          }
        })
      }
    }

    test('is answered with a failure where that was asked for', () => {
      using frontend = new Frontend(VhostUserClient.connect(backend.socketPath))
      frontend.negotiate()
      const sets = (features: bigint): boolean =>
        frontend.client.carriesOut(VHOST_USER_SET_FEATURES, bodyOf(features | OWN))
      expect(sets(DRIVER_FEATURES | NOT_OFFERED)).toBeFalse()
      expect(sets(DRIVER_FEATURES)).toBeTrue()
    })
  })
})
