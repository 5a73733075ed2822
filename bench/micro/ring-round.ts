import { IovecArena } from '../../src/memory/iovec-arena.ts'
import { CHAIN_SEGMENTS_MAX } from '../../src/virtqueue/descriptor-chain.ts'
import { popBatch } from '../../src/virtqueue/pop-batch.ts'
import { BUFFER_DIRECTION } from '../../src/virtqueue/virtqueue.ts'
import { packedFixture } from '../../test/support/packed-fixture.ts'
import { PackedReplay, type Replay, SplitReplay } from '../../test/support/replay.ts'
import type { RingFixture } from '../../test/support/ring-fixture.ts'
import { splitFixture } from '../../test/support/split-fixture.ts'

const SIZE = 256
const FRAME_BYTES = 1526

export const layouts = ['split', 'packed'] as const
export type Layout = (typeof layouts)[number]

export const shapes = ['direct, 1 buffer', 'direct, 2 buffers', 'indirect, 2 buffers'] as const
export type Shape = (typeof shapes)[number]

/** A ring full of chains of one shape. */
const newRing = (layout: Layout, shape: Shape): { fixture: Pick<RingFixture, 'queue'>; replay: Replay } => {
  const options = { size: SIZE, eventIdx: true }
  const fill = ({ driver, memory }: Pick<RingFixture, 'driver' | 'memory'>): void => {
    const data = memory.allocate(FRAME_BYTES)
    const header = { address: data, length: 12 }
    const frame = { address: data + 12, length: FRAME_BYTES - 12 }
    const chain = shape === 'direct, 1 buffer' ? [{ address: data, length: FRAME_BYTES }] : [header, frame]
    while (driver.add(chain, shape === 'indirect, 2 buffers' ? { indirectFrom: 0 } : {}) >= 0);
  }
  if (layout === 'split') {
    const fixture = splitFixture(options)
    fill(fixture)
    return { fixture, replay: new SplitReplay(fixture.driver) }
  }
  const fixture = packedFixture(options)
  fill(fixture)
  return { fixture, replay: new PackedReplay(fixture.driver) }
}

/** What is timed: one batch made available, popped, checked, translated, used and published, as on a transmitq. */
export const newRound = (layout: Layout, shape: Shape, batch: number): (() => void) => {
  const { fixture, replay } = newRing(layout, shape)
  const { queue } = fixture
  const arena = new IovecArena(SIZE, 4 * CHAIN_SEGMENTS_MAX)
  return () => {
    replay.offer(batch)
    arena.clear()
    popBatch(queue, arena, BUFFER_DIRECTION.readable, SIZE, Number.POSITIVE_INFINITY)
    for (let left = queue.inFlight; left > 0; left--) queue.stageUsed(0)
    queue.publishUsed()
    queue.needsCall()
  }
}

/** The driver's share of a round. */
export const newDriverRound = (layout: Layout, shape: Shape, batch: number): (() => void) => {
  const { replay } = newRing(layout, shape)
  return () => replay.offer(batch)
}
