/**
 * What is a session's and what is the card's, against the running program: the MTU that a front-end sets, the queue
 * pairs that a driver uses, the announcement of a driver that has moved, and what is offered to whom.
 * docs/interop/vhost-user.rst, VIRTIO 1.2 §5.1.
 */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { writeFileSync } from 'node:fs'
import {
  VHOST_TRANSFER_STATE_DIRECTION_LOAD,
  VHOST_TRANSFER_STATE_PHASE_STOPPED,
  VHOST_USER_BACKEND_CONFIG_CHANGE_MSG,
  VHOST_USER_CHECK_DEVICE_STATE,
  VHOST_USER_GET_CONFIG,
  VHOST_USER_GET_FEATURES,
  VHOST_USER_GET_PROTOCOL_FEATURES,
  VHOST_USER_NET_SET_MTU,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_SET_BACKEND_REQ_FD,
  VHOST_USER_SET_DEVICE_STATE_FD,
  VHOST_USER_SET_OWNER,
  VHOST_USER_SET_PROTOCOL_FEATURES,
} from '../../src/abi/vhost-user.ts'
import {
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_MTU,
  VIRTIO_NET_F_STATUS,
} from '../../src/abi/virtio.ts'
import {
  VIRTIO_NET_CONFIG,
  VIRTIO_NET_CTRL_ANNOUNCE,
  VIRTIO_NET_CTRL_ANNOUNCE_ACK,
  VIRTIO_NET_CTRL_MQ,
  VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
  VIRTIO_NET_OK,
  VIRTIO_NET_S_ANNOUNCE,
  VIRTIO_NET_S_LINK_UP,
} from '../../src/abi/virtio-net.ts'
import { native } from '../../src/sys/native.ts'
import { bit, bits } from '../support/bits.ts'
import { noRealTaps } from '../support/network-namespace.ts'
import { socketPair } from '../support/socket-pair.ts'
import { Backend } from '../support/vhost-user-backend.ts'
import {
  bodyOf,
  DRIVER_FEATURES,
  Frontend,
  type FrontendOptions,
  VhostUserClient,
} from '../support/vhost-user-client.ts'
import { command } from '../support/vhost-user-control.ts'
import { Traffic } from '../support/vhost-user-traffic.ts'

// For hangs.
setDefaultTimeout(120_000)

const ETHERNET_HEADER_BYTES = 14
/** Two VLAN tags. */
const TAGS_BYTES = 8

const REPLY_ACK = bit(VHOST_USER_PROTOCOL_F_REPLY_ACK)
const CONFIG = bits(VHOST_USER_PROTOCOL_F_CONFIG, VHOST_USER_PROTOCOL_F_BACKEND_REQ)
const DEVICE_STATE = bit(VHOST_USER_PROTOCOL_F_DEVICE_STATE)

describe.skipIf(noRealTaps !== null)('a session and the card', () => {
  let backend: Backend
  let traffic: Traffic

  beforeAll(async () => {
    backend = await Backend.start({ pairs: 2 })
    traffic = new Traffic(backend)
  })

  afterAll(async () => {
    await backend[Symbol.asyncDispose]()
  })

  const connect = (options: FrontendOptions = {}): Frontend =>
    new Frontend(VhostUserClient.connect(backend.socketPath), options)

  const config16 = ({ client }: Frontend, offset: number): number => {
    const body = new Uint8Array([...bodyOf(offset, 2, 0), 0, 0])
    return client.request(VHOST_USER_GET_CONFIG, body).body.getUint16(12, true)
  }

  const tooLong = async (): Promise<number> =>
    ((await backend.ask('/v1/stats')) as { drops: { frame_too_long: number } }).drops.frame_too_long

  describe('NET_SET_MTU', () => {
    const protocolFeatures = REPLY_ACK | CONFIG | bit(VHOST_USER_PROTOCOL_F_MTU)
    for (const layout of ['split', 'packed'] as const) {
      for (const knows of [true, false]) {
        test(
          `is what the driver reads and what bounds frames, until the front-end goes: ${layout}, ` +
            `MTU ${knows ? '' : 'not '}chosen`,
          async () => {
            const features = DRIVER_FEATURES | (knows ? bits(VIRTIO_NET_F_MTU) : 0n)
            {
              using frontend = connect({ protocolFeatures, features, packed: layout === 'packed' })
              frontend.client.send(VHOST_USER_SET_OWNER)
              expect(frontend.client.u64(VHOST_USER_GET_PROTOCOL_FEATURES) & protocolFeatures).toBe(protocolFeatures)
              // QEMU sets it before it sets the features of each start.
              frontend.client.send(VHOST_USER_SET_PROTOCOL_FEATURES, bodyOf(protocolFeatures))
              expect(frontend.client.carriesOut(VHOST_USER_NET_SET_MTU, bodyOf(1280n))).toBeTrue()
              frontend.negotiate()
              expect(config16(frontend, VIRTIO_NET_CONFIG.mtu)).toBe(1280)
              frontend.shareMemory()
              for (const ring of frontend.rings) frontend.startRing(ring)
              frontend.settle()
              const longest = 1280 + ETHERNET_HEADER_BYTES + TAGS_BYTES
              traffic.pass(frontend)
              const fits = traffic.frame(longest)
              frontend.transmit(fits)
              traffic.arrives(fits)
              const before = await tooLong()
              frontend.transmit(traffic.frame(longest + 1))
              backend.wire.send(traffic.frame(longest + 1))
              traffic.out(frontend)
              traffic.in(frontend)
              expect(await tooLong()).toBe(before + 2)
            }
            using next = Frontend.start(backend.socketPath, { protocolFeatures, features })
            expect(config16(next, VIRTIO_NET_CONFIG.mtu)).toBe(1500)
            const long = traffic.frame(1500 + ETHERNET_HEADER_BYTES)
            next.transmit(long)
            traffic.arrives(long)
          },
        )
      }
    }

    test('of what cannot be is refused, and so is a change while rings run', () => {
      using frontend = Frontend.start(backend.socketPath, { protocolFeatures })
      const sets = (mtu: bigint): boolean => frontend.client.carriesOut(VHOST_USER_NET_SET_MTU, bodyOf(mtu))
      for (const mtu of [0n, 67n, 1501n, 65536n, 1n << 32n, 2n ** 64n - 1n])
        expect([mtu, sets(mtu)]).toEqual([mtu, false])
      expect(sets(1500n)).toBeTrue()
      expect(sets(1400n)).toBeFalse()
      expect(config16(frontend, VIRTIO_NET_CONFIG.mtu)).toBe(1500)
      for (const ring of frontend.rings) frontend.stopRing(ring)
      for (const mtu of [68n, 1400n]) {
        expect(sets(mtu)).toBeTrue()
        expect(config16(frontend, VIRTIO_NET_CONFIG.mtu)).toBe(Number(mtu))
      }
    })
  })

  describe('queue pairs in use', () => {
    const withQueues = (packed: boolean): FrontendOptions => ({
      rings: 5,
      packed,
      features: DRIVER_FEATURES | bits(VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ),
    })
    const usePairs = (frontend: Frontend, pairs: number): void =>
      expect(command(frontend, [VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, pairs, 0])).toBe(VIRTIO_NET_OK)

    for (const packed of [false, true]) {
      const layout = packed ? 'packed' : 'split'
      for (const leave of ['after one pair', 'after two pairs']) {
        test(`are forgotten with the driver: ${layout}, ${leave}`, () => {
          for (let turn = 0; turn < 3; turn++) {
            {
              using frontend = Frontend.start(backend.socketPath, withQueues(packed))
              usePairs(frontend, leave === 'after one pair' ? 1 : 2)
              traffic.out(frontend)
            }
            // Without a control queue it cannot ask for more pairs than there are at its start.
            using other = Frontend.start(backend.socketPath, { rings: 4, packed })
            for (const ring of [other.rings[1]!, other.rings[3]!]) traffic.out(other, ring)
          }
        })
      }

      test(`are forgotten with the driver on the same connection: ${layout}`, () => {
        const options = withQueues(packed)
        using frontend = Frontend.start(backend.socketPath, options)
        usePairs(frontend, 1)
        for (const ring of frontend.rings) frontend.stopRing(ring)
        frontend.choose(DRIVER_FEATURES)
        for (const ring of frontend.rings.slice(0, 4)) frontend.restartAnew(ring)
        frontend.settle()
        for (const ring of [frontend.rings[1]!, frontend.rings[3]!]) traffic.out(frontend, ring)
        for (const ring of frontend.rings.slice(0, 4)) frontend.stopRing(ring)
        frontend.choose(options.features!)
        for (const ring of frontend.rings) frontend.restartAnew(ring)
        frontend.settle()
        // VIRTIO 1.2 §5.1.5: with a control queue, one to begin with.
        traffic.out(frontend)
        const waiting = traffic.frame()
        frontend.transmit(waiting, { ring: frontend.rings[3]! })
        expect(backend.wire.receive(30)).toBeNull()
        usePairs(frontend, 2)
        traffic.out(frontend, frontend.rings[3]!)
      })

      test.each(['where each stands', 'that of its first start'])(
        `are those of before where a back-end has died: ${layout}, base of a ring: %s`,
        async (base) => {
          await using mortal = await Backend.start({ pairs: 2 })
          const ownTraffic = new Traffic(mortal)
          using frontend = Frontend.start(mortal.socketPath, withQueues(packed))
          const sending = [frontend.rings[1]!, frontend.rings[3]!]
          usePairs(frontend, 2)
          for (const ring of sending) ownTraffic.out(frontend, ring)
          // The driver says nothing anew.
          const first = frontend.rings.map((ring) => ring.base)
          const bases = base === 'where each stands' ? frontend.rings.map((ring) => frontend.stopRing(ring)) : first
          await mortal.restart()
          frontend.reconnect(mortal.socketPath)
          for (const [index, ring] of frontend.rings.entries()) frontend.startRing(ring, bases[index])
          frontend.settle()
          for (const ring of sending) ownTraffic.out(frontend, ring)
          usePairs(frontend, 1)
          const [, unused] = sending
          frontend.startRing(unused!, frontend.stopRing(unused!))
          frontend.transmit(ownTraffic.frame(), { ring: unused! })
          frontend.used(unused!)
          expect(mortal.wire.receive(30)).toBeNull()
        },
      )

      test(`may send on one that had carried nothing when the back-end died: ${layout}`, async () => {
        await using mortal = await Backend.start({ pairs: 2 })
        const ownTraffic = new Traffic(mortal)
        using frontend = Frontend.start(mortal.socketPath, withQueues(packed))
        const [, first, , idle] = frontend.rings
        const bases = frontend.rings.map((ring) => ring.base)
        usePairs(frontend, 2)
        ownTraffic.out(frontend, first)
        await mortal.restart()
        frontend.reconnect(mortal.socketPath)
        for (const [index, ring] of frontend.rings.entries()) frontend.startRing(ring, bases[index])
        frontend.settle()
        for (const ring of [first!, idle!]) ownTraffic.out(frontend, ring)
        usePairs(frontend, 1)
        frontend.transmit(ownTraffic.frame(), { ring: idle! })
        frontend.used(idle!)
        expect(mortal.wire.receive(30)).toBeNull()
      })

      test(`are those that are enabled where the control queue stays with the front-end: ${layout}`, () => {
        // As cloud-hypervisor does, which says VIRTIO_NET_F_CTRL_VQ all the same.
        using frontend = Frontend.start(backend.socketPath, { ...withQueues(packed), rings: 4 })
        const [, first, , second] = frontend.rings
        for (let turn = 0; turn < 2; turn++) for (const out of [first!, second!]) traffic.out(frontend, out)
        frontend.enable(second!, false)
        frontend.settle()
        traffic.out(frontend, first!)
      })

      test(`are kept while a guest is paused: ${layout}`, () => {
        const options = withQueues(packed)
        using frontend = Frontend.start(backend.socketPath, options)
        usePairs(frontend, 2)
        for (let turn = 0; turn < 2; turn++) {
          const bases = frontend.rings.map((ring) => frontend.stopRing(ring))
          frontend.choose(options.features!)
          for (const [index, ring] of frontend.rings.entries()) frontend.startRing(ring, bases[index]!)
          frontend.settle()
          traffic.out(frontend, frontend.rings[3]!)
        }
      })

      test(`are kept when one ring is stopped and started again: ${layout}`, () => {
        using frontend = Frontend.start(backend.socketPath, withQueues(packed))
        usePairs(frontend, 2)
        for (const ring of frontend.rings.slice(0, 4)) {
          frontend.startRing(ring, frontend.stopRing(ring))
          frontend.settle()
          for (const out of [frontend.rings[1]!, frontend.rings[3]!]) traffic.out(frontend, out)
        }
      })
    }
  })

  describe('GUEST_ANNOUNCE', () => {
    const protocolFeatures = REPLY_ACK | CONFIG | DEVICE_STATE
    const FEATURES = DRIVER_FEATURES | bits(VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_STATUS)
    const status = (frontend: Frontend): number => config16(frontend, VIRTIO_NET_CONFIG.status)

    /** One that is past negotiation, and its back-channel. */
    const negotiated = (options: FrontendOptions): readonly [Frontend, VhostUserClient] => {
      const frontend = connect({ rings: 3, features: FEATURES, protocolFeatures, ...options })
      frontend.negotiate()
      const [ours, theirs] = socketPair()
      frontend.client.send(VHOST_USER_SET_BACKEND_REQ_FD, undefined, { fds: [theirs] })
      native.vn_close(theirs)
      frontend.shareMemory()
      return [frontend, new VhostUserClient(ours)]
    }

    const announces = (frontend: Frontend, back: VhostUserClient): void => {
      expect(back.receive()).toMatchObject({ request: VHOST_USER_BACKEND_CONFIG_CHANGE_MSG })
      expect(status(frontend)).toBe(VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE)
      expect(command(frontend, [VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK])).toBe(VIRTIO_NET_OK)
      expect(status(frontend)).toBe(VIRTIO_NET_S_LINK_UP)
      expect(back.receive(20)).toBeNull()
    }

    for (const packed of [false, true]) {
      test(`asks a driver that goes on after another session, once: ${packed ? 'packed' : 'split'}`, () => {
        const [first, back] = negotiated({ packed })
        using frontend = first
        for (const ring of frontend.rings) frontend.startRing(ring)
        frontend.settle()
        traffic.pass(frontend)
        // A driver at its beginning has nobody to tell.
        expect(status(frontend)).toBe(VIRTIO_NET_S_LINK_UP)
        expect(back.receive(20)).toBeNull()
        const pause = (): void => {
          const bases = frontend.rings.map((ring) => frontend.stopRing(ring))
          for (const [index, ring] of frontend.rings.entries()) frontend.startRing(ring, bases[index]!)
          frontend.settle()
        }
        // Nor has one that was only stopped for a while.
        pause()
        expect(status(frontend)).toBe(VIRTIO_NET_S_LINK_UP)
        back[Symbol.dispose]()

        const bases = frontend.rings.map((ring) => frontend.stopRing(ring))
        frontend.reconnect(backend.socketPath)
        const [ours, theirs] = socketPair()
        using again = new VhostUserClient(ours)
        frontend.client.send(VHOST_USER_SET_BACKEND_REQ_FD, undefined, { fds: [theirs] })
        native.vn_close(theirs)
        for (const [index, ring] of frontend.rings.entries()) frontend.startRing(ring, bases[index]!)
        frontend.settle()
        announces(frontend, again)
        pause()
        expect(status(frontend)).toBe(VIRTIO_NET_S_LINK_UP)
        traffic.pass(frontend)
      })
    }

    test('asks a driver whose card was taken over from another one', () => {
      const [first, second] = negotiated({})
      using frontend = first
      using back = second
      const begin = bodyOf(VHOST_TRANSFER_STATE_DIRECTION_LOAD, VHOST_TRANSFER_STATE_PHASE_STOPPED)
      const { fds } = frontend.client.request(VHOST_USER_SET_DEVICE_STATE_FD, begin, [frontend.tx.kick.fd])
      writeFileSync(fds[0]!, '{"vduse-net":1,"mtu":1500,"queuePairs":2}')
      native.vn_close(fds[0]!)
      expect(frontend.client.u64(VHOST_USER_CHECK_DEVICE_STATE)).toBe(0n)
      for (const ring of frontend.rings) frontend.startRing(ring)
      frontend.settle()
      announces(frontend, back)
    })

    test('asks no driver that does not know of it', () => {
      const [first, second] = negotiated({ features: FEATURES & ~bits(VIRTIO_NET_F_GUEST_ANNOUNCE) })
      using frontend = first
      using back = second
      for (const ring of frontend.rings) frontend.startRing(ring, 3)
      frontend.settle()
      expect(status(frontend)).toBe(VIRTIO_NET_S_LINK_UP)
      expect(back.receive(20)).toBeNull()
    })

    test('is not offered once the front-end has declined CONFIG, by which the driver would be asked', () => {
      const offers = (chosen: bigint | null): boolean => {
        using client = VhostUserClient.connect(backend.socketPath)
        client.send(VHOST_USER_SET_OWNER)
        if (chosen !== null) client.send(VHOST_USER_SET_PROTOCOL_FEATURES, bodyOf(chosen))
        return (client.u64(VHOST_USER_GET_FEATURES) & bits(VIRTIO_NET_F_GUEST_ANNOUNCE)) !== 0n
      }
      expect([null, REPLY_ACK | CONFIG, REPLY_ACK, 0n].map(offers)).toEqual([true, true, false, false])
    })
  })

  describe('CONFIG', () => {
    const CONFIG_BIT = bit(VHOST_USER_PROTOCOL_F_CONFIG)
    const offered = (client: VhostUserClient): bigint => client.u64(VHOST_USER_GET_PROTOCOL_FEATURES)

    test('is offered to a front-end that has sent SET_OWNER before it asks', () => {
      using client = VhostUserClient.connect(backend.socketPath)
      client.send(VHOST_USER_SET_OWNER)
      const all = offered(client)
      expect(all & CONFIG_BIT).toBe(CONFIG_BIT)
      client.send(VHOST_USER_SET_PROTOCOL_FEATURES, bodyOf(all & ~bit(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)))
      expect(offered(client)).toBe(all)
    })

    test('is not offered to one like QEMU, which asks before that and again for each pair, and warns of it', () => {
      using client = VhostUserClient.connect(backend.socketPath)
      const first = offered(client)
      expect(first & CONFIG_BIT).toBe(0n)
      client.send(VHOST_USER_SET_PROTOCOL_FEATURES, bodyOf(first))
      client.send(VHOST_USER_SET_OWNER)
      for (let pair = 1; pair < 4; pair++) {
        expect(offered(client)).toBe(first)
        client.send(VHOST_USER_SET_PROTOCOL_FEATURES, bodyOf(first))
      }
    })
  })
})
