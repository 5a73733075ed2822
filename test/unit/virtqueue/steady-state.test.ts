import { expect, test } from 'bun:test'
import { DIRECTION, POP } from '../../../src/virtqueue/virtqueue.ts'
import { splitFixture } from '../../support/split-fixture.ts'

const CHAINS = 1_000_000
const BATCH = 32

/** Objects that nothing else holds: the first garbage collection takes them. */
const collectable = (): WeakRef<object>[] => Array.from({ length: 1000 }, () => new WeakRef({}))

/**
 * Did the garbage collector run during `work`, which is synchronous? It runs once enough has been allocated, so a loop that
 * never makes it run allocates nothing worth mentioning.
 */
const collectsDuring = async (work: () => void): Promise<boolean> => {
  Bun.gc(true)
  const refs = collectable()
  // A weak reference holds its target until the task that made it ends.
  await new Promise((resolve) => setImmediate(resolve))
  work()
  // At once: the event loop collects on its own when it has nothing else to do.
  return refs.some((ref) => ref.deref() === undefined)
}

/** Moves `count` chains through a ring, among them indirect, malformed and given-back ones; `each` is called per chain. */
const newTraffic = () => {
  const { driver, queue, arena, memory } = splitFixture({ size: 256, eventIdx: true, memoryBytes: 1 << 22 })
  const header = { address: memory.allocate(12), length: 12 }
  const frame = { address: memory.allocate(1514), length: 1514 }
  for (let chain = 0; chain < 85; chain++) {
    if (chain % 16 === 15) driver.add([{ address: 2 ** 52, length: 1 }])
    else driver.add([header, frame], chain % 2 === 0 ? {} : { indirectFrom: 0 })
  }
  // The same heads again in every slot: no two of one batch are the same.
  for (let slot = 85; slot < 256; slot++) {
    driver.avail.setUint16(4 + 2 * slot, driver.avail.getUint16(4 + 2 * (slot % 85), true), true)
  }
  const avail = new Uint16Array(driver.avail.buffer, driver.avail.byteOffset, 2)
  let availIdx = 0
  return (count: number, each: () => void): void => {
    for (let done = 0; done < count; done += BATCH) {
      availIdx = (availIdx + BATCH) & 0xffff
      Atomics.store(avail, 1, availIdx)
      queue.disableNotification()
      arena.clear()
      while (queue.popInto(arena, DIRECTION.readable) !== POP.empty) each()
      queue.unpop(4)
      arena.removeLast(4)
      while (queue.popInto(arena, DIRECTION.readable) !== POP.empty);
      while (queue.inFlight > 0) queue.stageUsed(0)
      queue.publishUsed()
      queue.needsCall()
      queue.enableNotification()
    }
  }
}

test('a million chains leave the garbage collector nothing to do', async () => {
  const traffic = newTraffic()
  traffic(CHAINS / 5, () => {})
  // The compiler may still be at work the first time, and what it makes is garbage too.
  let collected = true
  for (let attempt = 0; attempt < 3 && collected; attempt++) {
    collected = await collectsDuring(() => traffic(CHAINS, () => {}))
  }
  expect(collected).toBe(false)
})

test('the measurement notices one small object a chain', async () => {
  const traffic = newTraffic()
  let kept: object = {}
  let made = 0
  const leak = (): void => {
    kept = { made: made++ }
  }
  traffic(CHAINS / 5, leak)
  // How much may be allocated before a collection depends on the size of the heap, and so on the tests before this one.
  let collected = false
  for (let attempt = 0; attempt < 10 && !collected; attempt++) {
    collected = await collectsDuring(() => traffic(CHAINS, leak))
  }
  expect(collected).toBe(true)
  expect(kept).toEqual({ made: made - 1 })
})
