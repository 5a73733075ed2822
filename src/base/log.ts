import { getLogger } from '@logtape/logtape'

/** Where a message comes from. Sinks and levels are configured once, by the CLI on the main thread. */
export type LogArea = 'main' | 'device' | 'queue' | 'tap' | 'vduse' | 'admin'

/** The logger of an area. Silent until the main thread has configured its sink. */
export const logger = (area: LogArea) => getLogger(['vduse-net', area])
