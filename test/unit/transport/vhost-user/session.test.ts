import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import {
  VHOST_F_LOG_ALL,
  VHOST_USER_ADD_MEM_REG,
  VHOST_USER_BACKEND_CONFIG_CHANGE_MSG,
  VHOST_USER_BACKEND_VRING_CALL,
  VHOST_USER_BACKEND_VRING_ERR,
  VHOST_USER_GET_CONFIG,
  VHOST_USER_GET_FEATURES,
  VHOST_USER_GET_INFLIGHT_FD,
  VHOST_USER_GET_QUEUE_NUM,
  VHOST_USER_GET_STATUS,
  VHOST_USER_GET_VRING_BASE,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_USER_REM_MEM_REG,
  VHOST_USER_RESET_DEVICE,
  VHOST_USER_SEND_RARP,
  VHOST_USER_SET_BACKEND_REQ_FD,
  VHOST_USER_SET_FEATURES,
  VHOST_USER_SET_INFLIGHT_FD,
  VHOST_USER_SET_LOG_BASE,
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
  VHOST_USER_VRING_KICK,
} from '../../../../src/abi/vhost-user.ts'
import { VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1 } from '../../../../src/abi/virtio.ts'
import { ProtocolError } from '../../../../src/base/errors.ts'
import { EventFd } from '../../../../src/sys/eventfd.ts'
import { native } from '../../../../src/sys/native.ts'
import { PeerSignal, signalPeer } from '../../../../src/sys/peer-signal.ts'
import { bit } from '../../../support/bits.ts'
import { GuestMemory } from '../../../support/guest-memory.ts'
import { SessionFixture, withProtocol } from '../../../support/session-fixture.ts'
import { socketPair } from '../../../support/socket-pair.ts'
import { bodyOf, memRegOf, tableOf, VhostUserClient } from '../../../support/vhost-user-client.ts'

const REPLY_ACK = bit(VHOST_USER_PROTOCOL_F_REPLY_ACK)
const STATUS = bit(VHOST_USER_PROTOCOL_F_STATUS)
const MODERN = withProtocol(bit(VIRTIO_F_VERSION_1))
const SIZE = 64

let cleanup: DisposableStack
let fixture: SessionFixture
let guest: GuestMemory
/** Descriptors of this process before the test. */
let before: readonly string[]

const descriptors = (): readonly string[] => readdirSync('/proc/self/fd')

beforeAll(() => {
  // A thread gets what it keeps on its first signal.
  using event = new EventFd()
  using signal = PeerSignal.adopt(event.release())
  signal?.signal()
})

beforeEach(() => {
  before = descriptors()
  cleanup = new DisposableStack()
  fixture = cleanup.use(new SessionFixture({ inBand: true }))
  guest = cleanup.use(new GuestMemory(1 << 20))
})

afterEach(() => {
  cleanup[Symbol.dispose]()
  expect(descriptors().length).toBe(before.length)
})

const eventFd = (): EventFd => cleanup.use(new EventFd())

const negotiate = (features = MODERN, protocolFeatures = REPLY_ACK): void => {
  fixture.tell(VHOST_USER_SET_PROTOCOL_FEATURES, bodyOf(protocolFeatures))
  fixture.tell(VHOST_USER_SET_FEATURES, bodyOf(features))
}

const share = (): void => fixture.tell(VHOST_USER_SET_MEM_TABLE, tableOf(guest), [guest.fd])

/** Where a ring is put: descriptor table, avail ring, used ring. */
const placeOf = (index: number): readonly [number, number, number] => {
  const start = guest.start + index * 0x10000
  return [start, start + 0x4000, start + 0x8000]
}

const addresses = (index: number, by = 0): Uint8Array => {
  const [desc, avail, used] = placeOf(index).map((at) => BigInt(guest.user(at + by)))
  return bodyOf(index, 0, desc!, used!, avail!, 0n)
}

const place = (index: number, base = 0): void => {
  fixture.tell(VHOST_USER_SET_VRING_NUM, bodyOf(index, SIZE))
  fixture.tell(VHOST_USER_SET_VRING_BASE, bodyOf(index, base))
  fixture.tell(VHOST_USER_SET_VRING_ADDR, addresses(index))
}

const kick = (index: number): void => fixture.tell(VHOST_USER_SET_VRING_KICK, bodyOf(BigInt(index)), [eventFd().fd])

const enable = (index: number, on = 1): void => fixture.tell(VHOST_USER_SET_VRING_ENABLE, bodyOf(index, on))

/** A ring that runs. */
const run = (index: number, base = 0): void => {
  place(index, base)
  kick(index)
  enable(index)
}

const baseOf = (index: number): number => fixture.ask(VHOST_USER_GET_VRING_BASE, bodyOf(index, 0)).getUint32(4, true)

describe('a vring', () => {
  test('starts when it has a kick and is enabled, with all that was said of it, and stops at GET_VRING_BASE', () => {
    negotiate()
    share()
    place(1, 7)
    enable(1)
    expect(fixture.host.running.size).toBe(0)
    kick(1)
    const [descAddr, availAddr, usedAddr] = placeOf(1)
    const config = { size: SIZE, descAddr, availAddr, usedAddr, base: 7, features: bit(VIRTIO_F_VERSION_1) }
    expect([...fixture.host.running]).toEqual([[1, config]] as never)
    expect(fixture.host.kickFds.get(1)).toBeGreaterThan(0)
    fixture.host.stopsAt = 9
    expect([baseOf(1), baseOf(1)]).toEqual([9, 9])
    expect(fixture.host.running.size).toBe(0)
    expect(fixture.driver).toEqual(['up: version_1'])
  })

  test('waits to be enabled once protocol features are used', () => {
    negotiate()
    share()
    place(0)
    kick(0)
    expect(fixture.host.running.size).toBe(0)
    enable(0)
    expect([...fixture.host.running.keys()]).toEqual([0])
    expect(fixture.host.takeCalls()).toEqual(['forget memory', 'enable 0', 'start 0'])
    enable(0, 0)
    expect(fixture.host.takeCalls()).toEqual(['disable 0'])
    expect([...fixture.host.running.keys()]).toEqual([0])
  })

  test('is enabled from the start without protocol features', () => {
    fixture.tell(VHOST_USER_SET_FEATURES, bodyOf(bit(VIRTIO_F_VERSION_1)))
    share()
    place(0)
    kick(0)
    expect([...fixture.host.running.keys()]).toEqual([0])
  })

  test('goes on where it was told when it is started again, at other addresses too', () => {
    negotiate()
    share()
    run(1)
    fixture.host.stopsAt = 40
    expect(baseOf(1)).toBe(40)
    fixture.tell(VHOST_USER_SET_VRING_BASE, bodyOf(1, 40))
    fixture.tell(VHOST_USER_SET_VRING_ADDR, addresses(1, 0x1000))
    kick(1)
    expect(fixture.host.running.get(1)).toMatchObject({ base: 40, descAddr: placeOf(1)[0] + 0x1000 })
  })

  test('keeps its addresses and base while it runs', () => {
    negotiate()
    share()
    run(1)
    expect(fixture.does(VHOST_USER_SET_VRING_ADDR, addresses(1, 0x1000))).toBeFalse()
    expect(fixture.does(VHOST_USER_SET_VRING_BASE, bodyOf(1, 3))).toBeFalse()
    expect(fixture.does(VHOST_USER_SET_VRING_NUM, bodyOf(1, 32))).toBeFalse()
    // The same addresses come again while a front-end migrates.
    expect(fixture.does(VHOST_USER_SET_VRING_ADDR, addresses(1))).toBeTrue()
    expect([...fixture.host.running.keys()]).toEqual([1])
  })

  test('that runs but is disabled is stopped by a new size', () => {
    negotiate()
    share()
    run(1)
    enable(1, 0)
    expect(fixture.does(VHOST_USER_SET_VRING_NUM, bodyOf(1, 32))).toBeTrue()
    expect(fixture.host.running.size).toBe(0)
    enable(1)
    expect(fixture.host.running.size).toBe(0)
  })

  test('is called where it was told, and nowhere once that is taken back', () => {
    negotiate()
    share()
    const [first, second] = [eventFd(), eventFd()]
    const calls = (fd: EventFd): boolean => {
      signalPeer(fixture.host.callTargets.get(1)!)
      const words = new BigUint64Array(1)
      return native.vn_read(fd.fd, words, 8) === 8
    }
    fixture.tell(VHOST_USER_SET_VRING_CALL, bodyOf(1n), [first.fd])
    expect(calls(first)).toBeTrue()
    fixture.tell(VHOST_USER_SET_VRING_CALL, bodyOf(1n), [second.fd])
    expect([calls(first), calls(second)]).toEqual([false, true])
    fixture.tell(VHOST_USER_SET_VRING_CALL, bodyOf(0x101n))
    expect(fixture.host.callTargets.get(1)).toBe(-1)
  })

  test('of a driver of before VERSION_1 starts with its features', () => {
    negotiate(withProtocol(0n))
    share()
    run(1)
    expect(fixture.host.running.get(1)).toMatchObject({ features: 0n })
    expect(fixture.driver).toEqual(['up: '])
  })

  test('does not start before the driver has chosen features, nor after a reset until it has again', () => {
    fixture.tell(VHOST_USER_SET_PROTOCOL_FEATURES, bodyOf(REPLY_ACK))
    share()
    place(1)
    expect(fixture.does(VHOST_USER_SET_VRING_KICK, bodyOf(1n), [eventFd().fd])).toBeFalse()
    fixture.tell(VHOST_USER_SET_FEATURES, bodyOf(MODERN))
    run(1)
    expect(fixture.host.running.size).toBe(1)
    expect(fixture.does(VHOST_USER_RESET_DEVICE)).toBeTrue()
    expect(fixture.host.running.size).toBe(0)
    place(1)
    expect(fixture.does(VHOST_USER_SET_VRING_KICK, bodyOf(1n), [eventFd().fd])).toBeFalse()
    expect(fixture.host.running.size).toBe(0)
  })
})

describe('features', () => {
  test('set again for each queue pair leave the pairs before alone', () => {
    negotiate()
    share()
    for (const pair of [0, 1]) {
      fixture.tell(VHOST_USER_SET_FEATURES, bodyOf(MODERN))
      for (const index of [pair * 2, pair * 2 + 1]) run(index)
    }
    expect([...fixture.host.running.keys()]).toEqual([0, 1, 2, 3])
    expect(fixture.driver).toEqual(['up: version_1'])
  })

  test('of incomplete sets, set again, do not count as a change', () => {
    const features = withProtocol(bit(VIRTIO_F_VERSION_1) | bit(7))
    negotiate(features)
    share()
    run(0)
    fixture.tell(VHOST_USER_SET_FEATURES, bodyOf(features))
    expect([...fixture.host.running.keys()]).toEqual([0])
    expect(fixture.driver).toEqual(['unmet: guest_tso4 without guest_csum', 'up: version_1'])
  })

  test('set after the rings have stopped are those of the next driver', () => {
    negotiate()
    share()
    run(0)
    baseOf(0)
    fixture.tell(VHOST_USER_SET_FEATURES, bodyOf(withProtocol(0n)))
    run(0)
    expect(fixture.driver).toEqual(['up: version_1', 'reset', 'up: '])
    expect(fixture.host.running.get(0)).toMatchObject({ features: 0n })
  })

  test('that are refused leave the device as new; unasked they end no session', () => {
    negotiate()
    share()
    expect(fixture.does(VHOST_USER_SET_FEATURES, bodyOf(MODERN | bit(38)))).toBeFalse()
    fixture.tell(VHOST_USER_SET_FEATURES, bodyOf(MODERN | bit(38)))
    run(0)
    expect(fixture.host.running.size).toBe(0)
    expect(fixture.log.at(0)).toContain('SET_FEATURES refused: FEATURES_OK refused: not offered')
    fixture.tell(VHOST_USER_SET_FEATURES, bodyOf(MODERN))
    run(0)
    expect([...fixture.host.running.keys()]).toEqual([0])
  })

  test('with STATUS the driver decides when it is up', () => {
    negotiate(MODERN, REPLY_ACK | STATUS)
    share()
    run(0)
    expect(fixture.host.running.size).toBe(0)
    for (const status of [1n, 3n, 11n]) expect(fixture.does(VHOST_USER_SET_STATUS, bodyOf(status))).toBeTrue()
    expect(fixture.host.running.size).toBe(0)
    expect(fixture.does(VHOST_USER_SET_STATUS, bodyOf(15n))).toBeTrue()
    expect([...fixture.host.running.keys()]).toEqual([0])
    expect(fixture.does(VHOST_USER_SET_STATUS, bodyOf(3n))).toBeFalse()
    expect(fixture.ask(VHOST_USER_GET_STATUS).getBigUint64(0, true)).toBe(15n)
    expect(fixture.does(VHOST_USER_SET_STATUS, bodyOf(0n))).toBeTrue()
    expect(fixture.host.running.size).toBe(0)
  })

  test('the device tells of itself', () => {
    expect(fixture.ask(VHOST_USER_GET_FEATURES).getBigUint64(0, true) & MODERN).toBe(MODERN)
    expect(fixture.ask(VHOST_USER_GET_QUEUE_NUM).getBigUint64(0, true)).toBe(2n)
    expect(fixture.session.messages).toBe(2)
  })
})

describe('memory', () => {
  test('is let go of before it changes, and is not taken from a ring that runs', () => {
    negotiate()
    share()
    run(1)
    fixture.host.takeCalls()
    using more = new GuestMemory(4096, { start: 0x8000_0000 })
    expect(fixture.does(VHOST_USER_ADD_MEM_REG, memRegOf(more), [more.fd])).toBeTrue()
    expect(fixture.memory.regionCount).toBe(2)
    expect(fixture.does(VHOST_USER_REM_MEM_REG, memRegOf(guest))).toBeFalse()
    expect(fixture.does(VHOST_USER_REM_MEM_REG, memRegOf(more), [more.fd])).toBeTrue()
    expect(fixture.memory.regionCount).toBe(1)
    expect(fixture.host.takeCalls()).toEqual(['forget memory', 'forget memory'])
    baseOf(1)
    expect(fixture.does(VHOST_USER_REM_MEM_REG, memRegOf(guest))).toBeTrue()
  })

  test('that is refused unasked ends the session', () => {
    negotiate()
    share()
    expect(() => fixture.tell(VHOST_USER_ADD_MEM_REG, memRegOf(guest), [guest.fd])).toThrow(ProtocolError)
  })
})

describe('records', () => {
  const inflightOf = (lengthBytes: number, queues = 2): Uint8Array => {
    const body = new Uint8Array(24)
    const view = new DataView(body.buffer)
    view.setBigUint64(0, BigInt(lengthBytes), true)
    view.setUint16(16, queues, true)
    view.setUint16(18, SIZE, true)
    return body
  }

  for (const layout of ['split', 'packed'] as const) {
    test(`of chains in flight are made, given back, and used by the rings that start then: ${layout}`, () => {
      const features = layout === 'packed' ? MODERN | bit(VIRTIO_F_RING_PACKED) : MODERN
      negotiate(features, REPLY_ACK | bit(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD))
      share()
      const base = layout === 'packed' ? 0x8000_8000 : 0
      run(0, base)
      expect(fixture.host.inflight.get(0)).toBeNull()
      baseOf(0)
      fixture.client.send(VHOST_USER_GET_INFLIGHT_FD, inflightOf(0))
      fixture.serve()
      const { body, fds } = fixture.client.answer(VHOST_USER_GET_INFLIGHT_FD)
      const lengthBytes = Number(body.getBigUint64(0, true))
      expect(fixture.does(VHOST_USER_SET_INFLIGHT_FD, inflightOf(lengthBytes), fds)).toBeTrue()
      for (const fd of fds) native.vn_close(fd)
      for (const index of [0, 1]) run(index, base)
      const [first, second] = [fixture.host.inflight.get(0)!, fixture.host.inflight.get(1)!]
      expect(second.address - first.address).toBe(first.lengthBytes)
      expect(first.lengthBytes * 2).toBe(lengthBytes)
      // Not while a ring uses it.
      expect(fixture.does(VHOST_USER_SET_INFLIGHT_FD, inflightOf(lengthBytes), [guest.fd])).toBeFalse()
    })
  }

  test('of pages that are written go to the host while VHOST_F_LOG_ALL is set', () => {
    negotiate(MODERN, REPLY_ACK | bit(VHOST_USER_PROTOCOL_F_LOG_SHMFD))
    share()
    run(0)
    fixture.host.takeCalls()
    using log = new GuestMemory(1 << 16)
    fixture.ask(VHOST_USER_SET_LOG_BASE, bodyOf(1n << 16n, 0n), [log.fd])
    expect(fixture.host.log).toBeNull()
    fixture.tell(VHOST_USER_SET_FEATURES, bodyOf(MODERN | bit(VHOST_F_LOG_ALL)))
    expect(fixture.host.log).not.toBeNull()
    expect([...fixture.host.running.keys()]).toEqual([0])
    fixture.tell(VHOST_USER_SET_FEATURES, bodyOf(MODERN))
    expect(fixture.host.log).toBeNull()
  })
})

describe('the way back', () => {
  const backChannel = (): VhostUserClient => {
    const [ours, theirs] = socketPair()
    fixture.tell(VHOST_USER_SET_BACKEND_REQ_FD, undefined, [theirs])
    native.vn_close(theirs)
    return cleanup.use(new VhostUserClient(ours))
  }
  const IN_BAND = REPLY_ACK | bit(VHOST_USER_PROTOCOL_F_BACKEND_REQ) | bit(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS)

  test('tells of changes of the configuration space where CONFIG was negotiated', () => {
    const features = REPLY_ACK | bit(VHOST_USER_PROTOCOL_F_BACKEND_REQ)
    negotiate(MODERN, features | bit(VHOST_USER_PROTOCOL_F_CONFIG))
    const back = backChannel()
    fixture.session.configChanged()
    expect(back.receive(0)).toMatchObject({ request: VHOST_USER_BACKEND_CONFIG_CHANGE_MSG })
    fixture.tell(VHOST_USER_SET_PROTOCOL_FEATURES, bodyOf(features))
    fixture.session.configChanged()
    expect(back.receive(0)).toBeNull()
  })

  test('carries kicks, calls and errors by messages', () => {
    negotiate(MODERN, IN_BAND)
    share()
    const back = backChannel()
    place(1)
    enable(1)
    fixture.tell(VHOST_USER_VRING_KICK, bodyOf(1, 0))
    expect([...fixture.host.running.keys()]).toEqual([1])
    signalPeer(fixture.host.callTargets.get(1)!)
    fixture.serve()
    expect(back.receive(0)).toMatchObject({ request: VHOST_USER_BACKEND_VRING_CALL })
    fixture.session.ringFailed(1)
    expect(back.receive(0)).toMatchObject({ request: VHOST_USER_BACKEND_VRING_ERR })
    back[Symbol.dispose]()
    expect(() => fixture.serve()).toThrow(ProtocolError)
  })

  test('a ring that has failed signals its descriptor, and the device needs a reset', () => {
    negotiate()
    share()
    const err = eventFd()
    fixture.tell(VHOST_USER_SET_VRING_ERR, bodyOf(1n), [err.fd])
    run(1)
    fixture.session.ringFailed(1)
    const words = new BigUint64Array(1)
    expect(native.vn_read(err.fd, words, 8)).toBe(8)
    expect(fixture.device.getStatus()).toBe(15 | 0x40)
  })
})

test('the configuration space is read in the form of the request', () => {
  negotiate(MODERN, REPLY_ACK | bit(VHOST_USER_PROTOCOL_F_CONFIG))
  const body = new Uint8Array([...bodyOf(0, 8, 0), ...new Uint8Array(8)])
  const answer = fixture.ask(VHOST_USER_GET_CONFIG, body)
  expect([...new Uint8Array(answer.buffer, answer.byteOffset)]).toEqual([
    ...[0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0],
    ...[2, 0, 0, 0, 0, 1, 1, 0],
  ])
})

test('SEND_RARP sends a frame in the name of the address', () => {
  fixture.tell(VHOST_USER_SEND_RARP, new Uint8Array([2, 0, 0, 0, 0, 7, 0, 0]))
  expect(fixture.sent.map((frame) => [frame.length, ...frame.subarray(6, 14)])).toEqual([
    [60, 2, 0, 0, 0, 0, 7, 0x80, 0x35],
  ])
})

test('a front-end that hangs up ends the session; what it leaves is stopped, then let go of', () => {
  negotiate()
  fixture.tell(VHOST_USER_SET_OWNER)
  share()
  for (const index of [0, 1]) run(index)
  fixture.host.takeCalls()
  fixture.hangUp()
  expect(fixture.serve()).toBeFalse()
  fixture.end()
  const calls = fixture.host.takeCalls()
  expect(calls.slice(0, 3)).toEqual(['stop 0', 'stop 1', 'forget memory'])
  expect([...fixture.host.callTargets.values()]).toEqual([-1, -1, -1, -1, -1])
  expect(fixture.memory.regionCount).toBe(0)
  expect(fixture.driver.slice(-2)).toEqual(['reset', 'MTU null'])
})
