import { fstatSync, statSync } from 'node:fs'
import { constants } from 'node:os'
import { NETLINK_ROUTE } from '../abi/netlink.ts'
import {
  IFF_ATTACH_QUEUE,
  IFF_DETACH_QUEUE,
  IFF_VNET_HDR,
  IFREQ,
  TUNGETDEVNETNS,
  TUNSETCARRIER,
  TUNSETOFFLOAD,
  TUNSETQUEUE,
  TUNSETSTEERINGEBPF,
  TUNSETVNETHDRSZ,
  TUNSETVNETLE,
} from '../abi/tun.ts'
import { assert } from '../base/assert.ts'
import { EXIT, SysError, UserError } from '../base/errors.ts'
import { native } from '../sys/native.ts'
import { NetlinkError, NetlinkSocket } from '../sys/netlink-socket.ts'
import { withNetns } from '../sys/netns.ts'
import { attachmentOf, attachTap, checkAttachment, EBADFD } from './attach.ts'
import { joinBridge } from './bridge.ts'
import { refuseInterfaceName } from './interface-name.ts'
import { TapLinkMonitor } from './link-monitor.ts'
import { getLink, type Link, setLink } from './links.ts'
import { NO_OFFLOADS, type Offloads, offloadFallbacks, offloadsOf, tunOffloadFlags } from './offloads.ts'
import { Steering } from './steering.ts'

const { EPERM, EINVAL } = constants.errno

/** `struct virtio_net_hdr_v1` (linux/virtio_net.h): what stands in front of each frame. */
const VNET_HDR_BYTES = 12
const ALL_OFFLOADS: Offloads = { csum: true, tso4: true, tso6: true, ecn: true, uso: true }

/** Runs `make` in the network namespace (a name or a path), or here for null. */
const inNetns = <T>(netns: string | null, make: () => T): T => (netns === null ? make() : withNetns(netns, make))

/** Which TAP, and how it is to be. */
export type TapOptions = {
  /** By name (created if there is none) or a descriptor that somebody else has attached. It is ours from now on. */
  readonly source: { readonly name: string } | { readonly fd: number }
  /** Queues, each with a descriptor of its own. A descriptor handed over is one. */
  readonly queues: number
  /** IFF_VNET_HDR. Of a descriptor handed over only `false` counts, and says that it must have none. */
  readonly vnetHdr: boolean
  /** Bytes; null leaves the interface's. */
  readonly mtu: number | null
  readonly bridge: string | null
  /** Name under /run/netns or a path: where the TAP lives. Null for where the process is. */
  readonly netns: string | null
}

/**
 * A TAP interface that is ours: descriptors to read and write frames, one a queue, and what is set on the interface itself.
 * Used by one thread; the descriptors may be used by any.
 */
export class Tap {
  readonly #options: TapOptions
  #fds: readonly number[] = []
  #link: NetlinkSocket | null = null
  #name = ''
  #index = 0
  #created = false
  #hasVnetHdr = false
  #supported: Offloads = NO_OFFLOADS
  #features = 0n
  #joinedBridge = false
  /** Queues that are in the interface, by their number there: the kernel closes a gap with the last. */
  #order: number[] = []
  /** Made when it is first asked about, and of no use without several queues; or the errno why it cannot be had. */
  #steering: Steering | number | null = null
  /** By what the host chooses a queue; null: as it likes. */
  #scaling: Uint32Array | null = null
  /** The MTU of an interface that was there before us, while it is not sure that we can use it. Bytes. */
  #formerMtu: number | null = null

  /** Throws UserError with what is wrong and what to do; nothing is left behind then. */
  constructor(options: TapOptions) {
    assert(options.queues >= 1 && (options.queues === 1 || 'name' in options.source))
    this.#options = options
    this.#open()
  }

  /** One descriptor a queue, non-blocking. Empty after a {@link reopen} that failed. */
  get fds(): readonly number[] {
    return this.#fds
  }

  /** At the time when it was opened: {@link TapLinkMonitor} follows a rename. */
  get name(): string {
    return this.#name
  }

  get index(): number {
    return this.#index
  }

  /** We have created the interface, and it vanishes with us. */
  get created(): boolean {
    return this.#created
  }

  /** Each frame has a 12-byte virtio-net header in front, little-endian. */
  get hasVnetHdr(): boolean {
    return this.#hasVnetHdr
  }

  /** What {@link setOffloads} can switch on here: nothing without a vnet header. */
  get supportedOffloads(): Offloads {
    return this.#supported
  }

  /** Lets the TAP hand over what a driver with these negotiated features takes, as far as it can; tells what is on. */
  setOffloads(features: bigint): Offloads {
    this.#features = features
    return this.#hasVnetHdr ? this.#applyOffloads(offloadsOf(features)) : NO_OFFLOADS
  }

  /** The interface as it is now; null if it is gone from its namespace. */
  link(): Link | null {
    return getLink(this.#netlink, this.#index)
  }

  /** Bytes. Throws UserError if the kernel does not take it. */
  setMtu(mtu: number): void {
    this.#set({ mtu })
  }

  setUp(up: boolean): void {
    this.#set({ up })
  }

  /**
   * Plugs the cable in or pulls it, as the host sees it. Without a carrier the host sends nothing, and nothing stale waits for
   * the day when it is back.
   */
  setCarrier(on: boolean): void {
    const fd = this.#fds[0]
    // One that was deleted meanwhile has no carrier, and its successor starts with one.
    if (fd !== undefined) native.vn_ioctl(fd, TUNSETCARRIER, Int32Array.of(on ? 1 : 0))
  }

  /**
   * Takes a queue of several out of the interface, or puts it back: the host sends nothing to a queue that is out. Queue 0 stays.
   */
  setQueueAttached(queue: number, attached: boolean): void {
    const fd = this.#fds[queue]
    if (queue === 0 || fd === undefined || this.#order.includes(queue) === attached) return
    const request = new Uint8Array(IFREQ.sizeBytes)
    const flags = attached ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE
    new DataView(request.buffer).setUint16(IFREQ.ifr_flags, flags, true)
    const rc = native.vn_ioctl(fd, TUNSETQUEUE, request)
    // EBADFD: the interface was deleted, and its successor starts with all queues in.
    if (rc < 0 && rc !== -EBADFD) throw new SysError(`${this.#name}: TUNSETQUEUE`, -rc)
    if (attached) this.#order.push(queue)
    else {
      // drivers/net/tun.c, __tun_detach().
      const last = this.#order.pop()!
      if (last !== queue) this.#order[this.#order.indexOf(queue)] = last
    }
    this.#steer()
  }

  /** 0 if {@link steer} can be used, else the errno why not. */
  steeringErrno(): number {
    this.#steering ??= Steering.load()
    return typeof this.#steering === 'number' ? this.#steering : 0
  }

  /**
   * Lets the host send each packet to the queue that `scaling` (`struct vn_scaling`, which the caller leaves as it is until the next call)
   * names for it, or as it likes again.
   */
  steer(scaling: Uint32Array | null): void {
    this.#scaling = scaling
    this.#steer()
  }

  #steer(): void {
    const [fd] = this.#fds
    if (fd === undefined || this.#fds.length === 1) return
    const scaling = this.#scaling
    const steering = scaling !== null && this.#steering instanceof Steering ? this.#steering : null
    if (scaling !== null) steering?.update(scaling, this.#order)
    const rc = native.vn_ioctl(fd, TUNSETSTEERINGEBPF, Int32Array.of(steering?.fd ?? -1))
    // EINVAL: this kernel (before 4.16) has nothing to take away.
    if (rc < 0 && rc !== -EBADFD && (rc !== -EINVAL || steering !== null)) {
      throw new SysError(`${this.#name}: TUNSETSTEERINGEBPF`, -rc)
    }
  }

  /** Sends a frame of our own, as if the driver had. A TAP that does not take it now loses it. */
  send(frame: Uint8Array): void {
    const fd = this.#fds[0]
    if (fd === undefined) return
    const bytes = new Uint8Array((this.#hasVnetHdr ? VNET_HDR_BYTES : 0) + frame.length)
    bytes.set(frame, bytes.length - frame.length)
    native.vn_write(fd, bytes, bytes.length)
  }

  /** Is there still an interface behind the descriptors? True after a move to another network namespace too. */
  isAttached(): boolean {
    const fd = this.#fds[0]
    return fd !== undefined && attachmentOf(fd) !== null
  }

  /**
   * A new monitor of the interface, which goes after it into the network namespace where it is now. The caller disposes of it.
   */
  openLinkMonitor(): TapLinkMonitor {
    return this.#inNamespace(() => {
      const link = new NetlinkSocket(NETLINK_ROUTE)
      this.#link?.[Symbol.dispose]()
      this.#link = link
      const [fd] = this.#fds
      const name = fd === undefined ? undefined : attachmentOf(fd)?.name
      // A move keeps the index only if it is free there.
      if (name !== undefined) this.#index = getLink(link, name)?.index ?? this.#index
      return new TapLinkMonitor(this.#index)
    })
  }

  /**
   * Opens the interface again after it was deleted, with all that was set: new descriptors, a new index. Throws UserError or
   * SysError if it cannot be done now; it may be called again. When, and how often, is for the caller.
   */
  reopen(): void {
    const { source } = this.#options
    if ('fd' in source) {
      throw new UserError(
        `${this.#name}: the interface behind --tap-fd ${source.fd} is gone`,
        'start again with a new descriptor',
      )
    }
    const attached = this.#order
    this.#close()
    this.#open()
    for (const queue of this.#fds.keys()) this.setQueueAttached(queue, attached.includes(queue))
    this.setOffloads(this.#features)
  }

  /** Closes everything and undoes what would outlive us: the bridge port that we made, the offloads, the steering. */
  [Symbol.dispose](): void {
    if (!this.#created && this.isAttached()) {
      this.#applyOffloads(NO_OFFLOADS)
      this.steer(null)
      this.#undoSettings()
    }
    this.#close()
    if (this.#steering instanceof Steering) this.#steering[Symbol.dispose]()
  }

  get #netlink(): NetlinkSocket {
    assert(this.#link !== null, 'the TAP is closed')
    return this.#link
  }

  #open(): void {
    try {
      this.#attach()
      this.#configure()
      this.#formerMtu = null
    } catch (error) {
      if (!this.#created) this.#undoSettings()
      this.#close()
      throw error
    }
  }

  #attach(): void {
    const { source, queues, vnetHdr, netns } = this.#options
    if ('name' in source) {
      const refusal = refuseInterfaceName(source.name)
      if (refusal !== null) throw new UserError(`--tap ${source.name}: ${refusal}`, 'choose another name', EXIT.usage)
      inNetns(netns, () => {
        const netlink = new NetlinkSocket(NETLINK_ROUTE)
        this.#link = netlink
        const { fds, created } = attachTap(source.name, { queues, vnetHdr }, () => getLink(netlink, source.name))
        this.#fds = fds
        this.#created = created
      })
    } else {
      const attachment = attachmentOf(source.fd)
      if (attachment === null) {
        throw new UserError(
          `--tap-fd ${source.fd}: is not attached to an interface`,
          'call TUNSETIFF before it is handed over',
          EXIT.usage,
        )
      }
      this.#fds = [source.fd]
      // Until the checks below say that it fits the descriptor stays as its maker left it.
      native.vn_set_cloexec(source.fd)
      this.#link = this.#inNamespace(() => new NetlinkSocket(NETLINK_ROUTE))
    }
  }

  #configure(): void {
    const { source, vnetHdr, mtu, bridge } = this.#options
    const attachment = attachmentOf(this.#fds[0]!)
    if (attachment === null) throw new UserError('the TAP was deleted as it was opened', 'try again')
    this.#name = attachment.name
    this.#hasVnetHdr = (attachment.flags & IFF_VNET_HDR) !== 0
    const link = getLink(this.#netlink, this.#name)
    if (link === null || link.kind !== 'tun') {
      throw new UserError(
        `${this.#name}: is in another network namespace`,
        'pass --netns, or grant CAP_NET_ADMIN there',
      )
    }
    checkAttachment(attachment, link.tun, 'fd' in source && vnetHdr ? null : vnetHdr)
    this.#index = link.index
    this.#order = [...this.#fds.keys()]
    for (const fd of this.#fds) {
      this.#ioctl(fd, 'O_NONBLOCK', native.vn_set_nonblock(fd, 1))
      if (!this.#hasVnetHdr) continue
      this.#ioctl(fd, 'TUNSETVNETHDRSZ', native.vn_ioctl(fd, TUNSETVNETHDRSZ, Int32Array.of(VNET_HDR_BYTES)))
      this.#ioctl(fd, 'TUNSETVNETLE', native.vn_ioctl(fd, TUNSETVNETLE, Int32Array.of(1)))
    }
    // What a former owner has left goes, and one that was deleted is steered as before.
    this.#steer()
    // Off until a driver says what it takes, whatever a former owner has left on.
    this.#supported = this.#hasVnetHdr ? this.#applyOffloads(ALL_OFFLOADS) : NO_OFFLOADS
    this.#applyOffloads(NO_OFFLOADS)
    if (mtu !== null && mtu !== link.mtu) {
      this.setMtu(mtu)
      this.#formerMtu = link.mtu
    }
    if (bridge !== null) this.#joinedBridge = joinBridge(this.#netlink, link, bridge)
    // Whoever hands a descriptor over decides himself when its interface is up.
    if ('name' in source && !link.up) this.setUp(true)
  }

  #ioctl(fd: number, call: string, rc: number): void {
    if (rc < 0) throw new SysError(`${this.#name} (fd ${fd}): ${call}`, -rc)
  }

  /**
   * The first of the wanted set's fallbacks that the kernel takes. One descriptor speaks for the interface. Nothing if that was
   * deleted: {@link reopen} comes back to it.
   */
  #applyOffloads(wanted: Offloads): Offloads {
    const fd = this.#fds[0]
    if (fd === undefined) return NO_OFFLOADS
    for (const candidate of offloadFallbacks(wanted)) {
      const rc = native.vn_ioctl(fd, TUNSETOFFLOAD, tunOffloadFlags(candidate))
      if (rc === 0) return candidate
      if (rc === -EBADFD) break
      if (rc !== -EINVAL) throw new SysError(`${this.#name}: TUNSETOFFLOAD`, -rc)
    }
    return NO_OFFLOADS
  }

  #set(change: { up?: boolean; mtu?: number }): void {
    try {
      setLink(this.#netlink, this.#index, change)
    } catch (error) {
      if (!(error instanceof NetlinkError)) throw error
      const what =
        change.mtu !== undefined ? `set MTU ${change.mtu}` : change.up === true ? 'bring it up' : 'take it down'
      if (error.errno === EPERM) {
        throw new UserError(
          `${this.#name}: no permission to ${what}`,
          `grant CAP_NET_ADMIN, or have root do it: ip link set ${this.#name} ${change.mtu !== undefined ? `mtu ${change.mtu}` : change.up === true ? 'up' : 'down'}`,
          EXIT.permission,
        )
      }
      const link = this.link()
      const range =
        change.mtu !== undefined && link !== null ? `choose ${link.mtuMin}..${link.mtuMax}` : 'see: ip -d link'
      throw new UserError(`${this.#name}: cannot ${what}: ${error.reason}`, range)
    }
  }

  /** Leaves the bridge that we have joined, and gives an interface that we cannot use its MTU back. */
  #undoSettings(): void {
    const changes = {
      ...(this.#joinedBridge ? { master: 0 } : {}),
      ...(this.#formerMtu === null ? {} : { mtu: this.#formerMtu }),
    }
    this.#joinedBridge = false
    this.#formerMtu = null
    if (Object.keys(changes).length === 0) return
    try {
      setLink(this.#netlink, this.#index, changes)
    } catch (error) {
      // The interface, or the bridge, went first: nothing is left to undo.
      if (!(error instanceof NetlinkError)) throw error
    }
  }

  #close(): void {
    for (const fd of this.#fds) native.vn_close(fd)
    this.#fds = []
    this.#link?.[Symbol.dispose]()
    this.#link = null
    this.#created = false
    this.#joinedBridge = false
  }

  /**
   * Runs `make` in the network namespace of the interface: the kernel knows it from the descriptor, wherever the interface has
   * gone. Where that may not be asked (before 5.2, or without CAP_NET_ADMIN there) in the one of the options.
   */
  #inNamespace<T>(make: () => T): T {
    const fd = this.#fds[0]
    const namespaceFd = fd === undefined ? -1 : native.vn_ioctl(fd, TUNGETDEVNETNS, 0)
    if (namespaceFd < 0) return inNetns(this.#options.netns, make)
    try {
      const isOurs = fstatSync(namespaceFd).ino === statSync('/proc/thread-self/ns/net').ino
      return inNetns(isOurs ? null : `/proc/self/fd/${namespaceFd}`, make)
    } finally {
      native.vn_close(namespaceFd)
    }
  }
}
