import { Counter, Gauge, Registry } from 'prom-client'
import type { LogLosses } from '../base/log.ts'
import type { Card, QueueView } from '../card/card.ts'

/** Media type and text of one scrape. */
export interface Metrics {
  readonly contentType: string
  text(): Promise<string>
}

/** Copies one queue's counters into metrics of `registry`. */
const queueMetrics = (registry: Registry): ((queue: QueueView) => void) => {
  const registers = [registry]
  const queueLabels = ['queue', 'dir'] as const
  const queueCounter = (name: string, help: string): Counter<'queue' | 'dir'> =>
    new Counter({ name: `vduse_net_${name}_total`, help, labelNames: queueLabels, registers })
  const queueGauge = (name: string, help: string): Gauge<'queue' | 'dir'> =>
    new Gauge({ name: `vduse_net_${name}`, help, labelNames: queueLabels, registers })

  const perQueue: readonly (readonly [Counter<'queue' | 'dir'>, (queue: QueueView) => number])[] = [
    [queueCounter('packets', 'Packets carried.'), (queue) => queue.packets],
    [queueCounter('bytes', 'Bytes of frames carried, without virtio-net headers.'), (queue) => queue.bytes],
    [
      queueCounter('gso_packets', 'Packets that were larger than the MTU and are segmented later.'),
      (queue) => queue.gsoPackets,
    ],
    [queueCounter('csum_packets', 'Packets whose checksum is filled in later.'), (queue) => queue.csumPackets],
    [queueCounter('kicks', 'Notifications from the driver.'), (queue) => queue.kicks],
    [queueCounter('calls', 'Interrupts to the driver.'), (queue) => queue.calls],
    [queueCounter('batches', 'Batches that carried at least one packet.'), (queue) => queue.batches],
  ]
  const ringUsed = queueGauge(
    'ring_used_ratio',
    'Share of the ring that the driver has made available and the device has not used.',
  )
  const batchSize = queueGauge('batch_size', 'Packets in a batch, on average since the start.')
  const quarantined = queueGauge('queue_quarantined', '1 while the queue is not served until the next reset.')
  return (queue) => {
    const labels = { queue: queue.index, dir: queue.direction }
    for (const [metric, value] of perQueue) metric.inc(labels, value(queue))
    ringUsed.set(labels, queue.size === 0 ? 0 : queue.pending / queue.size)
    batchSize.set(labels, queue.batches === 0 ? 0 : queue.packets / queue.batches)
    quarantined.set(labels, queue.quarantined === null ? 0 : 1)
  }
}

/** Metrics of a card in Prometheus' text format. Values are copied from the card at each scrape. */
export const cardMetrics = (card: Card, logLosses: () => LogLosses): Metrics => {
  const registry = new Registry()
  const registers = [registry]
  const gauge = (name: string, help: string): Gauge => new Gauge({ name: `vduse_net_${name}`, help, registers })

  const copyQueue = queueMetrics(registry)
  const dropped = new Counter({
    name: 'vduse_net_dropped_total',
    help: 'Packets dropped.',
    labelNames: ['reason'],
    registers,
  })
  const resets = new Counter({ name: 'vduse_net_resets_total', help: 'Resets by the driver.', registers })
  const missingLines = new Counter({
    name: 'vduse_net_log_lines_missing_total',
    help: 'Log lines not written: left_out, too many of one kind; lost, the reader of ' + 'stderr was too slow.',
    labelNames: ['why'],
    registers,
  })
  const linkUp = gauge('link_up', '1 if the driver sees the link up.')
  const status = gauge('device_status', 'Device status field, VIRTIO 1.2 section 2.1.')
  const ready = gauge('ready', '1 if packets can flow.')
  const uptime = gauge('uptime_seconds', 'Seconds since the card was created.')
  const info = new Gauge({
    name: 'vduse_net_build_info',
    help: 'Always 1; the labels identify version and card.',
    labelNames: ['version', 'name', 'transport'],
    registers,
  })

  const collect = (): void => {
    registry.resetMetrics()
    for (const queue of card.queues()) copyQueue(queue)
    for (const [reason, count] of Object.entries(card.stats().drops)) dropped.inc({ reason }, count)
    const device = card.device()
    resets.inc(device.resets)
    const losses = logLosses()
    missingLines.inc({ why: 'left_out' }, losses.leftOut)
    missingLines.inc({ why: 'lost' }, losses.lost)
    linkUp.set(device.linkUp ? 1 : 0)
    status.set(device.status.bits)
    ready.set(card.ready().ready ? 1 : 0)
    uptime.set(device.uptimeSeconds)
    info.set({ version: device.version, name: device.name, transport: device.transport }, 1)
  }
  return {
    contentType: registry.contentType,
    text: () => {
      collect()
      return registry.metrics()
    },
  }
}
