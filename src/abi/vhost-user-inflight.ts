/**
 * The record of chains in flight that a back-end shares with its front-end, so that another back-end can resume after
 * its death: QEMU's docs/interop/vhost-user.rst, "Inflight I/O tracking". Names are the document's. One region for each
 * ring, in the order of the rings.
 */
import { array, struct, u8, u16, u32, u64 } from './layout.ts'

/** `version` of a region in use; 0 before. */
export const INFLIGHT_VERSION = 1
/** Alignment of regions in bytes, as in libvhost-user and DPDK; the document does not define it. */
export const INFLIGHT_ALIGNMENT = 64

export const QUEUE_REGION_SPLIT = struct('QueueRegionSplit', {
  features: u64,
  version: u16,
  desc_num: u16,
  last_batch_head: u16,
  used_idx: u16,
  desc: array(u64, 0),
})
export const DESC_STATE_SPLIT = struct('DescStateSplit', {
  inflight: u8,
  padding: array(u8, 5),
  next: u16,
  counter: u64,
})

export const QUEUE_REGION_PACKED = struct('QueueRegionPacked', {
  features: u64,
  version: u16,
  desc_num: u16,
  free_head: u16,
  old_free_head: u16,
  used_idx: u16,
  old_used_idx: u16,
  used_wrap_counter: u8,
  old_used_wrap_counter: u8,
  padding: array(u8, 7),
  desc: array(u64, 0),
})
export const DESC_STATE_PACKED = struct('DescStatePacked', {
  inflight: u8,
  padding: u8,
  next: u16,
  last: u16,
  num: u16,
  counter: u64,
  id: u16,
  flags: u16,
  len: u32,
  addr: u64,
})

/** Bytes from one ring's region to the next. */
export const inflightRegionBytes = (queueSize: number, packed: boolean): number => {
  const bytes = packed
    ? QUEUE_REGION_PACKED.desc + queueSize * DESC_STATE_PACKED.sizeBytes
    : QUEUE_REGION_SPLIT.desc + queueSize * DESC_STATE_SPLIT.sizeBytes
  return Math.ceil(bytes / INFLIGHT_ALIGNMENT) * INFLIGHT_ALIGNMENT
}
