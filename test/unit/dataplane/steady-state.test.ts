/** A queue worker's loop moves packets for a long time and leaves the garbage collector nothing to do. */
import { describe, expect, test } from 'bun:test'
import { DIRECTION } from '../../../src/channel/queue-block.ts'
import { addressOf, native } from '../../../src/sys/native.ts'
import { SplitDriver } from '../../support/driver-model.ts'
import { encodeHeader } from '../../support/frames.ts'
import { collectsDuring } from '../../support/garbage.ts'
import type { PackedDriver } from '../../support/packed-driver.ts'
import { frameOf, QueuePairRig } from '../../support/queue-pair-rig.ts'
import { PackedReplay, type Replay, SplitReplay } from '../../support/replay.ts'

const PACKETS = 100_000
const { rx, tx } = DIRECTION

const replayOf = (driver: SplitDriver | PackedDriver): Replay =>
  driver instanceof SplitDriver ? new SplitReplay(driver) : new PackedReplay(driver)

/** Sends and receives one packet a round; `each` is called a packet. */
const newTraffic = (rig: QueuePairRig) => {
  while (rig.drivers[rx]!.freeDescriptors > 0) rig.addBuffer()
  while (rig.drivers[tx]!.freeDescriptors > 0) rig.addFrame(frameOf(100))
  const replays = rig.drivers.map(replayOf)
  rig.startBoth()
  const packet = new Uint8Array(Buffer.concat([encodeHeader({}), frameOf(100)]))
  const packetAt = addressOf(packet)
  const sent = new Uint8Array(256)
  const sentAt = addressOf(sent)
  return (count: number, each: () => void): void => {
    for (let done = 0; done < count; done++) {
      replays[rx]!.offer(1)
      replays[tx]!.offer(1)
      native.vn_write(rig.host, packetAt, packet.length)
      rig.kicks[rx]!.signal()
      rig.kicks[tx]!.signal()
      rig.round()
      native.vn_read(rig.host, sentAt, sent.length)
      each()
    }
  }
}

describe.each([
  ['split', false],
  ['packed', true],
] as const)('a queue worker on %s rings', (_, packed) => {
  test('100,000 packets each way leave the garbage collector nothing to do', async () => {
    using rig = new QueuePairRig({ packed, start: 0, size: 64 })
    const traffic = newTraffic(rig)
    traffic(PACKETS / 4, () => {})
    const before = rig.counter(tx, 'packets')
    // The compiler may still be at work the first time, and what it makes is garbage too.
    let collected = true
    for (let attempt = 0; attempt < 4 && collected; attempt++) {
      collected = await collectsDuring(() => traffic(PACKETS, () => {}))
    }
    expect(rig.counter(tx, 'packets') - before).toBeGreaterThanOrEqual(PACKETS)
    expect(rig.counter(rx, 'packets')).toBeGreaterThanOrEqual(PACKETS)
    expect(rig.drops).toEqual({})
    expect(collected).toBe(false)
  }, 300_000)

  test('the measurement notices a few small objects a packet', async () => {
    using rig = new QueuePairRig({ packed, start: 0, size: 64 })
    const traffic = newTraffic(rig)
    const kept: object[] = []
    let objects = 8
    const leak = (): void => {
      for (let i = 0; i < objects; i++) kept[i % 8] = { i }
    }
    // How much may be allocated before a collection depends on the size of the heap, and so on the tests before this
    // one.
    let collected = false
    for (; objects <= 512 && !collected; objects *= 2) {
      collected = await collectsDuring(() => traffic(PACKETS, leak))
    }
    expect(collected).toBe(true)
  }, 300_000)
})
