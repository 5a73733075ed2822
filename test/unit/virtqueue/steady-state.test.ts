import { describe, expect, test } from 'bun:test'
import { BUFFER_DIRECTION, POP } from '../../../src/virtqueue/virtqueue.ts'
import { collectsDuring } from '../../support/garbage.ts'
import { packedFixture } from '../../support/packed-fixture.ts'
import { PackedReplay, type Replay, SplitReplay } from '../../support/replay.ts'
import type { RingFixture } from '../../support/ring-fixture.ts'
import { splitFixture } from '../../support/split-fixture.ts'

const CHAINS = 1_000_000
const BATCH = 32

/** Good chains, every other one indirect, and now and then a malformed one, until no more fits. */
const fill = ({ driver, memory }: Pick<RingFixture, 'driver' | 'memory'>, chains: number): void => {
  const header = { address: memory.allocate(12), length: 12 }
  const frame = { address: memory.allocate(1514), length: 1514 }
  for (let chain = 0; chain < chains; chain++) {
    if (chain % 16 === 15) driver.add([{ address: 2 ** 52, length: 1 }])
    else driver.add([header, frame], chain % 2 === 0 ? {} : { indirectFrom: 0 })
  }
  while (driver.freeDescriptors > 0) driver.add([header])
}

type Layout = () => { readonly fixture: Pick<RingFixture, 'queue' | 'arena'>; readonly replay: Replay }

const layouts: readonly (readonly [string, Layout])[] = [
  [
    'split',
    () => {
      const fixture = splitFixture({ size: 256, eventIdx: true, memoryBytes: 1 << 22 })
      fill(fixture, 85)
      return { fixture, replay: new SplitReplay(fixture.driver) }
    },
  ],
  [
    'packed',
    () => {
      const fixture = packedFixture({ size: 255, eventIdx: true, memoryBytes: 1 << 22 })
      fill(fixture, 85)
      return { fixture, replay: new PackedReplay(fixture.driver) }
    },
  ],
]

/**
 * Moves `count` chains through a ring, among them indirect, malformed and given-back ones; `each` is called per chain.
 */
const newTraffic = (layout: Layout) => {
  const { fixture, replay } = layout()
  const { queue, arena } = fixture
  return (count: number, each: () => void): void => {
    for (let done = 0; done < count; done += BATCH) {
      replay.offer(BATCH)
      queue.disableNotification()
      arena.clear()
      while (queue.popInto(arena, BUFFER_DIRECTION.readable) !== POP.empty) each()
      queue.unpop(4)
      arena.removeLast(4)
      while (queue.popInto(arena, BUFFER_DIRECTION.readable) !== POP.empty);
      while (queue.inFlight > 0) queue.stageUsed(0)
      queue.publishUsed()
      queue.needsCall()
      queue.enableNotification()
    }
  }
}

describe.each(layouts)('%s ring', (_, layout) => {
  test('a million chains leave the garbage collector nothing to do', async () => {
    const traffic = newTraffic(layout)
    traffic(CHAINS / 5, () => {})
    // The compiler may still be at work the first time, and what it makes is garbage too.
    let collected = true
    for (let attempt = 0; attempt < 3 && collected; attempt++) {
      collected = await collectsDuring(() => traffic(CHAINS, () => {}))
    }
    expect(collected).toBe(false)
  })

  test('the measurement notices one small object a chain', async () => {
    const traffic = newTraffic(layout)
    let kept: object = {}
    let made = 0
    const leak = (): void => {
      kept = { made: made++ }
    }
    traffic(CHAINS / 5, leak)
    // How much may be allocated before a collection depends on the size of the heap, and so on the tests before this
    // one.
    let collected = false
    for (let times = 1; times <= 64 && !collected; times *= 2) {
      collected = await collectsDuring(() => traffic(times * CHAINS, leak))
    }
    expect(collected).toBe(true)
    expect(kept).toEqual({ made: made - 1 })
  })
})
