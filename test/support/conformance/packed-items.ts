/** Items 23 to 33: packed rings. VIRTIO 1.2 §2.8. */
import { expect } from 'bun:test'
import { VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC } from '../../../src/abi/virtio.ts'
import {
  VRING_DESC_F_INDIRECT,
  VRING_DESC_F_WRITE,
  VRING_PACKED_EVENT_FLAG_DESC,
  VRING_PACKED_EVENT_FLAG_DISABLE,
  VRING_PACKED_EVENT_FLAG_ENABLE,
} from '../../../src/abi/virtio-ring.ts'
import { highWord, lowWord } from '../driver-model.ts'
import { concat, cut, encodeHeader } from '../frames.ts'
import type { PackedDriver } from '../packed-driver.ts'
import { HEADER_BYTES } from '../tap-lab.ts'
import { CardDriver, newFrame } from './card-driver.ts'
import type { Item } from './item.ts'

const AVAIL = 0x80
const USED = 0x8000

/** An entry of the ring as it stands there. */
const entry = ({ ring }: PackedDriver, slot: number): { length: number; id: number; flags: number } => ({
  length: ring.getUint32(16 * slot + 8, true),
  id: ring.getUint16(16 * slot + 12, true),
  flags: ring.getUint16(16 * slot + 14, true),
})

/** Both bits are those of a round with this wrap counter. */
const isUsed = (flags: number, wrap: number): boolean => (flags & (AVAIL | USED)) === (wrap === 1 ? AVAIL | USED : 0)

/** Descriptors of a frame and its header, cut; `id` in the last one only. */
const descriptorsOf = (driver: CardDriver, frame: Uint8Array, id: number, ...lengths: readonly number[]) => {
  const pieces = cut(concat(encodeHeader({}), frame), ...lengths)
  return pieces.map((piece, index) => {
    const { address, length } = driver.put(piece)
    const last = index === pieces.length - 1
    const place = { addressLow: lowWord(address), addressHigh: highWord(address), length }
    return last ? { ...place, id, flags: 0 } : { ...place, id: 0xdead, flags: 1 }
  })
}

const items: readonly Omit<Item, 'layout'>[] = [
  {
    title: 'conformance 23: chains are taken from where the ring starts, in its order',
    run: (bench) => {
      using driver = new CardDriver(bench)
      for (const start of [0, 5, 6, 7, 12]) {
        driver.setUp({ ringSize: 7, start })
        const frames = Array.from({ length: 5 }, () => newFrame())
        for (const frame of frames) driver.transmit(frame)
        for (const frame of frames) driver.arrives(frame)
        expect(driver.link.ringBase(1) & 0xffff).toBe(driver.packed().next.offWrap)
      }
    },
  },
  {
    title: 'conformance 24: the device’s wrap counter starts at 1 and flips after the last entry',
    run: (bench) => {
      using driver = CardDriver.start(bench, { ringSize: 5 })
      const ring = driver.packed()
      let wrap = 1
      for (let count = 0; count < 23; count++) {
        driver.passOut()
        expect([count, isUsed(entry(ring, count % 5).flags, wrap)]).toEqual([count, true])
        if (count % 5 === 4) wrap ^= 1
      }
    },
  },
  {
    title: 'conformance 25: nothing is used before AVAIL changes',
    run: (bench) => {
      using driver = CardDriver.start(bench, { ringSize: 8 })
      const ring = driver.packed()
      const frames = [newFrame(), newFrame()]
      // All of it stands there, but the flags of each chain's first descriptor.
      ring.write(descriptorsOf(driver, frames[0]!, 7, 12))
      ring.write(descriptorsOf(driver, frames[1]!, 8))
      for (let i = 0; i < 3; i++) driver.tx.kick.signal()
      driver.expectSilence()
      expect([entry(ring, 0).flags, entry(ring, 2).flags]).toEqual([0, 0])
      driver.tx.publish()
      for (const frame of frames) driver.arrives(frame)
    },
  },
  {
    title: 'conformance 26: an entry is not touched any more once it is used',
    run: (bench) => {
      using driver = CardDriver.start(bench, { ringSize: 16 })
      const ring = driver.packed()
      driver.passOut()
      const { flags } = entry(ring, 0)
      ring.ring.setUint32(8, 0xdead_beef, true)
      ring.ring.setUint16(12, 0xabcd, true)
      for (let i = 0; i < 15; i++) driver.passOut()
      expect(entry(ring, 0)).toEqual({ length: 0xdead_beef, id: 0xabcd, flags })
    },
  },
  {
    title: 'conformance 27: one used descriptor for a chain, and as many entries are passed over as it has',
    run: (bench) => {
      using driver = CardDriver.start(bench, { ringSize: 16 })
      const ring = driver.packed()
      let slot = 0
      for (const lengths of [[12, 20], [], [1, 2, 3], [12]]) {
        const before = Array.from({ length: lengths.length + 1 }, (_, index) => slot + index)
        driver.passOut(newFrame(), { pieces: lengths })
        const [first, ...others] = before.map((at) => isUsed(entry(ring, at).flags, 1))
        expect(first).toBeTrue()
        expect(others).toEqual(others.map(() => false))
        slot += lengths.length + 1
      }
    },
  },
  {
    title: 'conformance 28: the id is that of the last descriptor',
    run: (bench) => {
      using driver = CardDriver.start(bench, { ringSize: 16 })
      const ring = driver.packed()
      for (const id of [0, 1, 0x8000, 0xffff]) {
        const frame = newFrame()
        const { slot } = ring.next
        ring.offerRaw(descriptorsOf(driver, frame, id, 5, 30))
        driver.tx.kick.signal()
        driver.arrives(frame)
        expect(driver.used().id).toBe(id)
        expect(entry(ring, slot).id).toBe(id)
      }
    },
  },
  {
    title: 'conformance 29: WRITE in a used descriptor if, and only if, something was written',
    run: (bench) => {
      using driver = CardDriver.start(bench)
      for (let slot = 0; slot < 3; slot++) {
        driver.passOut()
        expect(entry(driver.packed(), slot).flags & VRING_DESC_F_WRITE).toBe(0)
      }
      const rx = driver.packed(driver.rx)
      const { slot } = rx.lastUsed
      driver.passIn()
      expect(entry(rx, slot).flags & VRING_DESC_F_WRITE).toBe(VRING_DESC_F_WRITE)
      expect(entry(rx, slot).length).toBeGreaterThan(HEADER_BYTES)
    },
  },
  {
    title: 'conformance 30: rings of any size up to the largest that is offered',
    run: (bench) => {
      using driver = new CardDriver(bench)
      // By itself, in test/conformance/packed-ring.test.ts, a ring has up to 2^15 entries.
      for (const ringSize of [1, 2, 3, 7, 255, 257, 1000, 1023, 1024]) {
        // They begin where the ring is about to wrap.
        driver.setUp({ ringSize, start: ringSize - 1 })
        for (let i = 0; i < 5; i++) driver.passOut()
        driver.provide(4)
        const frame = newFrame()
        bench.wire.send(frame)
        driver.receive((bytes) => Bun.deepEquals(bytes, frame))
      }
    },
  },
  {
    title: 'conformance 31: event suppression: ENABLE, DISABLE, and DESC with offset and wrap counter',
    run: (bench) => {
      const options = { features: [VIRTIO_RING_F_EVENT_IDX], ringSize: 4 }
      using driver = CardDriver.start(bench, options)
      const ring = driver.packed()
      const isCalled = (wanted: boolean): void => {
        driver.passOut()
        expect(driver.isCalled(driver.tx, wanted)).toBe(wanted)
      }
      ring.setEvent(VRING_PACKED_EVENT_FLAG_ENABLE)
      for (let i = 0; i < 3; i++) isCalled(true)
      ring.setEvent(VRING_PACKED_EVENT_FLAG_DISABLE)
      for (let i = 0; i < 3; i++) isCalled(false)
      // A place up to a round ahead, with this round's wrap counter or the next one's.
      for (const ahead of [0, 1, 3, 2, 3]) {
        const event = ring.next.copy()
        event.step(ahead)
        ring.setEvent(VRING_PACKED_EVENT_FLAG_DESC, event.offWrap)
        for (let i = 0; i <= ahead; i++) isCalled(i === ahead)
      }
    },
  },
  {
    title: 'conformance 32: the order of a chain’s buffers is kept, over the end of the ring too',
    run: (bench) => {
      using driver = new CardDriver(bench)
      for (let start = 0; start < 10; start++) {
        driver.setUp({ ringSize: 5, start })
        for (const pieces of [[1, 2, 3, 40], [12, 1, 1], [70]]) driver.passOut(newFrame(100), { pieces })
      }
    },
  },
  {
    title: 'conformance 33: an indirect table is taken in order, and reserved flags in it are ignored',
    run: (bench) => {
      using driver = CardDriver.start(bench, { features: [VIRTIO_RING_F_INDIRECT_DESC] })
      for (const flags of [0, 1, AVAIL, USED, AVAIL | USED, 0x7f78]) {
        const frame = newFrame()
        const table = driver.memory.allocate(64)
        const buffers = descriptorsOf(driver, frame, 0x5555, 3, 12, 20)
        driver.packed().writeTable(
          table,
          buffers.map((buffer) => ({ ...buffer, flags: flags & ~(VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE) })),
        )
        const place = { addressLow: lowWord(table), addressHigh: highWord(table), length: 64 }
        driver.packed().offerRaw([{ ...place, id: 9, flags: VRING_DESC_F_INDIRECT }])
        driver.tx.kick.signal()
        driver.arrives(frame)
        expect(driver.used()).toEqual({ id: 9, length: 0 })
      }
    },
  },
]

export const packedItems: readonly Item[] = items.map((item) => ({
  ...item,
  layout: 'packed',
  notOver: { 'vhost-vdpa': 'packed rings are not offered over VDUSE' },
}))
