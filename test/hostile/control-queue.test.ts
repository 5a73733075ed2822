/** What a driver can put into the control queue. The numbers are those of the list of hostile inputs. */
import { describe, expect, test } from 'bun:test'
import type { DropReason } from '../../src/abi/drop-reason.ts'
import { HASH_KEY_BYTES_MAX, INDIRECTION_MAX } from '../../src/abi/receive-scaling.ts'
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
  VIRTIO_NET_CTRL_RX_NOBCAST,
  VIRTIO_NET_CTRL_RX_PROMISC,
  VIRTIO_NET_CTRL_VLAN,
  VIRTIO_NET_CTRL_VLAN_ADD,
  VIRTIO_NET_CTRL_VLAN_DEL,
  VIRTIO_NET_OK,
} from '../../src/abi/virtio-net.ts'
import { VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE } from '../../src/abi/virtio-ring.ts'
import { DriverFault } from '../../src/base/errors.ts'
import { controlQueueFeatures, featuresByName, implementedFeatures } from '../../src/device/features.ts'
import { ACCESS } from '../../src/memory/region.ts'
import { OwnedMapping } from '../../src/sys/mapping.ts'
import {
  type ControlFixture,
  type ControlFixtureOptions,
  controlFixture,
  le16,
  le32,
  le64,
  PAIRS_MAX,
  rssConfig,
} from '../support/control-fixture.ts'
import type { RawDescriptor } from '../support/driver-model.ts'
import { TestMemory } from '../support/memory.ts'
import { Random } from '../support/random.ts'
import { rulesOf } from '../support/receive-rules.ts'
import { ScratchFile } from '../support/scratch-file.ts'

const NEXT = VRING_DESC_F_NEXT
const WRITE = VRING_DESC_F_WRITE

const promiscOff = [VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, 0]
const hashConfig = [VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_HASH_CONFIG]
const pairs = (count: number): number[] => [VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, ...le16(count)]
const table = (...data: number[]): number[] => [VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, ...data]
/** Calls that wait, for both directions. */
const coalescing = (packets: number, usecs: number): number[][] =>
  [VIRTIO_NET_CTRL_NOTF_COAL_TX_SET, VIRTIO_NET_CTRL_NOTF_COAL_RX_SET].map((command) => [
    VIRTIO_NET_CTRL_NOTF_COAL,
    command,
    ...le32(packets),
    ...le32(usecs),
  ])
const mac = (last: number): number[] => [2, 0, 0, 0, 0, last]

/** Everything that a command can change. */
const stateOf = ({ filter, effects }: ControlFixture) => ({ rules: rulesOf(filter), calls: [...effects.calls] })

/** Sends each command: all are refused, and nothing changes. */
const expectRefused = (commands: readonly (readonly number[])[], options: ControlFixtureOptions = {}): void => {
  const fixture = controlFixture(options)
  expect(fixture.send(promiscOff)).toBe('ok')
  const before = stateOf(fixture)
  for (const command of commands) {
    expect([command.slice(0, 16), fixture.send(command)]).toEqual([command.slice(0, 16), 'refused'])
  }
  expect(stateOf(fixture)).toEqual(before)
}

/** A descriptor at a driver address. */
const at = (address: number, length: number, flags = 0, next = 0): RawDescriptor => ({
  addressLow: address % 2 ** 32,
  addressHigh: Math.floor(address / 2 ** 32),
  length,
  flags,
  next,
})

/** Places for a good command and its answer. */
const places = ({ memory }: ControlFixture) => {
  const command = memory.allocate(promiscOff.length)
  memory.bytes.set(promiscOff, command - memory.start)
  const answer = memory.allocate(1)
  return { command, answer }
}

/**
 * Reaction D: the chain goes back with length 0, counted by reason; the command in it had no effect, and the queue goes
 * on.
 */
const expectDropped = (
  reason: DropReason,
  descriptors: (fixture: ControlFixture, place: { command: number; answer: number }) => RawDescriptor[],
  options: ControlFixtureOptions = {},
): void => {
  const fixture = controlFixture(options)
  const { driver, control } = fixture
  const before = stateOf(fixture)
  driver.offerRaw(descriptors(fixture, places(fixture)), 0)
  expect(control.turn()).toBe(false)
  expect(driver.reap()).toEqual({ id: 0, length: 0 })
  expect(fixture.dropped()).toEqual({ [reason]: 1 })
  expect(stateOf(fixture)).toEqual(before)
  expect(fixture.callCount()).toBe(1)
  expect(fixture.send(promiscOff)).toBe('ok')
}

describe('commands', () => {
  test('79 short: nothing but a class, and each command cut anywhere', () => {
    const whole = [
      promiscOff,
      [VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, ...mac(9)],
      table(...le32(1), ...mac(9), ...le32(1), 1, 0, 0, 0, 0, 9),
      [VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, ...le16(5)],
      pairs(2),
      [VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, ...le64(0n)],
      ...coalescing(8, 100),
    ]
    expectRefused(whole.flatMap((command) => command.slice(1).map((_, length) => command.slice(0, length + 1))))
  })

  test('79 no readable byte at all', () => {
    expectRefused([[]])
  })

  test('79 unknown: every class and command, with no data', () => {
    const fixture = controlFixture({ memoryBytes: 1 << 20 })
    const known: string[] = []
    for (let commandClass = 0; commandClass < 256; commandClass++) {
      for (let command = 0; command < 256; command++) {
        if (fixture.send([commandClass, command]) === 'ok') known.push(`${commandClass}.${command}`)
      }
    }
    expect(known).toEqual([`${VIRTIO_NET_CTRL_ANNOUNCE}.${VIRTIO_NET_CTRL_ANNOUNCE_ACK}`])
    expect(fixture.effects.calls).toEqual(['announce acked'])
  })

  test('79 unknown: commands of known classes with data of every length up to 40', () => {
    const commands: number[][] = []
    for (const [commandClass, known] of [
      [VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOBCAST],
      [VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET],
      [VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_DEL],
      [VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK],
      [VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET],
      [VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET],
      [VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_NOTF_COAL_RX_SET],
    ] as const) {
      for (const command of [known + 1, 255]) {
        for (let length = 0; length <= 40; length++) {
          commands.push([commandClass, command, ...new Array<number>(length).fill(1)])
        }
      }
    }
    expectRefused(commands)
  })

  test('79 long: more data than the command takes', () => {
    expectRefused([
      [...promiscOff, 0],
      [...pairs(2), 0],
      [...pairs(2), ...new Array<number>(1000).fill(0)],
      [VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, ...mac(9), ...mac(9)],
      [VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, 0],
      table(...le32(0), ...le32(0), 0),
      ...coalescing(8, 100).map((command) => [...command, 0]),
    ])
  })

  test('79 more than 64 KiB, and exactly as much', () => {
    const header = 2 + 4 + 4
    const count = Math.floor((65_536 - header) / 6)
    const addresses = (entries: number) => Array.from({ length: entries }, () => mac(9)).flat()
    const fixture = controlFixture()
    expect(fixture.send(promiscOff)).toBe('ok')
    expect(fixture.send(table(...le32(count), ...addresses(count), ...le32(0)))).toBe('ok')
    expect(rulesOf(fixture.filter).anyUnicast).toBe(true)
    const before = stateOf(fixture)
    expect(fixture.send(table(...le32(count + 1), ...addresses(count + 1), ...le32(0)))).toBe('refused')
    expect(fixture.send(new Array<number>(65_537).fill(0))).toBe('refused')
    expect(stateOf(fixture)).toEqual(before)
  })

  test('80 queue pairs: 0, one more than there are, and the largest numbers', () => {
    expectRefused([0, PAIRS_MAX + 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(pairs))
  })

  test('80 queue pairs of a card with one pair: the number in the wrong byte order', () => {
    expectRefused([[VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, 0, 1]])
  })

  test('81 a MAC table with more entries than data, up to those whose size wraps', () => {
    // 0x2aaaaaab * 6 is 2 in 32 bits, 0x80000000 * 6 and 0xaaaaaaab * 6 wrap to 0 and 2 as well.
    const counts = [2, 3, 0x2aaa_aaab, 0x5555_5556, 0x8000_0000, 0xaaaa_aaab, 0xffff_fffe, 0xffff_ffff]
    expectRefused([
      ...counts.map((entries) => table(...le32(entries), ...mac(9), ...le32(0))),
      ...counts.map((entries) => table(...le32(0), ...le32(entries), 1, 0, 0, 0, 0, 9)),
      // The second table is missing, or only begun.
      table(...le32(1), ...mac(9)),
      table(...le32(1), ...mac(9), 0, 0),
      table(...le32(0)),
      table(),
    ])
  })

  test('82 a receive-side scaling table whose mask, length or queues there are not', () => {
    const key = Array.from({ length: HASH_KEY_BYTES_MAX + 1 }, (_, index) => index)
    const place = (index: number): number[] =>
      Array.from({ length: INDIRECTION_MAX }, (_, at) => (at === 5 ? index : 0))
    const beyond = [PAIRS_MAX, 0x7fff, 0xffff]
    expectRefused([
      // Not a power of two, or longer than was offered, with and without so much data.
      ...[3, 5, 6, 127].map((places) => rssConfig({ table: new Array(places).fill(0) })),
      rssConfig({ table: new Array(2 * INDIRECTION_MAX).fill(0) }),
      ...[2, INDIRECTION_MAX, 0x7fff, 0xfffe, 0xffff].map((mask) => rssConfig({ mask })),
      // Shorter or longer than the mask says.
      rssConfig({ table: [0, 0, 0], mask: 3 }),
      rssConfig({ table: [0, 0, 0], mask: 1 }),
      // Queue pairs.
      ...beyond.flatMap((pair) => [
        rssConfig({ table: place(pair) }),
        rssConfig({ unclassified: pair }),
        rssConfig({ maxTx: pair + 1 }),
      ]),
      rssConfig({ maxTx: 0 }),
      // Hash types that were not offered.
      ...[6, 7, 8, 31].map((bit) => rssConfig({ hashTypes: (1 << bit) >>> 0 })),
      // Keys: too long, longer or shorter than said.
      rssConfig({ key }),
      rssConfig({ keyBytes: 5 }),
      rssConfig({ keyBytes: 3 }),
      rssConfig({ keyBytes: 255 }),
      ...[64, 0x8000_0000].map((types) => [...hashConfig, ...le32(types), ...le64(0n), 0]),
      [...hashConfig, ...le32(1), ...le64(0n), key.length, ...key],
      [...hashConfig, ...le32(1), ...le64(0n), 255],
    ])
  })

  test('an address that no card has: all zero, or a group address', () => {
    expectRefused(
      [
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0x5e, 0, 0, 1],
        [255, 255, 255, 255, 255, 255],
      ].map((address) => [VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, ...address]),
    )
  })

  test('calls that come so late that their packets would be thought lost', () => {
    expectRefused([100_001, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff].flatMap((usecs) => coalescing(8, usecs)))
  })

  test('a VLAN beyond 4095', () => {
    expectRefused(
      [4096, 4097, 0x8000, 0xffff].flatMap((vlan) => [
        [VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, ...le16(vlan)],
        [VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_DEL, ...le16(vlan)],
      ]),
    )
  })

  test('offloads that were not negotiated, and bits that are none', () => {
    const features = (implementedFeatures | controlQueueFeatures) & ~featuresByName.get('guest_tso6')!
    const bits = [
      featuresByName.get('guest_tso6')!,
      featuresByName.get('guest_tso4')! | featuresByName.get('guest_tso6')!,
      featuresByName.get('csum')!,
      featuresByName.get('mrg_rxbuf')!,
      featuresByName.get('version_1')!,
      1n << 10n,
      1n << 63n,
      2n ** 64n - 1n,
    ]
    const set = (wanted: bigint) => [
      VIRTIO_NET_CTRL_GUEST_OFFLOADS,
      VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET,
      ...le64(wanted),
    ]
    expectRefused(bits.map(set), { features })
  })

  test('any bytes in any framing are answered, and have only effects that make sense', () => {
    const random = new Random(0xc0117201)
    const fixture = controlFixture({ memoryBytes: 4 << 20 })
    const starts = [promiscOff, table(...le32(1), ...mac(9), ...le32(0)), pairs(2), ...coalescing(8, 100)]
    let accepted = 0
    for (let round = 0; round < 10_000; round++) {
      const command = random.chance(0.5)
        ? Array.from({ length: random.below(24) }, () => random.below(random.pick([2, 8, 256])))
        : [...random.pick(starts)]
      if (command.length > 0 && random.chance(0.5)) command[random.below(command.length)] = random.below(256)
      const pieces = Array.from({ length: random.below(6) }, () => random.below(5))
      const options = random.chance(0.5) ? { indirectFrom: 0 } : {}
      const answer = [0, 1, random.below(4)].slice(random.below(2))
      if (fixture.send(command, { pieces, answer, options }) === 'ok') accepted++
    }
    expect(accepted).toBeGreaterThan(500)
    expect(accepted).toBeLessThan(9_500)
    expect(fixture.dropped()).toEqual({})
    const newCoalescing = String.raw`[rt]x \d+ packets \d{1,6} us`
    const newMac = 'mac [0-9a-f][02468ace][0-9a-f]{10}'
    const possible = new RegExp(`^(pairs [1-4]|${newMac}|announce acked|features [0-9a-f]+|${newCoalescing})$`)
    for (const call of new Set(fixture.effects.calls)) expect(call).toMatch(possible)
  })
})

describe('chains', () => {
  test('25 no writable buffer: nowhere to answer', () => {
    expectDropped('chain_wrong_direction', (_, { command }) => [at(command, 3)])
    expectDropped('chain_wrong_direction', (_, { command }) => [at(command, 2, NEXT, 1), at(command + 2, 1)])
  })

  test('25 a writable buffer of no length: nowhere to answer', () => {
    expectDropped('chain_wrong_direction', (_, { command, answer }) => [at(command, 3, NEXT, 1), at(answer, 0, WRITE)])
  })

  test('27 a readable buffer after the writable one', () => {
    expectDropped('chain_wrong_direction', (_, { command, answer }) => [
      at(command, 2, NEXT, 1),
      at(answer, 1, NEXT | WRITE, 2),
      at(command + 2, 1),
    ])
    expectDropped('chain_wrong_direction', (_, { command, answer }) => [at(answer, 1, NEXT | WRITE, 1), at(command, 3)])
  })

  test('5 next beyond the ring', () => {
    expectDropped('chain_next_out_of_range', (_, { command }) => [at(command, 3, NEXT, 64)])
  })

  test('83 a loop among the readable buffers, among the writable ones, and across', () => {
    expectDropped('chain_loop', (_, { command }) => [at(command, 3, NEXT, 0)])
    expectDropped('chain_loop', (_, { command, answer }) => [
      at(command, 3, NEXT, 1),
      at(answer, 1, NEXT | WRITE, 2),
      at(answer, 1, NEXT | WRITE, 1),
    ])
    expectDropped('chain_wrong_direction', (_, { command, answer }) => [
      at(command, 3, NEXT, 1),
      at(answer, 1, NEXT | WRITE, 0),
    ])
  })

  test('83 a loop in an indirect table', () => {
    expectDropped('chain_loop', ({ driver, memory }, { command, answer }) => {
      const address = memory.allocate(48)
      driver.writeTable(address, [
        at(command, 3, NEXT, 1),
        at(answer, 1, NEXT | WRITE, 2),
        at(answer, 1, NEXT | WRITE, 1),
      ])
      return [at(address, 48, VRING_DESC_F_INDIRECT)]
    })
  })

  test('10 nothing but buffers of no length', () => {
    expectDropped('chain_empty', (_, { command, answer }) => [at(command, 0, NEXT, 1), at(answer, 0, WRITE)])
  })

  test('9 buffers of no length anywhere are skipped', () => {
    const { send, filter } = controlFixture()
    expect(send(promiscOff, { pieces: [0, 1, 0, 1, 0], answer: [0, 0, 1, 0] })).toBe('ok')
    expect(rulesOf(filter).filtering).toBe(true)
  })

  test('12 a command or an answer outside of every region: the command has no effect', () => {
    expectDropped('chain_address_unmapped', ({ memory }, { answer }) => [
      at(memory.end, 3, NEXT, 1),
      at(answer, 1, WRITE),
    ])
    expectDropped('chain_address_unmapped', ({ memory }, { command }) => [
      at(command, 3, NEXT, 1),
      at(memory.end, 1, WRITE),
    ])
    expectDropped('chain_address_unmapped', ({ memory }, { command }) => [
      at(command, 3, NEXT, 1),
      at(memory.end - 1, 2, WRITE),
    ])
  })

  test('11 addresses at the end of 64 bits', () => {
    const last = { addressLow: 0xffff_ffff, addressHigh: 0xffff_ffff }
    expectDropped('chain_address_unmapped', (_, { answer }) => [
      { ...last, length: 3, flags: NEXT, next: 1 },
      at(answer, 1, WRITE),
    ])
    expectDropped('chain_address_unmapped', (_, { command }) => [
      at(command, 3, NEXT, 1),
      { ...last, length: 1, flags: WRITE },
    ])
  })

  test('an answer in memory that may not be written, a command in memory that may not be read', () => {
    const other = 0x4000_0000
    for (const [access, readable] of [
      [ACCESS.read, true],
      [ACCESS.write, false],
    ] as const) {
      expectDropped('chain_address_unmapped', ({ space }, { command, answer }) => {
        expect(space.add(new TestMemory(4096, other).region(access))).toBe(true)
        return readable ? [at(command, 3, NEXT, 1), at(other, 1, WRITE)] : [at(other, 3, NEXT, 1), at(answer, 1, WRITE)]
      })
    }
  })

  test('13 a command that crosses from one region into the next', () => {
    const fixture = controlFixture()
    const { driver, control, space, memory, filter } = fixture
    const next = new TestMemory(4096, memory.end)
    expect(space.add(next.region())).toBe(true)
    memory.bytes.set(promiscOff.slice(0, 1), memory.lengthBytes - 1)
    next.bytes.set(promiscOff.slice(1))
    driver.offerRaw([at(memory.end - 1, 3, NEXT, 1), at(memory.end + 100, 1, WRITE)])
    next.bytes[100] = 0xee
    control.turn()
    expect(driver.reap()).toEqual({ id: 0, length: 1 })
    expect(next.bytes[100]).toBe(VIRTIO_NET_OK)
    expect(rulesOf(filter).filtering).toBe(true)
  })

  test('8 as many buffers as a chain may have, and one more', () => {
    const command = table(...le32(100), ...Array.from({ length: 100 }, () => mac(9)).flat(), ...le32(0))
    for (const [extra, outcome] of [
      [1024 - command.length, 'ok'],
      [1025 - command.length, 'too many'],
    ] as const) {
      const fixture = controlFixture({ size: 2048 })
      const framing = { pieces: command.map(() => 1), answer: new Array<number>(extra).fill(1) }
      if (outcome === 'ok') expect(fixture.send(command, framing)).toBe('ok')
      else {
        fixture.offer(command, framing)
        fixture.control.turn()
        expect(fixture.driver.reap()?.length).toBe(0)
        expect(fixture.dropped()).toEqual({ chain_too_many_segments: 1 })
        expect(fixture.effects.calls).toEqual([])
      }
    }
  })

  test('31 the answer is written over the command', () => {
    const fixture = controlFixture()
    const { command } = places(fixture)
    fixture.driver.offerRaw([at(command, 3, NEXT, 1), at(command, 3, WRITE)])
    fixture.control.turn()
    expect(fixture.driver.reap()).toEqual({ id: 0, length: 1 })
    expect(rulesOf(fixture.filter).filtering).toBe(true)
    const offset = command - fixture.memory.start
    expect([...fixture.memory.bytes.slice(offset, offset + 3)]).toEqual([VIRTIO_NET_OK, 0, 0])
  })

  test('31 the answer is written into the rings: at worst the ring is given up', () => {
    for (const place of ['descAddr', 'availAddr', 'usedAddr'] as const) {
      for (let offset = 0; offset < 16; offset++) {
        const fixture = controlFixture()
        const { driver, control } = fixture
        const { command } = places(fixture)
        for (let head = 0; head < 8; head++) {
          driver.setDescriptor(2 * head, at(command, 3, NEXT, 2 * head + 1))
          driver.setDescriptor(2 * head + 1, at(driver[place] + offset, 1, WRITE))
          driver.exposeHead(2 * head)
        }
        driver.publish()
        try {
          control.turn()
        } catch (fault) {
          expect(fault).toBeInstanceOf(DriverFault)
        }
        expect(rulesOf(fixture.filter).filtering).toBe(true)
      }
    }
  })
})

describe('the ring', () => {
  test('1 avail.idx jumps: the fault goes to the owner', () => {
    const fixture = controlFixture({ size: 8 })
    fixture.driver.availIdx = 9
    expect(() => fixture.control.turn()).toThrow('AVAIL_OVERRUN')
    expect(fixture.queue.quarantined).toBe(true)
    expect(fixture.control.turn()).toBe(false)
  })

  test('34 a storm of empty kicks', () => {
    const fixture = controlFixture()
    const before = Bun.hash(fixture.memory.bytes)
    for (let kick = 0; kick < 10_000; kick++) expect(fixture.control.turn()).toBe(false)
    expect(Bun.hash(fixture.memory.bytes)).toBe(before)
  })
})

describe('107 memory that vanishes', () => {
  const PAGE = 4096

  /** A control queue with one more page, of a file that can be cut off. */
  const withVanishingPage = (use: (fixture: ControlFixture, page: number, vanish: () => void) => void): void => {
    using file = new ScratchFile(PAGE)
    const fixture = controlFixture()
    const page = 0x4000_0000
    const mapping = new OwnedMapping(file.fd, PAGE)
    const region = { start: page, lengthBytes: PAGE, access: ACCESS.readWrite, mapping, mappingOffset: 0 }
    expect(fixture.space.add(region)).toBe(true)
    use(fixture, page, () => file.truncate(0))
    fixture.queue[Symbol.dispose]()
    fixture.space.clear()
  }

  test('under a command: the zeroes in its place are not carried out', () => {
    withVanishingPage((fixture, page, vanish) => {
      const { answer } = places(fixture)
      const before = stateOf(fixture)
      fixture.driver.offerRaw([at(page, 3, NEXT, 1), at(answer, 1, WRITE)])
      vanish()
      expect(() => fixture.control.turn()).toThrow('MEMORY_VANISHED')
      // Three zeroes are a command: leave promiscuous mode.
      expect(stateOf(fixture)).toEqual(before)
    })
  })

  test('under an answer', () => {
    withVanishingPage((fixture, page, vanish) => {
      const { command } = places(fixture)
      fixture.driver.offerRaw([at(command, 3, NEXT, 1), at(page, 1, WRITE)])
      vanish()
      expect(() => fixture.control.turn()).toThrow('MEMORY_VANISHED')
    })
  })
})
