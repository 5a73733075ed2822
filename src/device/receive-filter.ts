import { RECEIVE_FILTER, RECEIVE_LIST_MAX, RECEIVE_RULES } from '../abi/receive-filter.ts'
import { VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_MAC } from '../abi/virtio.ts'
import { assert } from '../base/assert.ts'
import { type Features, hasFeature } from './features.ts'

/** Octets of a MAC address. */
export const MAC_BYTES = 6
/** Count of VLAN ids. */
export const VLANS = 4096

/** The modes of class VIRTIO_NET_CTRL_RX. VIRTIO 1.2 §5.1.6.5.1. */
export type ReceiveMode = 'promisc' | 'allmulti' | 'alluni' | 'nomulti' | 'nouni' | 'nobcast'

/** The multicast bit: the lowest bit of the first octet. */
const isGroup = (mac: Uint8Array): boolean => (mac[0]! & 1) !== 0

/**
 * The driver's receive filter, set through the control queue. The device thread writes it; zig/filter.zig applies it in
 * every queue worker. A frame is checked by the rules before a change or after it, never by a mixture.
 *
 * Before the first command every frame passes: a driver with VIRTIO_NET_F_CTRL_RX starts promiscuous, as with QEMU, and
 * one without it sets no rules. If an address list is too long for the filter, every address of that kind passes, which
 * the specification allows (VIRTIO 1.2 §5.1.6.5.2, footnote).
 */
export class ReceiveFilter {
  /** For the queue workers: `struct vn_receive_filter`. */
  readonly buffer: SharedArrayBuffer
  readonly #shared: Uint32Array
  readonly #rules = new Uint32Array(RECEIVE_RULES.sizeBytes / 4)
  readonly #modes = new Set<ReceiveMode>()
  #byAddress = false
  #byVlan = false
  /** The MAC the driver was told; null without VIRTIO_NET_F_MAC. */
  #mac: Uint8Array | null = null
  #unicast: readonly Uint8Array[] = []
  #multicast: readonly Uint8Array[] = []
  readonly #vlans = new Uint32Array(VLANS / 32)

  /** `buffer`: zeroes, RECEIVE_FILTER.sizeBytes long. */
  constructor(buffer = new SharedArrayBuffer(RECEIVE_FILTER.sizeBytes)) {
    this.buffer = buffer
    this.#shared = new Uint32Array(buffer)
  }

  /** No driver: every frame passes. */
  reset(): void {
    this.start(0n, null)
  }

  /**
   * A driver has set DRIVER_OK: the filter is as after a reset. `mac`: `mac` of the configuration space, or null. A
   * driver without VIRTIO_NET_F_MAC may have another address, so all unicast frames pass until it sets one.
   */
  start(features: Features, mac: Uint8Array | null): void {
    this.#byAddress = hasFeature(features, VIRTIO_NET_F_CTRL_RX)
    this.#byVlan = hasFeature(features, VIRTIO_NET_F_CTRL_VLAN)
    this.#mac = hasFeature(features, VIRTIO_NET_F_MAC) ? mac : null
    this.#modes.clear()
    if (this.#byAddress) this.#modes.add('promisc')
    this.#unicast = []
    this.#multicast = []
    this.#vlans.fill(0)
    this.#publish()
  }

  setMode(mode: ReceiveMode, on: boolean): void {
    if (on) this.#modes.add(mode)
    else this.#modes.delete(mode)
    this.#publish()
  }

  /** Sets the driver's MAC address. */
  setMac(mac: Uint8Array): void {
    assert(mac.length === MAC_BYTES)
    this.#mac = mac.slice()
    this.#publish()
  }

  /**
   * Sets the address table. Each address goes to the list of its own kind: Linux sends some link-local group addresses
   * (for instance of `bridge fdb add`) in the unicast table.
   */
  setTable(macs: readonly Uint8Array[]): void {
    this.#unicast = macs.filter((mac) => !isGroup(mac))
    this.#multicast = macs.filter(isGroup)
    this.#publish()
  }

  /** Adds VLAN id `vlan` to the table, or removes it. */
  setVlan(vlan: number, member: boolean): void {
    assert(vlan >= 0 && vlan < VLANS)
    const bit = 1 << (vlan % 32)
    if (member) this.#vlans[vlan >>> 5]! |= bit
    else this.#vlans[vlan >>> 5]! &= ~bit
    this.#publish()
  }

  /** Compiles the rules and publishes them. */
  #publish(): void {
    const has = (mode: ReceiveMode): boolean => this.#modes.has(mode)
    const promisc = has('promisc')
    const own = this.#mac === null ? [] : [this.#mac]
    const unicast = has('nouni') ? [] : [...own, ...this.#unicast]
    const multicast = has('nomulti') ? [] : this.#multicast
    const allUnicast = !this.#byAddress || has('alluni') || this.#mac === null || unicast.length > RECEIVE_LIST_MAX
    const allMulticast = !this.#byAddress || has('allmulti') || multicast.length > RECEIVE_LIST_MAX
    const anyUnicast = promisc || (allUnicast && !has('nouni'))
    const anyMulticast = promisc || (allMulticast && !has('nomulti'))
    const broadcast = promisc || !has('nobcast')
    const byVlan = this.#byVlan && !promisc
    const filtering = !(anyUnicast && anyMulticast && broadcast && !byVlan)

    const rules = this.#rules
    rules[RECEIVE_RULES.filtering / 4] = Number(filtering)
    rules[RECEIVE_RULES.any_unicast / 4] = Number(anyUnicast)
    rules[RECEIVE_RULES.any_multicast / 4] = Number(anyMulticast)
    rules[RECEIVE_RULES.broadcast / 4] = Number(broadcast)
    rules[RECEIVE_RULES.by_vlan / 4] = Number(byVlan)
    fillList(rules, RECEIVE_RULES.unicast / 4, unicast)
    fillList(rules, RECEIVE_RULES.multicast / 4, multicast)
    rules.set(this.#vlans, RECEIVE_RULES.vlans / 4)

    const generation = Atomics.load(this.#shared, GENERATION) + 1
    const place = (generation % 2 === 0 ? RECEIVE_FILTER.even : RECEIVE_FILTER.odd).filtering / 4
    // ORDERING: Atomics stores are in order: a queue worker that sees a word of these rules also sees that the previous
    // generation has ended, and one that sees their generation sees all of them.
    for (const [index, word] of rules.entries()) Atomics.store(this.#shared, place + index, word)
    Atomics.store(this.#shared, GENERATION, generation)
  }
}

const GENERATION = RECEIVE_FILTER.generation / 4

/** Addresses that do not fit are left out: the list is not used then. */
const fillList = (rules: Uint32Array, at: number, macs: readonly Uint8Array[]): void => {
  rules.fill(0xffff_ffff, at, at + 2 * RECEIVE_LIST_MAX)
  for (const [index, mac] of macs.slice(0, RECEIVE_LIST_MAX).entries()) {
    rules[at + 2 * index] = mac[0]! | (mac[1]! << 8) | (mac[2]! << 16) | (mac[3]! << 24)
    rules[at + 2 * index + 1] = mac[4]! | (mac[5]! << 8)
  }
}
