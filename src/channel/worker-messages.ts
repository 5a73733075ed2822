import type { ExitCode } from '../base/errors.ts'
import type { TransportEnd } from '../device/control-transport.ts'
import type { TapOptions } from '../tap/tap-options.ts'
import type { VhostUserEndpoint } from '../transport/vhost-user/endpoint.ts'

/**
 * Messages between main and the workers. A worker receives messages only before it enters its loop. From then on it
 * reads its block when its eventfd is signalled, and only posts messages.
 */

/** main -> device worker, first: open the TAP. Answered by `opened` or `refused`. */
export type OpenTap = { readonly kind: 'open'; readonly tap: TapOptions }

/** main -> device worker, instead of `serve`: the card could not be made. Answered by `stopped`. */
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
  /** Shared memory of the ReceiveFilter: the device worker writes, the queue workers read. */
  readonly receiveFilter: SharedArrayBuffer
  /** Shared memory of the ReceiveScaling: the device worker writes, the queue workers read. */
  readonly receiveScaling: SharedArrayBuffer
  readonly offeredFeatures: bigint
  readonly queueSizeMax: number
  readonly mac: Uint8Array
  readonly mtu: number
  /** True if the device was left by a process that died: take over its driver's state. */
  readonly adopt: boolean
}

/** How the device worker reaches the driver's side. */
export type TransportLink = VduseLink | VhostUserLink

/** How a queue worker reaches the driver's memory and makes calls. */
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
  /** Microseconds to spin before sleeping; null for adaptive. */
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
  /** Features that cannot be used over this TAP. */
  readonly uselessFeatures: bigint
  /** Errno of steering packets to queues; 0 if steering works or there is one queue only. */
  readonly steeringErrno: number
}

export type LogLevel = 'debug' | 'info' | 'warning' | 'error'

/** device worker -> main. */
export type DeviceWorkerMessage =
  | { readonly kind: 'opened'; readonly tap: OpenedTap }
  | { readonly kind: 'refused'; readonly message: string; readonly hint: string; readonly exitCode: ExitCode }
  | { readonly kind: 'serving' }
  | { readonly kind: 'log'; readonly level: LogLevel; readonly text: string }
  | { readonly kind: 'request-done' }
  /** The transport has ended: serving again needs a new card. */
  | { readonly kind: 'ended'; readonly end: TransportEnd }
  | { readonly kind: 'stopped' }
