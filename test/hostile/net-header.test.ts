/**
 * What a driver can put into a virtio-net header and frame, against a real TAP. The numbers are those of the list of
 * hostile inputs.
 */

import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import type { DropReason } from '../../src/abi/drop-reason.ts'
import { TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6 } from '../../src/abi/tun.ts'
import {
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_HOST_ECN,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_USO,
} from '../../src/abi/virtio.ts'
import {
  VIRTIO_NET_HDR_F_DATA_VALID,
  VIRTIO_NET_HDR_F_NEEDS_CSUM,
  VIRTIO_NET_HDR_F_RSC_INFO,
  VIRTIO_NET_HDR_GSO_ECN,
  VIRTIO_NET_HDR_GSO_TCPV4,
  VIRTIO_NET_HDR_GSO_TCPV6,
  VIRTIO_NET_HDR_GSO_UDP,
  VIRTIO_NET_HDR_GSO_UDP_L4,
} from '../../src/abi/virtio-net.ts'
import type { OwnedFd } from '../../src/sys/fd.ts'
import { bits } from '../support/bits.ts'
import {
  concat,
  cut,
  decodeHeader,
  encodeHeader,
  gsoHeader,
  type Header,
  makePacket,
  noHeader,
  noise,
  type Packet,
  type PacketShape,
} from '../support/frames.ts'
import {
  drain,
  HEADER_BYTES,
  Io,
  Namespace,
  readFrame,
  readFrames,
  tapsTakeUso,
  unavailable,
} from '../support/tap-lab.ts'

const reason = unavailable()
if (reason !== null) console.log(`hostile virtio-net headers: skipped, ${reason}`)

const everything = bits(
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_ECN,
  VIRTIO_NET_F_HOST_USO,
)
const without = (...features: number[]): bigint => everything & ~bits(...features)

const VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4 = 0x20
const VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6 = 0x40

const tso4: PacketShape = { protocol: 'tcp', version: 4, payload: noise(4000) }
const tso6: PacketShape = { protocol: 'tcp', version: 6, payload: noise(4000) }
const uso4: PacketShape = { protocol: 'udp', version: 4, payload: noise(4000) }

describe.skipIf(reason !== null)('virtio-net header, transmit', () => {
  let namespace: Namespace
  let fds: OwnedFd[]
  let out: OwnedFd
  let io: Io
  let bareIo: Io

  beforeAll(() => {
    namespace = new Namespace()
    namespace.bridge('br0')
    const tap = namespace.tap({ name: 'in', vnetHdr: true, bridge: 'br0' })
    const bare = namespace.tap({ name: 'bare', vnetHdr: false })
    const offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6
    out = namespace.tap({ name: 'out', vnetHdr: true, bridge: 'br0', offloads, mtu: 65_521 })
    fds = [tap, bare, out]
    io = new Io({ tap, vnetHdr: true, features: everything })
    bareIo = new Io({ tap: bare, vnetHdr: false, features: everything })
  })
  afterAll(() => {
    io?.[Symbol.dispose]()
    bareIo?.[Symbol.dispose]()
    for (const fd of fds ?? []) fd[Symbol.dispose]()
    namespace?.[Symbol.dispose]()
  })
  beforeEach(() => {
    io.setFeatures(everything)
    bareIo.setFeatures(everything)
    drain(out)
  })

  /** The chain is dropped for `why`, whatever kind of TAP there is, and nothing of it gets out. */
  const dropped = (why: DropReason, ...pieces: Uint8Array[]): void => {
    for (const each of [io, bareIo]) {
      expect(each.tx([pieces])).toBe(1)
      expect(each.takeTx()).toEqual({ packets: 0, bytes: 0, gso: 0, csum: 0, drops: { [why]: 1 } })
    }
    expect(readFrame(out, 0)).toBeNull()
  }
  const droppedWith = (why: DropReason, features: bigint, ...pieces: Uint8Array[]): void => {
    io.setFeatures(features)
    bareIo.setFeatures(features)
    dropped(why, ...pieces)
  }

  /** The chain arrives, and this is what the TAP was told about it. */
  const sent = (frame: Uint8Array, ...pieces: Uint8Array[]): Header => {
    expect(io.tx([pieces])).toBe(1)
    expect(io.takeTx()).toMatchObject({ packets: 1, bytes: frame.length, drops: {} })
    const got = readFrame(out)
    expect(got).not.toBeNull()
    expect(Buffer.from(got!.subarray(HEADER_BYTES)).equals(Buffer.from(frame))).toBe(true)
    return decodeHeader(got!)
  }

  const gso = (shape: PacketShape, changes: Partial<Header> = {}): [Uint8Array, Uint8Array] => {
    const packet = makePacket(shape)
    return [encodeHeader({ ...gsoHeader(shape, packet, 1000), ...changes }), packet.frame]
  }
  const plain = makePacket({ ...tso4, payload: noise(300) }, true).frame

  test('53 a chain of the header or less', () => {
    for (let length = 0; length <= HEADER_BYTES; length++) dropped('header_short', new Uint8Array(length))
    dropped('header_short', ...Array.from({ length: HEADER_BYTES }, () => new Uint8Array(1)))
    dropped('header_short')
  })

  test('54 the header over many descriptors, and any framing after it', () => {
    const whole = concat(encodeHeader({}), plain)
    sent(plain, whole)
    sent(plain, ...cut(whole, 4, 4, 4))
    sent(plain, ...cut(whole, 1, 0, 10, 0, 5, 100))
    sent(plain, ...Array.from(whole, (byte) => Uint8Array.of(byte)))
    const [header, frame] = gso(tso4)
    const told = sent(frame, header, frame)
    expect(sent(frame, ...cut(concat(header, frame), 5, 9, 21, 1, 2, 3, 0, 1000))).toEqual(told)
  })

  test('55 a frame shorter than an Ethernet header', () => {
    for (let length = 1; length < 14; length++)
      dropped('frame_too_short', concat(encodeHeader({}), plain.slice(0, length)))
    // A bridge would not forward the shortest frame, so only the TAP's answer counts.
    expect(io.tx([[concat(encodeHeader({}), plain.slice(0, 14))]])).toBe(1)
    expect(io.takeTx()).toMatchObject({ packets: 1, drops: {} })
  })

  test('56 a frame without GSO longer than the MTU allows', () => {
    dropped('frame_too_long', encodeHeader({}), new Uint8Array(1519))
    const longest = new Uint8Array(1518).fill(0xff, 0, 6).fill(2, 6, 14)
    sent(longest, encodeHeader({}), longest)
    // GSO with a segment size that leaves one piece, or pieces too long, is no way around it.
    dropped('frame_too_long', ...gso(tso4, { gso_size: 4000 }))
    dropped('frame_too_long', ...gso(tso4, { gso_size: 1465 }))
    const [header, frame] = gso(tso4, { gso_size: 1464 })
    sent(frame, header, frame)
  })

  test('57 GSO of more than 65,589 bytes', () => {
    const header = encodeHeader({
      flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
      gso_type: VIRTIO_NET_HDR_GSO_TCPV6,
      gso_size: 1000,
    })
    dropped('frame_too_long', header, new Uint8Array(65_590))
    dropped('frame_too_long', header, ...Array.from({ length: 100 }, () => new Uint8Array(1_000_000)))
    const longest = { ...tso6, payload: noise(65_535 - 20) }
    const [right, frame] = gso(longest)
    expect(frame.length).toBe(65_589)
    for (const each of [io, bareIo]) {
      expect(each.tx([[right, frame]])).toBe(1)
      expect(each.takeTx()).toMatchObject({ packets: 1, drops: {} })
    }
    // Tags come on top of it.
    for (const tags of [[0x8100], [0x88a8, 0x8100]]) {
      const [tagged, whole] = gso({ ...longest, tags })
      expect(whole.length).toBe(65_589 + 4 * tags.length)
      for (const each of [io, bareIo]) {
        expect(each.tx([[tagged, whole]])).toBe(1)
        expect(each.takeTx()).toMatchObject({ packets: 1, drops: {} })
        expect(each.tx([[tagged, whole, new Uint8Array(1)]])).toBe(1)
        expect(each.takeTx().drops).toEqual({ frame_too_long: 1 })
      }
    }
  })

  test('58 an unknown gso_type', () => {
    for (const type of [2, 6, 7, 0x10, 0x1f, 0x60, 0x7f, VIRTIO_NET_HDR_GSO_ECN, 0x85, 0xff]) {
      dropped('gso_type_unknown', ...gso(tso4, { gso_type: type }))
    }
  })

  test('59 a gso_type that was not negotiated', () => {
    droppedWith('gso_not_negotiated', without(VIRTIO_NET_F_HOST_TSO4), ...gso(tso4))
    droppedWith('gso_not_negotiated', without(VIRTIO_NET_F_HOST_TSO6), ...gso(tso6))
    droppedWith('gso_not_negotiated', without(VIRTIO_NET_F_HOST_USO), ...gso(uso4))
    const ecn = VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN
    droppedWith('gso_not_negotiated', without(VIRTIO_NET_F_HOST_ECN), ...gso(tso4, { gso_type: ecn }))
    droppedWith('gso_not_negotiated', everything, ...gso(uso4, { gso_type: VIRTIO_NET_HDR_GSO_UDP }))
  })

  test('60 tunnel bits, one or both', () => {
    const both = VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4 | VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6
    dropped('gso_type_unknown', ...gso(tso4, { gso_type: VIRTIO_NET_HDR_GSO_TCPV4 | both }))
    for (const one of [VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4, VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6]) {
      dropped('gso_not_negotiated', ...gso(tso4, { gso_type: VIRTIO_NET_HDR_GSO_TCPV4 | one }))
    }
  })

  test('61 GSO without NEEDS_CSUM', () => {
    for (const shape of [tso4, tso6, uso4]) dropped('gso_without_csum', ...gso(shape, { flags: 0 }))
    dropped('gso_without_csum', ...gso(tso4, { flags: VIRTIO_NET_HDR_F_DATA_VALID }))
  })

  test('62 gso_size 0', () => {
    for (const shape of [tso4, tso6, uso4]) dropped('gso_size_invalid', ...gso(shape, { gso_size: 0 }))
  })

  test('63 gso_size below 8, and other ways to make too many segments', () => {
    for (let size = 1; size < 8; size++) dropped('gso_size_invalid', ...gso(tso4, { gso_size: size }))
    const [header, frame] = gso(tso4, { gso_size: 8 })
    sent(frame, header, frame)
    // The kernel refuses more than 128 UDP segments, and a size that means something else to it.
    dropped('gso_size_invalid', ...gso(uso4, { gso_size: 31 }))
    dropped('gso_size_invalid', ...gso(tso4, { gso_size: 0xffff }))
  })

  test('64 a gso_type that is not the frame’s protocol', () => {
    dropped('gso_protocol_mismatch', ...gso(tso4, { gso_type: VIRTIO_NET_HDR_GSO_TCPV6 }))
    dropped('gso_protocol_mismatch', ...gso(tso6, { gso_type: VIRTIO_NET_HDR_GSO_TCPV4 }))
    dropped('gso_protocol_mismatch', ...gso(tso4, { gso_type: VIRTIO_NET_HDR_GSO_UDP_L4 }))
    dropped('gso_protocol_mismatch', ...gso(tso6, { gso_type: VIRTIO_NET_HDR_GSO_UDP_L4 }))
    dropped('gso_protocol_mismatch', ...gso(uso4, { gso_type: VIRTIO_NET_HDR_GSO_TCPV4 }))
    dropped('gso_protocol_mismatch', ...gso({ ...tso4, vlan: true }, { gso_type: VIRTIO_NET_HDR_GSO_TCPV6 }))
    const [header, frame] = gso(tso4)
    for (const [offset, byte] of [
      [12, 0x88], // not IP
      [14, 0x65], // not IPv4
      [14, 0x44], // header of 16 bytes
      [20, 0x20], // more fragments
      [21, 0x01], // a later fragment
      [23, 1], // ICMP
      [46, 0x40], // TCP header of 16 bytes
    ] as const) {
      const wrong = frame.slice()
      wrong[offset] = byte
      dropped('gso_protocol_mismatch', header, wrong)
    }
    // TCP header longer than the frame.
    const short = frame.slice(0, 14 + 20 + 20)
    short[46] = 0xf0
    dropped('gso_protocol_mismatch', header, short)
  })

  test('64 GSO behind headers that the kernel does not cut, or more of them than are read', () => {
    const behind = (...extensions: [number, number][]): [Uint8Array, Uint8Array] =>
      gso({ ...tso6, extensions }, { gso_size: 900 })
    const options: [number, number] = [60, 8]
    // Fragment, authentication, encapsulated security payload, mobility, an experiment, no next header.
    for (const protocol of [44, 51, 50, 135, 253, 59]) {
      dropped('gso_protocol_mismatch', ...behind([protocol, 8]))
      dropped('gso_protocol_mismatch', ...behind([0, 8], [60, 400], [protocol, 8]))
    }
    dropped('gso_protocol_mismatch', ...behind(...new Array(8).fill(options)))
    dropped('gso_protocol_mismatch', ...behind([0, 1480]))
    // Lengths that lie, about the bytes that are looked at first and about the whole frame.
    for (const units of [20, 30, 120, 181, 182, 255]) {
      const [header, frame] = behind([0, 80], [60, 16])
      frame[14 + 40 + 1] = units
      dropped('gso_protocol_mismatch', header, frame)
    }
    for (const tags of [3, 4, 9])
      dropped('gso_protocol_mismatch', ...gso({ ...tso4, tags: new Array(tags).fill(0x8100) }))
    for (const right of [behind(...new Array(7).fill(options)), behind([0, 240], [43, 240])]) sent(right[1], ...right)
  })

  test('65 csum_start and csum_offset beyond the frame, and past 16 bits', () => {
    const open = (start: number, offset: number): Uint8Array =>
      encodeHeader({ flags: VIRTIO_NET_HDR_F_NEEDS_CSUM, csum_start: start, csum_offset: offset })
    const end = plain.length
    for (const [start, offset] of [
      [end, 0],
      [end - 1, 0],
      [34, end - 34 - 1],
      [34, end - 34],
      [34, 0xffff],
      [0xffff, 0xffff],
      [0xffff, 0],
      [0xfff0, 0x0020],
      [0, 0],
      [19, 0],
    ] as const) {
      dropped('csum_out_of_range', open(start, offset), plain)
    }
    sent(plain, open(end - 2, 0), plain)
    sent(plain, open(34, end - 34 - 2), plain)
    // With GSO there is only one right place.
    dropped('csum_out_of_range', ...gso(tso4, { csum_start: 35 }))
    dropped('csum_out_of_range', ...gso(tso4, { csum_offset: 6 }))
    dropped('csum_out_of_range', ...gso(uso4, { csum_offset: 16 }))
  })

  test('66 NEEDS_CSUM that was not negotiated', () => {
    const header = encodeHeader({ flags: VIRTIO_NET_HDR_F_NEEDS_CSUM, csum_start: 34, csum_offset: 16 })
    droppedWith('csum_not_negotiated', without(VIRTIO_NET_F_CSUM), header, plain)
  })

  test('67 hdr_len lies', () => {
    const [header, frame] = gso(tso4)
    const told = sent(frame, header, frame)
    for (const length of [0, 1, 13, 14, 53, 55, 4000, 0xffff]) {
      const [lie] = gso(tso4, { hdr_len: length })
      expect(sent(frame, lie, frame)).toEqual(told)
      sent(plain, encodeHeader({ hdr_len: length }), plain)
    }
  })

  test('68 flags that are not for a driver, or for nobody, are masked', () => {
    for (const flags of [VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_RSC_INFO, 8, 0xfe]) {
      expect(sent(plain, encodeHeader({ flags, csum_start: 0xffff, csum_offset: 0xffff }), plain)).toEqual(noHeader)
    }
  })

  test('69 num_buffers is ignored', () => {
    expect(sent(plain, encodeHeader({ num_buffers: 0xffff }), plain)).toEqual(noHeader)
  })

  test('fields without meaning are not passed on', () => {
    const header = encodeHeader({ hdr_len: 54, gso_size: 1000, csum_start: 34, csum_offset: 16 })
    expect(sent(plain, header, plain)).toEqual(noHeader)
  })

  test('what is right arrives with its meaning', () => {
    for (const [shape, type] of [
      [tso4, VIRTIO_NET_HDR_GSO_TCPV4],
      [tso6, VIRTIO_NET_HDR_GSO_TCPV6],
      [uso4, VIRTIO_NET_HDR_GSO_UDP_L4],
    ] as const) {
      const [header, frame] = gso(shape)
      if (shape === uso4 && !tapsTakeUso) {
        // This kernel's TAP refuses it, so it is cut before.
        expect(io.tx([[header, frame]])).toBe(1)
        expect(io.takeTx()).toMatchObject({ packets: 1, gso: 1, drops: {} })
        for (const { length } of readFrames(out, 4)) expect(length).toBe(HEADER_BYTES + 14 + 20 + 8 + 1000)
        continue
      }
      const told = sent(frame, header, frame)
      expect(told).toMatchObject({ flags: VIRTIO_NET_HDR_F_NEEDS_CSUM, gso_type: type, gso_size: 1000 })
    }
  })

  test('what is right at the edge of what the kernel takes is sent', () => {
    // The conditions of virtio_net_hdr_to_skb() and tun_get_user(), each just met.
    const open = (packet: Packet): Partial<Header> => ({
      flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
      csum_start: packet.transport,
      csum_offset: packet.checksumOffset,
    })
    const segments = (shape: PacketShape, size: number): [Uint8Array, Uint8Array] => gso(shape, { gso_size: size })
    const udp = (length: number): PacketShape => ({ ...uso4, payload: noise(length) })
    const empty = makePacket(udp(0))
    const ip = makePacket({ ...tso4, payload: noise(100) })
    const fragment = ip.frame.slice()
    fragment[20] = 0x20
    const notIp = ip.frame.slice()
    notIp.set([0x88, 0xb5], 12)
    const usoCases: [string, Uint8Array, Uint8Array][] = [
      ['128 UDP segments', ...segments(udp(128 * 10), 10)],
      ['two UDP segments, the last of one byte', ...segments(udp(1001), 1000)],
    ]
    const cases: [string, Uint8Array, Uint8Array][] = [
      ['a checksum in the last two bytes', encodeHeader(open(empty)), empty.frame],
      ['a checksum of a fragment', encodeHeader(open(ip)), fragment],
      ['a checksum of a frame that is not IP', encodeHeader(open(ip)), notIp],
      ['a checksum from an odd place', encodeHeader({ ...open(ip), csum_start: 35, csum_offset: 3 }), ip.frame],
      ['a checksum from the earliest place', encodeHeader({ ...open(ip), csum_start: 34 - 14 }), ip.frame],
      ...(tapsTakeUso ? usoCases : []),
      ['a UDP segment as long as the payload', ...segments(udp(1000), 1000)],
      ['a UDP segment of one byte more than the payload', ...segments(udp(999), 1000)],
      [
        'a TCP segment shorter than options and payload together',
        ...segments({ ...tso4, optionBytes: 40, payload: noise(990) }, 1000),
      ],
      ['a TCP segment of the least size', ...segments({ ...tso6, payload: noise(9) }, 8)],
      ['no payload', ...segments({ ...tso4, payload: noise(0) }, 1000)],
      ['a segment size beyond the frame', ...segments({ ...tso4, payload: noise(700) }, 0xfffe)],
      ['segments shorter than their headers', ...segments({ ...tso6, payload: noise(500), optionBytes: 40 }, 50)],
      ['a last segment shorter than its headers', ...segments({ ...tso4, payload: noise(1003) }, 1000)],
      ['TSO6 with ECN', ...gso(tso6, { gso_type: VIRTIO_NET_HDR_GSO_TCPV6 | VIRTIO_NET_HDR_GSO_ECN })],
      ['a length of headers longer than the frame', ...gso({ ...tso4, payload: noise(2000) }, { hdr_len: 0xffff })],
      ['a length of headers within the Ethernet header', ...gso(tso4, { hdr_len: 1 })],
    ]
    for (const [name, header, frame] of cases) {
      for (const each of [io, bareIo]) {
        expect(each.tx([[header, frame]])).toBe(1)
        expect({ name, ...each.takeTx() }).toMatchObject({ name, packets: 1, bytes: frame.length, drops: {} })
      }
      expect({ name, bytes: readFrame(out)?.length }).toEqual({ name, bytes: HEADER_BYTES + frame.length })
      expect(readFrame(out, 0)).toBeNull()
    }
  })

  test('nothing that passes is refused by the kernel', () => {
    // Valid packets with a few fields and bytes changed, from a seed: the TAP's EINVAL would be counted as
    // tap_rejected.
    const seed = Number(process.env.VDUSE_NET_SEED ?? 7)
    let state = seed
    const random = (below: number): number => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0
      return Math.floor((state / 2 ** 32) * below)
    }
    const pick = <T>(list: readonly T[]): T => list[random(list.length)]!
    let sentCount = 0
    let droppedCount = 0
    for (let round = 0; round < 20_000; round++) {
      const shape: PacketShape = {
        protocol: pick(['tcp', 'udp']),
        version: pick([4, 6]),
        tags: pick([[], [], [], [0x8100], [0x88a8, 0x8100], [0x8100, 0x8100], [0x88a8, 0x88a8, 0x8100]]),
        optionBytes: random(3) * 4,
        extensions: pick([
          [],
          [],
          [[60, 16]],
          [
            [0, 8],
            [43, 24],
            [60, 400],
          ],
          [[44, 8]],
          [[0, 1400]],
        ] as const),
        payload: new Uint8Array(pick([0, 1, 8, 100, 1000, 1400, 3000, 20_000])),
      }
      const packet = makePacket(shape)
      const header: Partial<Header> = random(3) === 0 ? {} : gsoHeader(shape, packet, pick([8, 100, 536, 1400, 1448]))
      for (let change = random(3); change > 0; change--) {
        const field = pick(['flags', 'gso_type', 'hdr_len', 'gso_size', 'csum_start', 'csum_offset'] as const)
        header[field] =
          field === 'flags' || field === 'gso_type'
            ? pick([0, 1, 2, 3, 4, 5, 0x81, 0x85, 0x20])
            : random(70_000) & pick([0x1f, 0xff, 0xffff])
      }
      for (let change = random(3); change > 0; change--)
        packet.frame[12 + random(Math.min(90, packet.frame.length - 12))] = random(256)
      const frame = random(5) === 0 ? packet.frame.slice(0, random(packet.frame.length)) : packet.frame
      const each = random(8) === 0 ? bareIo : io
      each.tx([[encodeHeader(header), frame]])
      const { packets, drops } = each.takeTx()
      expect({ seed, round, header, rejected: drops.tap_rejected ?? 0 }).toEqual({ seed, round, header, rejected: 0 })
      sentCount += packets
      droppedCount += 1 - packets
      if (round % 100 === 0) drain(out)
    }
    // Both kinds came often enough for the test to mean something.
    expect(sentCount).toBeGreaterThan(2000)
    expect(droppedCount).toBeGreaterThan(2000)
  })
})
