import { bench, group, run } from 'mitata'
import { dropReasons } from '../../src/abi/drop-reason.ts'
import { AddressSpace } from '../../src/memory/address-space.ts'
import { IovecArena } from '../../src/memory/iovec-arena.ts'
import { CHAIN_SEGMENTS_MAX } from '../../src/virtqueue/descriptor-chain.ts'
import { SplitQueue } from '../../src/virtqueue/split.ts'
import { DIRECTION, POP } from '../../src/virtqueue/virtqueue.ts'
import { SplitDriver } from '../../test/support/driver-model.ts'
import { TestMemory } from '../../test/support/memory.ts'

/**
 * Time for one chain through a split ring: popped, checked, translated, used, published, once a batch. The driver costs
 * nothing: its chains stay as they are, and only avail.idx moves. Run with: bun bench/micro/split-ring.ts
 */

const SIZE = 256
const FRAME_BYTES = 1526

type Shape = 'direct, 1 buffer' | 'direct, 2 buffers' | 'indirect, 2 buffers'

const newRound = (shape: Shape, batch: number): (() => void) => {
  const memory = new TestMemory(1 << 20)
  const driver = new SplitDriver(memory, { size: SIZE, eventIdx: true })
  const space = new AddressSpace()
  space.add(memory.region())
  const data = memory.allocate(FRAME_BYTES)
  const header = { address: data, length: 12 }
  const frame = { address: data + 12, length: FRAME_BYTES - 12 }
  const whole = { address: data, length: FRAME_BYTES }
  for (;;) {
    const id =
      shape === 'indirect, 2 buffers'
        ? driver.add([header, frame], { indirectFrom: 0 })
        : driver.add(shape === 'direct, 1 buffer' ? [whole] : [header, frame])
    if (id < 0) break
  }
  // Fewer chains than slots: fill the avail ring up with the same heads, which are never in flight together.
  const heads = driver.outstanding
  for (let slot = heads; slot < SIZE; slot++) {
    driver.avail.setUint16(4 + 2 * slot, driver.avail.getUint16(4 + 2 * (slot % heads), true), true)
  }
  const queue = new SplitQueue(space, {
    size: SIZE,
    descAddr: driver.descAddr,
    availAddr: driver.availAddr,
    usedAddr: driver.usedAddr,
    state: { nextAvail: 0, nextUsed: 0 },
    indirect: true,
    eventIdx: true,
    drops: new Uint32Array(dropReasons.length),
  })
  const arena = new IovecArena(SIZE, 4 * CHAIN_SEGMENTS_MAX)
  const avail = new Uint16Array(driver.avail.buffer, driver.avail.byteOffset, 2)
  let availIdx = 0
  return () => {
    availIdx = (availIdx + batch) & 0xffff
    Atomics.store(avail, 1, availIdx)
    arena.clear()
    while (queue.popInto(arena, DIRECTION.readable) === POP.chain);
    for (let left = queue.inFlight; left > 0; left--) queue.stageUsed(0)
    queue.publishUsed()
    queue.needsCall()
  }
}

for (const shape of ['direct, 1 buffer', 'direct, 2 buffers', 'indirect, 2 buffers'] as const) {
  group(shape, () => {
    for (const batch of [1, 8, 64]) {
      const round = newRound(shape, batch)
      // One call handles as many chains whatever the batch is, so that the times compare.
      const rounds = 64 / batch
      bench(`64 chains in batches of ${batch}`, () => {
        for (let left = rounds; left > 0; left--) round()
      })
    }
  })
}

await run()
