import type { ExitCode } from '../base/errors.ts'
import type { TransportEnd } from '../device/control-transport.ts'
import type { TapOptions } from '../tap/tap-options.ts'
import type { VhostUserEndpoint } from '../transport/vhost-user/endpoint.ts'

/**
 * What main and the workers say to each other. A worker takes messages only before it enters its loop; from then on it
 * is told things through its block and eventfd, and only speaks.
 */

/** main -> device worker, first: open the TAP. Answered by `opened` or `refused`. */
export type OpenTap = { readonly kind: 'open'; readonly tap: TapOptions }

/** main -> device worker, instead of `serve`: nothing came of it. Answered by `stopped`. */
export type CloseTap = { readonly kind: 'close' }

/** A device of `/dev/vduse/NAME`. */
export type VduseLink = {
  readonly kind: 'vduse'
  /** Open; main closes it when the worker has stopped. */
  readonly fd: number
  /** An eventfd for each virtqueue. */
  readonly kickFds: readonly number[]
}

/** A device of a vhost-user socket. */
export type VhostUserLink = {
  readonly kind: 'vhost-user'
  readonly endpoint: VhostUserEndpoint
  readonly inBand: boolean
  /** The front-end's memory, as the device worker maps it for the queue workers. */
  readonly memory: SharedArrayBuffer
}

/** main -> device worker, second: serve the device. Does not return before the device is stopped. */
export type ServeDevice = {
  readonly kind: 'serve'
  readonly transport: TransportLink
  readonly wakeFd: number
  readonly block: SharedArrayBuffer
  readonly pairs: readonly { readonly block: SharedArrayBuffer; readonly wakeFd: number }[]
  /** Which frames the driver wants: written here, read by the queue workers. */
  readonly receiveFilter: SharedArrayBuffer
  /** How received packets are hashed: likewise. */
  readonly receiveScaling: SharedArrayBuffer
  readonly offeredFeatures: bigint
  readonly queueSizeMax: number
  readonly mac: Uint8Array
  readonly mtu: number
  /** The device was left by a process that died: find out where it is. */
  readonly adopt: boolean
}

/** How the device worker reaches the driver's side. */
export type TransportLink = VduseLink | VhostUserLink

/** How a queue worker reaches the driver's memory, and calls it. */
export type QueueWorkerLink =
  | { readonly kind: 'vduse'; readonly fd: number }
  | { readonly kind: 'vhost-user'; readonly memory: SharedArrayBuffer }

/** main -> queue worker: its only message. */
export type ServeQueuePair = {
  readonly transport: QueueWorkerLink
  readonly wakeFd: number
  readonly deviceWakeFd: number
  readonly block: SharedArrayBuffer
  readonly pairIndex: number
  readonly tapFd: number
  readonly tapHasVnetHdr: boolean
  readonly receiveFilter: SharedArrayBuffer
  readonly receiveScaling: SharedArrayBuffer
  /** Microseconds to look for work before sleeping; null to adapt. */
  readonly busyPollUs: number | null
  /** Processor to run on; null for any. */
  readonly cpu: number | null
}

/** The TAP as the device worker has opened it. */
export type OpenedTap = {
  readonly name: string
  readonly index: number
  readonly created: boolean
  readonly hasVnetHdr: boolean
  readonly mtu: number
  readonly fds: readonly number[]
  /** Features that make no sense over this TAP. */
  readonly uselessFeatures: bigint
  /** Why the host cannot be told which queue gets a packet: an errno; 0 if it can, or if there is one queue only. */
  readonly steeringErrno: number
}

export type LogLevel = 'debug' | 'info' | 'warning' | 'error'

/** device worker -> main. */
export type DeviceWorkerMessage =
  | { readonly kind: 'opened'; readonly tap: OpenedTap }
  | { readonly kind: 'refused'; readonly message: string; readonly hint: string; readonly exitCode: ExitCode }
  | { readonly kind: 'serving' }
  | { readonly kind: 'log'; readonly level: LogLevel; readonly text: string }
  | { readonly kind: 'wish-done' }
  /** Nothing more can come of the transport: to go on, the card has to be made anew. */
  | { readonly kind: 'ended'; readonly end: TransportEnd }
  | { readonly kind: 'stopped' }
