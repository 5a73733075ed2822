import { RECEIVE_FILTER, RECEIVE_LIST_MAX, RECEIVE_RULES } from '../abi/receive-filter.ts'
import { VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_MAC } from '../abi/virtio.ts'
import { assert } from '../base/assert.ts'
import { type Features, hasFeature } from './features.ts'

/** Octets of a MAC address. */
export const MAC_BYTES = 6
/** VLAN numbers run from 0 below this. */
export const VLANS = 4096

/** What the commands of class VIRTIO_NET_CTRL_RX switch, by their names. VIRTIO 1.2 §5.1.6.5.1. */
export type ReceiveMode = 'promisc' | 'allmulti' | 'alluni' | 'nomulti' | 'nouni' | 'nobcast'

/** The lowest bit of the first octet. */
const isGroup = (mac: Uint8Array): boolean => (mac[0]! & 1) !== 0

/**
 * Which frames the driver wants, as it says through the control queue. The device thread writes it; every queue worker
 * has its frames judged by zig/filter.zig. A frame is judged by the rules before a change or after it, never by a
 * mixture.
 *
 * Until the driver says something every frame is wanted: one that has negotiated VIRTIO_NET_F_CTRL_RX starts
 * promiscuous, as with QEMU, and for one that has not there is nothing to filter by. An address list that is too long
 * for the filter lets every address of that kind pass, which the specification allows (VIRTIO 1.2 §5.1.6.5.2,
 * footnote).
 */
export class ReceiveFilter {
  /** For the queue workers: `struct vn_receive_filter`. */
  readonly buffer: SharedArrayBuffer
  readonly #shared: Uint32Array
  readonly #rules = new Uint32Array(RECEIVE_RULES.sizeBytes / 4)
  readonly #modes = new Set<ReceiveMode>()
  #byAddress = false
  #byVlan = false
  /** The card's own address, as far as the driver knows that we know it. */
  #mac: Uint8Array | null = null
  #unicast: readonly Uint8Array[] = []
  #multicast: readonly Uint8Array[] = []
  readonly #vlans = new Uint32Array(VLANS / 32)

  /** `buffer`: zeroes, RECEIVE_FILTER.sizeBytes long. */
  constructor(buffer = new SharedArrayBuffer(RECEIVE_FILTER.sizeBytes)) {
    this.buffer = buffer
    this.#shared = new Uint32Array(buffer)
  }

  /** No driver: every frame is wanted. */
  reset(): void {
    this.start(0n, null)
  }

  /**
   * A driver has set itself up: the filter is as after a reset. `mac` is what the configuration space says, null if the
   * card has no address; a driver that did not negotiate VIRTIO_NET_F_MAC may have another one, so that all unicast
   * frames are wanted until it says which.
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

  /** The card's own address from now on. */
  setMac(mac: Uint8Array): void {
    assert(mac.length === MAC_BYTES)
    this.#mac = mac.slice()
    this.#publish()
  }

  /**
   * The address table from now on. Each address goes to the list that its own bits name: Linux sends link-local group
   * addresses, of `bridge fdb add` for one, among the unicast ones.
   */
  setTable(macs: readonly Uint8Array[]): void {
    this.#unicast = macs.filter((mac) => !isGroup(mac))
    this.#multicast = macs.filter(isGroup)
    this.#publish()
  }

  /** Takes VLAN number `vlan` into the table, or out of it. */
  setVlan(vlan: number, member: boolean): void {
    assert(vlan >= 0 && vlan < VLANS)
    const bit = 1 << (vlan % 32)
    if (member) this.#vlans[vlan >>> 5]! |= bit
    else this.#vlans[vlan >>> 5]! &= ~bit
    this.#publish()
  }

  /** Compiles the rules and lets them hold. */
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
    // ORDERING: a queue worker that sees a word of these rules must also see that the generation before has ended, and
    // one that sees their generation must see all of them: stores of Atomics are in order.
    for (const [index, word] of rules.entries()) Atomics.store(this.#shared, place + index, word)
    Atomics.store(this.#shared, GENERATION, generation)
  }
}

const GENERATION = RECEIVE_FILTER.generation / 4

/** What does not fit is left out: with so many addresses the list is not asked. */
const fillList = (rules: Uint32Array, at: number, macs: readonly Uint8Array[]): void => {
  rules.fill(0xffff_ffff, at, at + 2 * RECEIVE_LIST_MAX)
  for (const [index, mac] of macs.slice(0, RECEIVE_LIST_MAX).entries()) {
    rules[at + 2 * index] = mac[0]! | (mac[1]! << 8) | (mac[2]! << 16) | (mac[3]! << 24)
    rules[at + 2 * index + 1] = mac[4]! | (mac[5]! << 8)
  }
}
