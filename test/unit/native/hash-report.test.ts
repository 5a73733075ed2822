import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 } from '../../../src/abi/tun.ts'
import {
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_HASH_REPORT,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_MRG_RXBUF,
} from '../../../src/abi/virtio.ts'
import {
  VIRTIO_NET_HDR_V1_HASH,
  VIRTIO_NET_RSS_HASH_TYPE_IPv4,
  VIRTIO_NET_RSS_HASH_TYPE_TCPv4,
  VIRTIO_NET_RSS_HASH_TYPE_TCPv6,
} from '../../../src/abi/virtio-net.ts'
import { ReceiveScaling } from '../../../src/device/receive-scaling.ts'
import type { OwnedFd } from '../../../src/sys/fd.ts'
import { bits } from '../../support/bits.ts'
import {
  concat,
  cut,
  decodeHeader,
  encodeHeader,
  gsoHeader,
  makePacket,
  noise,
  type PacketShape,
} from '../../support/frames.ts'
import { drain, HEADER_BYTES, Io, Namespace, readFrame, unavailable, writeFrame } from '../../support/tap-lab.ts'
import { MICROSOFT_KEY, toeplitz } from '../../support/toeplitz.ts'

const reason = unavailable()
if (reason !== null) console.log(`hash reports on a TAP: skipped, ${reason}`)

/** Of the driver's header. */
const DRIVER_HEADER_BYTES = VIRTIO_NET_HDR_V1_HASH.sizeBytes
/** Values of `hash_report`. VIRTIO 1.2 §5.1.6.4.4. */
const [NONE, IPV4, TCPV4, TCPV6] = [0, 1, 2, 5]

const features = bits(
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_HASH_REPORT,
)
const merge = bits(VIRTIO_NET_F_MRG_RXBUF)

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex')
const buffer = (length: number): Uint8Array => new Uint8Array(length).fill(0xee)
const shapeOf = (version: 4 | 6, length: number): PacketShape => ({
  protocol: 'tcp',
  version,
  payload: noise(length, length),
})

/** What the driver finds in front of a frame. */
const reportOf = (bytes: Uint8Array): { hash: number; kind: number; padding: number } => {
  const view = new DataView(bytes.buffer, bytes.byteOffset)
  return {
    hash: view.getUint32(VIRTIO_NET_HDR_V1_HASH.hash_value, true),
    kind: view.getUint16(VIRTIO_NET_HDR_V1_HASH.hash_report, true),
    padding: view.getUint16(VIRTIO_NET_HDR_V1_HASH.padding, true),
  }
}

const [TYPES_ADDRESSES, TYPES_PORTS] = [
  VIRTIO_NET_RSS_HASH_TYPE_IPv4,
  VIRTIO_NET_RSS_HASH_TYPE_TCPv4 | VIRTIO_NET_RSS_HASH_TYPE_TCPv6,
]

/** Addresses, and the ports behind the header of `makePacket`. */
const expectedHash = (frame: Uint8Array, version: 4 | 6, withPorts: boolean): number => {
  const [addresses, transport] = version === 4 ? [26, 34] : [22, 54]
  return toeplitz(MICROSOFT_KEY, frame.slice(addresses, withPorts ? transport + 4 : transport))
}

for (const vnetHdr of [true, false]) {
  describe.skipIf(reason !== null)(`hash reports, TAP ${vnetHdr ? 'with' : 'without'} vnet header`, () => {
    let namespace: Namespace
    let peer: OwnedFd
    let tap: OwnedFd
    let io: Io
    const scaling = new ReceiveScaling(new SharedArrayBuffer(ReceiveScaling.byteLength))

    beforeAll(() => {
      namespace = new Namespace()
      namespace.bridge('br0')
      const offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6
      peer = namespace.tap({ name: 'peer', vnetHdr: true, bridge: 'br0', offloads })
      tap = namespace.tap({ name: 'card', vnetHdr, bridge: 'br0', offloads })
    })
    afterAll(() => {
      peer?.[Symbol.dispose]()
      tap?.[Symbol.dispose]()
      namespace?.[Symbol.dispose]()
    })
    beforeEach(() => {
      for (const fd of [peer, tap]) drain(fd)
      io = new Io({ tap, vnetHdr, features: features | merge, chainCapacity: 300 })
    })
    afterEach(() => io[Symbol.dispose]())

    const hashing = (hashTypes: number): void =>
      io.setScaling(scaling.words(scaling.write({ hashTypes, key: MICROSOFT_KEY, steering: null })))

    const arrive = (frame: Uint8Array): void => writeFrame(peer, concat(encodeHeader({}), frame))

    test('the header is 20 bytes long, and says none before the driver has asked for hashes', () => {
      const { frame } = makePacket(shapeOf(4, 100), true)
      arrive(frame)
      const chain = [buffer(2000)]
      expect(io.rx([chain])).toEqual({ delivered: 1, used: 1, written: [DRIVER_HEADER_BYTES + frame.length] })
      expect(reportOf(chain[0]!)).toEqual({ hash: 0, kind: NONE, padding: 0 })
      expect(decodeHeader(chain[0]!).num_buffers).toBe(1)
      expect(hex(chain[0]!.slice(DRIVER_HEADER_BYTES, DRIVER_HEADER_BYTES + frame.length))).toBe(hex(frame))
    })

    test('each frame has the hash of its kind', () => {
      for (const [types, version, expected, withPorts] of [
        [TYPES_PORTS, 4, TCPV4, true],
        [TYPES_PORTS, 6, TCPV6, true],
        [TYPES_ADDRESSES, 4, IPV4, false],
        [TYPES_ADDRESSES, 6, NONE, false],
      ] as const) {
        hashing(types)
        const { frame } = makePacket(shapeOf(version, 100), true)
        arrive(frame)
        const chain = [buffer(2000)]
        expect(io.rx([chain]).delivered).toBe(1)
        const hash = expected === NONE ? 0 : expectedHash(frame, version, withPorts)
        expect(reportOf(chain[0]!)).toEqual({ hash, kind: expected, padding: 0 })
      }
    })

    test('37 a buffer that is shorter than this header is of no use', () => {
      const { frame } = makePacket(shapeOf(4, 100), true)
      arrive(frame)
      const chains = [[buffer(12)], [buffer(DRIVER_HEADER_BYTES - 1)], [buffer(2000)]]
      expect(io.rx(chains)).toEqual({ delivered: 1, used: 3, written: [0, 0, DRIVER_HEADER_BYTES + frame.length] })
      expect(io.takeRx().drops).toEqual({ rx_buffer_too_small: 2 })
    })

    test('frames of any size into buffers of any framing, large ones one after the other', () => {
      hashing(TYPES_PORTS)
      const sizes = vnetHdr ? [60, 30_000, 65_000, 4_100, 60, 65_000, 200] : [60, 1400, 200]
      const framings = [
        () => Array.from({ length: 250 }, () => [buffer(1536)]),
        () => Array.from({ length: 60 }, () => [buffer(65_600)]),
        () => Array.from({ length: 250 }, (_, index) => [buffer([20, 21, 1500, 4000][index % 4]!)]),
        () => Array.from({ length: 100 }, () => cut(buffer(5000), 1, 19, 3, 0, 240, 7)),
      ]
      for (const framing of framings) {
        const sent = sizes.map((size) => {
          const shape = shapeOf(size % 200 === 0 ? 6 : 4, size)
          const packet = makePacket(shape, size <= 1400)
          writeFrame(peer, concat(encodeHeader(size > 1400 ? gsoHeader(shape, packet, 1000) : {}), packet.frame))
          return { frame: packet.frame, version: shape.version }
        })
        const chains = framing()
        const { delivered, written, used } = io.rx(chains)
        expect(delivered).toBe(sent.length)
        let next = 0
        for (const { frame, version } of sent) {
          const start = concat(...chains[next]!)
          const count = decodeHeader(start).num_buffers
          const parts = Array.from({ length: count }, (_, index) =>
            concat(...chains[next + index]!).subarray(0, written[next + index]!),
          )
          expect(hex(concat(...parts).subarray(DRIVER_HEADER_BYTES))).toBe(hex(frame))
          expect(reportOf(start)).toEqual({
            hash: expectedHash(frame, version, true),
            kind: version === 4 ? TCPV4 : TCPV6,
            padding: 0,
          })
          next += count
        }
        expect(next).toBe(used)
      }
    })

    test('what is sent has the header too, whatever the driver writes behind its first twelve bytes', () => {
      const frames = [60, 300, 1400].map((size) => makePacket(shapeOf(4, size), true).frame)
      for (const frame of frames) {
        const whole = concat(encodeHeader({}), new Uint8Array(8).fill(0xff), frame)
        for (const lengths of [[], [12], [20], [13], [1, 18, 1, 0, 5], [12, 8], [34]]) {
          expect(io.tx([cut(whole, ...lengths)])).toBe(1)
          expect(io.takeTx()).toEqual({ packets: 1, bytes: frame.length, gso: 0, csum: 0, drops: {} })
          expect(hex(readFrame(peer)!.subarray(HEADER_BYTES))).toBe(hex(frame))
          drain(peer)
        }
      }
      for (const length of [1, 12, 13, 19, 20]) expect(io.tx([[new Uint8Array(length)]])).toBe(1)
      expect(io.takeTx().drops).toEqual({ header_short: 5 })
    })

    test('what is sent with TSO is judged by the frame behind the longer header', () => {
      const shape = shapeOf(4, 20_000)
      const packet = makePacket(shape)
      const header = encodeHeader(gsoHeader(shape, packet, 1000))
      const whole = concat(header, new Uint8Array(8), packet.frame)
      expect(io.tx([cut(whole, 5, 15, 7)])).toBe(1)
      expect(io.takeTx()).toMatchObject({ packets: 1, gso: 1, csum: 1, drops: {} })
      const got = readFrame(peer)!
      if (vnetHdr) {
        expect(decodeHeader(got)).toMatchObject(gsoHeader(shape, packet, 1000))
        expect(hex(got.subarray(HEADER_BYTES))).toBe(hex(packet.frame))
      } else expect(got.length).toBe(HEADER_BYTES + packet.headerBytes + 1000)
    })
  })
}
