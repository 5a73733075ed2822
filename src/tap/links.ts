import { constants } from 'node:os'
import {
  IFF_LOWER_UP,
  IFF_UP,
  IFINFOMSG,
  IFLA_ADDRESS,
  IFLA_EXT_MASK,
  IFLA_IFNAME,
  IFLA_INFO_DATA,
  IFLA_INFO_KIND,
  IFLA_LINKINFO,
  IFLA_MASTER,
  IFLA_MAX_MTU,
  IFLA_MIN_MTU,
  IFLA_MTU,
  IFLA_TUN_MULTI_QUEUE,
  IFLA_TUN_NUM_QUEUES,
  IFLA_TUN_PERSIST,
  IFLA_TUN_PI,
  IFLA_TUN_TYPE,
  RTEXT_FILTER_SKIP_STATS,
  RTM_GETLINK,
  RTM_NEWLINK,
} from '../abi/rtnetlink.ts'
import { IFF_TAP } from '../abi/tun.ts'
import {
  type Attribute,
  asText,
  asU8,
  asU32,
  decodeAttributes,
  encodeAttributes,
  type NetlinkMessage,
  text,
  u32,
} from '../sys/netlink-message.ts'
import { NetlinkError, type NetlinkRequester } from '../sys/netlink-socket.ts'

const { ENODEV } = constants.errno

/** What the TUN driver reports about one of its interfaces; null on a kernel that does not (before 4.19). */
export type TunFacts = {
  readonly isTap: boolean
  /** Four bytes of `struct tun_pi` precede each frame (no IFF_NO_PI). */
  readonly packetInfo: boolean
  readonly persistent: boolean
  readonly multiQueue: boolean
  /**
   * Attached queues. A process may hold a detached queue to keep the carrier, as systemd-networkd does with
   * KeepCarrier=; packets do not go there. Reported for multi-queue interfaces only; 0 for any other.
   */
  readonly queues: number
}

/** A network interface, as route netlink describes it. */
export type Link = {
  readonly index: number
  readonly name: string
  /** Six bytes for Ethernet. */
  readonly address: Uint8Array
  /** Administratively up. */
  readonly up: boolean
  readonly carrier: boolean
  readonly mtu: number
  readonly mtuMin: number
  readonly mtuMax: number
  /** Index of its bridge or bond; 0 for none. */
  readonly master: number
  /** `tun`, `bridge`, `veth`; empty for hardware and loopback. */
  readonly kind: string
  readonly tun: TunFacts | null
}

const FAMILY_UNSPEC = 0
/** Used where the kernel reports no maximum (0): the largest value of the configuration space's 16-bit field. */
const MTU_MAX = 65535

const header = (index: number, flags = 0, change = 0): Uint8Array => {
  const bytes = new Uint8Array(IFINFOMSG.sizeBytes)
  const view = new DataView(bytes.buffer)
  view.setInt32(IFINFOMSG.ifi_index, index, true)
  view.setUint32(IFINFOMSG.ifi_flags, flags, true)
  view.setUint32(IFINFOMSG.ifi_change, change, true)
  return bytes
}

/**
 * Index of the interface that a link message is about; 0 for other messages. A bridge reports changes of its ports with
 * the same message types and another family, where RTM_DELLINK means only that a port has left.
 */
export const linkIndexOf = (message: NetlinkMessage): number => {
  const { body } = message
  if (body.length < IFINFOMSG.sizeBytes || body[IFINFOMSG.ifi_family] !== FAMILY_UNSPEC) return 0
  return new DataView(body.buffer, body.byteOffset).getInt32(IFINFOMSG.ifi_index, true)
}

const parseTun = (data: Uint8Array | undefined): TunFacts | null => {
  const attributes = decodeAttributes(data)
  const type = asU8(attributes.get(IFLA_TUN_TYPE))
  if (type === undefined) return null
  return {
    isTap: type === IFF_TAP,
    packetInfo: asU8(attributes.get(IFLA_TUN_PI)) === 1,
    persistent: asU8(attributes.get(IFLA_TUN_PERSIST)) === 1,
    multiQueue: asU8(attributes.get(IFLA_TUN_MULTI_QUEUE)) === 1,
    queues: asU32(attributes.get(IFLA_TUN_NUM_QUEUES)) ?? 0,
  }
}

/** The link that an RTM_NEWLINK describes. Keeps no view of the message. */
export const parseLink = (message: NetlinkMessage): Link => {
  const view = new DataView(message.body.buffer, message.body.byteOffset)
  const flags = view.getUint32(IFINFOMSG.ifi_flags, true)
  const attributes = decodeAttributes(message.body.subarray(IFINFOMSG.sizeBytes))
  const info = decodeAttributes(attributes.get(IFLA_LINKINFO))
  const kind = asText(info.get(IFLA_INFO_KIND)) ?? ''
  return {
    index: view.getInt32(IFINFOMSG.ifi_index, true),
    name: asText(attributes.get(IFLA_IFNAME)) ?? '',
    address: attributes.get(IFLA_ADDRESS)?.slice() ?? new Uint8Array(0),
    up: (flags & IFF_UP) !== 0,
    carrier: (flags & IFF_LOWER_UP) !== 0,
    mtu: asU32(attributes.get(IFLA_MTU)) ?? 0,
    mtuMin: asU32(attributes.get(IFLA_MIN_MTU)) ?? 0,
    mtuMax: asU32(attributes.get(IFLA_MAX_MTU)) || MTU_MAX,
    master: asU32(attributes.get(IFLA_MASTER)) ?? 0,
    kind,
    tun: kind === 'tun' ? parseTun(info.get(IFLA_INFO_DATA)) : null,
  }
}

/** The interface with this name or index, or null if there is none. Throws NetlinkError or SysError. */
export const getLink = (netlink: NetlinkRequester, nameOrIndex: string | number): Link | null => {
  const attributes: Attribute[] = [[IFLA_EXT_MASK, u32(RTEXT_FILTER_SKIP_STATS)]]
  if (typeof nameOrIndex === 'string') attributes.push([IFLA_IFNAME, text(nameOrIndex)])
  const index = typeof nameOrIndex === 'number' ? nameOrIndex : 0
  try {
    const answer = netlink.request(RTM_GETLINK, [header(index), encodeAttributes(attributes)])
    const message = answer.find((candidate) => candidate.type === RTM_NEWLINK)
    return message === undefined ? null : parseLink(message)
  } catch (error) {
    if (error instanceof NetlinkError && error.errno === ENODEV) return null
    throw error
  }
}

/** Changes to an interface; absent fields stay. */
export type LinkChange = {
  readonly up?: boolean
  /** Bytes. */
  readonly mtu?: number
  /** The bridge's index; 0 to leave it. */
  readonly master?: number
  /** Six bytes. */
  readonly address?: Uint8Array
}

/** Applies the change to the interface with this index. Throws NetlinkError with the kernel's reason. */
export const setLink = (netlink: NetlinkRequester, index: number, change: LinkChange): void => {
  const attributes: Attribute[] = []
  if (change.address !== undefined) attributes.push([IFLA_ADDRESS, change.address])
  if (change.mtu !== undefined) attributes.push([IFLA_MTU, u32(change.mtu)])
  if (change.master !== undefined) attributes.push([IFLA_MASTER, u32(change.master)])
  const flags = change.up === true ? IFF_UP : 0
  const mask = change.up === undefined ? 0 : IFF_UP
  netlink.request(RTM_NEWLINK, [header(index, flags, mask), encodeAttributes(attributes)])
}
