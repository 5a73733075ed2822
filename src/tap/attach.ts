import { constants as fs } from 'node:fs'
import { constants as os } from 'node:os'
import {
  IFF_MULTI_QUEUE,
  IFF_NO_PI,
  IFF_TAP,
  IFF_TUN_EXCL,
  IFF_VNET_HDR,
  IFREQ,
  TUNGETIFF,
  TUNSETIFF,
} from '../abi/tun.ts'
import { assert } from '../base/assert.ts'
import { EXIT, errnoName, SysError, UserError } from '../base/errors.ts'
import { openRaw } from '../sys/fd.ts'
import { native } from '../sys/native.ts'
import type { Link, TunFacts } from './links.ts'

const { EACCES, EBADF, EBUSY, EINVAL, ENODEV, ENOENT, ENOTTY, ENXIO, EPERM } = os.errno
/**
 * Errno "File descriptor in bad state": the TUN driver's error for a descriptor without an interface. Not in node:os.
 */
export const EBADFD = 77

const TUN_PATH = '/dev/net/tun'

/** What a TUN descriptor is attached to: the interface's name and the IFF_* flags of TUNGETIFF. */
export type Attachment = { readonly name: string; readonly flags: number }

/** The error for a failed open of the clone device. */
export const explainOpen = (path: string, errno: number): UserError | SysError => {
  switch (errno) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
      return new UserError(
        `${path}: ${errnoName(errno)} (the tun module is not loaded)`,
        'modprobe tun; in a container, pass the device in as well (--device /dev/net/tun)',
        EXIT.deviceMissing,
      )
    case EACCES:
    case EPERM:
      return new UserError(
        `${path}: ${errnoName(errno)} (no permission to open it)`,
        `run as root, or give this user read and write access to ${path}`,
        EXIT.permission,
      )
    default:
      return new SysError(`open ${path}`, errno)
  }
}

/** Opens the clone device, non-blocking. An interface attached to it is created in the current network namespace. */
const openTunDevice = (path: string): number => {
  const fd = openRaw(path, fs.O_RDWR | fs.O_NONBLOCK)
  if (fd < 0) throw explainOpen(path, -fd)
  return fd
}

const ifreq = (name: string, flags: number): Uint8Array => {
  const bytes = new Uint8Array(IFREQ.sizeBytes)
  bytes.set(new TextEncoder().encode(name), IFREQ.ifr_name)
  new DataView(bytes.buffer).setUint16(IFREQ.ifr_flags, flags, true)
  return bytes
}

/**
 * What the descriptor is attached to; null if its interface is gone or it never had one. Throws UserError if it is not
 * a TUN descriptor.
 */
export const attachmentOf = (fd: number): Attachment | null => {
  const bytes = ifreq('', 0)
  const rc = native.vn_ioctl(fd, TUNGETIFF, bytes)
  if (rc === -EBADFD) return null
  if (rc < 0) {
    const why = rc === -EBADF ? 'is not open' : rc === -ENOTTY ? 'is not a TUN/TAP descriptor' : errnoName(-rc)
    throw new UserError(`--tap-fd ${fd}: ${why}`, 'pass a descriptor of /dev/net/tun after TUNSETIFF', EXIT.usage)
  }
  return {
    name: new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0))),
    flags: new DataView(bytes.buffer).getUint16(IFREQ.ifr_flags, true),
  }
}

const kindOf = (link: Link): string =>
  link.kind === '' ? 'it is a hardware or loopback interface' : `it is a ${link.kind}`

/** The error for a failed TUNSETIFF, from the errno and from the interface that has the name, if any. */
export const explainAttach = (name: string, errno: number, link: Link | null, queues: number): UserError | SysError => {
  if (errno === EBUSY) {
    return new UserError(`${name}: in use by another process`, 'stop that process, or choose another name with --tap')
  }
  if (errno === EPERM) {
    return link === null
      ? new UserError(
          `${name}: no permission to create a TAP`,
          `grant CAP_NET_ADMIN, or have root create it: ip tuntap add ${name} mode tap user USER`,
          EXIT.permission,
        )
      : new UserError(
          `${name}: no permission to open it (it belongs to another user, or to none)`,
          'run as its owner, or grant CAP_NET_ADMIN',
          EXIT.permission,
        )
  }
  if (errno !== EINVAL || link === null) return new SysError(`${name}: TUNSETIFF`, errno)
  if (link.kind !== 'tun') {
    return new UserError(
      `${name}: is not a TAP (${kindOf(link)})`,
      'choose a name that is free, or join this interface to a bridge and pass --bridge',
    )
  }
  if (link.tun?.isTap === false) {
    return new UserError(
      `${name}: is a TUN (IP packets), not a TAP (Ethernet frames)`,
      `delete it (ip link del ${name}) or choose another name with --tap`,
    )
  }
  if (link.tun?.multiQueue === true && queues === 1) {
    return new UserError(
      `${name}: was created with multi_queue, and is opened with one queue`,
      `delete it (ip link del ${name}), or create it again without multi_queue, or pass --tap-persist`,
    )
  }
  if (link.tun?.multiQueue === false && queues > 1) {
    return new UserError(
      `${name}: was created without multi_queue, and is opened with ${queues} queues`,
      `delete it (ip link del ${name}) or create it again with multi_queue`,
    )
  }
  return new SysError(`${name}: TUNSETIFF`, errno)
}

/** How to open a TAP by its name. */
export type AttachOptions = {
  readonly queues: number
  readonly vnetHdr: boolean
  /** Create it with IFF_MULTI_QUEUE even for one queue, so that a later start may open more. */
  readonly multiQueue?: boolean
  /** Whether an existing interface with IFF_MULTI_QUEUE may be opened with one queue. Default: no. */
  readonly mayOpenSingleQueue?: (link: Link) => boolean
  readonly tunPath?: string
}

/**
 * Opens the TAP `name` in the current network namespace, with a descriptor for each queue; creates it if there is none.
 * `lookup` returns the interface that has the name. Throws UserError or SysError, and then leaves nothing open.
 */
export const attachTap = (
  name: string,
  options: AttachOptions,
  lookup: () => Link | null,
): { fds: number[]; created: boolean } => {
  const { queues, vnetHdr, multiQueue = false, mayOpenSingleQueue = () => false, tunPath = TUN_PATH } = options
  assert(queues >= 1)
  const base = IFF_TAP | IFF_NO_PI | (vnetHdr ? IFF_VNET_HDR : 0)
  let flags = base | (queues > 1 || multiQueue ? IFF_MULTI_QUEUE : 0)
  const fds: number[] = []
  const attach = (extra: number): number => {
    const fd = openTunDevice(tunPath)
    fds.push(fd)
    return native.vn_ioctl(fd, TUNSETIFF, ifreq(name, flags | extra))
  }
  try {
    // IFF_TUN_EXCL first: it tells without a race whether this call has created the interface.
    let rc = attach(IFF_TUN_EXCL)
    const created = rc === 0
    if (rc === -EBUSY) {
      const link = lookup()
      // Several processes may open a multi-queue TAP, and each would get a part of the flows: refuse that.
      if ((link?.tun?.queues ?? 0) > 0) throw explainAttach(name, EBUSY, link, queues)
      const isSingleOfMany = link?.tun?.multiQueue === true && mayOpenSingleQueue(link)
      flags = base | (queues > 1 || isSingleOfMany ? IFF_MULTI_QUEUE : 0)
      native.vn_close(fds.pop()!)
      rc = attach(0)
    }
    while (rc === 0 && fds.length < queues) rc = attach(0)
    if (rc < 0) throw explainAttach(name, -rc, lookup(), queues)
    return { fds, created }
  } catch (error) {
    for (const fd of fds) native.vn_close(fd)
    throw error
  }
}

/**
 * Throws a UserError that names what does not fit. `vnetHdr` null accepts either kind, for an inherited descriptor.
 * Packet information is taken from `tun`: in the flags that TUNGETIFF returns the bit of IFF_NO_PI means IFF_NOFILTER
 * (drivers/net/tun.c).
 */
export const checkAttachment = ({ name, flags }: Attachment, tun: TunFacts | null, vnetHdr: boolean | null): void => {
  if ((flags & IFF_TAP) === 0) {
    throw new UserError(
      `${name}: is a TUN (IP packets), not a TAP (Ethernet frames)`,
      'create it with IFF_TAP (ip tuntap add NAME mode tap)',
    )
  }
  if (tun?.packetInfo === true) {
    throw new UserError(
      `${name}: puts packet information in front of each frame (created without IFF_NO_PI)`,
      'create the descriptor with IFF_NO_PI',
    )
  }
  const hasVnetHdr = (flags & IFF_VNET_HDR) !== 0
  if (vnetHdr === true && !hasVnetHdr) {
    throw new UserError(`${name}: has no vnet header (created without IFF_VNET_HDR)`, 'delete it or pass --no-vnet-hdr')
  }
  if (vnetHdr === false && hasVnetHdr) {
    throw new UserError(`${name}: has a vnet header (created with IFF_VNET_HDR)`, 'delete it or drop --no-vnet-hdr')
  }
}
