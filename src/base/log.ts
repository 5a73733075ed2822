import { getLogger } from '@logtape/logtape'

/** Where a message comes from. Sinks and levels are configured once, by the CLI on the main thread. */
export type LogArea = 'main' | 'device' | 'queue' | 'tap' | 'vduse' | 'admin'

/** Log lines that the operator does not get, since the start of the process. Both only grow. */
export interface LogLosses {
  /** Left out because too many of their kind came. */
  readonly leftOut: number
  /** Dropped because the reader of stderr did not take them. */
  readonly lost: number
}

/** The logger of an area. Silent until the main thread has configured its sink. */
export const logger = (area: LogArea) => getLogger(['vduse-net', area])
