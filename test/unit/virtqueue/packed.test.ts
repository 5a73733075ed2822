import { describe, expect, test } from 'bun:test'
import { dropReasons } from '../../../src/abi/drop-reason.ts'
import { VIRTIO_F_RING_PACKED } from '../../../src/abi/virtio.ts'
import { VRING_PACKED_EVENT_FLAG_DESC } from '../../../src/abi/virtio-ring.ts'
import { DriverFault } from '../../../src/base/errors.ts'
import { AddressSpace } from '../../../src/memory/address-space.ts'
import { IovecArena } from '../../../src/memory/iovec-arena.ts'
import { ACCESS } from '../../../src/memory/region.ts'
import { newVirtqueue } from '../../../src/virtqueue/new-virtqueue.ts'
import { PackedQueue } from '../../../src/virtqueue/packed.ts'
import { BUFFER_DIRECTION, POP } from '../../../src/virtqueue/virtqueue.ts'
import { TestMemory } from '../../support/memory.ts'
import { type PackedFixture, packedFixture } from '../../support/packed-fixture.ts'

const TX = BUFFER_DIRECTION.readable

/** Adds `count` good chains of `buffers` buffers and publishes them; their ids. */
const offer = ({ driver, memory }: PackedFixture, count: number, buffers = 1): number[] => {
  const elements = Array.from({ length: buffers }, () => ({ address: memory.start, length: 64 }))
  const ids = Array.from({ length: count }, () => driver.add(elements))
  driver.publish()
  return ids
}

const reapAll = ({ driver }: PackedFixture): { id: number; length: number }[] => {
  const used = []
  for (let one = driver.reap(); one !== undefined; one = driver.reap()) used.push(one)
  return used
}

const popAll = ({ queue, arena }: PackedFixture): void => {
  while (queue.popInto(arena, TX) !== POP.empty);
}

/** Uses all that was popped. */
const useAll = ({ queue }: PackedFixture, length = 0): void => {
  while (queue.inFlight > 0) queue.stageUsed(length)
  queue.publishUsed()
}

test.each([3, 5, 7, 1000, 32_767])('a ring of %i, not a power of two, over its end with chains of three', (size) => {
  const fixture = packedFixture({ size, start: size - 1 })
  const perRound = Math.floor(size / 3)
  const arena = new IovecArena(size, 3 * size)
  for (let round = 0; round < 6; round++) {
    const ids = offer(fixture, perRound, 3)
    arena.clear()
    for (let count = 0; count < perRound; count++) expect(fixture.queue.popInto(arena, TX)).toBe(POP.chain)
    expect(fixture.queue.popInto(arena, TX)).toBe(POP.empty)
    useAll(fixture, round)
    expect(reapAll(fixture)).toEqual(ids.map((id) => ({ id, length: round })))
  }
})

test('a receive chain that goes back with nothing in it has the length 0', () => {
  const fixture = packedFixture()
  const { driver, queue, arena, memory } = fixture
  const ids = [0, 1].map(() => driver.add([{ address: memory.start, length: 64, writable: true }]))
  driver.publish()
  while (queue.popInto(arena, BUFFER_DIRECTION.writable) !== POP.empty);
  useAll(fixture)
  // Drivers read the field without a look at the WRITE flag, which says that it is reserved.
  expect(driver.ring.getUint32(8, true)).toBe(0)
  expect(reapAll(fixture)).toEqual(ids.map((id) => ({ id, length: 0 })))
})

test('publishing many chains between two questions whether to call asks for one, however small the ring', () => {
  for (const rounds of [1, 2, 3, 4, 5, 8]) {
    for (const event of [0, 1, 2, 3]) {
      const fixture = packedFixture({ size: 2, eventIdx: true })
      const { driver, queue, arena } = fixture
      driver.setEvent(VRING_PACKED_EVENT_FLAG_DESC, event < 2 ? event | 0x8000 : event - 2)
      for (let round = 0; round < rounds; round++) {
        offer(fixture, 2)
        arena.clear()
        popAll(fixture)
        useAll(fixture)
        reapAll(fixture)
      }
      expect(queue.needsCall()).toBe(event < 2 * rounds)
      expect(queue.needsCall()).toBe(false)
    }
  }
})

test.each([false, true])('a driver that disables calls is not called (EVENT_IDX %p)', (eventIdx) => {
  const fixture = packedFixture({ eventIdx })
  fixture.driver.disableCalls()
  offer(fixture, 1)
  popAll(fixture)
  useAll(fixture)
  expect(fixture.queue.needsCall()).toBe(false)
})

describe('starting', () => {
  test.each([0, 1])('the base has entry and wrap counter twice (wrap counter %i)', (wrap) => {
    const fixture = packedFixture({ size: 8, start: wrap === 1 ? 5 : 13 })
    const { queue } = fixture
    const half = (entry: number, counter: number): number => entry | (counter << 15)
    expect(queue.base).toBe(half(5, wrap) * 65_537)
    offer(fixture, 3, 2)
    popAll(fixture)
    expect(queue.base).toBe(half(5, wrap) * 65_537)
    queue.stageUsed(0)
    queue.publishUsed()
    expect(queue.base).toBe(half(7, wrap) * 65_537)
    queue.stageUsed(0)
    queue.publishUsed()
    expect(queue.base).toBe(half(1, 1 - wrap) * 65_537)
  })

  test('the upper half of the base is not looked at', () => {
    const fixture = packedFixture({ start: 3 })
    const queue = fixture.newQueue(0x8003)
    offer(fixture, 1)
    expect(queue.popInto(fixture.arena, TX)).toBe(POP.chain)
  })

  test('base 0 is the start of a ring that was never used, and the second round of one that was', () => {
    const fresh = packedFixture({ size: 4 })
    expect(fresh.newQueue(0).base).toBe(0x8000_8000)
    offer(fresh, 1)
    expect(fresh.newQueue(0).popInto(fresh.arena, TX)).toBe(POP.chain)

    const gone = packedFixture({ size: 4 })
    offer(gone, 4)
    popAll(gone)
    for (let count = 0; count < 4; count++) gone.queue.stageUsed(0)
    gone.queue.publishUsed()
    expect(gone.queue.base).toBe(0)
    reapAll(gone)
    const ids = offer(gone, 1)
    gone.arena.clear()
    const successor = gone.newQueue(0)
    expect(successor.popInto(gone.arena, TX)).toBe(POP.chain)
    successor.stageUsed(0)
    successor.publishUsed()
    expect(reapAll(gone).map(({ id }) => id)).toEqual(ids)
  })

  test('a packed ring cannot be gone on with where only the ring could tell', () => {
    const { space, driver } = packedFixture()
    const make = (base: number | 'used') => () =>
      newVirtqueue(
        space,
        {
          size: 8,
          descAddr: driver.descAddr,
          availAddr: driver.availAddr,
          usedAddr: driver.usedAddr,
          base,
          features: 1n << BigInt(VIRTIO_F_RING_PACKED),
        },
        { drops: new Float64Array(dropReasons.length), inflight: null },
      )
    expect(make('used')).toThrow('BASE_UNKNOWN: a packed ring does not tell where it was left')
    expect(make(0x8000)()).toBeInstanceOf(PackedQueue)
  })

  const config = (memory: TestMemory, size: number) => ({
    size,
    descAddr: memory.start,
    availAddr: memory.start + 1024,
    usedAddr: memory.start + 2048,
    base: 0x8000,
    features: 1n << BigInt(VIRTIO_F_RING_PACKED),
    drops: new Uint32Array(dropReasons.length),
  })

  test.each([0, 1.5, 32_769, -8])('a ring of %p entries is our bug', (size) => {
    expect(() => new PackedQueue(new AddressSpace(), config(new TestMemory(4096), size))).toThrow('1 to 32768 entries')
  })

  test('rings that are misaligned, unmapped or not accessible are a fault of the driver, and leave no view', () => {
    const memory = new TestMemory(4096)
    const space = new AddressSpace()
    space.add(memory.region())
    const good = config(memory, 7)
    for (const [bad, code] of [
      [{ descAddr: memory.start + 8 }, 'RING_MISALIGNED'],
      [{ availAddr: memory.start + 1026 }, 'RING_MISALIGNED'],
      [{ usedAddr: memory.start + 2050 }, 'RING_MISALIGNED'],
      [{ descAddr: memory.end - 96 }, 'RING_UNMAPPED'],
      [{ availAddr: memory.end }, 'RING_UNMAPPED'],
      [{ usedAddr: 2 ** 52 }, 'RING_UNMAPPED'],
      [{ base: 0x8007 }, 'BASE_OUT_OF_RANGE'],
    ] as const) {
      const make = (): unknown => new PackedQueue(space, { ...good, ...bad })
      expect(make).toThrow(DriverFault)
      expect(make).toThrow(code)
    }
    expect(memory.buffers.every((buffer) => buffer.detached)).toBe(true)
    new PackedQueue(space, { ...good, descAddr: memory.end - 112, usedAddr: memory.start })[Symbol.dispose]()
    space.clear()
    for (const access of [ACCESS.read, ACCESS.write]) {
      space.add(memory.region(access))
      expect(() => new PackedQueue(space, good)).toThrow('RING_UNMAPPED')
      space.clear()
    }
  })
})
