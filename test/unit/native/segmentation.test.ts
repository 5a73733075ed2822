import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import {
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_HOST_ECN,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_USO,
} from '../../../src/abi/virtio.ts'
import { VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN } from '../../../src/abi/virtio-net.ts'
import { maxFrameBytes } from '../../../src/dataplane/packet-io.ts'
import type { OwnedFd } from '../../../src/sys/fd.ts'
import { bits } from '../../support/bits.ts'
import { concat, cut, encodeHeader, gsoHeader, makePacket, noise, type PacketShape, sum } from '../../support/frames.ts'
import { drain, Io, Namespace, readFrame, readFrames, unavailable } from '../../support/tap-lab.ts'

const reason = unavailable()
if (reason !== null) console.log(`segmentation against the kernel: skipped, ${reason}`)

const features = bits(
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_ECN,
  VIRTIO_NET_F_HOST_USO,
)

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex')

/** FIN, PSH, ACK, CWR: all that segmentation treats in a special way. */
const allFlags = 0x01 | 0x08 | 0x10 | 0x80

/** Ethertypes of a customer's and a service tag. IEEE 802.1Q. */
const [C_TAG, S_TAG] = [0x8100, 0x88a8]

/** Hop-by-hop options, destination options, routing header, destination options: in the order of RFC 8200 §4.1. */
const everyExtension = [
  [0, 256],
  [60, 8],
  [43, 24],
  [60, 416],
] as const
/**
 * With Ethernet, IPv6 and TCP with 32 bytes of options that makes 1,506 bytes: a payload of 8 fills a frame of 1,514.
 */
const longest = [
  [0, 1296],
  [60, 8],
  [43, 24],
  [60, 24],
  [60, 8],
  [60, 24],
  [60, 16],
] as const

const shapes: readonly [string, Omit<PacketShape, 'payload'>, number[]][] = [
  ['TSO4', { protocol: 'tcp', version: 4, flags: allFlags }, [8, 536, 1448, 1460]],
  ['TSO4 with options', { protocol: 'tcp', version: 4, optionBytes: 12, identification: 0xffff }, [536, 1448]],
  ['TSO4 in a VLAN', { protocol: 'tcp', version: 4, vlan: true, flags: allFlags }, [700, 1460]],
  ['TSO6', { protocol: 'tcp', version: 6, flags: allFlags }, [8, 1220, 1440]],
  ['TSO6 behind options', { protocol: 'tcp', version: 6, extension: true, optionBytes: 8 }, [1000]],
  ['USO4', { protocol: 'udp', version: 4, identification: 0xfffe }, [512, 1200, 1472]],
  ['USO6', { protocol: 'udp', version: 6 }, [512, 1452]],
  ['USO6 in a VLAN', { protocol: 'udp', version: 6, vlan: true }, [1400]],
  ['TSO4 behind two tags', { protocol: 'tcp', version: 4, tags: [C_TAG, C_TAG], flags: allFlags }, [8, 1460]],
  ['TSO4 behind a service tag', { protocol: 'tcp', version: 4, tags: [S_TAG] }, [1460]],
  ['TSO6 behind a service and a customer tag', { protocol: 'tcp', version: 6, tags: [S_TAG, C_TAG] }, [1440]],
  ['TSO6 behind two service tags', { protocol: 'tcp', version: 6, tags: [S_TAG, S_TAG], optionBytes: 12 }, [1428]],
  ['USO4 behind a service and a customer tag', { protocol: 'udp', version: 4, tags: [S_TAG, C_TAG] }, [1472]],
  ['USO6 behind a customer and a service tag', { protocol: 'udp', version: 6, tags: [C_TAG, S_TAG] }, [1452]],
  // More than is looked at in the first place, to the last byte that is.
  ['TSO6 behind 190 bytes of options', { protocol: 'tcp', version: 6, extensions: [[60, 192]] }, [1000]],
  ['TSO6 behind 600 bytes of options', { protocol: 'tcp', version: 6, extensions: [[60, 600]] }, [8, 800]],
  ['TSO6 behind every kind of header', { protocol: 'tcp', version: 6, extensions: everyExtension }, [700]],
  [
    'TSO6 behind all the headers there may be',
    { protocol: 'tcp', version: 6, extensions: longest, optionBytes: 32 },
    [8],
  ],
  ['USO6 behind every kind of header', { protocol: 'udp', version: 6, extensions: everyExtension, vlan: true }, [700]],
]

const extensionBytes = ({ extensions = [] }: Omit<PacketShape, 'payload'>): number =>
  extensions.reduce((total, [, bytes]) => total + bytes, 0)

// The same packet goes out through a TAP with vnet header, where the bridge makes the kernel cut it for a TAP without
// offloads, and through a TAP without, where this is ours to do: both must put the same bytes on the wire.
describe.skipIf(reason !== null)('segmentation, byte for byte as the kernel does it', () => {
  let namespace: Namespace
  let fds: OwnedFd[]
  let kernelOut: OwnedFd
  let oursOut: OwnedFd
  let kernel: Io
  let ours: Io

  beforeAll(() => {
    namespace = new Namespace()
    namespace.bridge('br0')
    namespace.bridge('br1')
    const kernelIn = namespace.tap({ name: 'kin', vnetHdr: true, bridge: 'br0' })
    kernelOut = namespace.tap({ name: 'kout', vnetHdr: false, bridge: 'br0' })
    const oursIn = namespace.tap({ name: 'oin', vnetHdr: false, bridge: 'br1' })
    oursOut = namespace.tap({ name: 'oout', vnetHdr: false, bridge: 'br1' })
    fds = [kernelIn, kernelOut, oursIn, oursOut]
    kernel = new Io({ tap: kernelIn, vnetHdr: true, features, maxFrameBytes: maxFrameBytes(1500) })
    ours = new Io({ tap: oursIn, vnetHdr: false, features, maxFrameBytes: maxFrameBytes(1500) })
    for (const fd of [kernelOut, oursOut]) drain(fd)
  })
  afterAll(() => {
    kernel?.[Symbol.dispose]()
    ours?.[Symbol.dispose]()
    for (const fd of fds ?? []) fd[Symbol.dispose]()
    namespace?.[Symbol.dispose]()
  })

  const compare = (pieces: Uint8Array[], frames: number, counters: object): Uint8Array[] => {
    for (const io of [kernel, ours]) {
      expect(io.tx([pieces])).toBe(1)
      expect(io.takeTx()).toMatchObject({ packets: 1, drops: {}, ...counters })
    }
    const expected = readFrames(kernelOut, frames)
    const got = readFrames(oursOut, frames)
    got.forEach((frame, index) => {
      expect(hex(frame)).toBe(hex(expected[index]!))
    })
    expect(readFrame(kernelOut, 0)).toBeNull()
    expect(readFrame(oursOut, 0)).toBeNull()
    return got
  }

  for (const [name, shape, sizes] of shapes) {
    for (const mss of sizes) {
      // Enough segments to see numbers go on, the last shorter by one, equal, longer by one; and the longest packet
      // there is.
      const largest = Math.min(65_535 - 100 - extensionBytes(shape), mss * (shape.protocol === 'udp' ? 128 : 300))
      for (const payloadBytes of [mss + 1, mss * 5 - 1, mss * 5, mss * 5 + 1, largest]) {
        test(`${name}, mss ${mss}, ${payloadBytes} bytes`, () => {
          const whole = { ...shape, payload: noise(payloadBytes, mss) }
          const packet = makePacket(whole)
          const header = encodeHeader(gsoHeader(whole, packet, mss))
          const counters = { gso: 1, csum: 1, bytes: packet.frame.length }
          const pieces = packet.headerBytes < 300 ? [15, 40, 1] : [15, 40, 200, 1]
          compare([header, ...cut(packet.frame, ...pieces)], Math.ceil(payloadBytes / mss), counters)
        })
      }
    }
  }

  test('TSO with ECN', () => {
    for (const version of [4, 6] as const) {
      for (const tags of [[], [C_TAG], [S_TAG, C_TAG]]) {
        const whole = { protocol: 'tcp', version, tags, flags: allFlags, payload: noise(5000) } as const
        const packet = makePacket(whole)
        const header = gsoHeader(whole, packet, 1000)
        header.gso_type! |= VIRTIO_NET_HDR_GSO_ECN
        compare([encodeHeader(header), packet.frame], 5, { gso: 1 })
      }
    }
  })

  test('a packet of one segment only has its checksum completed', () => {
    for (const [protocol, version] of [
      ['tcp', 4],
      ['udp', 6],
    ] as const) {
      const whole = { protocol, version, payload: noise(999) }
      const packet = makePacket(whole)
      compare([encodeHeader(gsoHeader(whole, packet, 1000)), packet.frame], 1, { gso: 0, csum: 1 })
    }
  })

  test('a checksum left open is completed, for any protocol and range', () => {
    for (const length of [0, 1, 2, 63, 64, 65, 500, 1400]) {
      for (const [protocol, version] of [
        ['tcp', 4],
        ['udp', 4],
        ['tcp', 6],
        ['udp', 6],
      ] as const) {
        for (const tags of [[], [C_TAG], [S_TAG, C_TAG], [C_TAG, C_TAG], [S_TAG, S_TAG, C_TAG]]) {
          const packet = makePacket({ protocol, version, tags, payload: noise(length, length) })
          const header = encodeHeader({
            flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
            csum_start: packet.transport,
            csum_offset: packet.checksumOffset,
          })
          compare([header, packet.frame], 1, { gso: 0, csum: 1 })
        }
      }
    }
  })

  test('a checksum of zero is written as the kernel writes it', () => {
    for (const [protocol, version] of [
      ['tcp', 4],
      ['udp', 4],
      ['tcp', 6],
      ['udp', 6],
    ] as const) {
      const payload = noise(1000)
      payload.fill(0, 0, 2)
      const open = makePacket({ protocol, version, payload })
      // The word that makes the sum 0xffff is the complement of the sum without it.
      const word = ~sum(open.frame.subarray(open.transport)) & 0xffff
      payload.set([word >> 8, word & 0xff])
      const packet = makePacket({ protocol, version, payload })
      expect(sum(packet.frame.subarray(packet.transport))).toBe(0xffff)
      const start = { csum_start: packet.transport, csum_offset: packet.checksumOffset }
      compare([encodeHeader({ flags: VIRTIO_NET_HDR_F_NEEDS_CSUM, ...start }), packet.frame], 1, { csum: 1 })

      // The same packet as the first of two segments.
      const whole = { protocol, version, payload: concat(payload, payload) }
      const large = makePacket(whole)
      const [first] = compare([encodeHeader(gsoHeader(whole, large, 1000)), large.frame], 2, { gso: 1 })
      const at = packet.transport + packet.checksumOffset
      expect(['0000', 'ffff']).toContain(hex(first!.subarray(at, at + 2)))
    }
  })
})
