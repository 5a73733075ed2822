/** Items 34 to 48: the network device. VIRTIO 1.2 §5.1. */

import { expect } from 'bun:test'
import {
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_CTRL_MAC_ADDR,
  VIRTIO_NET_F_CTRL_RX,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_MTU,
  VIRTIO_NET_F_SPEED_DUPLEX,
  VIRTIO_NET_F_STATUS,
} from '../../../src/abi/virtio.ts'
import {
  VIRTIO_NET_CTRL_ANNOUNCE,
  VIRTIO_NET_CTRL_ANNOUNCE_ACK,
  VIRTIO_NET_CTRL_MAC,
  VIRTIO_NET_CTRL_MAC_ADDR_SET,
  VIRTIO_NET_CTRL_MAC_TABLE_SET,
  VIRTIO_NET_CTRL_MQ,
  VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
  VIRTIO_NET_CTRL_RX,
  VIRTIO_NET_CTRL_RX_PROMISC,
  VIRTIO_NET_HDR_F_DATA_VALID,
  VIRTIO_NET_HDR_F_NEEDS_CSUM,
  VIRTIO_NET_HDR_GSO_ECN,
  VIRTIO_NET_HDR_GSO_NONE,
  VIRTIO_NET_HDR_GSO_TCPV4,
  VIRTIO_NET_OK,
  VIRTIO_NET_S_ANNOUNCE,
} from '../../../src/abi/virtio-net.ts'
import { gsoHeader, makePacket, noise, type Packet, type PacketShape } from '../frames.ts'
import { numberOf } from '../packet-socket.ts'
import { HANG_MS } from '../patience.ts'
import { HEADER_BYTES } from '../tap-lab.ts'
import type { FrontendRing } from '../vhost-user-client.ts'
import { type Bench, CardDriver, type Delivered, newFrame } from './card-driver.ts'
import type { Item } from './item.ts'

const MTU = 1500
const CONTROL_RING = 4
const NO_CONTROL_QUEUE = 'kernels refuse a control queue to VDUSE network devices'
const ONE_PAIR = 'without a control queue there is one queue pair'

/** EtherTypes of a tag: IEEE 802.1Q's, and 802.1ad's for the outer one of two. */
const CUSTOMER_TAG = 0x8100
const SERVICE_TAG = 0x88a8

/** The frame with one more VLAN tag in front of its EtherType. */
const tagged = (frame: Uint8Array, vlan: number, type = CUSTOMER_TAG): Uint8Array =>
  new Uint8Array([...frame.subarray(0, 12), type >> 8, type & 0xff, vlan >> 8, vlan & 0xff, ...frame.subarray(12)])

const bytesOf = (frame: Uint8Array): string => frame.toHex()

/**
 * Is a frame, or a piece of it after segmentation, one of this packet's? They have the Ethernet addresses and ports in
 * common.
 */
const belongsTo = (packet: Packet) => {
  const start = bytesOf(packet.frame.subarray(0, 14))
  const ports = bytesOf(packet.frame.subarray(packet.transport, packet.transport + 4))
  return (frame: Uint8Array): boolean =>
    bytesOf(frame.subarray(0, 14)) === start &&
    bytesOf(frame.subarray(packet.transport, packet.transport + 4)) === ports
}

const SEGMENT_BYTES = 1448
const BULK_BYTES = 5_000
const SEQUENCE_STEP = 1 << 20
/** How long a packet may take before it counts as lost. */
const LOST_MS = 300

/** A TCP packet to be cut; `round` is in its sequence numbers. */
const bulkOf = (round: number): { shape: PacketShape; packet: Packet } => {
  const shape: PacketShape = {
    protocol: 'tcp',
    version: 4,
    payload: noise(BULK_BYTES),
    flags: 0x18,
    sequence: round * SEQUENCE_STEP,
  }
  return { shape, packet: makePacket(shape) }
}

/**
 * The packets that come of one that the other side sends to be cut, once they come with this GSO type. A card tells its
 * TAP what its driver takes after it has answered DRIVER_OK: until then they may be cut small, or be dropped. No other
 * type may ever come.
 */
const receiveBulk = (
  driver: CardDriver,
  bench: Bench,
  gsoType: number,
  options: { ecn?: boolean } = {},
): Delivered[] => {
  const deadline = performance.now() + HANG_MS
  for (let round = 1; performance.now() < deadline; round++) {
    const { shape, packet } = bulkOf(round)
    const header = gsoHeader(shape, packet, SEGMENT_BYTES)
    const ofRound = (frame: Uint8Array): boolean => {
      const sequence = new DataView(frame.buffer, frame.byteOffset).getUint32(packet.transport + 4)
      return belongsTo(packet)(frame) && Math.floor(sequence / SEQUENCE_STEP) === round
    }
    driver.provide(16)
    bench.sendOffloaded(
      { ...header, gso_type: header.gso_type! | (options.ecn === true ? VIRTIO_NET_HDR_GSO_ECN : 0) },
      packet.frame,
    )
    const parts: Delivered[] = []
    const lostAt = performance.now() + LOST_MS
    for (let payload = 0; payload < BULK_BYTES && performance.now() < lostAt; ) {
      const part = driver.deliveredAlready()
      if (part === null) continue
      driver.provide(16)
      if (!ofRound(part.frame)) continue
      expect([gsoType, VIRTIO_NET_HDR_GSO_NONE]).toContain(part.header.gso_type)
      parts.push(part)
      payload += part.frame.length - packet.headerBytes
      if (payload === BULK_BYTES && part.header.gso_type === gsoType) return parts
    }
  }
  throw new Error(`no packet of GSO type ${gsoType}`)
}

/** Sends a command and waits until it is used. */
const command = (driver: CardDriver, ...bytes: readonly number[]): void => {
  const ring = driver.ring(CONTROL_RING)
  const answer = { ...driver.put(Uint8Array.of(0xee)), writable: true }
  ring.model.add([driver.put(Uint8Array.from(bytes)), answer])
  ring.publish()
  driver.used(ring)
  expect(driver.memory.bytes(answer.address, 1)[0]).toBe(VIRTIO_NET_OK)
}

/** UDP flows, so many that some hash to each queue of the TAP. */
const flows = (): Uint8Array[] =>
  Array.from({ length: 64 }, (_, flow) => {
    const { frame, transport } = makePacket({ protocol: 'udp', version: 4, payload: noise(40) }, true)
    frame[transport + 1] = flow
    return frame
  })

/** Which of the receive rings get something when all flows are sent. */
const ringsThatReceive = (driver: CardDriver, bench: Bench, rings: readonly FrontendRing[]): number[] => {
  for (const ring of rings) driver.provide(60, [2048], ring)
  const sent = flows()
  for (const frame of sent) bench.wire.send(frame)
  const found = new Set<number>()
  const isFlow = (frame: Uint8Array): boolean => sent.some((one) => bytesOf(one) === bytesOf(frame))
  let left = sent.length
  const deadline = performance.now() + HANG_MS
  while (left > 0 && performance.now() < deadline) {
    for (const ring of rings) {
      const packet = driver.deliveredAlready(ring)
      if (packet === null) continue
      driver.provide(60, [2048], ring)
      if (!isFlow(packet.frame)) continue
      found.add(ring.index)
      left--
    }
  }
  expect(left).toBe(0)
  return [...found].sort()
}

/** A test's frame to another address. */
const frameTo = (mac: readonly number[]): Uint8Array => {
  const frame = newFrame()
  frame.set(mac)
  return frame
}

export const netItems: readonly Item[] = [
  {
    title: 'conformance 34: max_virtqueue_pairs is from 1 to 0x8000',
    run: (bench) => {
      using driver = new CardDriver(bench)
      const pairs = driver.config('max_virtqueue_pairs')
      expect(pairs).toBeWithin(1, 0x8000 + 1)
      expect(pairs).toBe(bench.transport === 'vhost-user' ? 2 : 1)
    },
  },
  {
    title: 'conformance 35: the MTU is from 68 to 65535, no less than 1280, and never changes',
    run: (bench) => {
      using driver = new CardDriver(bench)
      const mtu = driver.config('mtu')
      expect(mtu).toBeWithin(1280, 65_536)
      driver.setUp({ features: [VIRTIO_NET_F_MTU] })
      driver.pass()
      expect(driver.config('mtu')).toBe(mtu)
      bench.setTapMtu(MTU + 500)
      driver.pass()
      expect(driver.config('mtu')).toBe(mtu)
      bench.setTapMtu(MTU)
      driver.reset()
      expect(driver.config('mtu')).toBe(mtu)
    },
  },
  {
    title: 'conformance 36: no packet without GSO is longer than the MTU with its Ethernet header and two VLAN tags',
    run: (bench) => {
      using driver = CardDriver.start(bench, { features: [VIRTIO_NET_F_MTU] })
      bench.setTapMtu(MTU + 500)
      driver.passIn(newFrame(MTU + 14))
      driver.provide()
      const [tooLong, next] = [newFrame(MTU + 14 + 8 + 1), newFrame()]
      for (const frame of [tooLong, next]) bench.wire.send(frame)
      const numbers: (number | null)[] = []
      driver.receive((frame) => {
        numbers.push(numberOf(frame))
        return numberOf(frame) === numberOf(next)
      })
      expect(numbers).not.toContain(numberOf(tooLong))
      bench.setTapMtu(MTU)
    },
  },
  {
    title: 'conformance 37: a packet of the MTU’s length passes in one piece, with a VLAN tag or two too',
    run: (bench) => {
      using driver = CardDriver.start(bench, { features: [VIRTIO_NET_F_MTU] })
      driver.passOut(newFrame(MTU + 14))
      const frame = newFrame(MTU + 14)
      const once = tagged(frame, 77)
      const twice = [tagged(once, 78), tagged(once, 78, SERVICE_TAG)]
      for (const sent of [once, ...twice]) {
        driver.transmit(sent)
        // The kernel takes the outer tag off before a packet socket sees the frame.
        const seen = sent === once ? frame : once
        expect(bench.wire.receiveAny((bytes) => bytes.length === seen.length)).toEqual(seen)
        expect(driver.used().length).toBe(0)
      }
      // A sender that leaves tags out of its MTU.
      bench.setTapMtu(MTU + 8)
      for (const sent of [frame, once, ...twice]) {
        driver.provide()
        bench.wire.send(sent)
        expect(driver.receive(({ length }) => length === sent.length).frame).toEqual(sent)
      }
      bench.setTapMtu(MTU)
    },
  },
  {
    title: 'conformance 38: duplex is 1 for full, as Linux and the specification have it',
    run: (bench) => {
      using driver = CardDriver.start(bench, { features: [VIRTIO_NET_F_STATUS, VIRTIO_NET_F_SPEED_DUPLEX] })
      expect(driver.config('duplex')).toBe(1)
    },
  },
  {
    title: 'conformance 39: of a header unknown flags, checksum fields without NEEDS_CSUM and hdr_len are ignored',
    run: (bench) => {
      using driver = CardDriver.start(bench, { features: [VIRTIO_NET_F_CSUM] })
      const headers = [
        { flags: 0xf8 },
        { flags: VIRTIO_NET_HDR_F_DATA_VALID },
        { csum_start: 0xffff, csum_offset: 0xffff },
        { hdr_len: 1 },
        { hdr_len: 0xffff },
        { num_buffers: 77 },
      ]
      for (const header of headers) driver.passOut(newFrame(), { header })
      // With NEEDS_CSUM, hdr_len is a hint all the same.
      const packet = makePacket({ protocol: 'udp', version: 4, payload: noise(100) })
      const complete = makePacket({ protocol: 'udp', version: 4, payload: noise(100) }, true)
      for (const hdr_len of [0, 3, packet.headerBytes, 0xffff]) {
        const header = {
          flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
          hdr_len,
          csum_start: packet.transport,
          csum_offset: packet.checksumOffset,
        }
        driver.transmit(packet.frame, { header })
        const arrived = bench.wire.receiveAny(belongsTo(packet))
        // A packet socket sees it before its checksum is filled in.
        const withoutSum = (frame: Uint8Array): string => {
          const copy = frame.slice()
          copy.fill(0, packet.transport + packet.checksumOffset, packet.transport + packet.checksumOffset + 2)
          return bytesOf(copy)
        }
        expect(arrived === null ? null : withoutSum(arrived)).toBe(withoutSum(complete.frame))
        driver.used()
      }
    },
  },
  {
    title: 'conformance 40: num_buffers is 1 without MRG_RXBUF, and the true count with it',
    run: (bench) => {
      using driver = CardDriver.start(bench, { unmerged: true })
      for (const bytes of [60, 1514]) expect(driver.passIn(newFrame(bytes)).header.num_buffers).toBe(1)
      for (const [bytes, count] of [
        [60, 1],
        [256 - HEADER_BYTES, 1],
        [257 - HEADER_BYTES, 2],
        [1514, Math.ceil((1514 + HEADER_BYTES) / 256)],
      ] as const) {
        driver.setUp()
        const { header, chains } = driver.passIn(newFrame(bytes), [256])
        expect([bytes, header.num_buffers, chains.length]).toEqual([bytes, count, count])
      }
    },
  },
  {
    title: 'conformance 41: all buffers of a packet but the last are full',
    run: (bench) => {
      using driver = CardDriver.start(bench)
      for (const [buffer, bytes] of [
        [256, 1514],
        [100, 700],
        [512, 600],
      ] as const) {
        driver.setUp()
        const { chains } = driver.passIn(newFrame(bytes), [buffer])
        const rest = (bytes + HEADER_BYTES) % buffer
        expect(chains.map(({ length }) => length)).toEqual([...chains.slice(1).map(() => buffer), rest])
      }
    },
  },
  {
    title: 'conformance 42: the buffers of a packet are published together',
    run: (bench) => {
      using driver = CardDriver.start(bench)
      for (let round = 0; round < 50; round++) {
        driver.provide(40, [256])
        const frame = newFrame(1514)
        bench.wire.send(frame)
        for (;;) {
          // As soon as one is there, the others are.
          const packet = driver.deliveredAtOnce()
          driver.provide(40, [256])
          if (numberOf(packet.frame) === numberOf(frame)) break
        }
      }
    },
  },
  {
    title: 'conformance 43: flags are 0 without GUEST_CSUM, and a checksum that was open is complete',
    run: (bench) => {
      using driver = CardDriver.start(bench)
      for (const protocol of ['udp', 'tcp'] as const) {
        const shape: PacketShape = { protocol, version: 4, payload: noise(333) }
        const open = makePacket(shape)
        driver.provide()
        bench.sendOffloaded(
          {
            flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
            csum_start: open.transport,
            csum_offset: open.checksumOffset,
          },
          open.frame,
        )
        const { header, frame } = driver.receive(belongsTo(open))
        expect(header).toMatchObject({ flags: 0, gso_type: VIRTIO_NET_HDR_GSO_NONE })
        expect(bytesOf(frame)).toBe(bytesOf(makePacket(shape, true).frame))
      }
    },
  },
  {
    title: 'conformance 44: GSO comes only as negotiated',
    run: (bench) => {
      using driver = new CardDriver(bench)
      for (const features of [[], [VIRTIO_NET_F_GUEST_CSUM]]) {
        driver.setUp({ features })
        const parts = receiveBulk(driver, bench, VIRTIO_NET_HDR_GSO_NONE)
        expect(parts.length).toBe(Math.ceil(BULK_BYTES / SEGMENT_BYTES))
        for (const { header } of parts) expect(header.gso_size).toBe(0)
      }
      driver.setUp({ features: [VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4] })
      expect(receiveBulk(driver, bench, VIRTIO_NET_HDR_GSO_TCPV4)).toHaveLength(1)
    },
  },
  {
    title: 'conformance 45: GSO has NEEDS_CSUM and its size; ECN comes only if negotiated',
    run: (bench) => {
      const tso = [VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4]
      using driver = CardDriver.start(bench, { features: tso })
      const { packet } = bulkOf(1)
      const open = {
        flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
        gso_size: SEGMENT_BYTES,
        csum_start: packet.transport,
        csum_offset: packet.checksumOffset,
      }
      expect(receiveBulk(driver, bench, VIRTIO_NET_HDR_GSO_TCPV4)[0]!.header).toMatchObject(open)
      receiveBulk(driver, bench, VIRTIO_NET_HDR_GSO_NONE, { ecn: true })
      driver.setUp({ features: [...tso, VIRTIO_NET_F_GUEST_ECN] })
      const withEcn = VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN
      expect(receiveBulk(driver, bench, withEcn, { ecn: true })[0]!.header).toMatchObject(open)
    },
  },
  {
    title: 'conformance 46: packets come on the first pair after a reset, and on no pair beyond those in use',
    notOver: { 'vhost-vdpa': ONE_PAIR },
    run: (bench) => {
      const options = { features: [VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ], rings: [0, 1, 2, 3, CONTROL_RING] }
      using driver = new CardDriver(bench, { memoryBytes: 1 << 23 })
      const pairs = (count: number): void =>
        command(driver, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, count, 0)
      for (let round = 0; round < 2; round++) {
        driver.setUp(options)
        const receiving = [driver.ring(0), driver.ring(2)]
        expect(ringsThatReceive(driver, bench, receiving)).toEqual([0])
        pairs(2)
        expect(ringsThatReceive(driver, bench, receiving)).toEqual([0, 2])
        pairs(1)
        expect(ringsThatReceive(driver, bench, receiving)).toEqual([0])
        pairs(2)
      }
    },
  },
  {
    title: 'conformance 47: a command is carried out before it is used, and a reset undoes them all',
    notOver: { 'vhost-vdpa': NO_CONTROL_QUEUE },
    run: (bench) => {
      const options = {
        features: [
          VIRTIO_NET_F_CTRL_VQ,
          VIRTIO_NET_F_MQ,
          VIRTIO_NET_F_CTRL_RX,
          VIRTIO_NET_F_CTRL_MAC_ADDR,
          VIRTIO_NET_F_STATUS,
          VIRTIO_NET_F_GUEST_ANNOUNCE,
        ],
        rings: [0, 1, CONTROL_RING],
      }
      using driver = CardDriver.start(bench, options)
      const ownMac = driver.link.readConfig(0, 6)
      for (const last of [1, 2, 3]) {
        const mac = [2, 0, 0, 0, 7, last]
        command(driver, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, ...mac)
        expect([...driver.link.readConfig(0, 6)]).toEqual(mac)
      }
      command(driver, VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK)
      expect(driver.config('status') & VIRTIO_NET_S_ANNOUNCE).toBe(0)

      const group = [0x33, 0x33, 0, 0, 0, 7]
      const listened = (): boolean => {
        command(driver, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, 0)
        const numbers: (number | null)[] = []
        const [grouped, own] = [frameTo(group), frameTo([...driver.link.readConfig(0, 6)])]
        driver.provide()
        for (const frame of [grouped, own]) bench.wire.send(frame)
        driver.receive((frame) => {
          numbers.push(numberOf(frame))
          return numberOf(frame) === numberOf(own)
        })
        return numbers.includes(numberOf(grouped))
      }
      expect(listened()).toBeFalse()
      // No unicast addresses, and one group.
      command(driver, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, 0, 0, 0, 0, 1, 0, 0, 0, ...group)
      expect(listened()).toBeTrue()
      driver.setUp(options)
      expect(driver.link.readConfig(0, 6)).toEqual(ownMac)
      expect(listened()).toBeFalse()
    },
  },
  {
    title: 'conformance 48: without CTRL_VLAN packets of every VLAN are received',
    run: (bench) => {
      using driver = CardDriver.start(bench)
      for (const vlan of [0, 1, 77, 4094, 4095]) {
        const frame = newFrame()
        const tag = [0x81, 0, vlan >> 8, vlan & 0xff]
        const tagged = new Uint8Array([...frame.subarray(0, 12), ...tag, ...frame.subarray(12)])
        driver.provide()
        bench.wire.send(tagged)
        driver.receive((bytes) => bytesOf(bytes) === bytesOf(tagged))
      }
    },
  },
]
