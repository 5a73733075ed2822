/** Items 12 to 22: split rings, and what of it is as true of packed ones. */
import { expect } from 'bun:test'
import { VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC } from '../../../src/abi/virtio.ts'
import { VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_WRITE } from '../../../src/abi/virtio-ring.ts'
import { highWord, lowWord } from '../driver-model.ts'
import { concat, encodeHeader } from '../frames.ts'
import { Random } from '../random.ts'
import { HEADER_BYTES } from '../tap-lab.ts'
import { CardDriver, newFrame, UNTOUCHED } from './card-driver.ts'
import type { Item } from './item.ts'

const INDIRECT = { features: [VIRTIO_RING_F_INDIRECT_DESC] }
const EVENT_IDX = { features: [VIRTIO_RING_F_EVENT_IDX] }

const raw = (address: number, length: number, flags: number) => ({
  addressLow: lowWord(address),
  addressHigh: highWord(address),
  length,
  flags,
})

/** A frame with its header, somewhere in memory. */
const putFrame = (driver: CardDriver, frame: Uint8Array) => driver.put(concat(encodeHeader({}), frame))

/** What of a ring's areas and tables the device may not write. */
const driversOwn = (driver: CardDriver, tables: readonly number[]): unknown => {
  const { model } = driver.tx
  const ring = driver.memory.bytes(model.descAddr, 16 * model.size)
  const packed = driver.bench.layout === 'packed'
  return {
    // Of a packed descriptor id, length and flags are the device's in turn.
    descriptors: Array.from({ length: model.size }, (_, slot) =>
      ring.slice(16 * slot, 16 * slot + (packed ? 8 : 16)).toHex(),
    ),
    avail: driver.memory.bytes(model.availAddr, packed ? 4 : 6 + 2 * model.size).toHex(),
    tables: tables.map((table) => driver.memory.bytes(table, 48).toHex()),
  }
}

export const ringItems: readonly Item[] = [
  {
    title: 'conformance 12: a packet is the same whatever pieces its buffers are',
    run: (bench) => {
      using driver = CardDriver.start(bench, { ...INDIRECT, memoryBytes: 1 << 22 })
      const random = new Random(12)
      for (let count = 1; count <= 20; count += 3) {
        const pieces = Array.from({ length: count - 1 }, () => random.between(1, 12))
        driver.passOut(newFrame(300), { pieces })
        driver.passOut(newFrame(300), { pieces, indirect: true })
      }
      for (let count = 1; count <= 6; count++) {
        driver.setUp(INDIRECT)
        driver.passIn(newFrame(300), [...Array.from({ length: count - 1 }, () => random.between(1, 60)), 2048])
      }
    },
  },
  {
    title: 'conformance 13: a readable buffer is never written',
    run: (bench) => {
      using driver = CardDriver.start(bench, INDIRECT)
      const frames = [60, 61, 600, 1514].map((bytes) => newFrame(bytes))
      const from = driver.memory.allocate(1)
      for (const [index, frame] of frames.entries())
        driver.transmit(frame, { pieces: [12, 14], indirect: index % 2 === 1 })
      const length = driver.memory.allocate(1) - from
      const before = driver.memory.bytes(from, length).slice()
      for (const frame of frames) {
        driver.arrives(frame)
        driver.used()
      }
      expect(driver.memory.bytes(from, length)).toEqual(before)
      // A packet that is dropped is not written to either.
      driver.transmit(new Uint8Array(3))
      driver.used()
      expect(driver.memory.bytes(from, length)).toEqual(before)
    },
  },
  {
    title: 'conformance 14: what is the driver’s of descriptors, tables and avail ring is never written',
    run: (bench) => {
      using driver = CardDriver.start(bench, INDIRECT)
      const tables: number[] = []
      for (let round = 0; round < 24; round++) {
        const frame = newFrame()
        const elements = [0, 10, 30].map((from, index, all) => {
          const whole = concat(encodeHeader({}), frame)
          return driver.put(whole.slice(from, all[index + 1]))
        })
        const tableAddress = driver.memory.allocate(48)
        const indirect = round % 2 === 1
        if (indirect) tables.push(tableAddress)
        driver.tx.model.add(elements, indirect ? { indirectFrom: 0, tableAddress } : {})
        driver.tx.publish()
        const before = driversOwn(driver, tables)
        driver.arrives(frame)
        driver.used()
        expect(driversOwn(driver, tables)).toEqual(before)
      }
    },
  },
  {
    title: 'conformance 15: WRITE on an indirect descriptor is ignored',
    run: (bench) => {
      using driver = CardDriver.start(bench, INDIRECT)
      const frame = newFrame()
      const { address, length } = putFrame(driver, frame)
      const table = driver.memory.allocate(16)
      driver.tx.model.writeTableOf(table, [raw(address, length, 0)])
      driver.tx.model.offerBuffers([raw(table, 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE)])
      driver.tx.kick.signal()
      driver.arrives(frame)
      expect(driver.used().length).toBe(0)
      driver.setUp(INDIRECT)
      const into = driver.memory.allocate(2048)
      for (const flags of [VRING_DESC_F_INDIRECT, VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE]) {
        driver.setUp(INDIRECT)
        driver.rx.model.writeTableOf(table, [raw(into, 2048, VRING_DESC_F_WRITE)])
        driver.rx.model.offerBuffers([raw(table, 16, flags)])
        driver.rx.kick.signal()
        bench.wire.send(newFrame())
        expect(driver.used(driver.rx).length).toBeGreaterThan(HEADER_BYTES)
      }
    },
  },
  {
    title: 'conformance 16: direct descriptors, then an indirect one',
    layout: 'split',
    run: (bench) => {
      using driver = CardDriver.start(bench, INDIRECT)
      for (let direct = 1; direct <= 3; direct++) {
        const frame = newFrame()
        const whole = concat(encodeHeader({}), frame)
        const elements = [0, 5, 12, 40].map((from, index, all) => driver.put(whole.slice(from, all[index + 1])))
        const id = driver.tx.model.add(elements, { indirectFrom: direct })
        driver.tx.publish()
        driver.arrives(frame)
        expect(driver.used()).toEqual({ id, length: 0 })
      }
    },
  },
  {
    title: 'conformance 17: without EVENT_IDX used_event is ignored; flags 0 asks for calls, 1 for none',
    layout: 'split',
    run: (bench) => {
      using driver = CardDriver.start(bench)
      const { driver: ring } = driver.tx
      for (const event of [0, 1, 0x7fff, 0xffff, ring.usedIdx, ring.usedIdx + 100]) {
        ring.usedEvent = event
        ring.availFlags = 0
        driver.passOut()
        expect(driver.isCalled(driver.tx, true)).toBeTrue()
      }
      for (let i = 0; i < 3; i++) {
        ring.usedEvent = ring.usedIdx
        ring.availFlags = VRING_AVAIL_F_NO_INTERRUPT
        driver.passOut()
        expect(driver.isCalled(driver.tx, false)).toBeFalse()
      }
      ring.availFlags = 0
      driver.passOut()
      expect(driver.isCalled(driver.tx, true)).toBeTrue()
    },
  },
  {
    title: 'conformance 18: with EVENT_IDX the flag is ignored; a call comes exactly when used_event is crossed',
    layout: 'split',
    run: (bench) => {
      using driver = CardDriver.start(bench, { ...EVENT_IDX, start: 0xfff9 })
      const { driver: ring } = driver.tx
      // The driver may be called when a ring starts, since it may have waited for that.
      driver.passOut()
      while (driver.isCalled(driver.tx, false));
      // From 65,530 over 0 to 4, one chain after the other.
      for (const event of [0xfffc, 0xffff, 0x0000, 0x0003]) {
        ring.usedEvent = event
        ring.availFlags = VRING_AVAIL_F_NO_INTERRUPT
        while (ring.usedIdx !== ((event + 1) & 0xffff)) {
          const crosses = ring.usedIdx === event
          driver.passOut()
          expect([ring.usedIdx, driver.isCalled(driver.tx, crosses)]).toEqual([ring.usedIdx, crosses])
        }
      }
      ring.availFlags = 0
      ring.usedEvent = ring.usedIdx + 100
      driver.passOut()
      expect(driver.isCalled(driver.tx, false)).toBeFalse()
    },
  },
  {
    title: 'conformance 19: used.flags is 0 or 1, and 0 with EVENT_IDX',
    layout: 'split',
    run: (bench) => {
      using driver = CardDriver.start(bench)
      const flagsDuring = (): Set<number> => {
        const seen = new Set<number>()
        for (let i = 0; i < 30; i++) {
          const frame = newFrame()
          driver.transmit(frame)
          for (let look = 0; look < 200; look++) seen.add(driver.tx.driver.usedFlags)
          driver.arrives(frame)
          driver.used()
          seen.add(driver.tx.driver.usedFlags)
        }
        return seen
      }
      for (const flags of flagsDuring()) expect([0, 1]).toContain(flags)
      driver.setUp(EVENT_IDX)
      expect([...flagsDuring()]).toEqual([0])
    },
  },
  {
    title: 'conformance 20: id and length of a used element are there before the index',
    layout: 'split',
    run: (bench) => {
      using driver = CardDriver.start(bench)
      driver.provide(32)
      const { driver: ring } = driver.rx
      for (let round = 0; round < 100; round++) {
        const before = ring.usedIdx
        const at = 4 + 8 * (before % ring.size)
        ring.used.setUint32(at, 0xdead_dead, true)
        ring.used.setUint32(at + 4, 0xdead_dead, true)
        const untilUsed = driver.watch(driver.rx)
        bench.wire.send(newFrame())
        untilUsed()
        const { id, length } = ring.usedAt(before)
        expect(id).toBeLessThan(ring.size)
        expect(length).toBeGreaterThan(HEADER_BYTES)
        while (ring.reap() !== undefined);
        driver.provide(32)
      }
    },
  },
  {
    title: 'conformance 21: length is what was written, from the first byte on; 0 for a packet that was sent',
    run: (bench) => {
      using driver = CardDriver.start(bench)
      for (const bytes of [60, 61, 600, 1514]) {
        driver.passOut(newFrame(bytes))
        const { chains } = driver.passIn(newFrame(bytes))
        expect(chains.map(({ length }) => length)).toEqual([HEADER_BYTES + bytes])
        const rest = driver.buffersOf(chains[0]!.id).subarray(HEADER_BYTES + bytes)
        expect(rest.every((byte) => byte === UNTOUCHED)).toBeTrue()
      }
    },
  },
  {
    title: 'conformance 22: spurious kicks are harmless',
    run: (bench) => {
      using driver = CardDriver.start(bench)
      driver.pass()
      for (let i = 0; i < 2_000; i++) for (const ring of driver.rings) ring.kick.signal()
      driver.pass()
      expect(driver.link.getStatus()).toBe(0xf)
    },
  },
]
