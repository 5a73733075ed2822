import {
  INFLIGHT_ALIGNMENT,
  INFLIGHT_VERSION,
  inflightRegionBytes,
  QUEUE_REGION_PACKED,
  QUEUE_REGION_SPLIT,
} from '../../abi/vhost-user-inflight.ts'
import { assert } from '../../base/assert.ts'
import type { BorrowedArea } from '../../sys/mapping.ts'
import { cString, native } from '../../sys/native.ts'
import { SharedArea } from './shared-area.ts'

/** Fields of GET_INFLIGHT_FD and SET_INFLIGHT_FD. */
export type InflightDescription = {
  readonly lengthBytes: number
  readonly offset: number
  readonly queues: number
  readonly queueSize: number
}

/** Ring layout, which decides the layout of a region. */
export type RingLayout = 'split' | 'packed'

/**
 * The inflight buffer: a region per ring in which its chains in flight are recorded. See {@link inflightRegionBytes}.
 */
export class InflightArea implements Disposable {
  readonly description: InflightDescription
  /** The area's file, to send to the front-end; -1 if the front-end has sent it. */
  readonly fd: number
  readonly #layout: RingLayout
  readonly #area: SharedArea

  private constructor(description: InflightDescription, layout: RingLayout, area: SharedArea, fd: number) {
    this.description = description
    this.fd = fd
    this.#layout = layout
    this.#area = area
  }

  /** Makes a new, unused area. A string says why it cannot. */
  static make(queues: number, queueSize: number, layout: RingLayout): InflightArea | string {
    const lengthBytes = queues * inflightRegionBytes(queueSize, layout === 'packed')
    const fd = native.vn_memfd(cString('vduse-net-inflight'), lengthBytes)
    if (fd < 0) return 'no memory for it'
    const area = SharedArea.map(fd, lengthBytes, 0)
    if (typeof area !== 'string')
      return new InflightArea({ lengthBytes, offset: 0, queues, queueSize }, layout, area, fd)
    native.vn_close(fd)
    return area
  }

  /** Maps an area that any back-end may have used before. A string says what is wrong with it. `fd` is the caller's. */
  static open(fd: number, description: InflightDescription, layout: RingLayout): InflightArea | string {
    const { lengthBytes, offset, queues, queueSize } = description
    const regionBytes = inflightRegionBytes(queueSize, layout === 'packed')
    if (queueSize === 0 || queues * regionBytes > lengthBytes)
      return `${lengthBytes} bytes for ${queues} rings of ${queueSize}`
    if (offset % INFLIGHT_ALIGNMENT !== 0) return 'it is not aligned'
    const area = SharedArea.map(fd, lengthBytes, offset)
    if (typeof area === 'string') return area
    for (let queue = 0; queue < queues; queue++) {
      const wrong = regionFault(area.read(queue * regionBytes, regionBytes), queueSize, layout)
      if (wrong === null) continue
      area[Symbol.dispose]()
      return `ring ${queue}: ${wrong}`
    }
    return new InflightArea(description, layout, area, -1)
  }

  /** The region of a ring, for the worker that serves it; null if the ring has none or the ring layout has changed. */
  regionOf(queue: number, layout: RingLayout): BorrowedArea | null {
    const { queues, queueSize } = this.description
    if (queue >= queues || layout !== this.#layout) return null
    const bytes = inflightRegionBytes(queueSize, layout === 'packed')
    const { address, guardSlot } = this.#area.borrowed
    return { address: address + queue * bytes, lengthBytes: bytes, guardSlot }
  }

  /** Precondition: no worker uses the area any more. */
  [Symbol.dispose](): void {
    this.#area[Symbol.dispose]()
    if (this.fd >= 0) native.vn_close(this.fd)
  }
}

/** Checks a region as far as that is possible without the ring. An unused region is valid. */
const regionFault = (region: Uint8Array, queueSize: number, layout: RingLayout): string | null => {
  assert(region.length > QUEUE_REGION_PACKED.desc)
  const view = new DataView(region.buffer, region.byteOffset, region.length)
  const half = (offset: number): number => view.getUint16(offset, true)
  const version = half(QUEUE_REGION_SPLIT.version)
  if (version === 0) return null
  if (version !== INFLIGHT_VERSION) return `version ${version}`
  if (view.getBigUint64(QUEUE_REGION_SPLIT.features, true) !== 0n) return 'unknown features'
  if (half(QUEUE_REGION_SPLIT.desc_num) > queueSize)
    return `${half(QUEUE_REGION_SPLIT.desc_num)} entries of ${queueSize}`
  if (layout === 'split') {
    const head = half(QUEUE_REGION_SPLIT.last_batch_head)
    return head < queueSize ? null : `descriptor ${head} of ${queueSize}`
  }
  const entries = [QUEUE_REGION_PACKED.used_idx, QUEUE_REGION_PACKED.old_used_idx].map(half)
  const wraps = [QUEUE_REGION_PACKED.used_wrap_counter, QUEUE_REGION_PACKED.old_used_wrap_counter].map(
    (at) => region[at]!,
  )
  return entries.every((entry) => entry < queueSize) && wraps.every((wrap) => wrap <= 1)
    ? null
    : `entries ${entries.join(', ')}, wrap counters ${wraps.join(', ')}`
}
