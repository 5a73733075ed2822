import { DriverFault } from '../base/errors.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import type { Mapping } from '../memory/region.ts'
import { PackedInflight, SplitInflight } from './inflight-record.ts'
import { PackedQueue } from './packed.ts'
import { SplitQueue } from './split.ts'
import type { Virtqueue } from './virtqueue.ts'
import { isPacked, type VirtqueueConfig } from './virtqueue-config.ts'

/** The record of chains in flight of either ring layout. */
export type InflightRecord = SplitInflight | PackedInflight

/** Makes the record in the negotiated layout. Takes over `mapping`, which holds the region of one ring. */
export const newInflightRecord = (mapping: Mapping, config: Pick<VirtqueueConfig, 'features'>): InflightRecord =>
  isPacked(config) ? new PackedInflight(mapping) : new SplitInflight(mapping)

/**
 * Makes the queue in the negotiated layout. `drops` counts dropped chains, one element for each of dropReasons.
 * `inflight`: the record of chains in flight in the same layout; it stays the caller's.
 * @throws DriverFault RING_MISALIGNED, RING_UNMAPPED, BASE_OUT_OF_RANGE, BASE_UNKNOWN or INFLIGHT_INVALID
 */
export const newVirtqueue = (
  space: AddressSpace,
  config: VirtqueueConfig,
  { drops, inflight }: { readonly drops: Float64Array; readonly inflight: InflightRecord | null },
): Virtqueue => {
  if (!isPacked(config)) {
    return new SplitQueue(space, { ...config, drops, inflight: inflight instanceof SplitInflight ? inflight : null })
  }
  const { base } = config
  if (base === 'used') throw new DriverFault('BASE_UNKNOWN', 'a packed ring does not tell where it was left')
  const record = inflight instanceof PackedInflight ? inflight : null
  return new PackedQueue(space, { ...config, base, drops, inflight: record })
}
