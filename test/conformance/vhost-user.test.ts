/**
 * What the vhost-user document asks of a back-end, against the running program: docs/interop/vhost-user.rst of QEMU.
 * Numbers are those of the list of conformance tests.
 */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { readFileSync, writeFileSync } from 'node:fs'
import { POLLIN } from '../../src/abi/linux.ts'
import {
  VHOST_F_LOG_ALL,
  VHOST_TRANSFER_STATE_DIRECTION_LOAD,
  VHOST_TRANSFER_STATE_DIRECTION_SAVE,
  VHOST_TRANSFER_STATE_PHASE_STOPPED,
  VHOST_USER_ADD_MEM_REG,
  VHOST_USER_BACKEND_VRING_CALL,
  VHOST_USER_BACKEND_VRING_ERR,
  VHOST_USER_CHECK_DEVICE_STATE,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VHOST_USER_GET_CONFIG,
  VHOST_USER_GET_FEATURES,
  VHOST_USER_GET_MAX_MEM_SLOTS,
  VHOST_USER_GET_PROTOCOL_FEATURES,
  VHOST_USER_GET_QUEUE_NUM,
  VHOST_USER_GET_STATUS,
  VHOST_USER_GET_VRING_BASE,
  VHOST_USER_NEED_REPLY,
  VHOST_USER_NET_SET_MTU,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_USER_REM_MEM_REG,
  VHOST_USER_RESET_DEVICE,
  VHOST_USER_SEND_RARP,
  VHOST_USER_SET_BACKEND_REQ_FD,
  VHOST_USER_SET_CONFIG,
  VHOST_USER_SET_DEVICE_STATE_FD,
  VHOST_USER_SET_FEATURES,
  VHOST_USER_SET_LOG_BASE,
  VHOST_USER_SET_LOG_FD,
  VHOST_USER_SET_OWNER,
  VHOST_USER_SET_PROTOCOL_FEATURES,
  VHOST_USER_SET_VRING_ADDR,
  VHOST_USER_SET_VRING_CALL,
  VHOST_USER_SET_VRING_ENABLE,
  VHOST_USER_VERSION,
  VHOST_USER_VRING_KICK,
} from '../../src/abi/vhost-user.ts'
import { VIRTIO_NET_CONFIG } from '../../src/abi/virtio-net.ts'
import { EventFd } from '../../src/sys/eventfd.ts'
import { OwnedFd } from '../../src/sys/fd.ts'
import { native } from '../../src/sys/native.ts'
import { bit } from '../support/bits.ts'
import { GuestMemory } from '../support/guest-memory.ts'
import { noRealTaps } from '../support/network-namespace.ts'
import { HANG_MS, TEST_MS } from '../support/patience.ts'
import { socketPair } from '../support/socket-pair.ts'
import { Backend, type Resources } from '../support/vhost-user-backend.ts'
import { bodyOf, DRIVER_FEATURES, Frontend, memRegOf, poll, VhostUserClient } from '../support/vhost-user-client.ts'
import { Traffic } from '../support/vhost-user-traffic.ts'

setDefaultTimeout(TEST_MS)

/** A connection for requests of the back-end: our end, and the descriptor to give away. */
const backChannel = (): [VhostUserClient, number] => {
  const [ours, theirs] = socketPair()
  return [new VhostUserClient(ours), theirs]
}

const REPLY_ACK = bit(VHOST_USER_PROTOCOL_F_REPLY_ACK)
const BACKEND_REQ = bit(VHOST_USER_PROTOCOL_F_BACKEND_REQ)
const CONFIG = bit(VHOST_USER_PROTOCOL_F_CONFIG)
const STATUS = bit(VHOST_USER_PROTOCOL_F_STATUS)
const LOG = bit(VHOST_USER_PROTOCOL_F_LOG_SHMFD)
const INBAND = bit(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS)

describe.skipIf(noRealTaps !== null)('vhost-user back-end', () => {
  let backend: Backend
  let traffic: Traffic
  let idle: Resources

  beforeAll(async () => {
    backend = await Backend.start({ pairs: 2, args: ['--in-band'] })
    traffic = new Traffic(backend)
    {
      using frontend = Frontend.start(backend.socketPath, { rings: 4 })
      traffic.out(frontend)
      for (const ring of [frontend.rings[1]!, frontend.rings[3]!]) {
        traffic.out(frontend, ring)
        ring.driver.availIdx = 1000
        ring.kick.signal()
        expect(poll(ring.err.fd, POLLIN, HANG_MS)).toBe(POLLIN)
      }
    }
    await backend.logged(/front-end disconnected/)
    idle = backend.resources()
  })

  afterAll(async () => {
    await backend[Symbol.asyncDispose]()
  })

  /** Afterwards the next front-end is served, and the program holds no more than before. */
  const conforms = (title: string, act: () => void | Promise<void>): void => {
    test(title, async () => {
      await act()
      traffic.serveNext()
      await backend.releases(idle)
    })
  }

  /** One that is past negotiation and has shared its memory. */
  const introduced = (options: ConstructorParameters<typeof Frontend>[1] = {}): Frontend => {
    const frontend = new Frontend(VhostUserClient.connect(backend.socketPath), options)
    frontend.negotiate()
    frontend.shareMemory()
    return frontend
  }

  for (const layout of ['split', 'packed'] as const) {
    const packed = layout === 'packed'

    conforms(`conformance 49: a ring starts when it is given a kick, and stops at GET_VRING_BASE: ${layout}`, () => {
      using frontend = introduced({ packed })
      const { tx } = frontend
      const { base } = tx
      frontend.placeRing(tx)
      frontend.enable(tx, true)
      const first = traffic.frame()
      frontend.transmit(first)
      frontend.settle()
      expect(backend.wire.receive(50)).toBeNull()
      expect(tx.model.reap()).toBeUndefined()
      frontend.startRing(tx, base)
      frontend.settle()
      traffic.arrives(first)
      frontend.used(tx)
      expect(frontend.stopRing(tx)).toBe(packed ? tx.base : 1)
      frontend.transmit(traffic.frame())
      frontend.settle()
      expect(backend.wire.receive(50)).toBeNull()
      expect(tx.model.reap()).toBeUndefined()
    })

    conforms(`conformance 50: a disabled ring discards what is sent, and receives nothing: ${layout}`, () => {
      using frontend = Frontend.start(backend.socketPath, { packed })
      traffic.pass(frontend)
      const { client, rx, tx } = frontend
      for (const ring of [rx, tx])
        expect(client.carriesOut(VHOST_USER_SET_VRING_ENABLE, bodyOf(ring.index, 0))).toBeTrue()
      while (rx.model.reap() !== undefined);
      frontend.provide(8)
      frontend.transmit(traffic.frame())
      frontend.used(tx)
      backend.wire.send(traffic.frame())
      expect(backend.wire.receive(100)).toBeNull()
      expect(rx.model.reap()).toBeUndefined()
      for (const ring of [rx, tx])
        expect(client.carriesOut(VHOST_USER_SET_VRING_ENABLE, bodyOf(ring.index, 1))).toBeTrue()
      traffic.pass(frontend)
    })

    conforms(`conformance 50: rings are disabled until they are enabled: ${layout}`, () => {
      using frontend = introduced({ packed })
      for (const ring of frontend.rings) {
        frontend.startRing(ring)
        frontend.enable(ring, false)
      }
      frontend.settle()
      frontend.transmit(traffic.frame())
      frontend.used(frontend.tx)
      expect(backend.wire.receive(50)).toBeNull()
    })

    conforms(
      `conformance 50: what waits in a ring that nothing was said about is sent once it is enabled: ${layout}`,
      () => {
        using frontend = introduced({ packed })
        const { tx } = frontend
        frontend.placeRing(tx)
        const waiting = [traffic.frame(), traffic.frame()]
        for (const frame of waiting) frontend.transmit(frame)
        frontend.giveKick(tx)
        frontend.settle()
        expect(backend.wire.receive(50)).toBeNull()
        expect(tx.model.reap()).toBeUndefined()
        frontend.enable(tx, true)
        for (const frame of waiting) traffic.arrives(frame)
      },
    )

    conforms(`conformance 51: SET_FEATURES without protocol features enables all rings: ${layout}`, () => {
      traffic.serveNext({ protocolFeatures: null, packed })
    })

    conforms(
      'conformance 54: with all rings stopped nothing is written and nobody signalled, and questions ' +
        `are answered: ${layout}`,
      () => {
        using frontend = Frontend.start(backend.socketPath, { packed })
        traffic.pass(frontend)
        frontend.provide(8)
        for (const ring of frontend.rings) frontend.stopRing(ring)
        for (const ring of frontend.rings) ring.call.drain()
        const before = frontend.memory.hash()
        for (let i = 0; i < 10; i++) backend.wire.send(traffic.frame())
        frontend.tx.kick.signal()
        frontend.settle()
        for (const ring of frontend.rings) expect(poll(ring.call.fd, POLLIN, 20)).toBe(0)
        expect(frontend.memory.hash()).toBe(before)
        expect(frontend.client.u64(VHOST_USER_GET_MAX_MEM_SLOTS)).toBeGreaterThan(8n)
      },
    )
  }

  conforms('conformance 52: protocol features can be asked for and set before anything else', () => {
    using client = VhostUserClient.connect(backend.socketPath)
    const offered = client.u64(VHOST_USER_GET_PROTOCOL_FEATURES)
    expect(offered & REPLY_ACK).toBe(REPLY_ACK)
    client.send(VHOST_USER_SET_PROTOCOL_FEATURES, bodyOf(REPLY_ACK))
    expect(client.carriesOut(VHOST_USER_SET_OWNER)).toBeTrue()
    expect(client.u64(VHOST_USER_GET_FEATURES) & bit(VHOST_USER_F_PROTOCOL_FEATURES)).not.toBe(0n)
  })

  conforms('conformance 53: a request that needs a reply has exactly one', () => {
    using frontend = introduced({ protocolFeatures: REPLY_ACK | CONFIG | STATUS | LOG })
    const { client, tx } = frontend
    frontend.placeRing(tx)
    using log = new GuestMemory(1 << 20)
    const state = bodyOf(1, 0)
    const requests: [number, Uint8Array, number[]][] = [
      [VHOST_USER_GET_FEATURES, new Uint8Array(0), []],
      [VHOST_USER_SET_OWNER, new Uint8Array(0), []],
      [VHOST_USER_GET_PROTOCOL_FEATURES, new Uint8Array(0), []],
      [VHOST_USER_GET_QUEUE_NUM, new Uint8Array(0), []],
      [VHOST_USER_GET_MAX_MEM_SLOTS, new Uint8Array(0), []],
      [VHOST_USER_GET_VRING_BASE, state, []],
      [VHOST_USER_SET_VRING_ENABLE, state, []],
      [VHOST_USER_SET_VRING_CALL, bodyOf(1n), [tx.call.fd]],
      [VHOST_USER_SET_LOG_BASE, bodyOf(1n << 20n, 0n), [log.fd]],
      [VHOST_USER_GET_CONFIG, new Uint8Array([...bodyOf(0, 6, 0), 0, 0, 0, 0, 0, 0]), []],
      [VHOST_USER_GET_STATUS, new Uint8Array(0), []],
      [VHOST_USER_NET_SET_MTU, bodyOf(1500n), []],
      [VHOST_USER_NET_SET_MTU, bodyOf(1n), []],
      [200, state, []],
    ]
    for (const [request, body, fds] of requests) {
      client.send(request, body, { fds, flags: VHOST_USER_VERSION | VHOST_USER_NEED_REPLY })
      client.answer(request)
      frontend.settle()
    }
    expect(client.receive(50)).toBeNull()
  })

  conforms("the state of a card that has stopped is handed over on a channel of the back-end's, and taken over", () => {
    using frontend = introduced({ rings: 4, protocolFeatures: bit(VHOST_USER_PROTOCOL_F_DEVICE_STATE) })
    const { client, rings } = frontend
    for (const ring of rings) frontend.startRing(ring)
    frontend.settle()
    traffic.out(frontend)
    const bases = rings.map((ring) => frontend.stopRing(ring))
    /** Answered without REPLY_ACK, too. Of what the front-end offers as a channel there is no need. */
    const begin = (direction: number): OwnedFd => {
      const request = bodyOf(direction, VHOST_TRANSFER_STATE_PHASE_STOPPED)
      const { body, fds } = client.request(VHOST_USER_SET_DEVICE_STATE_FD, request, [rings[0]!.kick.fd])
      expect([body.byteLength, body.getBigUint64(0, true), fds.length]).toEqual([8, 0n, 1])
      return new OwnedFd(fds[0]!)
    }
    let text = ''
    {
      using channel = begin(VHOST_TRANSFER_STATE_DIRECTION_SAVE)
      text = readFileSync(channel.fd, 'utf8')
    }
    expect(text).toBe('{"vduse-net":1,"mtu":1500,"queuePairs":2}')
    expect(client.u64(VHOST_USER_CHECK_DEVICE_STATE)).toBe(0n)
    {
      using channel = begin(VHOST_TRANSFER_STATE_DIRECTION_LOAD)
      writeFileSync(channel.fd, text)
    }
    expect(client.u64(VHOST_USER_CHECK_DEVICE_STATE)).toBe(0n)
    // A migration that fails is followed by nothing else: the card goes on where it was.
    for (const [index, ring] of rings.entries()) frontend.startRing(ring, bases[index]!)
    frontend.settle()
    for (const ring of [rings[1]!, rings[3]!]) traffic.out(frontend, ring)
  })

  conforms('conformance 55: REM_MEM_REG closes a descriptor that is sent along', () => {
    using frontend = Frontend.start(backend.socketPath)
    using more = new GuestMemory(1 << 20, { start: 0x8000_0000 })
    expect(frontend.client.carriesOut(VHOST_USER_ADD_MEM_REG, memRegOf(more), [more.fd])).toBeTrue()
    const before = backend.resources().fds.length
    expect(frontend.client.carriesOut(VHOST_USER_REM_MEM_REG, memRegOf(more), [more.fd])).toBeTrue()
    expect(backend.resources().fds.length).toBe(before)
    traffic.pass(frontend)
  })

  conforms('conformance 57: the used index is read when a ring starts', () => {
    using frontend = introduced()
    const { tx } = frontend
    const moved = 0xfffe
    tx.driver.moveTo(moved)
    frontend.startRing(tx, moved)
    frontend.settle()
    for (let i = 0; i < 5; i++) traffic.out(frontend)
    expect(tx.driver.usedIdx).toBe((moved + 5) & 0xffff)
    expect(frontend.stopRing(tx)).toBe((moved + 5) & 0xffff)
  })

  conforms('a region larger than 4 GiB, with rings and buffers beyond', () => {
    const bytes = 6 * 2 ** 30
    using frontend = Frontend.start(backend.socketPath, {
      memoryBytes: bytes,
      memory: { start: 0x1_0000_0000, usedFrom: bytes - (1 << 20) },
    })
    traffic.pass(frontend)
  })

  conforms('a region that begins in the middle of its file', () => {
    traffic.serveNext({ memory: { fileOffset: 5 * 4096 } })
  })

  conforms('several regions: SET_MEM_TABLE, and more with ADD_MEM_REG', () => {
    using frontend = Frontend.start(backend.socketPath)
    for (let i = 0; i < 50; i++) {
      using more = new GuestMemory(4096, { start: 0x8000_0000 + i * 0x10000 })
      expect(frontend.client.carriesOut(VHOST_USER_ADD_MEM_REG, memRegOf(more), [more.fd])).toBeTrue()
    }
    traffic.pass(frontend)
    expect(backend.resources().guestMaps).toBe(51)
  })

  conforms('two queue pairs, each with its own packets', () => {
    using frontend = Frontend.start(backend.socketPath, { rings: 4 })
    expect(frontend.client.u64(VHOST_USER_GET_QUEUE_NUM)).toBe(2n)
    for (const ring of [frontend.rings[1]!, frontend.rings[3]!]) traffic.out(frontend, ring)
  })

  conforms('features set again for each queue pair leave the pairs before alone', () => {
    using frontend = new Frontend(VhostUserClient.connect(backend.socketPath), { rings: 4 })
    frontend.negotiate()
    frontend.shareMemory()
    const features = bodyOf(DRIVER_FEATURES | bit(VHOST_USER_F_PROTOCOL_FEATURES))
    for (const pair of [frontend.rings.slice(0, 2), frontend.rings.slice(2)]) {
      expect(frontend.client.carriesOut(VHOST_USER_SET_FEATURES, features)).toBeTrue()
      for (const ring of pair) {
        frontend.placeRing(ring)
        frontend.giveKick(ring)
      }
    }
    for (const ring of frontend.rings) frontend.enable(ring, true)
    frontend.settle()
    for (const ring of [frontend.rings[1]!, frontend.rings[3]!]) traffic.out(frontend, ring)
  })

  conforms('RESET_DEVICE stops and disables all rings', () => {
    using frontend = Frontend.start(backend.socketPath)
    traffic.pass(frontend)
    expect(frontend.client.carriesOut(VHOST_USER_RESET_DEVICE)).toBeTrue()
    frontend.transmit(traffic.frame())
    frontend.settle()
    expect(backend.wire.receive(50)).toBeNull()
  })

  conforms('the configuration space can be read at any size, and not be written', () => {
    using frontend = introduced({ protocolFeatures: REPLY_ACK | CONFIG })
    const { client } = frontend
    const read = (offset: number, size: number): Uint8Array => {
      const { body } = client.request(
        VHOST_USER_GET_CONFIG,
        new Uint8Array([...bodyOf(offset, size, 0), ...new Uint8Array(size)]),
      )
      return new Uint8Array(body.buffer, body.byteOffset, body.byteLength)
    }
    const whole = read(0, VIRTIO_NET_CONFIG.sizeBytes).subarray(12)
    expect(whole.length).toBe(VIRTIO_NET_CONFIG.sizeBytes)
    for (let size = 1; size <= VIRTIO_NET_CONFIG.sizeBytes; size++) {
      expect(read(0, size).subarray(12)).toEqual(whole.subarray(0, size))
      expect(read(VIRTIO_NET_CONFIG.sizeBytes - size, size).subarray(12)).toEqual(whole.subarray(whole.length - size))
    }
    expect(new DataView(whole.buffer, whole.byteOffset).getUint16(VIRTIO_NET_CONFIG.max_virtqueue_pairs, true)).toBe(2)
    // Beyond the end there is nothing: a payload of length 0.
    expect(read(0, VIRTIO_NET_CONFIG.sizeBytes + 1).length).toBe(0)
    expect(read(0xffff_ffff, 1).length).toBe(0)
    client.send(VHOST_USER_SET_CONFIG, new Uint8Array([...bodyOf(0, 6, 0), 9, 9, 9, 9, 9, 9]))
    expect(read(0, whole.length).subarray(12)).toEqual(whole)
    // Sizes that do not agree.
    expect(client.carriesOut(VHOST_USER_GET_CONFIG, new Uint8Array([...bodyOf(0, 7, 0), 0, 0, 0, 0, 0, 0]))).toBeFalse()
  })

  conforms('SEND_RARP announces the address on the TAP', () => {
    using frontend = introduced()
    frontend.client.send(VHOST_USER_SEND_RARP, new Uint8Array([2, 0, 0, 0, 0, 7, 0, 0]))
    const frame = backend.wire.receiveAny((bytes) => bytes[12] === 0x80 && bytes[13] === 0x35)
    expect([...frame!.subarray(0, 12)]).toEqual([255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 7])
    expect([...frame!.subarray(14, 22)]).toEqual([0, 1, 8, 0, 6, 4, 0, 3])
    expect([...frame!.subarray(32, 38)]).toEqual([2, 0, 0, 0, 0, 7])
  })

  conforms('pages that are written are logged while a front-end migrates, and no others', () => {
    using frontend = Frontend.start(backend.socketPath, { protocolFeatures: REPLY_ACK | LOG, memoryBytes: 1 << 21 })
    const { client, memory, rx, tx } = frontend
    const logBytes = Math.ceil(memory.end / 4096 / 8)
    const offset = 64
    using log = new GuestMemory(offset + logBytes, { start: 0 })
    const dirty = (): number[] => {
      const pages: number[] = []
      const bits = log.bytes(offset, logBytes)
      for (let page = memory.start / 4096; page < memory.end / 4096; page++) {
        if ((bits[page >> 3]! & (1 << (page & 7))) !== 0) pages.push(page)
      }
      bits.fill(0)
      return pages
    }
    const pagesOf = (start: number, length: number): number[] => {
      const first = Math.floor(start / 4096)
      return Array.from({ length: Math.floor((start + length - 1) / 4096) - first + 1 }, (_, i) => first + i)
    }
    const features = DRIVER_FEATURES | bit(VHOST_USER_F_PROTOCOL_FEATURES)
    // Rings on pages of their own, so that nothing is logged by chance.
    frontend.provide(8)
    traffic.pass(frontend)
    client.request(VHOST_USER_SET_LOG_BASE, bodyOf(BigInt(logBytes), BigInt(offset)), [log.fd])
    traffic.pass(frontend)
    expect(dirty()).toEqual([])

    using logged = new EventFd()
    client.send(VHOST_USER_SET_LOG_FD, new Uint8Array(0), { fds: [logged.fd] })
    expect(client.carriesOut(VHOST_USER_SET_FEATURES, bodyOf(features | bit(VHOST_F_LOG_ALL)))).toBeTrue()
    memory.allocate(4096, 4096)
    frontend.provide(16, 6000)
    frontend.settle()
    dirty()
    // Buffers of receive are written, those of transmit are not; used rings are not logged yet.
    const before = rx.driver.usedIdx
    traffic.in(frontend)
    traffic.out(frontend)
    const written = new Set<number>()
    for (let i = before; i !== rx.driver.usedIdx; i = (i + 1) & 0xffff) {
      const { id, length } = rx.driver.usedAt(i)
      for (const page of pagesOf(rx.buffers.get(id)!, length)) written.add(page)
    }
    frontend.settle()
    expect(dirty()).toEqual([...written].sort((a, b) => a - b))
    expect(poll(logged.fd, POLLIN, HANG_MS)).toBe(POLLIN)

    const usedBytes = 6 + 8 * tx.driver.size
    const usedLog = memory.end - 4096 - usedBytes + 10
    expect(client.carriesOut(VHOST_USER_SET_VRING_ADDR, frontend.addressesOf(tx, 1, usedLog))).toBeTrue()
    traffic.out(frontend)
    frontend.stopRing(tx)
    const pages = dirty()
    for (const page of pagesOf(usedLog, usedBytes)) expect(pages).toContain(page)
    frontend.startRing(tx, tx.driver.usedIdx)

    expect(client.carriesOut(VHOST_USER_SET_FEATURES, bodyOf(features))).toBeTrue()
    frontend.settle()
    dirty()
    traffic.pass(frontend)
    frontend.settle()
    expect(dirty()).toEqual([])
  })

  conforms('packed rings: packets, stops, and the log of pages that are written', () => {
    using frontend = Frontend.start(backend.socketPath, { packed: true, protocolFeatures: REPLY_ACK | LOG })
    const { client, memory, rx, tx } = frontend
    const logBytes = Math.ceil(memory.end / 4096 / 8)
    using log = new GuestMemory(logBytes, { start: 0 })
    const isDirty = (address: number): boolean => {
      const page = Math.floor(address / 4096)
      return (log.bytes(page >> 3, 1)[0]! & (1 << (page & 7))) !== 0
    }
    for (let i = 0; i < 100; i++) traffic.pass(frontend)
    for (const ring of frontend.rings) frontend.startRing(ring, frontend.stopRing(ring))
    frontend.settle()
    client.request(VHOST_USER_SET_LOG_BASE, bodyOf(BigInt(logBytes), 0n), [log.fd])
    const features = frontend.driverFeatures | bit(VHOST_USER_F_PROTOCOL_FEATURES)
    expect(client.carriesOut(VHOST_USER_SET_FEATURES, bodyOf(features | bit(VHOST_F_LOG_ALL)))).toBeTrue()
    for (const ring of frontend.rings) {
      const addresses = frontend.addressesOf(ring, 1, ring.model.usedAddr)
      expect(client.carriesOut(VHOST_USER_SET_VRING_ADDR, addresses)).toBeTrue()
    }
    const last = memory.allocate(4096, 4096)
    traffic.pass(frontend)
    frontend.settle()
    for (const ring of [rx, tx]) {
      expect(isDirty(ring.model.descAddr)).toBeTrue()
      expect(isDirty(ring.model.usedAddr)).toBeTrue()
    }
    expect(isDirty(last)).toBeFalse()
  })

  conforms('a log that is truncated while it is written ends the connection', () => {
    using frontend = Frontend.start(backend.socketPath, { protocolFeatures: REPLY_ACK | LOG })
    const { client, memory } = frontend
    const logBytes = Math.ceil(memory.end / 4096 / 8)
    using log = new GuestMemory(logBytes)
    client.request(VHOST_USER_SET_LOG_BASE, bodyOf(BigInt(logBytes), 0n), [log.fd])
    const features = DRIVER_FEATURES | bit(VHOST_USER_F_PROTOCOL_FEATURES) | bit(VHOST_F_LOG_ALL)
    expect(client.carriesOut(VHOST_USER_SET_FEATURES, bodyOf(features))).toBeTrue()
    traffic.pass(frontend)
    frontend.provide(8)
    log.truncate(0)
    backend.wire.send(traffic.frame())
    expect(client.isClosed()).toBeTrue()
  })

  conforms('kicks, calls and errors in band, where that was negotiated', () => {
    using frontend = introduced({ protocolFeatures: REPLY_ACK | BACKEND_REQ | INBAND })
    const { client, tx } = frontend
    const [back, theirs] = backChannel()
    client.send(VHOST_USER_SET_BACKEND_REQ_FD, undefined, { fds: [theirs] })
    native.vn_close(theirs)
    frontend.placeRing(tx)
    frontend.enable(tx, true)
    const kick = (index: number, reserved = 0): boolean =>
      client.carriesOut(VHOST_USER_VRING_KICK, bodyOf(index, reserved))
    expect(kick(9)).toBeFalse()
    expect(kick(1, 1)).toBeFalse()
    const call = { request: VHOST_USER_BACKEND_VRING_CALL, flags: VHOST_USER_VERSION | VHOST_USER_NEED_REPLY }
    for (let i = 0; i < 3; i++) {
      const frame = traffic.frame()
      frontend.transmit(frame, { kick: false })
      tx.driver.publish()
      expect(kick(1)).toBeTrue()
      traffic.arrives(frame)
      const message = back.receive()
      expect(message).toMatchObject(call)
      if (message === null || message === 'closed') throw new Error('no call')
      expect(message.body.getUint32(0, true)).toBe(1)
      expect(tx.driver.reap()).toBeDefined()
      // While a call is not answered there is no other.
      frontend.transmit(traffic.frame(), { kick: false })
      tx.driver.publish()
      expect(kick(1)).toBeTrue()
      expect(backend.wire.receive()).not.toBeNull()
      expect(back.receive(20)).toBeNull()
      back.sendAnswer(message.request, 0n)
      expect(back.receive()).toMatchObject(call)
      expect(tx.driver.reap()).toBeDefined()
      back.sendAnswer(message.request, 0n)
    }
    tx.driver.availIdx = 1000
    expect(kick(1)).toBeTrue()
    expect(back.receive()).toMatchObject({ request: VHOST_USER_BACKEND_VRING_ERR, flags: VHOST_USER_VERSION })
    // Without a way to call, the session is of no use.
    back[Symbol.dispose]()
    expect(client.isClosed()).toBeTrue()
  })

  conforms('a descriptor is preferred to in-band notifications', () => {
    using frontend = introduced({ protocolFeatures: REPLY_ACK | BACKEND_REQ | INBAND })
    const [back, theirs] = backChannel()
    frontend.client.send(VHOST_USER_SET_BACKEND_REQ_FD, undefined, { fds: [theirs] })
    native.vn_close(theirs)
    for (const ring of frontend.rings) frontend.startRing(ring)
    frontend.settle()
    traffic.pass(frontend)
    expect(frontend.tx.called(0) || frontend.rx.called(0)).toBeBoolean()
    expect(back.receive(20)).toBeNull()
    back[Symbol.dispose]()
    traffic.pass(frontend)
  })
})
