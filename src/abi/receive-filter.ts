import { array, struct, u32, u64 } from './layout.ts'

/** Most addresses of a list. With one more, every address of that kind passes. */
export const RECEIVE_LIST_MAX = 64

/**
 * Which frames pass. An address is a number with the first octet in the lowest byte; an empty place of a list is all
 * ones, more bits than an address has. Broadcast is neither unicast nor multicast here.
 */
export const RECEIVE_RULES = struct('vn_receive_rules', {
  /** 0: every frame passes, and the other fields are ignored. */
  filtering: u32,
  /** 1: every frame of the kind passes, and its list is ignored. */
  any_unicast: u32,
  any_multicast: u32,
  broadcast: u32,
  /** 1: a frame with a VLAN tag passes only if its VLAN is in `vlans` (one bit a VLAN). */
  by_vlan: u32,
  reserved: u32,
  unicast: array(u64, RECEIVE_LIST_MAX),
  multicast: array(u64, RECEIVE_LIST_MAX),
  vlans: array(u32, 4096 / 32),
})

/**
 * The driver's receive filter, written by the device thread and read by every queue worker for each frame. The lowest
 * bit of `generation` selects the rules in force, `even` or `odd`; new rules are written to the other place, then
 * `generation` is incremented. zig/filter.zig declares the same struct; `vn_abi` checks the offsets.
 */
export const RECEIVE_FILTER = struct('vn_receive_filter', {
  generation: u32,
  reserved: u32,
  even: RECEIVE_RULES.asField,
  odd: RECEIVE_RULES.asField,
})
