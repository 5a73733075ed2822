import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { RECEIVE_FILTER, RECEIVE_LIST_MAX, RECEIVE_RULES } from '../../../src/abi/receive-filter.ts'
import { VN_IO } from '../../../src/abi/vn-io.ts'
import { formatMac } from '../../../src/base/mac.ts'
import { type Features, featuresByName } from '../../../src/device/features.ts'
import { ReceiveFilter, type ReceiveMode } from '../../../src/device/receive-filter.ts'
import type { OwnedFd } from '../../../src/sys/fd.ts'
import { addressOf } from '../../../src/sys/native.ts'
import { macBytes } from '../../support/control-fixture.ts'
import { concat } from '../../support/frames.ts'
import { Random } from '../../support/random.ts'
import { rulesOf } from '../../support/receive-rules.ts'
import { drain, Io, Namespace, unavailable, writeFrame } from '../../support/tap-lab.ts'

const feature = (...names: string[]): Features => names.reduce((set, name) => set | featuresByName.get(name)!, 0n)
const OWN = '02:00:00:00:00:01'
const rx = feature('mac', 'ctrl_vq', 'ctrl_rx', 'ctrl_rx_extra')

const newFilter = (features: Features, mac = OWN): ReceiveFilter => {
  const filter = new ReceiveFilter()
  filter.start(features, macBytes(mac))
  return filter
}

/** `count` addresses of one kind, all different. */
const macs = (count: number, group: boolean): Uint8Array[] =>
  Array.from({ length: count }, (_, index) => Uint8Array.of(group ? 3 : 2, 1, 0, 0, index >>> 8, index & 0xff))

const unfiltered = { filtering: false, anyUnicast: true, anyMulticast: true, broadcast: true, byVlan: false }

describe('until the driver says something', () => {
  test('fresh memory lets every frame pass', () => {
    expect(rulesOf(new ReceiveFilter()).filtering).toBe(false)
    expect(new Uint8Array(new ReceiveFilter().buffer).every((byte) => byte === 0)).toBe(true)
  })

  test('48 without CTRL_RX and CTRL_VLAN every frame is wanted, whatever its address and tag', () => {
    expect(rulesOf(newFilter(feature('mac')))).toMatchObject(unfiltered)
    expect(rulesOf(newFilter(feature('mac', 'ctrl_vq', 'ctrl_mac_addr')))).toMatchObject(unfiltered)
  })

  test('47 with CTRL_RX it is promiscuous, and the address table is empty', () => {
    const filter = newFilter(rx)
    expect(rulesOf(filter)).toMatchObject({ ...unfiltered, unicast: [OWN], multicast: [] })
    filter.setMode('promisc', false)
    expect(rulesOf(filter)).toMatchObject({ filtering: true, unicast: [OWN], multicast: [] })
  })

  test('with CTRL_VLAN the VLAN table is empty and holds at once, unless the card is promiscuous', () => {
    expect(rulesOf(newFilter(feature('mac', 'ctrl_vlan')))).toMatchObject({
      filtering: true,
      anyUnicast: true,
      anyMulticast: true,
      broadcast: true,
      byVlan: true,
      vlans: [],
    })
    const both = newFilter(rx | feature('ctrl_vlan'))
    expect(rulesOf(both)).toMatchObject(unfiltered)
    both.setMode('promisc', false)
    expect(rulesOf(both)).toMatchObject({ filtering: true, byVlan: true })
  })

  test('a driver that may have another address gets all unicast frames, until it says which', () => {
    const filter = newFilter(rx & ~feature('mac'))
    filter.setMode('promisc', false)
    expect(rulesOf(filter)).toMatchObject({ anyUnicast: true, anyMulticast: false, unicast: [] })
    filter.setMac(macBytes('02:00:00:00:00:09'))
    expect(rulesOf(filter)).toMatchObject({ anyUnicast: false, unicast: ['02:00:00:00:00:09'] })
  })

  test('after a reset and a new start nothing of before holds', () => {
    const filter = newFilter(rx | feature('ctrl_vlan'))
    for (const mode of ['allmulti', 'alluni', 'nomulti', 'nouni', 'nobcast'] as const) filter.setMode(mode, true)
    filter.setMode('promisc', false)
    filter.setMac(macBytes('02:00:00:00:00:09'))
    filter.setTable([...macs(3, false), ...macs(3, true)])
    filter.setVlan(7, true)
    filter.reset()
    expect(rulesOf(filter)).toMatchObject(unfiltered)
    filter.start(rx | feature('ctrl_vlan'), macBytes(OWN))
    filter.setMode('promisc', false)
    expect(rulesOf(filter)).toEqual({
      filtering: true,
      anyUnicast: false,
      anyMulticast: false,
      broadcast: true,
      byVlan: true,
      unicast: [OWN],
      multicast: [],
      vlans: [],
    })
  })
})

describe('tables', () => {
  test('a list that is full is asked, one address more and all of that kind are wanted', () => {
    const filter = newFilter(rx)
    filter.setMode('promisc', false)
    // The card's own address has its place among the unicast ones.
    filter.setTable([...macs(RECEIVE_LIST_MAX - 1, false), ...macs(RECEIVE_LIST_MAX, true)])
    let rules = rulesOf(filter)
    expect(rules).toMatchObject({ anyUnicast: false, anyMulticast: false })
    expect(rules.unicast).toEqual([OWN, ...macs(RECEIVE_LIST_MAX - 1, false).map(formatMac)])
    expect(rules.multicast).toEqual(macs(RECEIVE_LIST_MAX, true).map(formatMac))

    filter.setTable([...macs(RECEIVE_LIST_MAX, false), ...macs(RECEIVE_LIST_MAX, true)])
    expect(rulesOf(filter)).toMatchObject({ anyUnicast: true, anyMulticast: false })
    filter.setTable([...macs(RECEIVE_LIST_MAX - 1, false), ...macs(10_000, true)])
    rules = rulesOf(filter)
    expect(rules).toMatchObject({ anyUnicast: false, anyMulticast: true })

    filter.setTable([])
    expect(rulesOf(filter)).toMatchObject({ anyUnicast: false, anyMulticast: false, unicast: [OWN], multicast: [] })
  })

  test('an address goes to the list that its own bits name', () => {
    const filter = newFilter(rx)
    filter.setTable([macBytes('01:80:c2:00:00:0e'), macBytes('02:00:00:00:00:07')])
    expect(rulesOf(filter)).toMatchObject({ unicast: [OWN, '02:00:00:00:00:07'], multicast: ['01:80:c2:00:00:0e'] })
  })

  test('suppression wins over what lets all pass, but not over promiscuous', () => {
    const filter = newFilter(rx)
    filter.setMode('promisc', false)
    for (const mode of ['alluni', 'allmulti', 'nouni', 'nomulti', 'nobcast'] as const) filter.setMode(mode, true)
    filter.setTable([...macs(100, false), ...macs(100, true)])
    expect(rulesOf(filter)).toMatchObject({
      anyUnicast: false,
      anyMulticast: false,
      broadcast: false,
      unicast: [],
      multicast: [],
    })
    filter.setMode('promisc', true)
    expect(rulesOf(filter)).toMatchObject(unfiltered)
  })

  test('rules are written beside those that hold', () => {
    const filter = newFilter(rx)
    const generation = () => new Uint32Array(filter.buffer)[RECEIVE_FILTER.generation / 4]!
    const place = (which: 'even' | 'odd') =>
      Buffer.from(filter.buffer, RECEIVE_FILTER[which].filtering, RECEIVE_RULES.sizeBytes).toString('hex')
    for (let change = 0; change < 4; change++) {
      const holding = generation() % 2 === 0 ? 'even' : 'odd'
      const before = { generation: generation(), rules: place(holding) }
      filter.setMode('promisc', change % 2 === 0)
      expect(generation()).toBe(before.generation + 1)
      expect(place(holding)).toBe(before.rules)
    }
  })
})

/** The specification in plain words: VIRTIO 1.2 §5.1.6.5.1 to §5.1.6.5.3. */
class Model {
  readonly modes = new Set<ReceiveMode>(['promisc'])
  own = OWN
  table: string[] = []
  readonly vlans = new Set<number>()

  wants(destination: string, vlan: number | null): boolean {
    if (this.modes.has('promisc')) return true
    if (vlan !== null && vlan !== 0 && !this.vlans.has(vlan)) return false
    if (destination === 'ff:ff:ff:ff:ff:ff') return !this.modes.has('nobcast')
    if ((Number.parseInt(destination.slice(0, 2), 16) & 1) === 1) {
      return !this.modes.has('nomulti') && (this.modes.has('allmulti') || this.table.includes(destination))
    }
    if (this.modes.has('nouni')) return false
    return this.modes.has('alluni') || destination === this.own || this.table.includes(destination)
  }
}

const reason = unavailable()
if (reason !== null) console.log(`the receive filter over a TAP: skipped, ${reason}`)

describe.skipIf(reason !== null)('over a TAP', () => {
  let namespace: Namespace
  let peer: OwnedFd
  let card: OwnedFd
  let io: Io

  beforeAll(() => {
    namespace = new Namespace()
    namespace.bridge('br0')
    peer = namespace.tap({ name: 'peer', vnetHdr: false, bridge: 'br0' })
    card = namespace.tap({ name: 'card', vnetHdr: false, bridge: 'br0' })
    io = new Io({ tap: card, vnetHdr: false, features: 0n })
    drain(card)
  })
  afterAll(() => {
    io?.[Symbol.dispose]()
    for (const fd of [peer, card]) fd?.[Symbol.dispose]()
    namespace?.[Symbol.dispose]()
  })

  const use = (filter: ReceiveFilter | null): void => {
    const address = filter === null ? 0 : addressOf(new Uint32Array(filter.buffer))
    io.block[VN_IO.rxFilter] = address % 2 ** 32
    io.block[VN_IO.rxFilter + 1] = Math.floor(address / 2 ** 32)
  }
  const tag = (vlan: number | null): Uint8Array =>
    vlan === null ? new Uint8Array() : Uint8Array.of(0x81, 0, 0x60 | (vlan >>> 8), vlan & 0xff)
  /** Does a frame get through? The ethertype is one for experiments. */
  const arrives = (destination: string, vlan: number | null = null): boolean => {
    const source = macBytes('02:ff:00:00:00:01')
    const payload = Uint8Array.of(0x88, 0xb5, ...new Uint8Array(50))
    writeFrame(peer, concat(macBytes(destination), source, tag(vlan), payload))
    const buffer = new Uint8Array(2000)
    const { delivered, used } = io.rx([[buffer]], 1)
    const { drops } = io.takeRx()
    expect(drops).toEqual(delivered === 1 ? {} : { rx_filtered: 1 })
    expect(used).toBe(delivered)
    return delivered === 1
  }

  test('without a filter every frame arrives', () => {
    use(null)
    for (const destination of [OWN, '02:00:00:00:00:02', '33:33:00:00:00:01', 'ff:ff:ff:ff:ff:ff']) {
      expect(arrives(destination, 5)).toBe(true)
    }
  })

  test('frames are judged as the specification says, whatever the driver has set', () => {
    const random = new Random(0x5eed)
    const pick = <T>(list: readonly T[]): T => random.pick(list)
    const filter = newFilter(rx | feature('ctrl_vlan'))
    const model = new Model()
    use(filter)
    const known = [...macs(6, false), ...macs(6, true)].map(formatMac)
    const destinations = [OWN, '02:00:00:00:00:02', 'ff:ff:ff:ff:ff:ff', '01:00:5e:00:00:01', ...known]
    const modes: readonly ReceiveMode[] = ['promisc', 'promisc', 'allmulti', 'alluni', 'nomulti', 'nouni', 'nobcast']
    const seen = { wanted: 0, filtered: 0 }
    for (let step = 0; step < 400; step++) {
      switch (random.below(5)) {
        case 0:
        case 1: {
          const mode = pick(modes)
          // Off more often than on: otherwise nearly all time is promiscuous.
          const on = random.below(3) === 0
          filter.setMode(mode, on)
          if (on) model.modes.add(mode)
          else model.modes.delete(mode)
          break
        }
        case 2:
          model.table = known.filter(() => random.below(2) === 0)
          filter.setTable(model.table.map(macBytes))
          break
        case 3:
          model.own = pick([OWN, '02:00:00:00:00:02'])
          filter.setMac(macBytes(model.own))
          break
        default: {
          const vlan = random.below(4)
          const member = random.below(2) === 0
          filter.setVlan(vlan, member)
          if (member) model.vlans.add(vlan)
          else model.vlans.delete(vlan)
        }
      }
      for (let frames = 0; frames < 4; frames++) {
        const destination = pick(destinations)
        const vlan = pick([null, null, 0, 1, 2, 3])
        const wanted = model.wants(destination, vlan)
        seen[wanted ? 'wanted' : 'filtered']++
        if (arrives(destination, vlan) !== wanted) {
          throw new Error(`step ${step}: ${destination} in VLAN ${vlan} is ${wanted ? '' : 'not '}wanted`)
        }
      }
    }
    expect(seen.wanted).toBeGreaterThan(200)
    expect(seen.filtered).toBeGreaterThan(200)
  })

  test('an address in the last place of a full list is found', () => {
    const filter = newFilter(rx)
    filter.setMode('promisc', false)
    const unicast = macs(RECEIVE_LIST_MAX - 1, false)
    const multicast = macs(RECEIVE_LIST_MAX, true)
    filter.setTable([...unicast, ...multicast])
    use(filter)
    for (const mac of [...unicast, ...multicast]) expect(arrives(formatMac(mac))).toBe(true)
    expect(arrives('02:01:00:00:00:ff')).toBe(false)
    expect(arrives('03:01:00:00:00:ff')).toBe(false)
  })
})
