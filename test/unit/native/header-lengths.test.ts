/** Drivers with each length of virtio-net header, both ways, on a TAP with and one without a header of its own. */

import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { constants } from 'node:os'
import { TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 } from '../../../src/abi/tun.ts'
import {
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_HASH_REPORT,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_MRG_RXBUF,
} from '../../../src/abi/virtio.ts'
import { VIRTIO_NET_HDR_F_NEEDS_CSUM } from '../../../src/abi/virtio-net.ts'
import { VN_IO } from '../../../src/abi/vn-io.ts'
import type { OwnedFd } from '../../../src/sys/fd.ts'
import { native } from '../../../src/sys/native.ts'
import { bits } from '../../support/bits.ts'
import {
  concat,
  cut,
  decodeHeader,
  encodeHeader,
  gsoHeader,
  type Header,
  makePacket,
  noise,
  type PacketShape,
} from '../../support/frames.ts'
import {
  drain,
  HEADER_BYTES,
  Io,
  Namespace,
  readFrame,
  readFrames,
  unavailable,
  writeFrame,
} from '../../support/tap-lab.ts'

const reason = unavailable()
if (reason !== null) console.log(`lengths of headers on a TAP: skipped, ${reason}`)

const offloads = bits(
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
)
const merge = bits(VIRTIO_NET_F_MRG_RXBUF)
const hash = bits(VIRTIO_NET_F_HASH_REPORT)

type Driver = { name: string; legacy: boolean; features: bigint; bytes: number }
const drivers: readonly Driver[] = [
  { name: 'legacy', legacy: true, features: offloads, bytes: 10 },
  { name: 'legacy, mergeable buffers', legacy: true, features: offloads | merge, bytes: 12 },
  { name: 'VERSION_1', legacy: false, features: offloads, bytes: 12 },
  { name: 'VERSION_1, mergeable buffers', legacy: false, features: offloads | merge, bytes: 12 },
  { name: 'HASH_REPORT', legacy: false, features: offloads | hash, bytes: 20 },
  { name: 'HASH_REPORT, mergeable buffers', legacy: false, features: offloads | hash | merge, bytes: 20 },
]

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex')
const buffer = (length: number): Uint8Array => new Uint8Array(length).fill(0xee)
const tcp = (length: number, version: 4 | 6 = 4): PacketShape => ({
  protocol: 'tcp',
  version,
  payload: noise(length, length + 1),
})

for (const vnetHdr of [true, false]) {
  for (const { name, legacy, features, bytes } of drivers) {
    const title = `${bytes}-byte header of ${name}, TAP ${vnetHdr ? 'with' : 'without'} vnet header`
    describe.skipIf(reason !== null)(title, () => {
      let namespace: Namespace
      let peer: OwnedFd
      let tap: OwnedFd
      let io: Io
      const merges = (features & merge) !== 0n

      beforeAll(() => {
        namespace = new Namespace()
        namespace.bridge('br0')
        const taken = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6
        peer = namespace.tap({ name: 'peer', vnetHdr: true, bridge: 'br0', offloads: taken })
        tap = namespace.tap({ name: 'card', vnetHdr, bridge: 'br0', offloads: taken })
      })
      afterAll(() => {
        peer?.[Symbol.dispose]()
        tap?.[Symbol.dispose]()
        namespace?.[Symbol.dispose]()
      })
      beforeEach(() => {
        for (const fd of [peer, tap]) drain(fd)
        io = new Io({ tap, vnetHdr, legacy, features, chainCapacity: 100 })
      })
      afterEach(() => io[Symbol.dispose]())

      /** As this driver writes it; what is behind the twelfth byte is noise. */
      const driverHeader = (header: Partial<Header>): Uint8Array =>
        concat(encodeHeader({ num_buffers: 0xabcd, ...header }), noise(8)).slice(0, bytes)

      const framings = [
        [],
        [bytes],
        [1, bytes - 1],
        [bytes - 1, 1],
        [bytes - 1, 2],
        [bytes + 1],
        [bytes + 14],
        [4, 0, 2, bytes - 6, 0, 14, 3],
        new Array(bytes + 20).fill(1),
      ]

      test('frames of any size and framing leave as they are', () => {
        for (const size of [14, 60, 300, 1400]) {
          const frame = makePacket(tcp(size), true).frame
          for (const lengths of framings) {
            expect(io.tx([cut(concat(driverHeader({}), frame), ...lengths)])).toBe(1)
            expect(io.takeTx()).toEqual({ packets: 1, bytes: frame.length, gso: 0, csum: 0, drops: {} })
            const got = readFrame(peer)!
            expect(hex(got.subarray(HEADER_BYTES))).toBe(hex(frame))
          }
        }
      })

      test('a batch of frames with different headers: none leaves a trace in the next', () => {
        const open = makePacket(tcp(200))
        const csum = {
          flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
          csum_start: open.transport,
          csum_offset: open.checksumOffset,
        }
        const large = makePacket(tcp(3000))
        const plain = makePacket(tcp(100), true).frame
        const chains = [
          [driverHeader(csum), open.frame],
          [driverHeader({}), plain],
          [driverHeader(gsoHeader(tcp(3000), large, 1500 - 40)), large.frame],
          [concat(driverHeader({}), plain)],
        ]
        expect(io.tx(chains)).toBe(4)
        expect(io.takeTx()).toMatchObject({ packets: 4, gso: 1, csum: 2, drops: {} })
        const got = readFrames(peer, vnetHdr ? 4 : 6)
        const complete = makePacket(tcp(200), true).frame
        const first = decodeHeader(got[0]!)
        if (vnetHdr) expect(first).toMatchObject(csum)
        expect(hex(got[0]!.subarray(HEADER_BYTES))).toBe(hex(vnetHdr ? open.frame : complete))
        for (const each of [got[1]!, got.at(-1)!]) {
          expect(decodeHeader(each)).toMatchObject({ flags: 0, gso_type: 0, num_buffers: 0 })
          expect(hex(each.subarray(HEADER_BYTES))).toBe(hex(plain))
        }
        if (vnetHdr)
          expect(decodeHeader(got[2]!)).toMatchObject({ flags: 1, gso_type: 1, gso_size: 1460, csum_start: 34 })
      })

      test('a chain of the header or less is dropped', () => {
        for (let length = 0; length <= bytes; length++) {
          expect(io.tx([[new Uint8Array(length)]])).toBe(1)
          expect(io.takeTx().drops).toEqual({ header_short: 1 })
        }
        expect(io.tx([[new Uint8Array(bytes + 13)]])).toBe(1)
        expect(io.takeTx().drops).toEqual({ frame_too_short: 1 })
      })

      const arrive = (frame: Uint8Array, header: Partial<Header> = {}): void =>
        writeFrame(peer, concat(encodeHeader(header), frame))

      /** The header as this driver reads it, and the frame behind it. */
      const received = (chain: readonly Uint8Array[], length: number): { header: Header; frame: string } => {
        const whole = concat(...chain)
        // Without num_buffers, what stands in its place is of the frame.
        const header = decodeHeader(concat(whole.subarray(0, Math.min(bytes, 12)), new Uint8Array(2)))
        expect(whole.subarray(length).every((byte) => byte === 0xee)).toBe(true)
        return { header, frame: hex(whole.subarray(bytes, length)) }
      }

      test('a received frame has a header of this length in front, in a buffer of any framing', () => {
        for (const size of [14, 60, 300, 1400]) {
          const frame = makePacket(tcp(size), true).frame
          for (const lengths of framings) {
            arrive(frame)
            const chain = cut(buffer(1526), ...lengths)
            const { delivered, written } = io.rx([chain])
            expect([delivered, written]).toEqual([1, [bytes + frame.length]])
            const got = received(chain, bytes + frame.length)
            expect(got.frame).toBe(hex(frame))
            expect(got.header).toMatchObject({ gso_type: 0, gso_size: 0, num_buffers: bytes > 10 ? 1 : 0 })
          }
        }
      })

      test('a buffer of exactly the frame and its header is enough', () => {
        const frame = makePacket(tcp(1400), true).frame
        arrive(frame)
        const chain = [buffer(bytes + frame.length)]
        expect(io.rx([chain])).toEqual({ delivered: 1, used: 1, written: [bytes + frame.length] })
        expect(received(chain, bytes + frame.length).frame).toBe(hex(frame))
      })

      // A TAP without vnet header hands over finished frames only.
      const gsoArrives = (): void => {
        for (const [size, version] of [
          [20_000, 4],
          [60_000, 6],
          [65_000, 4],
        ] as const) {
          const packet = makePacket(tcp(size, version))
          const header = gsoHeader(tcp(size, version), packet, 1400)
          arrive(packet.frame, header)
          const chains = merges ? Array.from({ length: 60 }, () => [buffer(1526)]) : [[buffer(65_562)]]
          const { delivered, used, written } = io.rx(chains)
          expect(delivered).toBe(1)
          const whole = bytes + packet.frame.length
          expect(written.reduce((total, each) => total + each, 0)).toBe(whole)
          const got = received(chains.slice(0, used).flat(), whole)
          expect(got.frame).toBe(hex(packet.frame))
          expect(got.header).toMatchObject({ ...header, num_buffers: bytes > 10 ? used : 0 })
        }
        expect(io.takeRx()).toMatchObject({ packets: 3, gso: 3, csum: 3, drops: {} })
      }
      if (vnetHdr) test('GSO and open checksums arrive, large frames one after the other', gsoArrives)
    })
  }
}

test.skipIf(reason !== null)('a block without a length of headers, or with one that there is not, is refused', () => {
  using namespace = new Namespace()
  using tap = namespace.tap({ name: 'card', vnetHdr: true })
  using io = new Io({ tap, vnetHdr: true, features: 0n })
  for (const length of [0, 9, 11, 14, 24, 0xffff_ffff]) {
    io.block[VN_IO.headerBytes] = length
    expect(native.vn_tap_tx(io.handle, 0, 0)).toBe(-constants.errno.EINVAL)
    expect(native.vn_tap_rx(io.handle, 0, 0, 1)).toBe(-constants.errno.EINVAL)
  }
})
