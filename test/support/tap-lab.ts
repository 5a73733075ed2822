/**
 * What the data path's tests run on: real TAPs in a network namespace of their own, and the shared block driven as the
 * queue worker drives it.
 */

import { spawnSync } from 'node:child_process'
import { accessSync, constants as fsConstants } from 'node:fs'
import { constants, release } from 'node:os'
import { type DropReason, dropReasons } from '../../src/abi/drop-reason.ts'
import { POLLFD, POLLIN } from '../../src/abi/linux.ts'
import {
  IFF_NO_PI,
  IFF_TAP,
  IFF_VNET_HDR,
  IFREQ,
  TUN_F_USO4,
  TUN_F_USO6,
  TUNSETIFF,
  TUNSETOFFLOAD,
  TUNSETVNETHDRSZ,
} from '../../src/abi/tun.ts'
import { VIRTIO_F_VERSION_1 } from '../../src/abi/virtio.ts'
import { VN_IO, VN_IO_WORDS } from '../../src/abi/vn-io.ts'
import { netHeaderBytes } from '../../src/device/net-header.ts'
import { type OwnedFd, open } from '../../src/sys/fd.ts'
import { addressOf, check, native } from '../../src/sys/native.ts'
import { withNetns } from '../../src/sys/netns.ts'
import { bits } from './bits.ts'
import { HANG_MS } from './patience.ts'

/** Bytes of the virtio-net header. */
export const HEADER_BYTES = 12

/** Whether TAPs of this kernel give and take UDP packets with segments left to do: since Linux 6.2. */
export const tapsTakeUso = ((): boolean => {
  const [major, minor] = release().split('.').map(Number)
  return major! > 6 || (major === 6 && minor! >= 2)
})()

/** Why these tests cannot run here, or null. */
export const unavailable = (): string | null => {
  if (process.getuid?.() !== 0) return 'not root'
  try {
    accessSync('/dev/net/tun', fsConstants.R_OK | fsConstants.W_OK)
  } catch {
    return 'no /dev/net/tun'
  }
  return spawnSync('ip', ['-V']).status === 0 ? null : 'no ip(8)'
}

const run = (command: string, ...args: string[]): void => {
  const { status, stderr } = spawnSync(command, args, { encoding: 'utf8' })
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr}`)
}

export type TapShape = {
  readonly name: string
  readonly vnetHdr: boolean
  /** TUN_F_* bits: what we take from the kernel unfinished. */
  readonly offloads?: number
  readonly mtu?: number
  readonly bridge?: string
  readonly down?: boolean
  /** IFF_* bits besides. */
  readonly flags?: number
}

/** A network namespace without IPv6 chatter of its own. */
export class Namespace {
  readonly name: string
  static #count = 0

  constructor() {
    this.name = `vn-native-${process.pid}-${Namespace.#count++}`
    run('ip', 'netns', 'add', this.name)
    for (const which of ['all', 'default']) this.#set(`net.ipv6.conf.${which}.disable_ipv6`, 1)
    // With br_netfilter a bridge would inspect IP packets, drop unusual ones and release their sender.
    for (const family of ['ip', 'ip6']) this.#set(`net.bridge.bridge-nf-call-${family}tables`, 0)
  }

  /** Sets a kernel parameter, if there is such a one. Not by sysctl(8), which a small Debian does not have. */
  #set(parameter: string, value: number): void {
    const path = `/proc/sys/${parameter.replaceAll('.', '/')}`
    run('ip', 'netns', 'exec', this.name, 'sh', '-c', '[ ! -e "$1" ] || echo "$2" >"$1"', 'sh', path, String(value))
  }

  /** `ip ARGS` inside. */
  ip(...args: string[]): void {
    run('ip', '-n', this.name, ...args)
  }

  /** `tc ARGS` inside. */
  tc(...args: string[]): void {
    run('tc', '-n', this.name, ...args)
  }

  bridge(name: string, mtu = 65_535): void {
    this.ip('link', 'add', name, 'type', 'bridge', 'stp_state', '0', 'forward_delay', '0', 'mcast_snooping', '0')
    this.ip('link', 'set', name, 'mtu', String(mtu), 'up')
  }

  /** A TAP that is up: its descriptor, non-blocking. */
  tap(shape: TapShape): OwnedFd {
    const fd = withNetns(this.name, () => open('/dev/net/tun'))
    const request = new Uint8Array(IFREQ.sizeBytes)
    new TextEncoder().encodeInto(shape.name, request)
    const flags = IFF_TAP | IFF_NO_PI | (shape.vnetHdr ? IFF_VNET_HDR : 0) | (shape.flags ?? 0)
    new DataView(request.buffer).setUint16(IFREQ.ifr_flags, flags, true)
    check('TUNSETIFF', native.vn_ioctl(fd.fd, TUNSETIFF, request))
    if (shape.vnetHdr) {
      check('TUNSETVNETHDRSZ', native.vn_ioctl(fd.fd, TUNSETVNETHDRSZ, new Int32Array([HEADER_BYTES])))
      const offloads = (shape.offloads ?? 0) & (tapsTakeUso ? -1 : ~(TUN_F_USO4 | TUN_F_USO6))
      check('TUNSETOFFLOAD', native.vn_ioctl(fd.fd, TUNSETOFFLOAD, offloads))
    }
    check('nonblock', native.vn_set_nonblock(fd.fd, 1))
    this.ip('link', 'set', shape.name, 'mtu', String(shape.mtu ?? 1500))
    if (shape.bridge !== undefined) this.ip('link', 'set', shape.name, 'master', shape.bridge)
    if (shape.down !== true) this.ip('link', 'set', shape.name, 'up')
    return fd
  }

  [Symbol.dispose](): void {
    run('ip', 'netns', 'del', this.name)
  }
}

/** Writes one frame (with header where the TAP has one) as somebody else on the TAP. */
export const writeFrame = (fd: OwnedFd, frame: Uint8Array): void => {
  check('write', native.vn_write(fd.fd, frame, frame.length))
}

/** The next frame of a TAP, or null if none comes within `timeoutMs`. */
export const readFrame = (fd: OwnedFd, timeoutMs = HANG_MS): Uint8Array | null => {
  const request = new Uint8Array(POLLFD.sizeBytes)
  const view = new DataView(request.buffer)
  view.setInt32(POLLFD.fd, fd.fd, true)
  view.setInt16(POLLFD.events, POLLIN, true)
  const out = new Uint8Array(70_000)
  if (check('poll', native.vn_poll(request, 1, timeoutMs)) === 0) return null
  const bytes = native.vn_read(fd.fd, out, out.length)
  if (bytes === -constants.errno.EAGAIN) return null
  return out.slice(0, check('read', bytes))
}

/** The next `count` frames. Throws if fewer come. */
export const readFrames = (fd: OwnedFd, count: number): Uint8Array[] =>
  Array.from({ length: count }, (_, index) => {
    const frame = readFrame(fd)
    if (frame === null) throw new Error(`${index} frames came, not ${count}`)
    return frame
  })

/** Throws away what a TAP holds. */
export const drain = (fd: OwnedFd): void => {
  while (readFrame(fd, 0) !== null);
}

export type Counters = {
  packets: number
  bytes: number
  gso: number
  csum: number
  drops: Partial<Record<DropReason, number>>
}

export type IoShape = {
  readonly tap: OwnedFd
  readonly vnetHdr: boolean
  readonly features: bigint
  readonly maxFrameBytes?: number
  /** The driver has not acknowledged VERSION_1. */
  readonly legacy?: boolean
  readonly chainCapacity?: number
  readonly iovecCapacity?: number
}

/** One queue pair's block and handle. */
export class Io {
  readonly block = new Uint32Array(VN_IO_WORDS)
  readonly handle: number
  readonly #txChains: Uint32Array
  readonly #txIovecs: Uint32Array
  readonly #rxChains: Uint32Array
  readonly #rxIovecs: Uint32Array
  readonly #rxWritten: Uint32Array
  readonly #legacy: boolean
  /** The pieces offered last: the block has only their addresses. */
  #kept: readonly (readonly (readonly Uint8Array[])[])[] = []

  constructor(shape: IoShape) {
    const chains = shape.chainCapacity ?? 64
    const iovecs = shape.iovecCapacity ?? 4096
    this.#legacy = shape.legacy ?? false
    this.#txChains = new Uint32Array(chains * 2)
    this.#rxChains = new Uint32Array(chains * 2)
    this.#txIovecs = new Uint32Array(iovecs * 4)
    this.#rxIovecs = new Uint32Array(iovecs * 4)
    this.#rxWritten = new Uint32Array(chains).fill(0xffff_ffff)
    this.block[VN_IO.tapFd] = shape.tap.fd
    this.block[VN_IO.tapHasVnetHdr] = Number(shape.vnetHdr)
    this.setFeatures(shape.features)
    this.block[VN_IO.maxFrameBytes] = shape.maxFrameBytes ?? 1518
    this.#setAddress(VN_IO.txChains, this.#txChains)
    this.#setAddress(VN_IO.txIovecs, this.#txIovecs)
    this.#setAddress(VN_IO.rxChains, this.#rxChains)
    this.#setAddress(VN_IO.rxIovecs, this.#rxIovecs)
    this.#setAddress(VN_IO.rxWritten, this.#rxWritten)
    this.block[VN_IO.chainCapacity] = chains
    this.block[VN_IO.iovecCapacity] = iovecs
    this.handle = check('vn_io_create', native.vn_io_create(addressOf(this.block)))
  }

  /** Those of a driver, which has VERSION_1 besides unless it is a legacy one. */
  setFeatures(features: bigint): void {
    const negotiated = this.#legacy ? features : features | bits(VIRTIO_F_VERSION_1)
    this.block[VN_IO.headerBytes] = netHeaderBytes(negotiated)
    this.block[VN_IO.featuresLow] = Number(features & 0xffff_ffffn)
    this.block[VN_IO.featuresHigh] = Number(features >> 32n)
  }

  /** `struct vn_scaling`, which the caller keeps. */
  setScaling(words: Uint32Array): void {
    this.#setAddress(VN_IO.rxScaling, words)
  }

  /** Offers chains, each a list of pieces, to vn_tap_tx. Returns chains done. */
  tx(chains: readonly (readonly Uint8Array[])[]): number {
    this.#kept = [chains, this.#kept[1] ?? []]
    fill(this.#txChains, this.#txIovecs, chains)
    return check('vn_tap_tx', native.vn_tap_tx(this.handle, 0, chains.length))
  }

  /** Offers writable chains to vn_tap_rx. */
  rx(
    chains: readonly (readonly Uint8Array[])[],
    packetsMax = 1000,
  ): { delivered: number; used: number; written: number[] } {
    this.#kept = [this.#kept[0] ?? [], chains]
    fill(this.#rxChains, this.#rxIovecs, chains)
    const delivered = check('vn_tap_rx', native.vn_tap_rx(this.handle, 0, chains.length, packetsMax))
    const used = this.block[VN_IO.rxChainsUsed]!
    return { delivered, used, written: [...this.#rxWritten.subarray(0, used)] }
  }

  get rxStop(): number {
    return this.block[VN_IO.rxStop]!
  }

  /** What was counted since the last call. */
  takeTx(): Counters {
    return this.#take(VN_IO.txPackets)
  }
  takeRx(): Counters {
    return this.#take(VN_IO.rxPackets)
  }

  #take(first: number): Counters {
    const [packets, bytes, gso, csum] = this.block.slice(first, first + 4) as unknown as [
      number,
      number,
      number,
      number,
    ]
    const drops: Counters['drops'] = {}
    dropReasons.forEach((reason, index) => {
      const count = this.block[VN_IO.drops + index]!
      if (count > 0) drops[reason] = count
    })
    this.block.fill(0, first, first + 4)
    this.block.fill(0, VN_IO.drops)
    return { packets, bytes, gso, csum, drops }
  }

  #setAddress(word: number, array: Uint32Array): void {
    const address = addressOf(array)
    this.block[word] = address >>> 0
    this.block[word + 1] = Math.floor(address / 2 ** 32)
  }

  [Symbol.dispose](): void {
    check('vn_io_destroy', native.vn_io_destroy(this.handle))
  }
}

const fill = (chains: Uint32Array, iovecs: Uint32Array, list: readonly (readonly Uint8Array[])[]): void => {
  let next = 0
  list.forEach((pieces, index) => {
    chains[index * 2] = next
    chains[index * 2 + 1] = pieces.length
    for (const piece of pieces) {
      // An empty piece has no address worth having: it must never be followed.
      const address = piece.length === 0 ? 0xdead_0000 : addressOf(piece)
      iovecs[next * 4] = address >>> 0
      iovecs[next * 4 + 1] = Math.floor(address / 2 ** 32)
      iovecs[next * 4 + 2] = piece.length
      iovecs[next * 4 + 3] = 0
      next++
    }
  })
}
