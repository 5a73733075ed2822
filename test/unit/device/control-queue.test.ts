import { describe, expect, test } from 'bun:test'
import { HASH_KEY_BYTES_MAX, INDIRECTION_MAX } from '../../../src/abi/receive-scaling.ts'
import {
  VIRTIO_NET_CTRL_ANNOUNCE,
  VIRTIO_NET_CTRL_ANNOUNCE_ACK,
  VIRTIO_NET_CTRL_GUEST_OFFLOADS,
  VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET,
  VIRTIO_NET_CTRL_MAC,
  VIRTIO_NET_CTRL_MAC_ADDR_SET,
  VIRTIO_NET_CTRL_MAC_TABLE_SET,
  VIRTIO_NET_CTRL_MQ,
  VIRTIO_NET_CTRL_MQ_HASH_CONFIG,
  VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
  VIRTIO_NET_CTRL_NOTF_COAL,
  VIRTIO_NET_CTRL_NOTF_COAL_RX_SET,
  VIRTIO_NET_CTRL_NOTF_COAL_TX_SET,
  VIRTIO_NET_CTRL_RX,
  VIRTIO_NET_CTRL_RX_ALLMULTI,
  VIRTIO_NET_CTRL_RX_ALLUNI,
  VIRTIO_NET_CTRL_RX_NOBCAST,
  VIRTIO_NET_CTRL_RX_NOMULTI,
  VIRTIO_NET_CTRL_RX_NOUNI,
  VIRTIO_NET_CTRL_RX_PROMISC,
  VIRTIO_NET_CTRL_VLAN,
  VIRTIO_NET_CTRL_VLAN_ADD,
  VIRTIO_NET_CTRL_VLAN_DEL,
} from '../../../src/abi/virtio-net.ts'
import { controlQueueIndex } from '../../../src/device/control-queue.ts'
import {
  controlQueueFeatures,
  type Features,
  featuresByName,
  implementedFeatures,
} from '../../../src/device/features.ts'
import {
  type AnyControlFixture,
  CARD_MAC,
  controlFixture,
  type Framing,
  le16,
  le32,
  le64,
  macBytes,
  PAIRS_MAX,
  packedControlFixture,
  rssConfig,
} from '../../support/control-fixture.ts'
import { rulesOf } from '../../support/receive-rules.ts'

const everything = implementedFeatures | controlQueueFeatures
const feature = (...names: string[]): Features => names.reduce((set, name) => set | featuresByName.get(name)!, 0n)
const without = (...names: string[]): Features => everything & ~feature(...names)
const offloads = feature('guest_csum', 'guest_tso4', 'guest_tso6', 'guest_ecn', 'guest_uso4', 'guest_uso6')

const macTable = (unicast: readonly string[], multicast: readonly string[]): number[] => [
  VIRTIO_NET_CTRL_MAC,
  VIRTIO_NET_CTRL_MAC_TABLE_SET,
  ...[unicast, multicast].flatMap((macs) => [...le32(macs.length), ...macs.flatMap((mac) => [...macBytes(mac)])]),
]

/** One of each command: well-formed, the feature it needs, and what it must have done. */
const examples: readonly {
  readonly name: string
  readonly command: readonly number[]
  readonly feature: string
  readonly check: (fixture: AnyControlFixture) => void
}[] = [
  ...(
    [
      ['PROMISC', VIRTIO_NET_CTRL_RX_PROMISC, 'ctrl_rx'],
      ['ALLMULTI', VIRTIO_NET_CTRL_RX_ALLMULTI, 'ctrl_rx'],
      ['ALLUNI', VIRTIO_NET_CTRL_RX_ALLUNI, 'ctrl_rx_extra'],
      ['NOMULTI', VIRTIO_NET_CTRL_RX_NOMULTI, 'ctrl_rx_extra'],
      ['NOUNI', VIRTIO_NET_CTRL_RX_NOUNI, 'ctrl_rx_extra'],
      ['NOBCAST', VIRTIO_NET_CTRL_RX_NOBCAST, 'ctrl_rx_extra'],
    ] as const
  ).map(([name, command, needs]) => ({
    name: `RX_${name}`,
    command: [VIRTIO_NET_CTRL_RX, command, command === VIRTIO_NET_CTRL_RX_PROMISC ? 0 : 1],
    feature: needs,
    check: ({ filter, send }: AnyControlFixture) => {
      // Shown by the rules that hold once the card is no longer promiscuous.
      if (command !== VIRTIO_NET_CTRL_RX_PROMISC) send([VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, 0])
      expect(rulesOf(filter)).toMatchObject({
        filtering: true,
        anyUnicast: name === 'ALLUNI',
        anyMulticast: name === 'ALLMULTI',
        broadcast: name !== 'NOBCAST',
        unicast: name === 'NOUNI' ? [] : [CARD_MAC],
        multicast: [],
      })
    },
  })),
  {
    name: 'MAC_TABLE_SET',
    command: macTable(['02:00:00:00:00:07'], ['33:33:00:00:00:01', '01:00:5e:00:00:01']),
    feature: 'ctrl_rx',
    check: ({ filter }) =>
      expect(rulesOf(filter)).toMatchObject({
        unicast: [CARD_MAC, '02:00:00:00:00:07'],
        multicast: ['33:33:00:00:00:01', '01:00:5e:00:00:01'],
      }),
  },
  {
    name: 'MAC_ADDR_SET',
    command: [VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, 2, 3, 4, 5, 6, 7],
    feature: 'ctrl_mac_addr',
    check: ({ filter, effects }) => {
      expect(effects.calls).toEqual(['mac 020304050607'])
      expect(rulesOf(filter).unicast).toEqual(['02:03:04:05:06:07'])
    },
  },
  {
    name: 'VLAN_ADD',
    command: [VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, ...le16(4095)],
    feature: 'ctrl_vlan',
    check: ({ filter }) => expect(rulesOf(filter).vlans).toEqual([4095]),
  },
  {
    name: 'VLAN_DEL',
    command: [VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_DEL, ...le16(4095)],
    feature: 'ctrl_vlan',
    check: ({ filter }) => expect(rulesOf(filter).vlans).toEqual([]),
  },
  {
    name: 'ANNOUNCE_ACK',
    command: [VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK],
    feature: 'guest_announce',
    check: ({ effects }) => expect(effects.calls).toEqual(['announce acked']),
  },
  {
    name: 'MQ_VQ_PAIRS_SET',
    command: [VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, ...le16(PAIRS_MAX)],
    feature: 'mq',
    check: ({ effects }) => expect(effects.calls).toEqual([`pairs ${PAIRS_MAX}`]),
  },
  {
    name: 'MQ_RSS_CONFIG',
    command: rssConfig({ table: [3, 0, 1, 1], unclassified: 2, maxTx: 1, key: [0xab, 0xcd] }),
    feature: 'rss',
    check: ({ effects }) => expect(effects.calls).toEqual(['hash 3f by abcd to [3,0,1,1], else 2, of 4']),
  },
  {
    name: 'MQ_HASH_CONFIG',
    command: [VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_HASH_CONFIG, ...le32(2), ...le64(0n), 3, 7, 8, 9],
    feature: 'hash_report',
    check: ({ effects }) => expect(effects.calls).toEqual(['hash 2 by 070809 to null']),
  },
  {
    name: 'GUEST_OFFLOADS_SET',
    command: [VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, ...le64(feature('guest_csum'))],
    feature: 'ctrl_guest_offloads',
    check: ({ effects }) =>
      expect(effects.calls).toEqual([`features ${((everything & ~offloads) | feature('guest_csum')).toString(16)}`]),
  },
  {
    name: 'NOTF_COAL_TX_SET',
    command: [VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_NOTF_COAL_TX_SET, ...le32(16), ...le32(50)],
    feature: 'notf_coal',
    check: ({ effects }) => expect(effects.calls).toEqual(['tx 16 packets 50 us']),
  },
  {
    name: 'NOTF_COAL_RX_SET',
    command: [VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_NOTF_COAL_RX_SET, ...le32(0xffff_ffff), ...le32(100_000)],
    feature: 'notf_coal',
    check: ({ effects }) => expect(effects.calls).toEqual(['rx 4294967295 packets 100000 us']),
  },
]

const stateOf = ({ filter, effects }: AnyControlFixture) => ({ rules: rulesOf(filter), calls: [...effects.calls] })

const layouts = [
  ['split', controlFixture],
  ['packed', packedControlFixture],
] as const

describe.each(layouts)('%s ring: each command', (layout, newFixture) => {
  for (const example of examples) {
    test(`${example.name} is carried out before it is answered`, () => {
      const fixture = newFixture()
      expect(fixture.send(example.command)).toBe('ok')
      example.check(fixture)
    })

    test(`${example.name} is refused without ${example.feature}`, () => {
      const fixture = newFixture({ features: without(example.feature) })
      const before = stateOf(fixture)
      expect(fixture.send(example.command)).toBe('refused')
      expect(stateOf(fixture)).toEqual(before)
    })

    test(`${example.name} is refused with any byte less or more`, () => {
      const fixture = newFixture()
      const before = stateOf(fixture)
      for (let length = 1; length < example.command.length; length++) {
        expect(fixture.send(example.command.slice(0, length))).toBe('refused')
      }
      expect(fixture.send([...example.command, 0])).toBe('refused')
      expect(fixture.send([...example.command, ...example.command])).toBe('refused')
      expect(stateOf(fixture)).toEqual(before)
    })

    for (const indirect of [false, true]) {
      test(`${example.name} may be cut in any way, ${indirect ? 'indirect' : 'direct'}`, () => {
        const framings: Framing[] = []
        for (let piece = 1; piece <= example.command.length; piece++) {
          framings.push({ pieces: example.command.map(() => piece) })
          framings.push({ pieces: [piece], answer: [1, 1, 5] }, { pieces: [piece, 0, 1], answer: [0, 3] })
        }
        for (const framing of framings) {
          const fixture = newFixture()
          expect(fixture.send(example.command, { ...framing, options: indirect ? { indirectFrom: 0 } : {} })).toBe('ok')
          example.check(fixture)
        }
      })
    }

    // In a packed ring an indirect table is a chain of its own: VIRTIO 1.2 §2.8.19.
    if (layout === 'split') {
      test(`${example.name} may begin in the ring and go on in an indirect table`, () => {
        const fixture = newFixture()
        const framing = { pieces: [2], options: { indirectFrom: 1 } }
        expect(fixture.send(example.command, framing)).toBe('ok')
        example.check(fixture)
      })
    }
  }
})

describe.each(layouts)('%s ring: values', (_, newFixture) => {
  test('a receive mode is on for any value but 0', () => {
    const { send, filter } = newFixture()
    expect(send([VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, 0])).toBe('ok')
    expect(rulesOf(filter).filtering).toBe(true)
    expect(send([VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, 0x80])).toBe('ok')
    expect(rulesOf(filter).filtering).toBe(false)
  })

  test('the address table replaces the one before, and may be empty', () => {
    const { send, filter } = newFixture()
    expect(send(macTable(['02:00:00:00:00:07'], []))).toBe('ok')
    expect(send(macTable([], ['33:33:00:00:00:01']))).toBe('ok')
    expect(rulesOf(filter)).toMatchObject({ unicast: [CARD_MAC], multicast: ['33:33:00:00:00:01'] })
    expect(send(macTable([], []))).toBe('ok')
    expect(rulesOf(filter)).toMatchObject({ unicast: [CARD_MAC], multicast: [] })
  })

  test('a VLAN is added and taken away, others stay', () => {
    const { send, filter } = newFixture()
    for (const vlan of [0, 1, 31, 32, 4095]) {
      expect(send([VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, ...le16(vlan)])).toBe('ok')
    }
    expect(send([VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_DEL, ...le16(31)])).toBe('ok')
    expect(rulesOf(filter).vlans).toEqual([0, 1, 32, 4095])
  })

  test('queue pairs from 1 to the maximum', () => {
    const { send, effects } = newFixture()
    for (let pairs = 1; pairs <= PAIRS_MAX; pairs++) {
      expect(send([VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, ...le16(pairs)])).toBe('ok')
    }
    expect(effects.calls).toEqual(['pairs 1', 'pairs 2', 'pairs 3', 'pairs 4'])
  })

  test('the largest table and key, and none of either', () => {
    const { send, effects } = newFixture()
    const table = Array.from({ length: INDIRECTION_MAX }, (_, place) => place % PAIRS_MAX)
    const key = Array.from({ length: HASH_KEY_BYTES_MAX }, (_, index) => index)
    expect(send(rssConfig({ table, key }))).toBe('ok')
    expect(send(rssConfig({ table: [0], key: [], hashTypes: 0, maxTx: PAIRS_MAX }))).toBe('ok')
    expect(effects.calls).toEqual([
      `hash 3f by ${Buffer.from(key).toString('hex')} to [${table}], else 0, of 4`,
      'hash 0 by  to [0], else 0, of 4',
    ])
  })

  test("a number in the place of a hash command's reserved fields, as Linux before 6.5 leaves it there", () => {
    const { send, effects } = newFixture()
    const command = [...le32(1), ...le16(0), ...le16(0), ...le16(0), ...le16(1), 1, 5]
    expect(send([VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_HASH_CONFIG, ...command])).toBe('ok')
    expect(effects.calls).toEqual(['hash 1 by 05 to null'])
  })

  test('no offloads, all of them, and one without what it builds on', () => {
    const { send, effects } = newFixture()
    const set = (wanted: Features) =>
      send([VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, ...le64(wanted)])
    expect(set(0n)).toBe('ok')
    expect(set(offloads)).toBe('ok')
    expect(set(offloads & ~feature('guest_csum'))).toBe('ok')
    expect(set(feature('guest_csum', 'guest_ecn'))).toBe('ok')
    const rest = everything & ~offloads
    expect(effects.calls).toEqual(
      [rest, everything, rest, rest | feature('guest_csum')].map((set) => `features ${set.toString(16)}`),
    )
  })

  test('what cannot be done is refused', () => {
    const { send, effects } = newFixture()
    effects.possible = false
    expect(send([VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, ...le16(2)])).toBe('refused')
    expect(send([VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, ...le64(0n)])).toBe('refused')
    expect(send(rssConfig())).toBe('refused')
    effects.possible = true
    expect(send([VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, ...le16(2)])).toBe('ok')
  })
})

describe.each(layouts)('%s ring: turns', (_, newFixture) => {
  const promisc = [VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, 1]

  test('are bounded, whatever waits', () => {
    const { offer, control, driver } = newFixture({ size: 128 })
    for (let count = 0; count < 60; count++) offer(promisc)
    let answered = 0
    const turns: number[] = []
    for (let more = true; more && turns.length < 60; ) {
      more = control.turn()
      let now = 0
      while (driver.reap() !== undefined) now++
      answered += now
      turns.push(now)
    }
    expect(answered).toBe(60)
    expect(Math.max(...turns)).toBeLessThanOrEqual(16)
    expect(turns.at(-1)).toBeLessThan(16)
  })

  test('bound malformed commands as well', () => {
    const { driver, memory, control } = newFixture({ size: 128 })
    const address = memory.allocate(8)
    for (let count = 0; count < 60; count++) driver.add([{ address, length: 3 }])
    driver.publish()
    expect(control.turn()).toBe(true)
    let answered = 0
    while (driver.reap() !== undefined) answered++
    expect(answered).toBeLessThanOrEqual(16)
  })

  test('without a command do nothing and ask for a kick', () => {
    for (const eventIdx of [false, true]) {
      const { control, driver, offer, callCount } = newFixture({ eventIdx })
      expect(control.turn()).toBe(false)
      expect(callCount()).toBe(0)
      offer(promisc)
      expect(driver.needsKick()).toBe(true)
      expect(control.turn()).toBe(false)
      offer(promisc)
      expect(driver.needsKick()).toBe(true)
    }
  })

  test('call the driver if it wants to be called, once a command', () => {
    for (const eventIdx of [false, true]) {
      const { control, driver, offer, callCount, send } = newFixture({ eventIdx })
      driver.disableCalls()
      expect(send(promisc)).toBe('ok')
      expect(callCount()).toBe(0)
      driver.enableCalls()
      offer(promisc)
      control.turn()
      expect(callCount()).toBe(1)
      control.turn()
      expect(callCount()).toBe(1)
    }
  })

  test('go on where the ring wraps', () => {
    const { send } = newFixture({ size: 4 })
    for (let count = 0; count < 20; count++) expect(send(promisc)).toBe('ok')
  })
})

test('the indices of a split ring wrap', () => {
  const { send } = controlFixture({ size: 4, start: 65_530 })
  for (let count = 0; count < 20; count++) {
    expect(send([VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, count % 2])).toBe('ok')
  }
})

describe('the index of the control queue', () => {
  test('comes after the pairs that the driver knows of', () => {
    expect(controlQueueIndex(feature('ctrl_vq', 'mq'), 4)).toBe(8)
    expect(controlQueueIndex(feature('ctrl_vq', 'mq'), 1)).toBe(2)
    expect(controlQueueIndex(feature('ctrl_vq'), 4)).toBe(2)
  })
})

describe.each(layouts)('%s ring: Linux', (_, newFixture) => {
  test('sets the card up as virtio_net does when it is probed and opened', () => {
    const { send, effects, filter } = newFixture()
    // Header, data and answer each in a buffer of its own; the address table in two.
    const asLinux = (command: number[], ...pieces: number[]) => send(command, { pieces: [2, ...pieces] })
    expect(asLinux([VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, ...le16(2)])).toBe('ok')
    expect(asLinux([VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, 0])).toBe('ok')
    expect(asLinux([VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI, 0])).toBe('ok')
    expect(asLinux(macTable([], ['01:00:5e:00:00:01', '33:33:00:00:00:01']), 4)).toBe('ok')
    expect(asLinux([VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, ...le16(0)])).toBe('ok')
    expect(effects.calls).toEqual(['pairs 2'])
    expect(rulesOf(filter)).toEqual({
      filtering: true,
      anyUnicast: false,
      anyMulticast: false,
      broadcast: true,
      byVlan: true,
      unicast: [CARD_MAC],
      multicast: ['01:00:5e:00:00:01', '33:33:00:00:00:01'],
      vlans: [0],
    })
  })
})
