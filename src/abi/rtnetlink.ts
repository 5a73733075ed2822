/** Link messages of route netlink: linux/rtnetlink.h, linux/if_link.h, linux/if.h. Names are the headers'. */
import { i32, struct, u8, u16, u32 } from './layout.ts'

/** `nl_groups` bit of link changes. */
export const RTMGRP_LINK = 1

export const RTM_NEWLINK = 16
export const RTM_DELLINK = 17
export const RTM_GETLINK = 18

/** In front of the attributes of a link message. */
export const IFINFOMSG = struct('ifinfomsg', {
  ifi_family: u8,
  __ifi_pad: u8,
  ifi_type: u16,
  ifi_index: i32,
  ifi_flags: u32,
  ifi_change: u32,
})

/** `ifi_flags`: administratively up. */
export const IFF_UP = 0x1
/** `ifi_flags`: the carrier is on. */
export const IFF_LOWER_UP = 0x10000

/** Attributes of a link. */
export const IFLA_ADDRESS = 1
export const IFLA_IFNAME = 3
export const IFLA_MTU = 4
export const IFLA_MASTER = 10
export const IFLA_LINKINFO = 18
export const IFLA_EXT_MASK = 29
export const IFLA_MIN_MTU = 50
export const IFLA_MAX_MTU = 51

/** Attributes in IFLA_LINKINFO. */
export const IFLA_INFO_KIND = 1
export const IFLA_INFO_DATA = 2

/** Attributes in IFLA_INFO_DATA of kind `tun`, since Linux 4.19. */
export const IFLA_TUN_TYPE = 3
export const IFLA_TUN_PI = 4
export const IFLA_TUN_VNET_HDR = 5
export const IFLA_TUN_PERSIST = 6
export const IFLA_TUN_MULTI_QUEUE = 7
/** Count of descriptors with an attached queue (a detached one does not count); with IFF_MULTI_QUEUE only. */
export const IFLA_TUN_NUM_QUEUES = 8

/** IFLA_EXT_MASK: leave the statistics out of the answer. */
export const RTEXT_FILTER_SKIP_STATS = 1 << 3
