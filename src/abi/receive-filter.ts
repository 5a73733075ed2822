import { array, struct, u32, u64 } from './layout.ts'

/** Addresses that a list holds; one address more, and every address of that kind is wanted. */
export const RECEIVE_LIST_MAX = 64

/** What fills the rest of a list: no address has more than 48 bits. */
export const NO_ADDRESS = 0xffff_ffff_ffff_ffffn

/**
 * Which frames the driver wants. An address is a number: its first octet is the lowest byte. Broadcast is neither unicast nor
 * multicast here.
 */
const RULES = struct('vn_receive_rules', {
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
 * The driver's receive filter, written by the device thread and read by every queue worker for each frame. The rules that hold are
 * `even` or `odd`, after `generation`; the next ones are written into the other place, and hold when `generation` is one more.
 * zig/filter.zig declares the same struct; `vn_abi` checks the offsets.
 */
export const RECEIVE_FILTER = struct('vn_receive_filter', {
  generation: u32,
  reserved: u32,
  even: RULES.asField,
  odd: RULES.asField,
})

/** Bytes of one place. */
export const RECEIVE_RULES_BYTES = RULES.sizeBytes
