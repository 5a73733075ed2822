import { constants } from 'node:os'
import { NETLINK_ROUTE } from '../abi/netlink.ts'
import {
  IFF_ATTACH_QUEUE,
  IFF_DETACH_QUEUE,
  IFF_VNET_HDR,
  IFREQ,
  TUN_FILTER_BYTES,
  TUNSETCARRIER,
  TUNSETFILTEREBPF,
  TUNSETOFFLOAD,
  TUNSETPERSIST,
  TUNSETQUEUE,
  TUNSETSTEERINGEBPF,
  TUNSETTXFILTER,
  TUNSETVNETHDRSZ,
  TUNSETVNETLE,
} from '../abi/tun.ts'
import { EXIT, SysError, UserError } from '../base/errors.ts'
import { formatMac } from '../base/mac.ts'
import { native } from '../sys/native.ts'
import { NetlinkSocket } from '../sys/netlink-socket.ts'
import { attachmentOf, attachTap, checkAttachment, EBADFD } from './attach.ts'
import { findBridge } from './bridge.ts'
import { refuseInterfaceName } from './interface-name.ts'
import { TapLinkMonitor } from './link-monitor.ts'
import { getLink, type Link } from './links.ts'
import { NO_OFFLOADS, type Offloads, offloadFallbacks, tunOffloadFlags } from './offloads.ts'
import { inNetns, inNetnsOf } from './tap-namespace.ts'
import type { TapOptions } from './tap-options.ts'

const { EACCES, EINVAL, EPERM } = constants.errno
/** Errnos of a kernel that does not know an offload, or does not permit it to this process. */
const REFUSALS: readonly number[] = [-EINVAL, -EPERM, -EACCES]

/** Length of `struct virtio_net_hdr_v1` (linux/virtio_net.h), which precedes each frame. */
export const VNET_HDR_BYTES = 12
const ALL_OFFLOADS: Offloads = { csum: true, tso4: true, tso6: true, ecn: true, uso: true }

/** Descriptors of an interface, and a route netlink socket in its network namespace. */
type Attached = { readonly fds: readonly number[]; readonly created: boolean; readonly netlink: NetlinkSocket }

const attachByName = (options: TapOptions, name: string): Attached => {
  const refusal = refuseInterfaceName(name)
  if (refusal !== null) throw new UserError(`--tap ${name}: ${refusal}`, 'choose another name', EXIT.usage)
  return inNetns(options.netns, () => {
    const netlink = new NetlinkSocket(NETLINK_ROUTE)
    try {
      // Check before creating anything: while the bridge is missing, each attempt would create and delete an interface.
      if (options.bridge !== null) findBridge(netlink, options.bridge, name)
      const { queues, vnetHdr, mac, persist } = options
      // An interface with this card's MAC was created by an earlier start, perhaps with more queues.
      const mayOpenSingleQueue = ({ address }: Link): boolean => persist || formatMac(address) === mac
      const how = { queues, vnetHdr, multiQueue: persist, mayOpenSingleQueue }
      return { ...attachTap(name, how, () => getLink(netlink, name)), netlink }
    } catch (error) {
      netlink[Symbol.dispose]()
      throw error
    }
  })
}

const takeOver = (options: TapOptions, fd: number): Attached => {
  if (attachmentOf(fd) === null) {
    throw new UserError(
      `--tap-fd ${fd}: is not attached to an interface`,
      'call TUNSETIFF in the parent process first',
      EXIT.usage,
    )
  }
  // The descriptor's other flags stay as the parent has set them until it is known to fit.
  native.vn_set_cloexec(fd)
  try {
    return { fds: [fd], created: false, netlink: inNetnsOf(fd, options.netns, () => new NetlinkSocket(NETLINK_ROUTE)) }
  } catch (error) {
    native.vn_close(fd)
    throw error
  }
}

/**
 * A TAP interface from open to close or deletion: its descriptors and their ioctls. After a deletion the ioctls have no
 * effect.
 */
export class TapInterface {
  /** One a queue, non-blocking. */
  readonly fds: readonly number[]
  /** At the time when it was opened. */
  readonly name: string
  /** True if this open has created it. */
  readonly created: boolean
  /** Each frame has a 12-byte virtio-net header in front, little-endian. */
  readonly hasVnetHdr: boolean
  /** What {@link setOffloads} can switch on. */
  readonly supportedOffloads: Offloads
  #index: number
  #netlink: NetlinkSocket
  readonly #netns: string | null
  /** Attached queues, by the interface's queue number. The kernel fills a gap with the last queue. */
  readonly #order: number[]

  /**
   * Opens it with carrier, all queues attached, no offloads, no steering and no filters, whatever a former owner has
   * set. Throws UserError or SysError, and then leaves nothing behind.
   */
  constructor(options: TapOptions) {
    const { source, netns } = options
    const { fds, created, netlink } =
      'name' in source ? attachByName(options, source.name) : takeOver(options, source.fd)
    this.fds = fds
    this.created = created
    this.#netlink = netlink
    this.#netns = netns
    this.#order = [...fds.keys()]
    try {
      const attachment = attachmentOf(fds[0]!)
      if (attachment === null) throw new UserError('the TAP was deleted as it was opened', 'try again')
      this.name = attachment.name
      this.hasVnetHdr = (attachment.flags & IFF_VNET_HDR) !== 0
      const link = getLink(netlink, this.name)
      if (link === null || link.kind !== 'tun') {
        throw new UserError(
          `${this.name}: is in another network namespace`,
          'pass --netns, or grant CAP_NET_ADMIN there',
        )
      }
      this.#index = link.index
      checkAttachment(attachment, link.tun, 'fd' in source && options.vnetHdr ? null : options.vnetHdr)
      for (const fd of fds) this.#prepare(fd)
      if (!created) {
        this.setSteering(-1)
        this.#clearFilters()
      }
      this.supportedOffloads = this.setOffloads(ALL_OFFLOADS)
      this.setOffloads(NO_OFFLOADS)
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
  }

  get index(): number {
    return this.#index
  }

  /** Route netlink in the last known network namespace of the interface. */
  get netlink(): NetlinkSocket {
    return this.#netlink
  }

  /** Attached queues, by the interface's queue number. */
  get order(): readonly number[] {
    return this.#order
  }

  /** The interface's current state; null if it is not in its namespace any more. */
  link(): Link | null {
    return getLink(this.#netlink, this.#index)
  }

  /** True while the descriptors have an interface, also after it has moved to another network namespace. */
  isAttached(): boolean {
    return attachmentOf(this.fds[0]!) !== null
  }

  /**
   * Switches on the first of the wanted set's fallbacks that the kernel accepts, and returns it. Without a vnet header
   * none: offloads of a former owner would deliver partial checksums without a mark. The setting is the interface's, so
   * one descriptor is enough.
   */
  setOffloads(wanted: Offloads): Offloads {
    for (const candidate of offloadFallbacks(this.hasVnetHdr ? wanted : NO_OFFLOADS)) {
      const rc = native.vn_ioctl(this.fds[0]!, TUNSETOFFLOAD, tunOffloadFlags(candidate))
      if (rc === 0) return candidate
      if (rc === -EBADFD) break
      if (!REFUSALS.includes(rc)) throw new SysError(`${this.name}: TUNSETOFFLOAD`, -rc)
    }
    return NO_OFFLOADS
  }

  /** Without carrier the host sends nothing, so no stale packets wait in the queue. No effect on Linux before 5.0. */
  setCarrier(on: boolean): void {
    native.vn_ioctl(this.fds[0]!, TUNSETCARRIER, Int32Array.of(on ? 1 : 0))
  }

  /**
   * Attaches or detaches one of several queues. The host sends nothing to a detached queue. Queue 0 is always attached.
   */
  setQueueAttached(queue: number, attached: boolean): void {
    const fd = this.fds[queue]
    if (queue === 0 || fd === undefined || this.#order.includes(queue) === attached) return
    const request = new Uint8Array(IFREQ.sizeBytes)
    const flags = attached ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE
    new DataView(request.buffer).setUint16(IFREQ.ifr_flags, flags, true)
    const rc = native.vn_ioctl(fd, TUNSETQUEUE, request)
    // A deleted interface causes EINVAL.
    if (rc < 0 && this.isAttached()) throw new SysError(`${this.name}: TUNSETQUEUE`, -rc)
    if (attached) this.#order.push(queue)
    else {
      // As __tun_detach() in drivers/net/tun.c renumbers.
      const last = this.#order.pop()!
      if (last !== queue) this.#order[this.#order.indexOf(queue)] = last
    }
  }

  /** Sets the eBPF program that chooses the queue of each packet; -1 for the kernel's own choice. */
  setSteering(programFd: number): void {
    const rc = native.vn_ioctl(this.fds[0]!, TUNSETSTEERINGEBPF, Int32Array.of(programFd))
    // EINVAL for -1: this kernel (before 4.16) has no steering programs.
    if (rc < 0 && rc !== -EBADFD && (rc !== -EINVAL || programFd >= 0)) {
      throw new SysError(`${this.name}: TUNSETSTEERINGEBPF`, -rc)
    }
  }

  /** Makes the kernel keep the interface when its last descriptor is closed. */
  persist(): void {
    this.#check('TUNSETPERSIST', native.vn_ioctl(this.fds[0]!, TUNSETPERSIST, 1))
  }

  /** A new monitor of the interface, in its current network namespace. {@link netlink} moves there too. */
  openLinkMonitor(): TapLinkMonitor {
    return inNetnsOf(this.fds[0]!, this.#netns, () => {
      const netlink = new NetlinkSocket(NETLINK_ROUTE)
      this.#netlink[Symbol.dispose]()
      this.#netlink = netlink
      const name = attachmentOf(this.fds[0]!)?.name
      // A move to a namespace where the index is taken changes it.
      if (name !== undefined) this.#index = getLink(netlink, name)?.index ?? this.#index
      return new TapLinkMonitor(this.#index)
    })
  }

  /** Closes the descriptors, which deletes an interface that does not persist. */
  [Symbol.dispose](): void {
    for (const fd of this.fds) native.vn_close(fd)
    this.#netlink[Symbol.dispose]()
  }

  #prepare(fd: number): void {
    this.#check('O_NONBLOCK', native.vn_set_nonblock(fd, 1))
    if (!this.hasVnetHdr) return
    this.#check('TUNSETVNETHDRSZ', native.vn_ioctl(fd, TUNSETVNETHDRSZ, Int32Array.of(VNET_HDR_BYTES)))
    this.#check('TUNSETVNETLE', native.vn_ioctl(fd, TUNSETVNETLE, Int32Array.of(1)))
  }

  /** Frames are filtered by what the driver asks for, and here only: the interface hands over all. */
  #clearFilters(): void {
    this.#check('TUNSETTXFILTER', native.vn_ioctl(this.fds[0]!, TUNSETTXFILTER, new Uint8Array(TUN_FILTER_BYTES)))
    const rc = native.vn_ioctl(this.fds[0]!, TUNSETFILTEREBPF, Int32Array.of(-1))
    // EINVAL: this kernel (before 4.16) has nothing to take away.
    if (rc !== -EINVAL) this.#check('TUNSETFILTEREBPF', rc)
  }

  #check(call: string, rc: number): void {
    if (rc < 0) throw new SysError(`${this.name}: ${call}`, -rc)
  }
}
