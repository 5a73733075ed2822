import { type DropReason, dropReasons } from '../abi/drop-reason.ts'
import type { QueueView, StatsView, TrafficView } from './card.ts'
import { COUNTER, DIRECTION, type Direction, QUEUE_STATE, type QueuePairBlock } from './queue-pair-block.ts'

const directions = [DIRECTION.rx, DIRECTION.tx] as const

const queueView = (block: QueuePairBlock, pair: number, direction: Direction, sizeMax: number): QueueView => {
  const counters = block.counters[direction]
  const state = block.queueState(direction)
  return {
    index: pair * 2 + direction,
    direction: direction === DIRECTION.rx ? 'rx' : 'tx',
    size: counters[COUNTER.size] || sizeMax,
    ready: state !== QUEUE_STATE.stopped,
    running: state === QUEUE_STATE.running,
    quarantined: state === QUEUE_STATE.quarantined ? block.quarantineReason(direction) : null,
    nextAvail: counters[COUNTER.nextAvail]!,
    nextUsed: counters[COUNTER.nextUsed]!,
    pending: counters[COUNTER.pending]!,
    kicks: counters[COUNTER.kicks]!,
    calls: counters[COUNTER.calls]!,
    batches: counters[COUNTER.batches]!,
    packets: counters[COUNTER.packets]!,
    bytes: counters[COUNTER.bytes]!,
    gsoPackets: counters[COUNTER.gsoPackets]!,
    csumPackets: counters[COUNTER.csumPackets]!,
  }
}

/** Every virtqueue, in the order of their indices. `sizeMax`: entries that the driver may choose at most. */
export const queueViews = (blocks: readonly QueuePairBlock[], sizeMax: number): QueueView[] =>
  blocks.flatMap((block, pair) => directions.map((direction) => queueView(block, pair, direction, sizeMax)))

const total = (blocks: readonly QueuePairBlock[], direction: Direction): TrafficView => {
  const sum = (counter: number): number =>
    blocks.reduce((subtotal, block) => subtotal + block.counters[direction][counter]!, 0)
  return {
    packets: sum(COUNTER.packets),
    bytes: sum(COUNTER.bytes),
    gsoPackets: sum(COUNTER.gsoPackets),
    csumPackets: sum(COUNTER.csumPackets),
  }
}

/** Totals over all queue pairs. */
export const statsView = (blocks: readonly QueuePairBlock[]): StatsView => ({
  rx: total(blocks, DIRECTION.rx),
  tx: total(blocks, DIRECTION.tx),
  drops: Object.fromEntries(
    dropReasons.map((reason, index) => [reason, blocks.reduce((sum, block) => sum + block.drops[index]!, 0)]),
  ) as Record<DropReason, number>,
})
