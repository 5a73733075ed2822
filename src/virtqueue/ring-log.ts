import { VRING_PACKED_DESC_BYTES } from '../abi/virtio-ring.ts'
import type { DirtyLog } from '../memory/dirty-log.ts'
import { ringExtents } from './ring-extents.ts'

/** Where a ring lies, for the log of what is written to it. */
export type LoggedRing = {
  /** Entries. */
  readonly size: number
  readonly descAddr: number
  readonly packed: boolean
  /** Guest address by which writes to the used ring are logged, or -1 for not to. */
  readonly usedLog: number
}

/**
 * Notes writes to the ring itself: all that the device may write of it, since it is but a few pages. docs/interop/vhost-user.rst,
 * "Migration".
 */
export const logRing = (log: DirtyLog, { size, descAddr, packed, usedLog }: LoggedRing): void => {
  if (packed) log.mark(descAddr, VRING_PACKED_DESC_BYTES * size)
  if (usedLog >= 0) log.mark(usedLog, ringExtents(size, packed).used)
}
