import { VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC } from '../abi/virtio.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import { SplitQueue } from './split.ts'
import type { Virtqueue } from './virtqueue.ts'

/** Where a queue lies, where it starts, and what was negotiated: bit number n of VIRTIO is `1n << BigInt(n)`. */
export type VirtqueueSpec = {
  readonly size: number
  readonly descAddr: number
  readonly availAddr: number
  readonly usedAddr: number
  /** As vhost-user has it, or 'used': where the used ring ends. */
  readonly base: number | 'used'
  readonly features: bigint
}

/**
 * The queue in the layout that was negotiated. `drops` counts dropped chains: one element for each of dropReasons.
 * @throws DriverFault RING_MISALIGNED or RING_UNMAPPED
 */
export const newVirtqueue = (space: AddressSpace, spec: VirtqueueSpec, drops: Float64Array): Virtqueue => {
  const has = (bit: number): boolean => ((spec.features >> BigInt(bit)) & 1n) === 1n
  const { size, descAddr, availAddr, usedAddr, base } = spec
  return new SplitQueue(space, {
    size,
    descAddr,
    availAddr,
    usedAddr,
    state: base === 'used' ? 'used' : { nextAvail: base },
    indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
    eventIdx: has(VIRTIO_RING_F_EVENT_IDX),
    drops,
  })
}
