/**
 * A back-end that dies between any two stores, and another one that goes on from what it has left: the ring in the
 * driver's memory and the record of chains in flight. The driver gets each chain back exactly once, in order.
 */
import { afterEach, describe, expect, mock, spyOn, test } from 'bun:test'
import { dropReasons } from '../../../src/abi/drop-reason.ts'
import { INFLIGHT_VERSION, inflightRegionBytes } from '../../../src/abi/vhost-user-inflight.ts'
import { VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1 } from '../../../src/abi/virtio.ts'
import { AddressSpace } from '../../../src/memory/address-space.ts'
import { IovecArena } from '../../../src/memory/iovec-arena.ts'
import { PackedInflight, SplitInflight } from '../../../src/virtqueue/inflight-record.ts'
import { newVirtqueue } from '../../../src/virtqueue/new-virtqueue.ts'
import { BUFFER_DIRECTION, POP, type Virtqueue } from '../../../src/virtqueue/virtqueue.ts'
import { type DriverModel, SplitDriver } from '../../support/driver-model.ts'
import { TestMemory } from '../../support/memory.ts'
import { PackedDriver } from '../../support/packed-driver.ts'

const SIZE = 8

class Death extends Error {}

/** A ring, its driver and its record, and back-ends one after the other. */
class Succession {
  readonly packed: boolean
  readonly memory = new TestMemory(1 << 16)
  readonly driver: DriverModel & { readonly descAddr: number; readonly availAddr: number; readonly usedAddr: number }
  readonly record: TestMemory
  readonly space = new AddressSpace()
  /** Chains that the driver has got back, and the next that it waits for. */
  readonly returned: number[] = []
  readonly given: number[] = []

  /** The record has room for a ring of `recordSize`. */
  constructor(packed: boolean, recordSize = SIZE) {
    this.packed = packed
    this.driver = packed
      ? new PackedDriver(this.memory, { size: SIZE })
      : new SplitDriver(this.memory, { size: SIZE, start: 0xfffc })
    this.record = new TestMemory(inflightRegionBytes(recordSize, packed))
    this.space.add(this.memory.region())
  }

  give(count: number, buffers: number): void {
    for (let i = 0; i < count; i++) {
      const elements = Array.from({ length: buffers }, () => ({ address: this.memory.start + 40_000, length: 64 }))
      const id = this.driver.add(elements)
      if (id < 0) break
      this.given.push(id)
    }
    this.driver.publish()
  }

  reap(): void {
    for (let chain = this.driver.reap(); chain !== undefined; chain = this.driver.reap()) this.returned.push(chain.id)
  }

  backEnd(): Virtqueue {
    const features = (1n << BigInt(VIRTIO_F_VERSION_1)) | (this.packed ? 1n << BigInt(VIRTIO_F_RING_PACKED) : 0n)
    const { descAddr, availAddr, usedAddr } = this.driver
    const inflight = this.packed ? new PackedInflight(this.record) : new SplitInflight(this.record)
    // Whoever comes later knows nothing but the record.
    const first = new DataView(this.record.bytes.buffer, this.record.bytes.byteOffset).getUint16(8, true) === 0
    const base = this.packed ? (first ? 0x8000 : 0x8003) : first ? 0xfffc : 0
    return newVirtqueue(
      this.space,
      { size: SIZE, descAddr, availAddr, usedAddr, base, features },
      { drops: new Float64Array(dropReasons.length), inflight },
    )
  }
}

const arena = new IovecArena(SIZE, 4 * SIZE)

/** Takes up to `count` chains, gives the last of them back, and uses the others. */
const work = (queue: Virtqueue, count: number, giveBack: number): void => {
  arena.clear()
  let taken = 0
  while (taken < count && queue.popInto(arena, BUFFER_DIRECTION.readable) === POP.chain) taken++
  const back = Math.min(giveBack, taken)
  queue.unpop(back)
  for (let left = taken - back; left > 0; left--) queue.stageUsed(0)
  queue.publishUsed()
}

/** What a back-end does: several rounds, so that the ring goes round. */
const life = (succession: Succession, queue: Virtqueue): void => {
  for (let round = 0; round < 6; round++) {
    succession.give(3, round % 2 === 0 ? 1 : 2)
    work(queue, 4, round % 3 === 1 ? 1 : 0)
    succession.reap()
  }
}

afterEach(() => {
  mock.restore()
})

describe.each([
  ['split', false],
  ['packed', true],
] as const)('%s ring', (_, packed) => {
  test('whatever store a back-end dies before, its successor loses no chain and uses none twice', () => {
    let deaths = 0
    for (let dieBefore = 1; ; dieBefore++) {
      const succession = new Succession(packed)
      const { store } = Atomics
      let stores = 0
      const spy = spyOn(Atomics, 'store').mockImplementation(((array: Uint16Array, index: number, value: number) => {
        if (++stores === dieBefore) throw new Death()
        return store(array, index, value)
      }) as typeof Atomics.store)
      let died = false
      try {
        life(succession, succession.backEnd())
      } catch (death) {
        if (!(death instanceof Death)) throw death
        died = true
      }
      spy.mockRestore()
      if (!died) break
      deaths++
      const successor = succession.backEnd()
      life(succession, successor)
      work(successor, SIZE, 0)
      succession.reap()
      expect(succession.driver.outstanding).toBe(0)
      expect(succession.returned).toEqual(succession.given)
    }
    expect(deaths).toBeGreaterThan(30)
  })

  test('one that dies again and again gets there all the same', () => {
    const succession = new Succession(packed)
    const { store } = Atomics
    let lives = 0
    for (let span = 1; span < 40; span++) {
      let stores = 0
      const spy = spyOn(Atomics, 'store').mockImplementation(((array: Uint16Array, index: number, value: number) => {
        if (++stores > span) throw new Death()
        return store(array, index, value)
      }) as typeof Atomics.store)
      try {
        life(succession, succession.backEnd())
      } catch (death) {
        if (!(death instanceof Death)) throw death
        lives++
      }
      spy.mockRestore()
    }
    work(succession.backEnd(), SIZE, 0)
    succession.reap()
    expect(lives).toBeGreaterThan(10)
    expect(succession.returned).toEqual(succession.given)
  })

  test('a record for a ring of another size is a fault', () => {
    const succession = new Succession(packed)
    work(succession.backEnd(), 1, 0)
    new DataView(succession.record.bytes.buffer, succession.record.bytes.byteOffset).setUint16(10, SIZE / 2, true)
    expect(() => succession.backEnd()).toThrow('INFLIGHT_INVALID')
  })

  test('a record that is too short for the ring is a fault, whatever it says of itself', () => {
    for (const saysSize of [false, true]) {
      const succession = new Succession(packed, SIZE / 2)
      const view = new DataView(succession.record.bytes.buffer, succession.record.bytes.byteOffset)
      if (saysSize) {
        view.setUint16(8, INFLIGHT_VERSION, true)
        view.setUint16(10, SIZE, true)
      }
      expect(() => succession.backEnd()).toThrow('no room for a ring of 8')
    }
  })
})

test('chains that a predecessor has used out of order are taken in the order in which it took them', () => {
  const succession = new Succession(false)
  const first = new SplitInflight(succession.record)
  first.start(SIZE, 0xfffc)
  succession.give(5, 1)
  const [a, b, c, d] = succession.given as [number, number, number, number, number]
  for (const head of [a, c, b, d]) first.take(head)
  // The second that was taken is used first.
  const driver = succession.driver as SplitDriver
  first.batch(c)
  driver.useFor(c)
  first.used(c)
  first.endBatch(driver.usedIdx)
  succession.reap()
  const successor = succession.backEnd()
  // Given back they are still the first.
  work(successor, 2, 2)
  work(successor, SIZE, 0)
  succession.reap()
  expect(succession.returned).toEqual([c, a, b, d, succession.given[4]!])
})
