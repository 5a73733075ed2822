import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { constants } from 'node:os'
import {
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_USO,
} from '../../../src/abi/virtio.ts'
import { VIRTIO_NET_HDR_F_NEEDS_CSUM } from '../../../src/abi/virtio-net.ts'
import { VN_IO } from '../../../src/abi/vn-io.ts'
import type { OwnedFd } from '../../../src/sys/fd.ts'
import { OwnedMapping } from '../../../src/sys/mapping.ts'
import { check, native } from '../../../src/sys/native.ts'
import { bits } from '../../support/bits.ts'
import { concat, cut, encodeHeader, gsoHeader, makePacket, noise, type PacketShape, sum } from '../../support/frames.ts'
import { ScratchFile } from '../../support/scratch-file.ts'
import { drain, Io, Namespace, readFrame, readFrames, unavailable } from '../../support/tap-lab.ts'

const reason = unavailable()
if (reason !== null) console.log(`sending to a TAP: skipped, ${reason}`)

/** _IOW('T', 212, int) of linux/if_tun.h. */
const TUNSETSNDBUF = 0x400454d4
const { EAGAIN, EIO } = constants.errno
/** EBADFD of asm-generic/errno.h has no name in node:os. */
const EBADFD = 77

/** linux/if_tun.h: frames enter the kernel as from a card that receives into pages. */
const IFF_NAPI = 0x10
const IFF_NAPI_FRAGS = 0x20

const features = bits(VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4)
const everything = features | bits(VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO)
const plain = (length: number, seed: number): Uint8Array =>
  makePacket({ protocol: 'udp', version: 4, payload: noise(length, seed) }, true).frame
const chainOf = (frame: Uint8Array): Uint8Array[] => [concat(encodeHeader({}), frame)]
/** Is the TCP or UDP checksum of `frame` right, which has the addresses of `shape`? */
const checksumIsRight = (frame: Uint8Array, transport: number, shape: PacketShape): boolean => {
  const addressBytes = shape.version === 4 ? 8 : 32
  const lengthBytes = frame.length - transport
  const protocol = shape.protocol === 'tcp' ? 6 : 17
  const pseudo = Uint8Array.of(0, protocol, lengthBytes >> 8, lengthBytes & 0xff)
  return sum(concat(frame.subarray(transport - addressBytes, transport), pseudo, frame.subarray(transport))) === 0xffff
}
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex')

for (const vnetHdr of [true, false]) {
  describe.skipIf(reason !== null)(`transmit, TAP ${vnetHdr ? 'with' : 'without'} vnet header`, () => {
    let namespace: Namespace
    let tap: OwnedFd
    let out: OwnedFd
    let io: Io

    beforeAll(() => {
      namespace = new Namespace()
      namespace.bridge('br0')
      tap = namespace.tap({ name: 'card', vnetHdr, bridge: 'br0' })
      out = namespace.tap({ name: 'out', vnetHdr: false, bridge: 'br0' })
    })
    afterAll(() => {
      tap?.[Symbol.dispose]()
      out?.[Symbol.dispose]()
      namespace?.[Symbol.dispose]()
    })
    beforeEach(() => {
      drain(out)
      io = new Io({ tap, vnetHdr, features, chainCapacity: 300, iovecCapacity: 3000 })
    })
    afterEach(() => io[Symbol.dispose]())

    test('a batch leaves in order, and bad chains in it cost only themselves', () => {
      const frames = Array.from({ length: 200 }, (_, index) => plain(1 + index * 7, index))
      const chains = frames.map(chainOf)
      // A software packet among them (checksum open), which must not be overtaken.
      const open = makePacket({ protocol: 'udp', version: 4, payload: noise(600, 9) })
      const start = { csum_start: open.transport, csum_offset: open.checksumOffset }
      chains[50] = [encodeHeader({ flags: VIRTIO_NET_HDR_F_NEEDS_CSUM, ...start }), open.frame]
      frames[50] = makePacket({ protocol: 'udp', version: 4, payload: noise(600, 9) }, true).frame
      const bad = new Set([0, 49, 51, 120, 199])
      for (const index of bad) chains[index] = [new Uint8Array(12)]
      expect(io.tx(chains)).toBe(200)
      const expected = frames.filter((_, index) => !bad.has(index))
      const bytes = expected.reduce((total, frame) => total + frame.length, 0)
      expect(io.takeTx()).toEqual({ packets: 195, bytes, gso: 0, csum: 1, drops: { header_short: 5 } })
      expect(readFrames(out, expected.length).map(hex)).toEqual(expected.map(hex))
      expect(io.block[VN_IO.txErrno]).toBe(0)
    })

    test('more pieces than the kernel takes at once', () => {
      const frame = plain(1400, 1)
      const whole = concat(encodeHeader({}), frame)
      // The header's 12 pieces become one of ours, so the kernel's 1,024 are reached at 1,035.
      for (const pieces of [1023, 1024, 1025, 1034, 1035, 1036, 1037, 1400]) {
        const chain = Array.from({ length: pieces }, (_, index) =>
          index < pieces - 1 ? whole.slice(index, index + 1) : whole.slice(index),
        )
        expect(io.tx([chain])).toBe(1)
        expect(io.takeTx()).toMatchObject({ packets: 1, drops: {} })
        expect(hex(readFrame(out)!)).toBe(hex(frame))
      }
    })

    test('chains may share pieces', () => {
      const frame = plain(700, 2)
      const chain = [encodeHeader({}), ...Array.from(frame, (byte) => Uint8Array.of(byte))]
      expect(io.tx(Array.from({ length: 3 }, () => chain))).toBe(3)
      expect(readFrames(out, 3).map(hex)).toEqual([frame, frame, frame].map(hex))
    })

    test('an interface that is down drops; up again it goes on', () => {
      namespace.ip('link', 'set', 'card', 'down')
      expect(io.tx([chainOf(plain(100, 1)), chainOf(plain(1000, 2))])).toBe(2)
      expect(io.takeTx()).toEqual({ packets: 0, bytes: 0, gso: 0, csum: 0, drops: { tap_down: 2 } })
      expect(io.block[VN_IO.txErrno]).toBe(EIO)
      namespace.ip('link', 'set', 'card', 'up')
      expect(io.tx([chainOf(plain(100, 1))])).toBe(1)
      expect(io.takeTx()).toMatchObject({ packets: 1, drops: {} })
      expect(io.block[VN_IO.txErrno]).toBe(0)
    })

    /**
     * Runs `body` with room for about 20 kB between the card and a reader whose link is slow, so that the TAP would
     * block.
     */
    const congested = (body: () => void): void => {
      namespace.tc('qdisc', 'add', 'dev', 'out', 'root', 'tbf', 'rate', '20mbit', 'burst', '5kb', 'latency', '10s')
      check('TUNSETSNDBUF', native.vn_ioctl(tap.fd, TUNSETSNDBUF, new Int32Array([20_000])))
      try {
        body()
      } finally {
        check('TUNSETSNDBUF', native.vn_ioctl(tap.fd, TUNSETSNDBUF, new Int32Array([2 ** 31 - 1])))
        namespace.tc('qdisc', 'del', 'dev', 'out', 'root')
      }
    }

    test('a TAP that would block stops the batch, and the rest leaves later, once', () => {
      const frames = Array.from({ length: 100 }, (_, index) => plain(1000, index + 1))
      const bad = [new Uint8Array(3)]
      const got: string[] = []
      let chains = frames.flatMap((frame) => [chainOf(frame), bad])
      let drops = 0
      let packets = 0
      let stops = 0
      congested(() => {
        while (got.length < frames.length) {
          const done = io.tx(chains)
          if (done < chains.length) {
            stops++
            expect(io.block[VN_IO.txErrno]).toBe(EAGAIN)
          }
          const counters = io.takeTx()
          packets += counters.packets
          drops += counters.drops.header_short ?? 0
          expect(counters.packets + (counters.drops.header_short ?? 0)).toBe(done)
          chains = chains.slice(done)
          // A frame that gets out makes room; if none does within the bound, the test fails here.
          got.push(hex(readFrame(out)!))
        }
      })
      expect(stops).toBeGreaterThan(0)
      expect([packets, drops]).toEqual([100, 100])
      expect(got).toEqual(frames.map(hex))
    })

    test('what a TAP refuses with its checksum or its segments left to it is finished here, and sent once', () => {
      // In this mode the kernel takes no piece longer than a page: EINVAL, as older kernels answer to kinds of GSO they
      // do not know.
      using picky = namespace.tap({
        name: 'picky',
        vnetHdr,
        bridge: 'br0',
        flags: vnetHdr ? IFF_NAPI | IFF_NAPI_FRAGS : 0,
      })
      using pickyIo = new Io({ tap: picky, vnetHdr, features: everything })
      for (const [shape, mss] of [
        [{ protocol: 'tcp', version: 4, payload: noise(30_000) }, 1400],
        [{ protocol: 'tcp', version: 6, payload: noise(30_001), vlan: true }, 1400],
        [{ protocol: 'udp', version: 4, payload: noise(30_000) }, 1400],
        [{ protocol: 'udp', version: 6, payload: noise(30_001) }, 1000],
      ] as [PacketShape, number][]) {
        const packet = makePacket(shape)
        drain(out)
        // A small frame before and one after it: nothing is overtaken.
        expect(
          pickyIo.tx([
            chainOf(plain(60, 1)),
            [encodeHeader(gsoHeader(shape, packet, mss)), packet.frame],
            chainOf(plain(61, 2)),
          ]),
        ).toBe(3)
        expect(pickyIo.takeTx()).toMatchObject({ packets: 3, gso: 1, csum: 1, drops: {} })
        const count = Math.ceil(shape.payload.length / mss)
        const got = readFrames(out, count + 2)
        expect([hex(got[0]!), hex(got.at(-1)!)]).toEqual([plain(60, 1), plain(61, 2)].map(hex))
        const segments = got.slice(1, -1)
        expect(hex(concat(...segments.map((segment) => segment.subarray(packet.headerBytes))))).toBe(hex(shape.payload))
        for (const segment of segments) expect(checksumIsRight(segment, packet.transport, shape)).toBe(true)
        expect(readFrame(out, 0)).toBeNull()
      }
    })

    test('a checksum that a TAP refuses to complete is completed here', () => {
      const flags = vnetHdr ? IFF_NAPI | IFF_NAPI_FRAGS : 0
      for (const name of ['br0', 'out']) namespace.ip('link', 'set', name, 'mtu', '9000')
      using picky = namespace.tap({ name: 'picky', vnetHdr, bridge: 'br0', flags, mtu: 9000 })
      using pickyIo = new Io({ tap: picky, vnetHdr, features: everything, maxFrameBytes: 9022 })
      const shape: PacketShape = { protocol: 'udp', version: 4, payload: noise(8000) }
      const packet = makePacket(shape)
      const start = { csum_start: packet.transport, csum_offset: packet.checksumOffset }
      drain(out)
      expect(
        pickyIo.tx([[encodeHeader({ flags: VIRTIO_NET_HDR_F_NEEDS_CSUM, ...start }), ...cut(packet.frame, 100)]]),
      ).toBe(1)
      expect(pickyIo.takeTx()).toMatchObject({ packets: 1, csum: 1, drops: {} })
      expect(hex(readFrame(out)!)).toBe(hex(makePacket(shape, true).frame))
      // With nothing left to do there is nothing else to try.
      expect(pickyIo.tx([[encodeHeader({}), ...cut(packet.frame, 100)]])).toBe(1)
      expect(pickyIo.takeTx().drops).toEqual(vnetHdr ? { tap_rejected: 1 } : {})
    })

    test('GSO to a TAP that takes only a part: counted as dropped, nothing is sent twice', () => {
      const shape: PacketShape = { protocol: 'tcp', version: 4, payload: noise(60_000) }
      const packet = makePacket(shape)
      const chain = [encodeHeader(gsoHeader(shape, packet, 1000)), packet.frame]
      congested(() => {
        expect(io.tx([chain])).toBe(1)
        const counters = io.takeTx()
        if (vnetHdr) {
          expect(counters).toMatchObject({ packets: 1, drops: {} })
        } else {
          expect(counters).toEqual({ packets: 0, bytes: 0, gso: 0, csum: 0, drops: { tap_no_memory: 1 } })
        }
        expect(readFrame(out)!.length).toBe(1054)
      })
    })

    test('107 memory that vanishes under a chain costs the packet and is noticed', () => {
      using file = new ScratchFile(4 * 4096)
      using mapping = new OwnedMapping(file.fd, 4 * 4096)
      const memory = new Uint8Array(mapping.buffer(0, 4 * 4096))
      // Longer than what is copied before it is sent.
      io.block[VN_IO.maxFrameBytes] = 4000
      const long = plain(2000, 3)
      const short = plain(100, 4)
      const shape: PacketShape = { protocol: 'tcp', version: 4, payload: noise(3000) }
      const large = makePacket(shape)
      memory.set(encodeHeader({}))
      memory.set(long, 4096)
      memory.set(short, 2 * 4096)
      memory.set(large.frame, 2 * 4096 + 200)
      const chains = [
        [memory.subarray(0, 12), memory.subarray(4096, 4096 + long.length)],
        [memory.subarray(0, 12), memory.subarray(2 * 4096, 2 * 4096 + short.length)],
        [
          encodeHeader(gsoHeader(shape, large, 1000)),
          memory.subarray(2 * 4096 + 200, 2 * 4096 + 200 + large.frame.length),
        ],
      ]
      expect(io.tx(chains)).toBe(3)
      expect(io.takeTx()).toMatchObject({ packets: 3, drops: {} })
      file.truncate(4096)
      expect(io.tx(chains)).toBe(3)
      // The kernel notices the first. The others are read here: zeroes, which are no TCP.
      expect(io.takeTx()).toMatchObject({ packets: 1, drops: { chain_address_unmapped: 1, gso_protocol_mismatch: 1 } })
      expect(mapping.guardHits()).toBe(1)
      // The header's page too: all zeroes is a header without offloads.
      file.truncate(0)
      expect(io.tx([[memory.subarray(0, 12), short]])).toBe(1)
      expect(io.takeTx()).toMatchObject({ packets: 1, drops: {} })
      expect(mapping.guardHits()).toBe(2)
    })

    test('a TAP that is deleted drops the whole batch', () => {
      const gone = namespace.tap({ name: 'gone', vnetHdr })
      const goneIo = new Io({ tap: gone, vnetHdr, features })
      namespace.ip('link', 'del', 'gone')
      expect(goneIo.tx([chainOf(plain(100, 1)), chainOf(plain(1000, 1)), [new Uint8Array(12)]])).toBe(3)
      expect(goneIo.takeTx().drops).toEqual({ tap_gone: 2, header_short: 1 })
      expect(goneIo.block[VN_IO.txErrno]).toBe(EBADFD)
      goneIo[Symbol.dispose]()
      gone[Symbol.dispose]()
    })
  })
}
