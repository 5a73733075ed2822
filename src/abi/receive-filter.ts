import { array, struct, u32, u64 } from './layout.ts'

/** Addresses that a list holds; one address more, and every address of that kind is wanted. */
export const RECEIVE_LIST_MAX = 64

/**
 * Which frames the driver wants. An address is a number, its first octet the lowest byte; a place of a list that holds
 * none is all ones, more bits than an address has. Broadcast is neither unicast nor multicast here.
 */
export const RECEIVE_RULES = struct('vn_receive_rules', {
  /** 0: every frame, whatever the other fields say. */
  filtering: u32,
  /** 1: every frame of the kind, whatever the list says. */
  any_unicast: u32,
  any_multicast: u32,
  broadcast: u32,
  /** 1: of frames with a VLAN tag only those of a VLAN in `vlans`, a bit a VLAN. */
  by_vlan: u32,
  reserved: u32,
  unicast: array(u64, RECEIVE_LIST_MAX),
  multicast: array(u64, RECEIVE_LIST_MAX),
  vlans: array(u32, 4096 / 32),
})

/**
 * The driver's receive filter, written by the device thread and read by every queue worker for each frame. The rules
 * that hold are `even` or `odd`, after `generation`; the next ones are written into the other place, and hold when
 * `generation` is one more. zig/filter.zig declares the same struct; `vn_abi` checks the offsets.
 */
export const RECEIVE_FILTER = struct('vn_receive_filter', {
  generation: u32,
  reserved: u32,
  even: RECEIVE_RULES.asField,
  odd: RECEIVE_RULES.asField,
})
