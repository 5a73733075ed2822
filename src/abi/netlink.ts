/** Netlink and generic netlink: linux/netlink.h, linux/genetlink.h, linux/socket.h. Names are the headers'. */
import { array, i32, struct, u8, u16, u32 } from './layout.ts'

export const AF_NETLINK = 16
/** bits/socket_type.h. */
export const SOCK_RAW = 3
export const SOCK_NONBLOCK = 0o4000

/** Protocols. */
export const NETLINK_ROUTE = 0
export const NETLINK_GENERIC = 16

/** Level and options of setsockopt. */
export const SOL_NETLINK = 270
/** Acknowledgements do not repeat the request. */
export const NETLINK_CAP_ACK = 10
/** Acknowledgements carry the kernel's error text. */
export const NETLINK_EXT_ACK = 11

export const SOCKADDR_NL = struct('sockaddr_nl', { nl_family: u16, nl_pad: u16, nl_pid: u32, nl_groups: u32 })

export const NLMSGHDR = struct('nlmsghdr', {
  nlmsg_len: u32,
  nlmsg_type: u16,
  nlmsg_flags: u16,
  nlmsg_seq: u32,
  nlmsg_pid: u32,
})

/** `nlmsg_type` below the families' own. */
export const NLMSG_NOOP = 1
export const NLMSG_ERROR = 2
export const NLMSG_DONE = 3

/** `nlmsg_flags`. */
export const NLM_F_REQUEST = 0x1
export const NLM_F_ACK = 0x4
export const NLM_F_DUMP_INTR = 0x10
export const NLM_F_DUMP = 0x300
/** In an acknowledgement: the request is not repeated, attributes follow. */
export const NLM_F_CAPPED = 0x100
export const NLM_F_ACK_TLVS = 0x200

/** Body of NLMSG_ERROR; the header of the request is repeated. */
export const NLMSGERR = struct('nlmsgerr', { error: i32, msg: NLMSGHDR.asField })
/** NUL-terminated string. */
export const NLMSGERR_ATTR_MSG = 1

export const NLATTR = struct('nlattr', { nla_len: u16, nla_type: u16 })
/** `nla_type` without NLA_F_NESTED and NLA_F_NET_BYTEORDER. */
export const NLA_TYPE_MASK = 0x3fff

export const GENLMSGHDR = struct('genlmsghdr', { cmd: u8, version: u8, reserved: array(u8, 2) })

/** The controller, which resolves names of families to numbers. */
export const GENL_ID_CTRL = 0x10
export const CTRL_CMD_GETFAMILY = 3
/** u16. */
export const CTRL_ATTR_FAMILY_ID = 1
/** NUL-terminated string. */
export const CTRL_ATTR_FAMILY_NAME = 2
