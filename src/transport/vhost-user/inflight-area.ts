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

/** What GET_INFLIGHT_FD and SET_INFLIGHT_FD say about the area. */
export type InflightDescription = {
  readonly lengthBytes: number
  readonly offset: number
  readonly queues: number
  readonly queueSize: number
}

/** Split ring or packed ring: what a region looks like. */
export type RingLayout = 'split' | 'packed'

/** The area in which chains in flight are noted, for all rings: see {@link inflightRegionBytes}. */
export class InflightArea implements Disposable {
  readonly description: InflightDescription
  /** Of the area's file, to hand to the front-end; -1 for one that came from there. */
  readonly fd: number
  readonly #layout: RingLayout
  readonly #area: SharedArea

  private constructor(description: InflightDescription, layout: RingLayout, area: SharedArea, fd: number) {
    this.description = description
    this.fd = fd
    this.#layout = layout
    this.#area = area
  }

  /** A new one, of which nothing is used yet; a string says why there is none. */
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

  /** One that was used before, by whomever; a string says what is wrong with it. `fd` is the caller's. */
  static open(fd: number, description: InflightDescription, layout: RingLayout): InflightArea | string {
    const { lengthBytes, offset, queues, queueSize } = description
    const regionBytes = inflightRegionBytes(queueSize, layout === 'packed')
    if (queueSize === 0 || queues * regionBytes > lengthBytes)
      return `${lengthBytes} bytes for ${queues} rings of ${queueSize}`
    if (offset % INFLIGHT_ALIGNMENT !== 0) return 'it is not aligned'
    const area = SharedArea.map(fd, lengthBytes, offset)
    if (typeof area === 'string') return area
    for (let queue = 0; queue < queues; queue++) {
      const wrong = whatIsWrong(area.read(queue * regionBytes, regionBytes), queueSize, layout)
      if (wrong === null) continue
      area[Symbol.dispose]()
      return `ring ${queue}: ${wrong}`
    }
    return new InflightArea(description, layout, area, -1)
  }

  /**
   * The region of a ring, for the worker that serves it; null if the ring has none, or rings are of the other layout
   * now.
   */
  regionOf(queue: number, layout: RingLayout): BorrowedArea | null {
    const { queues, queueSize } = this.description
    if (queue >= queues || layout !== this.#layout) return null
    const bytes = inflightRegionBytes(queueSize, layout === 'packed')
    const { address, guardSlot } = this.#area.borrowed
    return { address: address + queue * bytes, lengthBytes: bytes, guardSlot }
  }

  /** No worker uses it any more. */
  [Symbol.dispose](): void {
    this.#area[Symbol.dispose]()
    if (this.fd >= 0) native.vn_close(this.fd)
  }
}

/** What can be judged without the ring; a region that nobody has used yet is all right. */
const whatIsWrong = (region: Uint8Array, queueSize: number, layout: RingLayout): string | null => {
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
