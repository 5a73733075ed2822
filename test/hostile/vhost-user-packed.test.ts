/**
 * What a driver can do with a packed ring, against the running program. Numbers are those of the list of hostile
 * inputs.
 */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { POLLIN } from '../../src/abi/linux.ts'
import {
  VHOST_USER_SET_VRING_ADDR,
  VHOST_USER_SET_VRING_BASE,
  VHOST_USER_SET_VRING_NUM,
} from '../../src/abi/vhost-user.ts'
import {
  VRING_DESC_F_INDIRECT,
  VRING_DESC_F_NEXT,
  VRING_DESC_F_WRITE,
  VRING_PACKED_EVENT_FLAG_DESC,
} from '../../src/abi/virtio-ring.ts'
import { noRealTaps } from '../support/network-namespace.ts'
import { PackedFrontend, type PackedFrontendRing } from '../support/packed-frontend.ts'
import { numberOf, testFrame } from '../support/packet-socket.ts'
import { HANG_MS, TEST_MS } from '../support/patience.ts'
import { HEADER_BYTES } from '../support/tap-lab.ts'
import { Backend } from '../support/vhost-user-backend.ts'
import { bodyOf, poll } from '../support/vhost-user-client.ts'

setDefaultTimeout(TEST_MS)

const NEXT = VRING_DESC_F_NEXT
const INDIRECT = VRING_DESC_F_INDIRECT
const AVAIL = 0x80
const USED = 0x8000

describe.skipIf(noRealTaps !== null)('packed rings over vhost-user', () => {
  let backend: Backend
  let last = 0

  beforeAll(async () => {
    backend = await Backend.start()
  })

  afterAll(async () => {
    await backend[Symbol.asyncDispose]()
  })

  /** Makes a new frame available to the card; its number and the id of its chain. */
  const transmit = (frontend: PackedFrontend, bytes = 64): { number: number; id: number } => {
    const number = ++last
    const id = frontend.transmit(testFrame(number, bytes), { ring: frontend.packedTx.asFrontendRing })
    return { number, id }
  }

  const expectOnWire = (number: number): void => {
    const frame = backend.wire.receive()
    expect(frame === null ? null : numberOf(frame)).toBe(number)
  }

  /** A frame goes out, and one comes in. */
  const expectService = (frontend: PackedFrontend): void => {
    const { number, id } = transmit(frontend)
    expectOnWire(number)
    expect(frontend.used(frontend.packedTx.asFrontendRing)).toEqual({ id, length: 0 })
    frontend.provide(1, 2048, frontend.packedRx.asFrontendRing)
    const incoming = testFrame(++last)
    backend.wire.send(incoming)
    // The kernel of the other side may have something to say too.
    for (;;) {
      const received = frontend.receive(frontend.packedRx.asFrontendRing)
      if (numberOf(received) === last) {
        expect(received).toEqual(incoming)
        return
      }
      frontend.provide(1, 2048, frontend.packedRx.asFrontendRing)
    }
  }

  const expectQuarantined = ({ err }: PackedFrontendRing): void => {
    expect(poll(err.fd, POLLIN, HANG_MS) & POLLIN).toBe(POLLIN)
  }

  /** `act` on a fresh card; afterwards the next front-end is served. */
  const survives = (title: string, act: (frontend: PackedFrontend) => void, size = 64): void => {
    test(title, () => {
      {
        using frontend = PackedFrontend.startPacked(backend.socketPath, size)
        act(frontend)
      }
      using next = PackedFrontend.startPacked(backend.socketPath)
      expectService(next)
    })
  }

  /** A buffer with a header of zeroes, and a frame if there is a number. */
  const bufferOf = (
    { memory }: PackedFrontend,
    number?: number,
  ): { addressLow: number; addressHigh: number; length: number } => {
    const frame = number === undefined ? new Uint8Array(64) : testFrame(number)
    const address = memory.allocate(HEADER_BYTES + frame.length)
    memory.bytes(address + HEADER_BYTES, frame.length).set(frame)
    return {
      addressLow: address % 2 ** 32,
      addressHigh: Math.floor(address / 2 ** 32),
      length: HEADER_BYTES + frame.length,
    }
  }

  survives('frames pass both ways, many times round the ring', (frontend) => {
    for (let round = 0; round < 200; round++) expectService(frontend)
  })

  survives('42 AVAIL/USED bits inconsistent: not taken, until they are right', (frontend) => {
    const { driver, kick } = frontend.packedTx
    const number = ++last
    driver.write([{ ...bufferOf(frontend, number), id: 5 }])
    const slot = 0
    for (const flags of [0, AVAIL | USED, USED]) {
      driver.ring.setUint16(16 * slot + 14, flags, true)
      kick.signal()
      frontend.settle()
      expect(backend.wire.receive(50)).toBeNull()
    }
    frontend.packedTx.publish()
    expectOnWire(number)
  })

  survives(
    '43 a ring of NEXT only',
    (frontend) => {
      const { driver } = frontend.packedTx
      driver.write(Array.from({ length: 16 }, () => ({ ...bufferOf(frontend), flags: NEXT })))
      frontend.packedTx.publish()
      expectQuarantined(frontend.packedTx)
    },
    16,
  )

  survives('44 tail unpublished', (frontend) => {
    const { driver } = frontend.packedTx
    driver.write([{ ...bufferOf(frontend), flags: NEXT }, bufferOf(frontend)])
    driver.ring.setUint16(16 + 14, 0, true)
    frontend.packedTx.publish()
    expectQuarantined(frontend.packedTx)
  })

  survives('45 NEXT and INDIRECT: dropped', (frontend) => {
    const { driver } = frontend.packedTx
    const table = bufferOf(frontend)
    driver.offerRaw([
      { ...table, length: 16, flags: INDIRECT | NEXT },
      { ...bufferOf(frontend), id: 9 },
    ])
    frontend.packedTx.kick.signal()
    expect(frontend.used(frontend.packedTx.asFrontendRing)).toEqual({ id: 9, length: 0 })
    expectService(frontend)
  })

  survives('46 flags other than WRITE and ids inside a table: ignored', (frontend) => {
    const { driver } = frontend.packedTx
    const number = ++last
    const whole = bufferOf(frontend, number)
    const table = frontend.memory.allocate(32)
    driver.writeTable(table, [
      { ...whole, length: 20, flags: NEXT | INDIRECT | AVAIL, id: 0xffff },
      {
        ...whole,
        addressLow: whole.addressLow + 20,
        length: whole.length - 20,
        flags: 0xffff & ~VRING_DESC_F_WRITE,
        id: 1,
      },
    ])
    driver.offerRaw([{ addressLow: table % 2 ** 32, addressHigh: 0, length: 32, flags: INDIRECT, id: 77 }])
    frontend.packedTx.kick.signal()
    expectOnWire(number)
    expect(frontend.used(frontend.packedTx.asFrontendRing)).toEqual({ id: 77, length: 0 })
  })

  survives('47 arbitrary and duplicate ids: echoed', (frontend) => {
    const { driver } = frontend.packedTx
    for (const id of [0xffff, 0, 0xffff, 0x8000, 0xffff]) {
      const number = ++last
      driver.offerRaw([{ ...bufferOf(frontend, number), id }])
      frontend.packedTx.kick.signal()
      expectOnWire(number)
      expect(frontend.used(frontend.packedTx.asFrontendRing)).toEqual({ id, length: 0 })
    }
  })

  survives('48 event flags 3, an entry beyond the ring: a call', (frontend) => {
    const { driver, call } = frontend.packedTx
    for (const [flags, offWrap] of [
      [3, 0],
      [VRING_PACKED_EVENT_FLAG_DESC, 64],
      [VRING_PACKED_EVENT_FLAG_DESC, 0xffff],
    ] as const) {
      driver.setEvent(flags, offWrap)
      call.drain()
      const { number, id } = transmit(frontend)
      expectOnWire(number)
      expect(poll(call.fd, POLLIN, HANG_MS) & POLLIN).toBe(POLLIN)
      expect(frontend.used(frontend.packedTx.asFrontendRing)).toEqual({ id, length: 0 })
    }
  })

  for (const size of [1, 3, 100, 255]) {
    survives(
      `49 a ring of ${size} entries`,
      (frontend) => {
        for (let round = 0; round < 3 * Math.min(size, 20) + 3; round++) expectService(frontend)
      },
      size,
    )
  }

  survives('50 the driver changes descriptors that the device has, and used ones', (frontend) => {
    const { driver } = frontend.packedRx
    frontend.provide(4, 2048, frontend.packedRx.asFrontendRing)
    expectService(frontend)
    for (let slot = 0; slot < 4; slot++) {
      driver.ring.setUint16(16 * slot + 12, 0x4242, true)
      driver.ring.setUint32(16 * slot + 8, 0xffff_ffff, true)
      driver.ring.setUint16(16 * slot + 14, slot % 2 === 0 ? USED : 0xffff, true)
    }
    backend.wire.send(testFrame(++last))
    // Sending goes on, whatever became of the other ring.
    const { number } = transmit(frontend)
    expectOnWire(number)
  })

  test('51 base index beyond the ring: refused', () => {
    using frontend = new PackedFrontend(backend.socketPath, 5)
    frontend.negotiate()
    frontend.shareMemory()
    const { client } = frontend
    expect(client.carriesOut(VHOST_USER_SET_VRING_NUM, bodyOf(1, 5))).toBeTrue()
    for (const base of [5, 0x8005, 0x7fff, 0x8000_8005]) {
      expect(client.carriesOut(VHOST_USER_SET_VRING_BASE, bodyOf(1, base))).toBeFalse()
    }
    for (const base of [0x8000, 0x8004, 0x8000_8000, 0x0004_0004]) {
      expect(client.carriesOut(VHOST_USER_SET_VRING_BASE, bodyOf(1, base))).toBeTrue()
    }
  })

  survives('52 unmapped address with length 0: never looked at', (frontend) => {
    const number = ++last
    frontend.packedTx.driver.offerRaw([
      { addressLow: 0xffff_f000, addressHigh: 0xffff_ffff, length: 0, flags: NEXT },
      { ...bufferOf(frontend, number), flags: NEXT },
      { addressLow: 0x10, length: 0, id: 3 },
    ])
    frontend.packedTx.kick.signal()
    expectOnWire(number)
    expect(frontend.used(frontend.packedTx.asFrontendRing)).toEqual({ id: 3, length: 0 })
  })

  test('97 sizes: any up to 32768, and no others', () => {
    using frontend = new PackedFrontend(backend.socketPath, 8)
    frontend.negotiate()
    for (const [size, good] of [
      [0, false],
      [1, true],
      [100, true],
      [255, true],
      [32_769, false],
      [65_536, false],
    ] as const) {
      expect([size, frontend.client.carriesOut(VHOST_USER_SET_VRING_NUM, bodyOf(1, size))]).toEqual([size, good])
    }
  })

  test('100 misaligned ring addresses: 16, 4 and 4', () => {
    using frontend = new PackedFrontend(backend.socketPath, 8)
    frontend.negotiate()
    frontend.shareMemory()
    const { client, memory } = frontend
    client.send(VHOST_USER_SET_VRING_NUM, bodyOf(1, 8))
    const start = BigInt(memory.user(memory.allocate(1024, 16)))
    for (const [desc, used, avail, good] of [
      [0n, 256n, 512n, true],
      [8n, 256n, 512n, false],
      [0n, 258n, 512n, false],
      [0n, 256n, 514n, false],
    ] as const) {
      const addresses = bodyOf(1, 0, start + desc, start + used, start + avail, 0n)
      expect(client.carriesOut(VHOST_USER_SET_VRING_ADDR, addresses)).toBe(good)
    }
  })

  test('119 GET_VRING_BASE twice: the same base, and the ring goes on from it', () => {
    using frontend = PackedFrontend.startPacked(backend.socketPath, 5)
    for (let round = 0; round < 7; round++) {
      expectService(frontend)
      for (const ring of [frontend.packedRx, frontend.packedTx]) {
        const base = frontend.stopRing(ring.asFrontendRing)
        expect(frontend.stopRing(ring.asFrontendRing)).toBe(base)
        expect(base).toBe(ring.driver.lastUsed.offWrap * 65_537)
        frontend.startRing(ring.asFrontendRing, base)
      }
    }
  })

  test('a front-end that says base 0 of new rings is served', () => {
    using frontend = PackedFrontend.startPacked(backend.socketPath, 4, 0)
    for (let round = 0; round < 10; round++) expectService(frontend)
  })
})
