import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { type NativeProcess, until } from '../../scripts/frontends/native-process.ts'
import { startUml, type Uml } from '../../scripts/frontends/uml.ts'
import { concat, makePacket } from '../support/frames.ts'
import { FrontendRig, noFrontends } from '../support/frontend-rig.ts'
import { PacketSocket } from '../support/packet-socket.ts'
import { buildRxhash } from '../support/programs.ts'
import { Random } from '../support/random.ts'
import { MICROSOFT_KEY, toeplitz } from '../support/toeplitz.ts'

const TEST_MS = 600_000

type Protocol = 'tcp' | 'udp'
type Version = 4 | 6
type Flow = { readonly frame: Uint8Array; readonly addresses: Uint8Array; readonly all: Uint8Array }

/** A frame between ports of its own, and what of it is hashed. */
const flow = (protocol: Protocol, version: Version, ports: number): Flow => {
  const { frame, transport } = makePacket({ protocol, version, payload: new Uint8Array(10) }, true)
  // The checksum is of no interest to anybody here.
  new DataView(frame.buffer).setUint32(transport, ports)
  const addresses = frame.slice(transport - (version === 4 ? 8 : 32), transport)
  return { frame, addresses, all: concat(addresses, frame.slice(transport, transport + 4)) }
}

/** Places of a driver's table; Linux uses as many as the card has. */
const PLACES = 128

describe.skipIf(noFrontends !== null)("receive-side scaling by Linux's driver", () => {
  let rig: FrontendRig
  let device: NativeProcess
  let uml: Uml
  let wire: PacketSocket
  let admin: string

  beforeAll(async () => {
    rig = await FrontendRig.open()
    const rxhash = await buildRxhash()
    admin = rig.socket()
    const { process, ifname, socket } = await rig.device({ args: ['--queue-pairs', '2'], admin: `unix:${admin}` })
    device = process
    uml = await startUml({ netns: rig.netns, sockets: [socket], files: { '/usr/bin/rxhash': rxhash } })
    await uml.guest.ok('ip link set eth0 promisc on && ip link set eth0 up')
    await uml.guest.waitFor('ip link show eth0 | grep -q LOWER_UP')
    await uml.guest.ok('ethtool -L eth0 combined 2')
    await uml.guest.ok(`ethtool -X eth0 hkey ${MICROSOFT_KEY.toHex().match(/../g)!.join(':')}`)
    wire = new PacketSocket(rig.netns, ifname)
  }, TEST_MS)
  afterAll(async () => {
    wire?.[Symbol.dispose]()
    await uml?.stop()
    await device?.stop()
    rig?.[Symbol.dispose]()
  })

  /** Packets that each queue pair has received. */
  const received = async (): Promise<number[]> => {
    const response = await fetch('http://localhost/v1/queues', { unix: admin })
    const { queues } = (await response.json()) as { queues: { direction: 'rx' | 'tx'; packets: number }[] }
    return queues.filter(({ direction }) => direction === 'rx').map(({ packets }) => packets)
  }

  /** Sends frames; how many each queue pair got. Nobody else sends anything here. */
  const spread = async (flows: readonly Flow[]): Promise<number[]> => {
    const before = await received()
    for (const { frame } of flows) wire.send(frame)
    const since = async (): Promise<number[]> => (await received()).map((packets, pair) => packets - before[pair]!)
    await until('all frames are received', async () => {
      const counts = await since()
      return counts.reduce((sum, count) => sum + count, 0) === flows.length
    })
    return since()
  }

  const random = new Random(0x5ca1e)
  const flows = (protocol: Protocol, version: Version, count = 300): Flow[] =>
    Array.from({ length: count }, () => flow(protocol, version, random.u32()))

  const kinds = [
    ['tcp', 4],
    ['udp', 4],
    ['tcp', 6],
    ['udp', 6],
  ] as const

  /** How many of the frames a table sends to each of two queue pairs. */
  const expected = (sent: readonly Flow[], table: (place: number) => number): number[] => {
    const counts = [0, 0]
    for (const { all } of sent) counts[table(toeplitz(MICROSOFT_KEY, all) % PLACES)]!++
    return counts
  }

  test(
    'the driver has negotiated it, and ethtool shows the table and the key',
    async () => {
      const response = await fetch('http://localhost/v1/device', { unix: admin })
      const { features } = (await response.json()) as { features: { negotiated: string[] } }
      expect(features.negotiated).toEqual(expect.arrayContaining(['rss', 'hash_report']))
      const shown = await uml.guest.ok('ethtool -x eth0')
      expect(shown).toContain('with 2 RX ring(s)')
      expect(shown.replaceAll(':', '')).toContain(MICROSOFT_KEY.toHex())
    },
    TEST_MS,
  )

  test(
    'each packet goes to the queue pair that the table says',
    async () => {
      await uml.guest.ok('ethtool -X eth0 equal 2')
      for (const [protocol, version] of kinds) {
        const sent = flows(protocol, version)
        const counts = expected(sent, (place) => place % 2)
        expect(Math.min(...counts)).toBeGreaterThan(100)
        expect(await spread(sent)).toEqual(counts)
      }
    },
    TEST_MS,
  )

  test(
    'another table holds from the moment at which ethtool -X returns',
    async () => {
      for (const [weights, pair] of [
        ['0 1', 1],
        ['1 0', 0],
      ] as const) {
        await uml.guest.ok(`ethtool -X eth0 weight ${weights}`)
        for (const [protocol, version] of kinds) {
          const counts = [0, 0]
          counts[pair] = 50
          expect(await spread(flows(protocol, version, 50))).toEqual(counts)
        }
      }
      // A quarter to the first.
      await uml.guest.ok('ethtool -X eth0 weight 1 3')
      const sent = flows('tcp', 4)
      expect(await spread(sent)).toEqual(expected(sent, (place) => (place < PLACES / 4 ? 0 : 1)))
    },
    TEST_MS,
  )

  test(
    'ports count only for protocols of which the driver says so',
    async () => {
      await uml.guest.ok('ethtool -X eth0 equal 2')
      // Without it this driver keeps to itself what it is told of hashes.
      await uml.guest.ok('ethtool -K eth0 rxhash on')
      await uml.guest.ok('ethtool -N eth0 rx-flow-hash udp4 sd')
      const sent = flows('udp', 4, 100)
      const counts = [0, 0]
      counts[toeplitz(MICROSOFT_KEY, sent[0]!.addresses) % 2] = sent.length
      expect(await spread(sent)).toEqual(counts)
      await uml.guest.ok('ethtool -N eth0 rx-flow-hash udp4 sdfn')
      expect(await spread(sent)).toEqual(expected(sent, (place) => place % 2))
    },
    TEST_MS,
  )

  test(
    'the hash of each packet is reported to the driver',
    async () => {
      await uml.guest.ok('ethtool -K eth0 rxhash on')
      const sent = kinds.flatMap(([protocol, version]) => flows(protocol, version, 25))
      const reader = uml.guest.spawn(`rxhash eth0 ${sent.length}`)
      await reader.line(/^ready$/)
      for (const { frame } of sent) wire.send(frame)
      expect(await reader.exited).toBe(0)
      const reported = new Map(
        reader.lines.slice(1).map((line) => [line.split(' ')[1]!, Number.parseInt(line.split(' ')[0]!, 16)] as const),
      )
      for (const { frame, all } of sent) {
        expect(reported.get(Buffer.from(frame.subarray(0, 96)).toString('hex'))).toBe(toeplitz(MICROSOFT_KEY, all))
      }
    },
    TEST_MS,
  )

  test(
    'with one queue pair less all goes to the one that is left; with two the table counts, and ' +
      'without a hash type nothing does',
    async () => {
      await uml.guest.ok('ethtool -X eth0 default && ethtool -L eth0 combined 1')
      expect(await spread(flows('tcp', 6, 50))).toEqual([50, 0])
      await uml.guest.ok('ethtool -L eth0 combined 2 && ethtool -X eth0 equal 2')
      const sent = flows('tcp', 6)
      expect(await spread(sent)).toEqual(expected(sent, (place) => place % 2))
      // This driver then asks for no hash at all.
      await uml.guest.ok('ethtool -K eth0 rxhash off')
      expect(await spread(sent)).toEqual([sent.length, 0])
    },
    TEST_MS,
  )
})
