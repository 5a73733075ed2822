/**
 * What a driver and the network do to a card that runs, and how its operator and its driver see it: the running program
 * on vhost-user.
 */

import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { until } from '../../scripts/frontends/native-process.ts'
import { POLLIN } from '../../src/abi/linux.ts'
import {
  VHOST_F_LOG_ALL,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_SET_FEATURES,
  VHOST_USER_SET_LOG_BASE,
  VHOST_USER_SET_LOG_FD,
  VHOST_USER_SET_VRING_ADDR,
} from '../../src/abi/vhost-user.ts'
import { VIRTIO_NET_F_NOTF_COAL } from '../../src/abi/virtio.ts'
import {
  VIRTIO_NET_CTRL_MAC,
  VIRTIO_NET_CTRL_MAC_ADDR_SET,
  VIRTIO_NET_CTRL_NOTF_COAL,
  VIRTIO_NET_CTRL_NOTF_COAL_RX_SET,
  VIRTIO_NET_CTRL_NOTF_COAL_TX_SET,
  VIRTIO_NET_ERR,
  VIRTIO_NET_OK,
} from '../../src/abi/virtio-net.ts'
import type { DeviceView, StatsView } from '../../src/card/card.ts'
import { EventFd } from '../../src/sys/eventfd.ts'
import { bit } from '../support/bits.ts'
import { le32 } from '../support/control-fixture.ts'
import { GuestMemory } from '../support/guest-memory.ts'
import { NetworkNamespace, noRealTaps } from '../support/network-namespace.ts'
import { numberOf, PacketSocket } from '../support/packet-socket.ts'
import { HANG_MS } from '../support/patience.ts'
import { Backend } from '../support/vhost-user-backend.ts'
import { bodyOf, Frontend, poll } from '../support/vhost-user-client.ts'
import { addCommand, command, controlRing, WITH_CONTROL_QUEUE } from '../support/vhost-user-control.ts'
import { Traffic } from '../support/vhost-user-traffic.ts'

const OWN_MAC = '02:00:5e:10:00:01'
const SET_MAC = [VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET]

const tapIndex = (namespace: NetworkNamespace): number =>
  (JSON.parse(namespace.ip('-json link show tap0')) as { ifindex: number }[])[0]!.ifindex

describe.skipIf(noRealTaps !== null)('a card that runs', () => {
  let backend: Backend
  let traffic: Traffic

  beforeEach(async () => {
    backend = await Backend.start({ args: ['--mac', OWN_MAC] })
    traffic = new Traffic(backend)
  })

  afterEach(async () => {
    await backend[Symbol.asyncDispose]()
  })

  const device = async (): Promise<DeviceView> => (await backend.ask('/v1/device')) as DeviceView

  /** Waits until the card is seen to be so. */
  const seen = (what: string, isSo: (view: DeviceView) => boolean): Promise<unknown> =>
    until(what, async () => isSo(await device()))

  test('shows the address that its driver has set, until the driver resets it', async () => {
    expect(await device()).toMatchObject({ mac: OWN_MAC, ownMac: OWN_MAC })
    {
      using frontend = Frontend.start(backend.socketPath, WITH_CONTROL_QUEUE)
      traffic.pass(frontend)
      expect(command(frontend, [...SET_MAC, 2, 3, 4, 5, 6, 0xfe])).toBe(VIRTIO_NET_OK)
      expect(await device()).toMatchObject({ mac: '02:03:04:05:06:fe', ownMac: OWN_MAC })
      // A multicast address is refused.
      expect(command(frontend, [...SET_MAC, 1, 3, 4, 5, 6, 7])).toBe(VIRTIO_NET_ERR)
      expect(await device()).toMatchObject({ mac: '02:03:04:05:06:fe', ownMac: OWN_MAC })
    }
    await seen('its own address', ({ mac }) => mac === OWN_MAC)
  })

  test.each([
    ['split', false],
    ['packed', true],
  ])(
    'gives a front-end on a %s ring nothing that came for the one before, or while there was none',
    async (_, packed) => {
      const noDriver = async (): Promise<number> => ((await backend.ask('/v1/stats')) as StatsView).drops.rx_no_driver
      for (let session = 0; session < 3; session++) {
        const before = await noDriver()
        {
          using frontend = Frontend.start(backend.socketPath, { packed })
          traffic.out(frontend)
          // More than it has buffers for: one waits in private memory, the others in the TAP.
          frontend.provide(2)
          for (let frames = 0; frames < 10; frames++) backend.wire.send(traffic.frame())
          frontend.receive()
          frontend.receive()
        }
        await until('the end of the session', async () => !(await device()).status.names.includes('DRIVER_OK'))
        backend.wire.send(traffic.frame())
        using next = Frontend.start(backend.socketPath, { packed })
        next.provide(8)
        const frame = traffic.frame()
        backend.wire.send(frame)
        let first = numberOf(next.receive())
        // The kernel says something of its own now and then.
        while (first === null) first = numberOf(next.receive())
        expect(first).toBe(numberOf(frame)!)
        expect((await noDriver()) - before).toBeGreaterThanOrEqual(9)
      }
    },
  )

  test.each([
    ['split', false],
    ['packed', true],
  ])('logs what it writes of a control queue on a %s ring while a front-end migrates', (_, packed) => {
    const LOG = bit(VHOST_USER_PROTOCOL_F_REPLY_ACK) | bit(VHOST_USER_PROTOCOL_F_LOG_SHMFD)
    using frontend = Frontend.start(backend.socketPath, { ...WITH_CONTROL_QUEUE, packed, protocolFeatures: LOG })
    const { client, memory } = frontend
    const ring = controlRing(frontend)
    const logBytes = Math.ceil(memory.end / 4096 / 8)
    using log = new GuestMemory(logBytes, { start: 0 })
    using logged = new EventFd()
    const pageOf = (address: number): number => Math.floor(address / 4096)
    /** The pages that were logged since this was last asked. */
    const dirty = (): number[] => {
      frontend.settle()
      const bits = log.bytes(0, logBytes)
      const pages = Array.from({ length: logBytes * 8 }, (__, page) => page)
      const found = pages.filter((page) => (bits[page >> 3]! & (1 << (page & 7))) !== 0)
      bits.fill(0)
      return found
    }
    /** Gives a command on pages of its own: the page of the answer. */
    const give = (): number => {
      const byte = memory.allocate(4096, 4096)
      expect(command(frontend, [...SET_MAC, 2, 0, 0, 0, 0, byte & 0xfe])).toBe(VIRTIO_NET_OK)
      return pageOf(byte + 4096)
    }

    client.request(VHOST_USER_SET_LOG_BASE, bodyOf(BigInt(logBytes), 0n), [log.fd])
    client.send(VHOST_USER_SET_LOG_FD, new Uint8Array(0), { fds: [logged.fd] })
    give()
    expect(dirty()).toEqual([])

    const features = frontend.driverFeatures | bit(VHOST_USER_F_PROTOCOL_FEATURES)
    expect(client.carriesOut(VHOST_USER_SET_FEATURES, bodyOf(features | bit(VHOST_F_LOG_ALL)))).toBeTrue()
    // The used ring is logged by an address of the front-end's choice, a packed ring's descriptors always by their own.
    const answered = give()
    const descriptors = packed ? [pageOf(ring.model.descAddr)] : []
    expect(dirty()).toEqual([...descriptors, answered])
    expect(poll(logged.fd, POLLIN, HANG_MS)).toBe(POLLIN)

    const usedLog = memory.end - 4096
    expect(client.carriesOut(VHOST_USER_SET_VRING_ADDR, frontend.addressesOf(ring, 1, usedLog))).toBeTrue()
    const then = give()
    expect(dirty()).toEqual([...descriptors, then, pageOf(usedLog)])

    // Told of a ring that stands still, it counts from the ring's start on.
    frontend.startRing(ring, frontend.stopRing(ring))
    expect(client.carriesOut(VHOST_USER_SET_VRING_ADDR, frontend.addressesOf(ring, 1, usedLog))).toBeTrue()
    dirty()
    const restarted = give()
    expect(dirty()).toEqual([...descriptors, restarted, pageOf(usedLog)])

    expect(client.carriesOut(VHOST_USER_SET_FEATURES, bodyOf(features))).toBeTrue()
    give()
    expect(dirty()).toEqual([])
  })

  test('a log that is truncated under a control queue ends the connection, and the next front-end is served', () => {
    {
      const LOG = bit(VHOST_USER_PROTOCOL_F_REPLY_ACK) | bit(VHOST_USER_PROTOCOL_F_LOG_SHMFD)
      using frontend = Frontend.start(backend.socketPath, { ...WITH_CONTROL_QUEUE, protocolFeatures: LOG })
      const logBytes = Math.ceil(frontend.memory.end / 4096 / 8)
      using log = new GuestMemory(logBytes)
      frontend.client.request(VHOST_USER_SET_LOG_BASE, bodyOf(BigInt(logBytes), 0n), [log.fd])
      const features = frontend.driverFeatures | bit(VHOST_USER_F_PROTOCOL_FEATURES) | bit(VHOST_F_LOG_ALL)
      expect(frontend.client.carriesOut(VHOST_USER_SET_FEATURES, bodyOf(features))).toBeTrue()
      log.truncate(0)
      addCommand(frontend, [...SET_MAC, 2, 3, 4, 5, 6, 7])
      controlRing(frontend).publish()
      expect(frontend.client.isClosed()).toBeTrue()
    }
    traffic.serveNext()
  })

  test('a storm of kicks on the control queue keeps no packet, message, command or question waiting', async () => {
    using frontend = Frontend.start(backend.socketPath, WITH_CONTROL_QUEUE)
    const { kick } = controlRing(frontend)
    for (let burst = 0; burst < 50; burst++) {
      for (let i = 0; i < 1000; i++) kick.signal()
      traffic.pass(frontend)
      frontend.settle()
      expect(command(frontend, [...SET_MAC, 2, 0, 0, 0, 0, burst * 2])).toBe(VIRTIO_NET_OK)
    }
    expect((await device()).mac).toBe('02:00:00:00:00:62')
  })

  describe.each([
    ['split', false],
    ['packed', true],
  ])('calls that wait, on a %s ring', (_, packed) => {
    /** The longest that a driver may ask for: what is done within this has not to do with time. */
    const DELAY_MS = 100
    const PACKETS = 16
    const options = {
      ...WITH_CONTROL_QUEUE,
      packed,
      features: WITH_CONTROL_QUEUE.features! | bit(VIRTIO_NET_F_NOTF_COAL),
    }

    const coalesce = (frontend: Frontend, packets: number, usecs: number): void => {
      for (const direction of [VIRTIO_NET_CTRL_NOTF_COAL_TX_SET, VIRTIO_NET_CTRL_NOTF_COAL_RX_SET]) {
        const bytes = [VIRTIO_NET_CTRL_NOTF_COAL, direction, ...le32(packets), ...le32(usecs)]
        expect(command(frontend, bytes)).toBe(VIRTIO_NET_OK)
      }
    }

    const start = (): Frontend => {
      const frontend = Frontend.start(backend.socketPath, options)
      coalesce(frontend, PACKETS, DELAY_MS * 1000)
      return frontend
    }

    /** Sends so many packets, each once the one before is used; true if a call has come meanwhile. */
    const send = (frontend: Frontend, count: number): boolean => {
      for (let i = 0; i < count; i++) {
        frontend.transmit(traffic.frame())
        frontend.usedWithoutCall(frontend.tx)
      }
      return frontend.tx.called(0)
    }

    test('come with the last of so many packets, and for fewer after a while', () => {
      using frontend = start()
      // A machine that is busy otherwise may take its time: what counts is a round that is quick.
      let calls: readonly boolean[] = []
      let quick = false
      for (let round = 0; round < 50 && !quick; round++) {
        const from = performance.now()
        calls = [send(frontend, PACKETS - 1), send(frontend, 1) || frontend.tx.called()]
        quick = performance.now() - from < DELAY_MS
        while (frontend.tx.called(2 * DELAY_MS));
      }
      expect({ quick, calls }).toEqual({ quick: true, calls: [false, true] })

      send(frontend, 1)
      expect(frontend.tx.called()).toBeTrue()
      frontend.provide(8)
      backend.wire.send(traffic.frame())
      frontend.usedWithoutCall(frontend.rx)
      expect(frontend.rx.called()).toBeTrue()
    })

    test('are made before the ring stops, the memory changes, or the driver wants them at once', () => {
      using frontend = start()
      for (const end of [
        () => coalesce(frontend, 0, 0),
        () => coalesce(frontend, PACKETS, 0),
        () => frontend.shareMemory(),
        () => frontend.stopRing(frontend.tx),
      ]) {
        coalesce(frontend, PACKETS, DELAY_MS * 1000)
        const called = send(frontend, 1)
        end()
        frontend.settle()
        expect(called || frontend.tx.called(0)).toBeTrue()
      }
    })

    test('wait no more after a reset', () => {
      start()[Symbol.dispose]()
      using frontend = Frontend.start(backend.socketPath, options)
      let quick = false
      for (let round = 0; round < 50 && !quick; round++) {
        const from = performance.now()
        const called = send(frontend, 1) || frontend.tx.called()
        quick = called && performance.now() - from < DELAY_MS
      }
      expect(quick).toBeTrue()
    })
  })

  test('follows its TAP into another network namespace and back: index, link, packets', async () => {
    using elsewhere = new NetworkNamespace()
    // The TAP's index is taken there.
    for (let i = 0; i < 8; i++) elsewhere.ip(`link add taken${i} type bridge`)
    using frontend = Frontend.start(backend.socketPath)
    await seen('a link', ({ linkUp }) => linkUp)
    backend.namespace.ip(`link set tap0 netns ${elsewhere.name}`)
    // The move has taken it down.
    await seen('no link', ({ linkUp, tap }) => !linkUp && tap.index === tapIndex(elsewhere))
    elsewhere.ip('link set tap0 up')
    await seen('a link there', ({ linkUp }) => linkUp)
    {
      using wire = new PacketSocket(elsewhere.name, 'tap0')
      const sent = traffic.frame()
      frontend.transmit(sent)
      const out = wire.receive()
      expect(out === null ? null : numberOf(out)).toBe(numberOf(sent))
    }
    elsewhere.ip('link set tap0 down')
    await seen('no link there', ({ linkUp }) => !linkUp)
    elsewhere.ip(`link set tap0 netns ${backend.namespace.name}`)
    backend.namespace.ip('link set tap0 up')
    await seen('a link here', ({ linkUp }) => linkUp)
    backend.namespace.ip('link set tap0 down')
    await seen('no link here', ({ linkUp }) => !linkUp)
    backend.namespace.ip('link set tap0 up')
    await seen('a link again', ({ linkUp }) => linkUp)
  })

  test('makes a TAP that was deleted elsewhere again where it was at first, and follows that one', async () => {
    using elsewhere = new NetworkNamespace()
    backend.namespace.ip(`link set tap0 netns ${elsewhere.name}`)
    await seen('no link', ({ linkUp }) => !linkUp)
    elsewhere.ip('link delete tap0')
    await seen('the next TAP', ({ linkUp, tap }) => linkUp && tap.index === tapIndex(backend.namespace))
    backend.namespace.ip('link set tap0 down')
    await seen('no link of the next one', ({ linkUp }) => !linkUp)
    backend.namespace.ip('link set tap0 up')
    await seen('a link of the next one', ({ linkUp }) => linkUp)
  })
})
