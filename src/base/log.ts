import { getLogger } from '@logtape/logtape'

/** Where a message comes from. Sinks and levels are configured once, by the CLI on the main thread. */
export type LogArea = 'main' | 'device' | 'queue' | 'tap' | 'vduse' | 'admin'

/** Counts of log lines that were not written since the start of the process. Both only grow. */
export interface LogLosses {
  /** Left out by the log limit. */
  readonly leftOut: number
  /** Dropped because the reader of stderr was too slow. */
  readonly lost: number
}

/** The logger of an area. Silent until the main thread has configured its sink. */
export const logger = (area: LogArea) => getLogger(['vduse-net', area])
