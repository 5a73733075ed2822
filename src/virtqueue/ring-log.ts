import { VRING_PACKED_DESC_BYTES } from '../abi/virtio-ring.ts'
import type { DirtyLog } from '../memory/dirty-log.ts'
import { ringExtents } from './ring-extents.ts'
import { isPacked, type VirtqueueConfig } from './virtqueue-config.ts'

/**
 * Logs all that the device may write of the ring: it is only a few pages. `usedLog`: guest address under which used
 * ring writes are logged, or -1 for no logging. docs/interop/vhost-user.rst, "Migration".
 */
export const logRing = (log: DirtyLog, config: VirtqueueConfig, usedLog: number): void => {
  const packed = isPacked(config)
  if (packed) log.mark(config.descAddr, VRING_PACKED_DESC_BYTES * config.size)
  if (usedLog >= 0) log.mark(usedLog, ringExtents(config.size, packed).used)
}
