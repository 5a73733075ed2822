import { dropReasons } from '../../../src/abi/drop-reason.ts'
import type { Card, DeviceView, QueueView, StatsView } from '../../../src/card/card.ts'

const device: DeviceView = {
  name: 'tap0',
  transport: 'vduse',
  attached: true,
  bind: 'virtio',
  mac: '02:00:5e:10:00:01',
  ownMac: '02:00:5e:10:00:01',
  mtu: 1500,
  linkUp: true,
  tap: { name: 'tap0', index: 7, vnetHdr: true, carrier: true },
  status: { bits: 15, names: ['ACKNOWLEDGE', 'DRIVER', 'DRIVER_OK', 'FEATURES_OK'] },
  features: { offered: ['csum', 'mac', 'version_1'], negotiated: ['csum', 'version_1'] },
  driver: 'virtio_vdpa',
  queuePairs: 1,
  uptimeSeconds: 12.5,
  pid: 4242,
  version: '1.2.3',
  resets: 3,
  vduse: { apiVersion: 1, features: ['QUEUE_READY'] },
  vhostUser: null,
}

const queue = (index: number, direction: 'rx' | 'tx'): QueueView => ({
  index,
  direction,
  size: 256,
  ready: true,
  running: true,
  quarantined: null,
  nextAvail: 300,
  nextUsed: 290,
  pending: 64,
  kicks: 11 + index,
  calls: 7 + index,
  batches: 10,
  packets: 40 + index,
  bytes: 4000 + index,
  gsoPackets: 2,
  csumPackets: 3,
})

/** What a log is missing, in a test that does not care. */
export const noLosses = () => ({ leftOut: 0, lost: 0 })

/** A card whose every answer a test can set. */
export class FakeCard implements Card {
  view: DeviceView = device
  queueViews: readonly QueueView[] = [queue(0, 'rx'), queue(1, 'tx')]
  statsView: StatsView = {
    rx: { packets: 40, bytes: 4000, gsoPackets: 2, csumPackets: 3 },
    tx: { packets: 41, bytes: 4001, gsoPackets: 2, csumPackets: 3 },
    drops: Object.fromEntries(dropReasons.map((reason, index) => [reason, index])) as StatsView['drops'],
  }
  readyView = { ready: true, reason: 'ready' }
  /** Every call of setLinkUp, in order. */
  readonly linkChanges: boolean[] = []
  /** Runs before setLinkUp takes effect: throw or wait here. */
  beforeLinkChange: () => void | Promise<void> = () => undefined

  device(): DeviceView {
    return this.view
  }
  queues(): readonly QueueView[] {
    return this.queueViews
  }
  stats(): StatsView {
    return this.statsView
  }
  ready(): { ready: boolean; reason: string } {
    return this.readyView
  }
  logLinesLeftOut(): number {
    return 0
  }
  async setLinkUp(up: boolean): Promise<void> {
    await this.beforeLinkChange()
    this.linkChanges.push(up)
    this.view = { ...this.view, linkUp: up }
  }
}
