import type { DropReason } from '../abi/drop-reason.ts'
import type { Mac } from '../base/mac.ts'

/** The driver to bind to the vDPA device. `none`: attached only. */
export type Bind = 'virtio' | 'vhost' | 'none'

/** The card's properties and the state of its driver. Names of features are those of `--features`. */
export interface DeviceView {
  readonly name: string
  readonly transport: 'vduse' | 'vhost-user'
  /** Added to the vDPA bus, or connected to a front-end. */
  readonly attached: boolean
  readonly bind: Bind
  /**
   * The MAC in use: {@link ownMac}, or the one that the driver has set since its last reset
   * (VIRTIO_NET_CTRL_MAC_ADDR_SET).
   */
  readonly mac: Mac
  /** The MAC that the card was made with. */
  readonly ownMac: Mac
  readonly mtu: number
  /** VIRTIO_NET_S_LINK_UP: the TAP is up, the operator has not switched the link off, no queue is quarantined. */
  readonly linkUp: boolean
  readonly tap: {
    readonly name: string
    /** The interface's index, or null while the interface is gone. */
    readonly index: number | null
    readonly vnetHdr: boolean
    readonly carrier: boolean
  }
  /** The device status field, as bits and as names like `DRIVER_OK`. VIRTIO 1.2 §2.1. */
  readonly status: { readonly bits: number; readonly names: readonly string[] }
  readonly features: { readonly offered: readonly string[]; readonly negotiated: readonly string[] }
  /** The driver bound on the vDPA bus, as sysfs spells it (`virtio_vdpa`), or null. */
  readonly driver: string | null
  readonly queuePairs: number
  readonly uptimeSeconds: number
  readonly pid: number
  readonly version: string
  /** Driver resets since the device was created. */
  readonly resets: number
  /** Null on another transport. */
  readonly vduse: { readonly apiVersion: number; readonly features: readonly string[] } | null
  /** Null on another transport. */
  readonly vhostUser: { readonly socket: string } | null
}

/** One virtqueue. Counters never go back, not even at a reset. `rx` and `tx` are the driver's. */
export interface QueueView {
  readonly index: number
  readonly direction: 'rx' | 'tx'
  /** Entries that the driver has set; the maximum before. */
  readonly size: number
  /** The driver has set its ready flag. */
  readonly ready: boolean
  /** The device is serving it. */
  readonly running: boolean
  /** Why the queue is quarantined until the next reset; null if it is not. */
  readonly quarantined: string | null
  /** Free-running 16-bit indices of the device. */
  readonly nextAvail: number
  readonly nextUsed: number
  /** Chains that are available and not popped yet. */
  readonly pending: number
  readonly kicks: number
  readonly calls: number
  /** Native calls that moved at least one packet. */
  readonly batches: number
  readonly packets: number
  readonly bytes: number
  readonly gsoPackets: number
  readonly csumPackets: number
}

/** Totals of all queues of one direction. */
export interface TrafficView {
  readonly packets: number
  readonly bytes: number
  readonly gsoPackets: number
  readonly csumPackets: number
}

/** Totals since the card was created. */
export interface StatsView {
  readonly rx: TrafficView
  readonly tx: TrafficView
  /** Packets dropped, for each reason. */
  readonly drops: Readonly<Record<DropReason, number>>
}

/** Whether packets can pass. `reason`: what is missing, or `ready`. */
export interface ReadyView {
  readonly ready: boolean
  readonly reason: string
}

/**
 * The running card as its operator sees it. Reads copy counters, never wait, and work in every state of the card,
 * during a driver's reset too.
 */
export interface Card {
  device(): DeviceView
  queues(): readonly QueueView[]
  stats(): StatsView
  ready(): ReadyView
  /** Log lines of the device that the log limit left out. Only grows. */
  logLinesLeftOut(): number
  /**
   * Switches the operator's side of the link. Resolves when the driver can read the change.
   * @throws {UserError} where the card cannot, for instance without VIRTIO_NET_F_STATUS.
   */
  setLinkUp(up: boolean): Promise<void>
}
