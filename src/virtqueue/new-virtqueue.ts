import { VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC } from '../abi/virtio.ts'
import { DriverFault } from '../base/errors.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import type { Mapping } from '../memory/region.ts'
import { PackedInflight, SplitInflight } from './inflight-record.ts'
import { PackedQueue } from './packed.ts'
import { SplitQueue } from './split.ts'
import type { Virtqueue } from './virtqueue.ts'

/** Where a queue lies, where it starts, and what was negotiated: bit number n of VIRTIO is `1n << BigInt(n)`. */
export type VirtqueueSpec = {
  readonly size: number
  readonly descAddr: number
  readonly availAddr: number
  readonly usedAddr: number
  /** As vhost-user has it, or 'used': where the used ring ends. Of a split ring only: a packed one does not tell where it was left. */
  readonly base: number | 'used'
  readonly features: bigint
  /** Where chains in flight are noted; belongs to the caller. It must be for the layout that was negotiated. */
  readonly inflight?: SplitInflight | PackedInflight | null
}

const has = (features: bigint, bit: number): boolean => ((features >> BigInt(bit)) & 1n) === 1n

/** The record of chains in flight for the layout that was negotiated. Takes over `mapping`, all of which is the region of one ring. */
export const newInflightRecord = (mapping: Mapping, features: bigint): SplitInflight | PackedInflight =>
  has(features, VIRTIO_F_RING_PACKED) ? new PackedInflight(mapping) : new SplitInflight(mapping)

/**
 * Does a queue that was made of `spec` go on where somebody else was? A process that died may not have signalled what it has published,
 * and the driver may wait for that for ever: it is called, since a call too many costs nothing. A packed ring that goes on without a
 * record is one that was stopped in good order.
 */
export const goesOn = ({ base, features, inflight }: Pick<VirtqueueSpec, 'base' | 'features' | 'inflight'>): boolean =>
  base === 'used' || inflight?.resumed === true || (base !== 0 && !has(features, VIRTIO_F_RING_PACKED))

/**
 * The queue in the layout that was negotiated. `drops` counts dropped chains: one element for each of dropReasons.
 * @throws DriverFault RING_MISALIGNED, RING_UNMAPPED, BASE_OUT_OF_RANGE or BASE_UNKNOWN
 */
export const newVirtqueue = (space: AddressSpace, spec: VirtqueueSpec, drops: Float64Array): Virtqueue => {
  const { size, descAddr, availAddr, usedAddr, base, features } = spec
  const common = {
    size,
    descAddr,
    availAddr,
    usedAddr,
    indirect: has(features, VIRTIO_RING_F_INDIRECT_DESC),
    eventIdx: has(features, VIRTIO_RING_F_EVENT_IDX),
    drops,
  }
  if (!has(features, VIRTIO_F_RING_PACKED)) {
    const inflight = spec.inflight instanceof SplitInflight ? spec.inflight : null
    return new SplitQueue(space, { ...common, inflight, state: base === 'used' ? 'used' : { nextAvail: base } })
  }
  if (base === 'used') throw new DriverFault('BASE_UNKNOWN', 'a packed ring does not tell where it was left')
  const inflight = spec.inflight instanceof PackedInflight ? spec.inflight : null
  return new PackedQueue(space, { ...common, inflight, base })
}
