/** TAPs in network namespaces of a test's own, as the device worker opens them. */
import { expect } from 'bun:test'
import { IFREQ } from '../../src/abi/tun.ts'
import { addressOf, native } from '../../src/sys/native.ts'
import { withNetns } from '../../src/sys/netns.ts'
import { Tap } from '../../src/tap/tap.ts'
import type { TapOptions } from '../../src/tap/tap-options.ts'
import type { NetworkNamespace } from './network-namespace.ts'

/** What a TAP that a test creates has unless told otherwise. */
export const SCRATCH_MAC = 'fe:00:00:00:00:01'

/** The TAP `tap0` of the namespace; created if it is not there. */
export const openScratchTap = (ns: NetworkNamespace, options: Partial<TapOptions> = {}): Tap =>
  new Tap({
    source: { name: 'tap0' },
    queues: 1,
    vnetHdr: true,
    mac: SCRATCH_MAC,
    mtu: null,
    bridge: null,
    netns: ns.name,
    persist: false,
    ...options,
  })

/** What `ip -d link` shows of an interface, as far as tests ask. */
export type ShownLink = {
  readonly ifindex: number
  readonly ifname: string
  readonly address: string
  readonly mtu: number
  readonly master?: string
  readonly flags: readonly string[]
  readonly linkinfo?: {
    readonly info_data?: {
      readonly persist?: boolean
      readonly multi_queue?: boolean
      readonly numqueues?: number
      readonly numdisabled?: number
    }
  }
}

/** An interface of the namespace; null if there is none of that name. */
export const shownLink = (ns: NetworkNamespace, name: string): ShownLink | null =>
  (JSON.parse(ns.ip('-json -d link')) as ShownLink[]).find(({ ifname }) => ifname === name) ?? null

/** Queues that are in the interface, and those that are taken out. */
export const queuesOf = (ns: NetworkNamespace, name = 'tap0'): (number | undefined)[] => {
  const data = shownLink(ns, name)?.linkinfo?.info_data
  return [data?.numqueues, data?.numdisabled]
}

/** ETHTOOL_G*: does the interface hand over what its sender has not finished? */
export const ETHTOOL_GTXCSUM = 0x16
export const ETHTOOL_GTSO = 0x1e

/** An ETHTOOL_G* question with one word as the answer (linux/ethtool.h, struct ethtool_value). */
export const ethtool = (ns: NetworkNamespace, name: string, command: number): number =>
  withNetns(ns.name, () => {
    const AF_INET = 2
    const SOCK_DGRAM = 2
    const SIOCETHTOOL = 0x8946
    const value = Uint32Array.of(command, 0)
    const bytes = new Uint8Array(IFREQ.sizeBytes)
    bytes.set(new TextEncoder().encode(name))
    new DataView(bytes.buffer).setBigUint64(IFREQ.ifr_flags, BigInt(addressOf(value)), true)
    const fd = native.vn_socket(AF_INET, SOCK_DGRAM, 0)
    expect(native.vn_ioctl(fd, SIOCETHTOOL, bytes)).toBe(0)
    native.vn_close(fd)
    return value[1]!
  })
