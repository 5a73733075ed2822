import { type DropReason, dropReasons } from '../abi/drop-reason.ts'
import { VIRTIO_CONFIG_S_DRIVER_OK } from '../abi/virtio.ts'
import { buildInfo } from '../base/build-info.ts'
import { formatMac } from '../base/mac.ts'
import type { DeviceBlock } from '../channel/device-block.ts'
import { COUNTER, DIRECTION, type Direction, QUEUE_STATE } from '../channel/queue-block.ts'
import type { QueuePairBlock } from '../channel/queue-pair-block.ts'
import type { OpenedTap } from '../channel/worker-messages.ts'
import { featureNames } from '../device/features.ts'
import { statusNames } from '../device/status-names.ts'
import type { DeviceView, QueueView, ReadyView, StatsView, TrafficView } from './card.ts'
import type { CardIdentity } from './card-identity.ts'

/** The part of a view that does not depend on the transport. */
export type CommonDeviceView = Omit<
  DeviceView,
  'name' | 'transport' | 'attached' | 'bind' | 'driver' | 'vduse' | 'vhostUser'
>

/** The view of either kind of card. */
export const commonDeviceView = (
  block: DeviceBlock,
  tap: OpenedTap,
  identity: CardIdentity,
  pairs: number,
  startedMs: number,
): CommonDeviceView => ({
  mac: formatMac(block.mac),
  ownMac: identity.mac,
  mtu: identity.mtu,
  linkUp: block.linkUp,
  tap: {
    name: tap.name,
    index: block.tapPresent ? block.tapIndex : null,
    vnetHdr: tap.hasVnetHdr,
    carrier: block.tapPresent && block.tapUp,
  },
  status: { bits: block.status, names: statusNames(block.status) },
  features: { offered: featureNames(identity.offered), negotiated: featureNames(block.features) },
  queuePairs: pairs,
  uptimeSeconds: Math.floor((performance.now() - startedMs) / 1000),
  pid: process.pid,
  version: buildInfo.version,
  resets: block.resets,
})

/** Whether packets can pass, and if not, why. `missing`: a reason that only the kind of card knows, or null. */
export const readyView = (
  block: DeviceBlock,
  tap: OpenedTap,
  queues: readonly QueueView[],
  missing: string | null,
): ReadyView => {
  const reason =
    missing ??
    ((block.status & VIRTIO_CONFIG_S_DRIVER_OK) === 0
      ? 'no driver has set the device up'
      : !block.tapPresent
        ? `${tap.name} is gone`
        : !block.linkUp
          ? 'the link is down'
          : queues.slice(0, 2).some((queue) => !queue.running)
            ? 'a queue is not running'
            : null)
  return reason === null ? { ready: true, reason: 'ready' } : { ready: false, reason }
}

const directions = [DIRECTION.rx, DIRECTION.tx] as const

const queueView = (block: QueuePairBlock, pair: number, direction: Direction, sizeMax: number): QueueView => {
  const queue = block.queues[direction]
  const { counters, state } = queue
  return {
    index: pair * 2 + direction,
    direction: direction === DIRECTION.rx ? 'rx' : 'tx',
    size: counters[COUNTER.size] || sizeMax,
    ready: state !== QUEUE_STATE.stopped,
    running: state === QUEUE_STATE.running,
    quarantined: queue.fault?.text ?? null,
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

/** Every virtqueue, by index. `sizeMax`: the most entries that the driver may choose. */
export const queueViews = (blocks: readonly QueuePairBlock[], sizeMax: number): QueueView[] =>
  blocks.flatMap((block, pair) => directions.map((direction) => queueView(block, pair, direction, sizeMax)))

const total = (blocks: readonly QueuePairBlock[], direction: Direction): TrafficView => {
  const sum = (counter: number): number =>
    blocks.reduce((subtotal, block) => subtotal + block.queues[direction].counters[counter]!, 0)
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
