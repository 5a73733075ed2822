import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { constants } from 'node:os'
import { TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6 } from '../../../src/abi/tun.ts'
import {
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
  VIRTIO_NET_F_MRG_RXBUF,
} from '../../../src/abi/virtio.ts'
import {
  VIRTIO_NET_HDR_F_DATA_VALID,
  VIRTIO_NET_HDR_F_NEEDS_CSUM,
  VIRTIO_NET_HDR_GSO_ECN,
} from '../../../src/abi/virtio-net.ts'
import { RX_STOP, VN_IO } from '../../../src/abi/vn-io.ts'
import type { OwnedFd } from '../../../src/sys/fd.ts'
import { OwnedMapping } from '../../../src/sys/mapping.ts'
import { check, native } from '../../../src/sys/native.ts'
import { bits } from '../../support/bits.ts'
import {
  concat,
  cut,
  decodeHeader,
  encodeHeader,
  gsoHeader,
  makePacket,
  noHeader,
  noise,
  type PacketShape,
  sum,
} from '../../support/frames.ts'
import { ScratchFile } from '../../support/scratch-file.ts'
import { drain, HEADER_BYTES, Io, Namespace, tapsTakeUso, unavailable, writeFrame } from '../../support/tap-lab.ts'

const reason = unavailable()
if (reason !== null) console.log(`receiving from a TAP: skipped, ${reason}`)

const guestOffloads = bits(
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
)
const merge = bits(VIRTIO_NET_F_MRG_RXBUF)
const allOffloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6

/** Of packets with segments left to do, those that a TAP of this kernel can have. */
const ofThisKernel = ({ protocol }: Pick<PacketShape, 'protocol'>): boolean => tapsTakeUso || protocol === 'tcp'
if (!tapsTakeUso) console.log('UDP segmentation from a TAP: not with this kernel')

const buffer = (length: number): Uint8Array => new Uint8Array(length).fill(0xee)
const buffers = (count: number, length: number): Uint8Array[][] => Array.from({ length: count }, () => [buffer(length)])
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex')

/** One byte after another of what a chain has. */
const contents = (chain: readonly Uint8Array[], length: number): Uint8Array => concat(...chain).subarray(0, length)

const tcp = (length: number, seed = 1): PacketShape => ({ protocol: 'tcp', version: 4, payload: noise(length, seed) })

// Somebody writes to one TAP of a bridge, and the card reads the other: one has a vnet header and all offloads on, one
// has no header.
describe.skipIf(reason !== null)('receive', () => {
  let namespace: Namespace
  let fds: OwnedFd[]
  let peer: OwnedFd
  let tap: OwnedFd
  let bare: OwnedFd
  let io: Io
  let bareIo: Io

  beforeAll(() => {
    namespace = new Namespace()
    namespace.bridge('br0')
    peer = namespace.tap({ name: 'peer', vnetHdr: true, bridge: 'br0', offloads: allOffloads })
    tap = namespace.tap({ name: 'card', vnetHdr: true, bridge: 'br0', offloads: allOffloads })
    bare = namespace.tap({ name: 'bare', vnetHdr: false, bridge: 'br0' })
    fds = [peer, tap, bare]
  })
  afterAll(() => {
    for (const fd of fds ?? []) fd[Symbol.dispose]()
    namespace?.[Symbol.dispose]()
  })
  beforeEach(() => {
    for (const fd of [tap, bare]) drain(fd)
    io = new Io({ tap, vnetHdr: true, features: guestOffloads | merge })
    bareIo = new Io({ tap: bare, vnetHdr: false, features: guestOffloads | merge })
  })
  afterEach(() => {
    io[Symbol.dispose]()
    bareIo[Symbol.dispose]()
  })

  const arrive = (frame: Uint8Array, header: Uint8Array = encodeHeader({})): void =>
    writeFrame(peer, concat(header, frame))
  const complete = (length: number, seed = 1): Uint8Array => makePacket(tcp(length, seed), true).frame
  /** TCP packets with so much payload, those beyond an MTU of 1,500 with GSO: their frames. */
  const arriveOfSizes = (sizes: readonly number[]): Uint8Array[] =>
    sizes.map((size, index) => {
      const shape = tcp(size, index + 1)
      const large = size > 1400
      const packet = makePacket(shape, !large)
      arrive(packet.frame, encodeHeader(large ? gsoHeader(shape, packet, 1000) : {}))
      return packet.frame
    })

  test('an empty TAP: nothing used, nothing written', () => {
    const chains = buffers(3, 2000)
    expect(io.rx(chains)).toEqual({ delivered: 0, used: 0, written: [] })
    expect(io.rxStop).toBe(RX_STOP.empty)
    expect(io.takeRx()).toEqual({ packets: 0, bytes: 0, gso: 0, csum: 0, drops: {} })
    for (const [piece] of chains) expect(piece!.every((byte) => byte === 0xee)).toBe(true)
  })

  test('packets go into buffers in order, one each', () => {
    const frames = [60, 1000, 14].map((length, index) => complete(length, index + 1))
    for (const frame of frames) arrive(frame)
    for (const each of [io, bareIo]) {
      const chains = buffers(5, 2000)
      const { delivered, used, written } = each.rx(chains)
      expect([delivered, used, each.rxStop]).toEqual([3, 3, RX_STOP.empty])
      expect(written).toEqual(frames.map((frame) => HEADER_BYTES + frame.length))
      frames.forEach((frame, index) => {
        const got = contents(chains[index]!, written[index]!)
        expect(hex(got.subarray(HEADER_BYTES))).toBe(hex(frame))
        expect(decodeHeader(got).num_buffers).toBe(1)
        // What is behind the packet is not touched.
        expect(chains[index]![0]!.subarray(written[index]!).every((byte) => byte === 0xee)).toBe(true)
      })
      const bytes = frames.reduce((total, frame) => total + frame.length, 0)
      expect(each.takeRx()).toMatchObject({ packets: 3, bytes, gso: 0, drops: {} })
    }
  })

  test('not more packets than asked', () => {
    for (let index = 0; index < 5; index++) arrive(complete(100, index + 1))
    expect(io.rx(buffers(10, 2000), 2)).toMatchObject({ delivered: 2, used: 2 })
    expect(io.rxStop).toBe(RX_STOP.budget)
    expect(io.rx(buffers(10, 2000), 0)).toMatchObject({ delivered: 0, used: 0 })
    expect(io.rxStop).toBe(RX_STOP.budget)
    expect(io.rx(buffers(10, 2000), 10)).toMatchObject({ delivered: 3, used: 3 })
    expect(io.rxStop).toBe(RX_STOP.empty)
  })

  test('any framing of a buffer gives the same bytes', () => {
    const frame = complete(500)
    for (const lengths of [
      [12],
      [1, 11, 3],
      [4, 4, 4, 0, 9],
      [5, 0, 0, 100, 1],
      Array.from({ length: 200 }, () => 1),
    ]) {
      arrive(frame)
      const chain = cut(buffer(2000), ...lengths)
      const { written } = io.rx([chain])
      const got = contents(chain, written[0]!)
      expect(hex(got.subarray(HEADER_BYTES))).toBe(hex(frame))
      expect(decodeHeader(got).num_buffers).toBe(1)
      drain(bare)
    }
  })

  test('39, conformance 40, 41, 42: merged buffers, all but the last full, the true count in the first', () => {
    const frame = complete(1400)
    const whole = HEADER_BYTES + frame.length
    for (const length of [12, 13, 64, 100, 733, 734, whole - 1, whole, whole + 1]) {
      arrive(frame)
      const needed = Math.ceil(whole / length)
      const big = new Io({ tap, vnetHdr: true, features: guestOffloads | merge, chainCapacity: 200 })
      const chains = buffers(needed + 2, length)
      const { delivered, used, written } = big.rx(chains)
      expect([delivered, used]).toEqual([1, needed])
      expect(written).toEqual([...new Array(needed - 1).fill(length), whole - length * (needed - 1)])
      const got = contents(chains.slice(0, needed).flat(), whole)
      expect(decodeHeader(got)).toMatchObject({ num_buffers: needed })
      expect(hex(got.subarray(HEADER_BYTES))).toBe(hex(frame))
      for (const [piece] of chains.slice(needed)) expect(piece!.every((byte) => byte === 0xee)).toBe(true)
      big[Symbol.dispose]()
    }
  })

  test('39 too few merged buffers: the packet waits, and no buffer of its is used or written', () => {
    const first = complete(100, 1)
    const second = complete(1400, 2)
    const third = complete(100, 3)
    for (const frame of [first, second, third]) arrive(frame)
    const chains = buffers(4, 400)
    expect(io.rx(chains)).toMatchObject({ delivered: 1, used: 1 })
    expect(io.rxStop).toBe(RX_STOP.needChains)
    for (const [piece] of chains.slice(1)) expect(piece!.every((byte) => byte === 0xee)).toBe(true)
    // Still too few, then none at all.
    expect(io.rx(chains.slice(1))).toMatchObject({ delivered: 0, used: 0 })
    expect(io.rx([])).toMatchObject({ delivered: 0, used: 0 })
    expect(io.rxStop).toBe(RX_STOP.needChains)
    const more = buffers(6, 400)
    const { delivered, used, written } = io.rx(more)
    expect([delivered, used, io.rxStop]).toEqual([2, 5, RX_STOP.empty])
    expect(hex(contents(more.slice(0, 4).flat(), HEADER_BYTES + second.length).subarray(HEADER_BYTES))).toBe(
      hex(second),
    )
    expect(hex(contents(more[4]!, written[4]!).subarray(HEADER_BYTES))).toBe(hex(third))
    expect(io.takeRx()).toMatchObject({ packets: 3, drops: {} })
  })

  test('a packet that waits is judged again: the driver may have been reset', () => {
    const shape = tcp(1000)
    const packet = makePacket(shape)
    const start = { csum_start: packet.transport, csum_offset: packet.checksumOffset }
    arrive(packet.frame, encodeHeader({ flags: VIRTIO_NET_HDR_F_NEEDS_CSUM, ...start }))
    expect(io.rx(buffers(1, 400))).toMatchObject({ delivered: 0 })
    io.setFeatures(0n)
    const chain = [buffer(2000)]
    const { delivered, written } = io.rx([chain])
    expect(delivered).toBe(1)
    const got = contents(chain, written[0]!)
    expect(decodeHeader(got)).toEqual({ ...noHeader, num_buffers: 1 })
    expect(hex(got.subarray(HEADER_BYTES))).toBe(hex(makePacket(shape, true).frame))

    const large = makePacket(tcp(4000))
    io.setFeatures(guestOffloads | merge)
    arrive(large.frame, encodeHeader(gsoHeader(tcp(4000), large, 1000)))
    expect(io.rx(buffers(1, 400))).toMatchObject({ delivered: 0, used: 0 })
    io.setFeatures(merge)
    io.takeRx()
    expect(io.rx(buffers(20, 400))).toMatchObject({ delivered: 0, used: 0 })
    expect(io.takeRx().drops).toEqual({ rx_gso_not_negotiated: 1 })
    expect(io.rxStop).toBe(RX_STOP.empty)
  })

  test('40 a packet longer than the whole ring is thrown away when asked, and the next arrives', () => {
    arrive(complete(1400))
    arrive(complete(50, 2))
    expect(native.vn_tap_rx_drop_pending(io.handle)).toBe(0)
    expect(io.rx(buffers(2, 400))).toMatchObject({ delivered: 0, used: 0 })
    expect(native.vn_tap_rx_drop_pending(io.handle)).toBe(1)
    expect(native.vn_tap_rx_drop_pending(io.handle)).toBe(0)
    expect(io.rx(buffers(2, 400))).toMatchObject({ delivered: 1, used: 1 })
    expect(io.takeRx()).toMatchObject({ packets: 1, drops: { rx_too_long_for_ring: 1 } })
  })

  test('37 a buffer shorter than the header is used up without a byte, whatever follows', () => {
    for (const features of [guestOffloads, guestOffloads | merge]) {
      io.setFeatures(features)
      const frame = complete(100)
      arrive(frame)
      const chains = [[buffer(11)], [buffer(4), buffer(7)], [], [buffer(2000)]]
      const { delivered, used, written } = io.rx(chains)
      expect([delivered, used]).toEqual([1, 4])
      expect(written).toEqual([0, 0, 0, HEADER_BYTES + frame.length])
      for (const piece of chains.slice(0, 3).flat()) expect(piece.every((byte) => byte === 0xee)).toBe(true)
      expect(io.takeRx()).toMatchObject({ packets: 1, drops: { rx_buffer_too_small: 3 } })
    }
  })

  test(
    '38, conformance 40: without merging a frame has one buffer; one too long for the next is ' +
      'dropped, and the buffer stays',
    () => {
      for (const each of [io, bareIo]) {
        each.setFeatures(guestOffloads)
        const fits = complete(1000)
        const exact = HEADER_BYTES + fits.length
        for (const longer of [1, 2, 400]) {
          for (const length of [1000 + longer, 1000, 1000 + longer, 1000 + longer, 1000]) arrive(complete(length))
          const chains = [[buffer(exact)], cut(buffer(exact), 12, 7), [buffer(exact)]]
          const { delivered, used, written } = each.rx(chains)
          expect([delivered, used, written, each.rxStop]).toEqual([2, 2, [exact, exact], RX_STOP.empty])
          for (const chain of chains.slice(0, 2)) {
            expect(decodeHeader(concat(...chain)).num_buffers).toBe(1)
            expect(hex(contents(chain, exact).subarray(HEADER_BYTES))).toBe(hex(fits))
          }
          expect(chains[2]![0]!.every((byte) => byte === 0xee)).toBe(true)
          expect(each.takeRx()).toMatchObject({ packets: 2, drops: { rx_buffer_too_small: 3 } })
          for (const fd of [tap, bare]) drain(fd)
        }
      }
    },
  )

  test('38 without merging, a GSO frame too long for the next buffer is dropped, and the buffer stays', () => {
    io.setFeatures(guestOffloads)
    // As long as one longer than 4 KiB came before, the start of the next is read apart from the rest.
    const sizes = [30_000, 30_000, 60, 30_000, 65_000, 1000]
    const sent = arriveOfSizes(sizes)
    const chains = Array.from({ length: 6 }, () => [buffer(20_000)])
    expect(io.rx(chains)).toMatchObject({ delivered: 2, used: 2 })
    for (const [index, frame] of [sent[2]!, sent[5]!].entries()) {
      expect(hex(contents(chains[index]!, HEADER_BYTES + frame.length).subarray(HEADER_BYTES))).toBe(hex(frame))
    }
    expect(io.takeRx()).toMatchObject({ packets: 2, drops: { rx_buffer_too_small: 4 } })
    for (const [piece] of chains.slice(2)) expect(piece!.every((byte) => byte === 0xee)).toBe(true)
  })

  test('37 without merging, a buffer with no room for the shortest frame is used up, or the queue would stop', () => {
    io.setFeatures(guestOffloads)
    const frame = complete(100)
    arrive(frame)
    const chains = [12, 13, 25, 26, 2000].map((length) => [buffer(length)])
    expect(io.rx(chains)).toMatchObject({ delivered: 0, used: 3, written: [0, 0, 0] })
    expect(io.takeRx()).toMatchObject({ packets: 0, drops: { rx_buffer_too_small: 4 } })
    arrive(frame.subarray(0, 14))
    expect(io.rx(chains.slice(3))).toMatchObject({ delivered: 1, used: 1, written: [26] })
  })

  test('conformance 44, 45: GSO arrives with its size and open checksum', () => {
    for (const shape of [
      { ...tcp(60_000), vlan: true },
      { ...tcp(60_000), tags: [0x8100, 0x8100] },
      { ...tcp(60_000), version: 6, tags: [0x88a8, 0x8100] },
      { ...tcp(60_000), protocol: 'udp', tags: [0x88a8, 0x88a8] },
      { ...tcp(60_000), version: 6, extensions: [[60, 600]] },
      { ...tcp(60_000), version: 6 },
      { ...tcp(60_000), protocol: 'udp' },
      { ...tcp(60_000), protocol: 'udp', version: 6 },
    ].filter((each) => ofThisKernel(each as PacketShape)) as PacketShape[]) {
      const packet = makePacket(shape)
      const header = gsoHeader(shape, packet, 1000)
      arrive(packet.frame, encodeHeader(header))
      const chains = buffers(20, 4096)
      const { delivered, used } = io.rx(chains)
      const whole = HEADER_BYTES + packet.frame.length
      expect([delivered, used]).toEqual([1, Math.ceil(whole / 4096)])
      const got = contents(chains.flat(), whole)
      expect(decodeHeader(got)).toEqual({ ...noHeader, ...header, num_buffers: used })
      expect(hex(got.subarray(HEADER_BYTES))).toBe(hex(packet.frame))
      expect(io.takeRx()).toMatchObject({ packets: 1, gso: 1, csum: 1 })
    }
  })

  test('large packets one after the other: the same bytes in buffers of any framing, a small one between', () => {
    const sizes = [30_000, 65_000, 4_100, 60, 65_000, 200, 30_000, 300]
    const framings = [
      (): Uint8Array[][] => buffers(300, 1536),
      (): Uint8Array[][] => buffers(60, 65_562),
      (): Uint8Array[][] => Array.from({ length: 300 }, (_, index) => [buffer([12, 13, 1500, 4000][index % 4]!)]),
      (): Uint8Array[][] => Array.from({ length: 100 }, () => cut(buffer(5000), 1, 11, 3, 0, 240, 7)),
      // In more pieces than a call takes.
      (): Uint8Array[][] => Array.from({ length: 20 }, () => cut(buffer(20_000), ...new Array(80).fill(250))),
    ]
    for (const framing of framings) {
      using many = new Io({
        tap,
        vnetHdr: true,
        features: guestOffloads | merge,
        chainCapacity: 300,
        iovecCapacity: 8192,
      })
      const sent = arriveOfSizes(sizes)
      const chains = framing()
      const { delivered, written, used } = many.rx(chains)
      expect(delivered).toBe(sent.length)
      let next = 0
      for (const frame of sent) {
        const first = chains[next]!
        const count = decodeHeader(contents(first, HEADER_BYTES)).num_buffers!
        const parts = Array.from({ length: count }, (_, index) =>
          contents(chains[next + index]!, written[next + index]!),
        )
        expect(hex(concat(...parts).subarray(HEADER_BYTES))).toBe(hex(frame))
        for (let index = 0; index < count - 1; index++) {
          expect(written[next + index]).toBe(concat(...chains[next + index]!).length)
        }
        next += count
      }
      expect(next).toBe(used)
      expect(many.takeRx()).toMatchObject({ packets: sent.length, drops: {} })
    }
  })

  test(
    'large packets one after the other without merging: each in one buffer, of which those with ' +
      'room for any are filled straight',
    () => {
      io.setFeatures(guestOffloads)
      const sizes = [30_000, 65_000, 4_100, 60, 65_000, 200, 30_000, 300]
      const framings = [
        (): Uint8Array[][] => sizes.map(() => [buffer(69_632)]),
        (): Uint8Array[][] => sizes.map(() => cut(buffer(69_632), 12, ...new Array(16).fill(4096))),
        (): Uint8Array[][] => sizes.map(() => cut(buffer(69_632), 1, 11, 3, 0, 240, 7)),
        // In more pieces than a call takes, and with room for what comes only.
        (): Uint8Array[][] => sizes.map(() => cut(buffer(69_632), ...new Array(200).fill(300))),
        (): Uint8Array[][] => sizes.map((size) => [buffer(HEADER_BYTES + 54 + size)]),
      ]
      for (const framing of framings) {
        const sent = arriveOfSizes(sizes)
        const chains = framing()
        const { delivered, used, written } = io.rx(chains)
        expect([delivered, used]).toEqual([sent.length, sent.length])
        for (const [index, frame] of sent.entries()) {
          expect(written[index]).toBe(HEADER_BYTES + frame.length)
          const got = contents(chains[index]!, written[index]!)
          expect(decodeHeader(got).num_buffers).toBe(1)
          expect(hex(got.subarray(HEADER_BYTES))).toBe(hex(frame))
        }
        expect(io.takeRx()).toMatchObject({ packets: sent.length, drops: {} })
      }
    },
  )

  test('a large packet that is not wanted uses no buffer, and the next goes into the same', () => {
    const packet = makePacket(tcp(60_000))
    const gso = encodeHeader(gsoHeader(tcp(60_000), packet, 1000))
    for (let time = 0; time < 3; time++) arrive(packet.frame, gso)
    const chains = buffers(200, 1536)
    expect(io.rx(chains.slice(0, 64), 1)).toMatchObject({ delivered: 1 })
    io.setFeatures((guestOffloads | merge) & ~bits(VIRTIO_NET_F_GUEST_TSO4))
    expect(io.rx(chains.slice(0, 64), 1)).toMatchObject({ delivered: 0, used: 0 })
    io.setFeatures(guestOffloads | merge)
    const { delivered, used } = io.rx(chains.slice(0, 64))
    expect([delivered, used]).toEqual([1, Math.ceil((HEADER_BYTES + packet.frame.length) / 1536)])
    const got = contents(chains.flat(), HEADER_BYTES + packet.frame.length)
    expect(hex(got.subarray(HEADER_BYTES))).toBe(hex(packet.frame))
    expect(io.takeRx()).toMatchObject({ packets: 2, drops: { rx_gso_not_negotiated: 1 } })
  })

  test('large packets behind headers longer than what of them is read apart', () => {
    for (const protocol of (['tcp', 'udp'] as const).filter((each) => ofThisKernel({ protocol: each }))) {
      const shape: PacketShape = {
        ...tcp(50_000),
        protocol,
        version: 6,
        extensions: [
          [0, 256],
          [60, 400],
        ],
      }
      const packet = makePacket(shape)
      const header = gsoHeader(shape, packet, 1000)
      for (let time = 0; time < 3; time++) {
        arrive(packet.frame, encodeHeader(header))
        const chains = buffers(20, 4096)
        const whole = HEADER_BYTES + packet.frame.length
        expect(io.rx(chains)).toMatchObject({ delivered: 1, used: Math.ceil(whole / 4096) })
        const { gso_type, gso_size, csum_start } = header
        expect(decodeHeader(chains[0]![0]!)).toMatchObject({ gso_type, gso_size, csum_start })
        expect(hex(contents(chains.flat(), whole).subarray(HEADER_BYTES))).toBe(hex(packet.frame))
      }
      expect(io.takeRx()).toMatchObject({ packets: 3, gso: 3, drops: {} })
    }
  })

  test('107 memory that vanishes under a large packet is noticed', () => {
    const size = 128 * 1024
    using file = new ScratchFile(size)
    using mapping = new OwnedMapping(file.fd, size)
    const memory = new Uint8Array(mapping.buffer(0, size))
    const packet = makePacket(tcp(30_000))
    const gso = encodeHeader(gsoHeader(tcp(30_000), packet, 1000))
    for (let time = 0; time < 2; time++) arrive(packet.frame, gso)
    const chains = Array.from({ length: 32 }, (_, index) => [memory.subarray(index * 4096, (index + 1) * 4096)])
    expect(io.rx(chains, 1)).toMatchObject({ delivered: 1 })
    expect(mapping.guardHits()).toBe(0)
    file.truncate(0)
    // The kernel does not tell. It shows when the start of the packet is put in front of what the kernel has copied.
    expect(io.rx(chains, 1)).toMatchObject({ delivered: 1 })
    expect(mapping.guardHits()).toBe(1)
  })

  test('conformance 44: GSO that the driver does not take is dropped', () => {
    const without = (bit: number): bigint => guestOffloads & ~bits(bit)
    const shapes: [PacketShape, number, number][] = [
      [tcp(4000), VIRTIO_NET_F_GUEST_TSO4, 0],
      [{ ...tcp(4000), version: 6 }, VIRTIO_NET_F_GUEST_TSO6, 0],
      [{ ...tcp(4000), protocol: 'udp' }, VIRTIO_NET_F_GUEST_USO4, 0],
      [{ ...tcp(4000), protocol: 'udp', version: 6 }, VIRTIO_NET_F_GUEST_USO6, 0],
      [tcp(4000), VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_HDR_GSO_ECN],
      [tcp(4000), VIRTIO_NET_F_GUEST_CSUM, 0],
    ]
    for (const [shape, bit, flag] of shapes.filter(([each]) => ofThisKernel(each))) {
      const packet = makePacket(shape)
      const header = gsoHeader(shape, packet, 1000)
      header.gso_type! |= flag
      io.setFeatures(without(bit))
      arrive(packet.frame, encodeHeader(header))
      expect(io.rx(buffers(1, 5000))).toMatchObject({ delivered: 0, used: 0 })
      expect(io.takeRx().drops).toEqual({ rx_gso_not_negotiated: 1 })
      io.setFeatures(guestOffloads)
      arrive(packet.frame, encodeHeader(header))
      expect(io.rx(buffers(1, 5000))).toMatchObject({ delivered: 1, used: 1 })
      expect(io.takeRx().drops).toEqual({})
    }
  })

  test('conformance 43: flags are 0 without GUEST_CSUM, and a checksum left open is completed', () => {
    const taggings = [[], [0x8100], [0x88a8, 0x8100], [0x8100, 0x8100]]
    for (const [features, tags] of [0n, guestOffloads].flatMap((each) =>
      taggings.map((list) => [each, list] as const),
    )) {
      const shape: PacketShape = { ...tcp(501), tags }
      const packet = makePacket(shape)
      const header = encodeHeader({
        flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
        csum_start: packet.transport,
        csum_offset: packet.checksumOffset,
      })
      io.setFeatures(features)
      arrive(packet.frame, header)
      const chain = [buffer(2000)]
      const { written } = io.rx([chain])
      const got = contents(chain, written[0]!)
      const told = decodeHeader(got)
      if (features === 0n) {
        expect(told).toEqual({ ...noHeader, num_buffers: 1 })
        expect(hex(got.subarray(HEADER_BYTES))).toBe(hex(makePacket(shape, true).frame))
      } else {
        expect(told).toMatchObject({
          flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
          csum_start: packet.transport,
          csum_offset: 16,
        })
        expect(hex(got.subarray(HEADER_BYTES))).toBe(hex(packet.frame))
      }
    }
  })

  test('conformance 36: no frame without GSO longer than the MTU allows', () => {
    for (const each of [io, bareIo]) each.block[VN_IO.maxFrameBytes] = 500
    arrive(complete(500 - 54))
    arrive(complete(501 - 54))
    for (const each of [io, bareIo]) {
      expect(each.rx(buffers(2, 2000))).toMatchObject({ delivered: 1, used: 1 })
      expect(each.takeRx().drops).toEqual({ frame_too_long: 1 })
    }
  })

  test('without a vnet header, DATA_VALID is what we have verified', () => {
    const flagsOf = (frame: Uint8Array): number => {
      writeFrame(peer, concat(encodeHeader({}), frame))
      const chain = [buffer(2000)]
      expect(bareIo.rx([chain]).delivered).toBe(1)
      drain(tap)
      return decodeHeader(chain[0]!).flags
    }
    for (const protocol of ['tcp', 'udp'] as const) {
      for (const version of [4, 6] as const) {
        for (const tags of [[], [0x8100], [0x88a8], [0x88a8, 0x8100], [0x8100, 0x8100]]) {
          for (const length of [0, 1, 63, 64, 65, 1001]) {
            const shape: PacketShape = { protocol, version, tags, payload: noise(length, 3) }
            const packet = makePacket(shape, true)
            expect(flagsOf(packet.frame)).toBe(VIRTIO_NET_HDR_F_DATA_VALID)
            // Ethernet's padding is not part of the packet.
            expect(flagsOf(concat(packet.frame, noise(7)))).toBe(VIRTIO_NET_HDR_F_DATA_VALID)
            for (const offset of [packet.transport, packet.headerBytes - 1, packet.frame.length - 1]) {
              const wrong = packet.frame.slice()
              wrong[offset]! ^= 0x10
              expect(flagsOf(wrong)).toBe(0)
            }
          }
        }
      }
    }
    const fragment = makePacket(tcp(100), true).frame
    fragment[20] = 0x20
    // A bridge may look at the IP header's checksum.
    fragment.fill(0, 24, 26)
    const ipChecksum = ~sum(fragment.subarray(14, 34)) & 0xffff
    fragment.set([ipChecksum >> 8, ipChecksum & 0xff], 24)
    expect(flagsOf(fragment)).toBe(0)
    const none = makePacket({ ...tcp(100), protocol: 'udp' }, true)
    none.frame.fill(0, none.transport + 6, none.transport + 8)
    expect(flagsOf(none.frame)).toBe(0)
    bareIo.setFeatures(0n)
    expect(flagsOf(complete(100))).toBe(0)
  })

  test('a TAP that is deleted answers with its errno, and what was read before is delivered', () => {
    const gone = namespace.tap({ name: 'gone', vnetHdr: true })
    const goneIo = new Io({ tap: gone, vnetHdr: true, features: guestOffloads })
    namespace.ip('link', 'del', 'gone')
    expect(goneIo.rx(buffers(2, 2000))).toEqual({ delivered: 0, used: 0, written: [] })
    expect(goneIo.rxStop).toBe(RX_STOP.error)
    // EBADFD has no name in node:os.
    expect(goneIo.block[VN_IO.rxErrno]).toBe(77)
    goneIo[Symbol.dispose]()
    gone[Symbol.dispose]()
  })

  test('handles and ranges that do not exist are refused', () => {
    const { EBADF, EINVAL } = constants.errno
    for (const handle of [0, -1, 257, 200]) {
      expect(native.vn_tap_rx(handle, 0, 0, 1)).toBe(-EBADF)
      expect(native.vn_tap_tx(handle, 0, 0)).toBe(-EBADF)
      expect(native.vn_tap_rx_drop_pending(handle)).toBe(-EBADF)
      expect(native.vn_io_destroy(handle)).toBe(-EBADF)
    }
    expect(native.vn_tap_rx(io.handle, 0, 65, 1)).toBe(-EINVAL)
    expect(native.vn_tap_rx(io.handle, 0xffff_ffff, 2, 1)).toBe(-EINVAL)
    expect(native.vn_tap_tx(io.handle, 64, 1)).toBe(-EINVAL)
    expect(check('the whole range', native.vn_tap_tx(io.handle, 64, 0))).toBe(0)
    expect(native.vn_io_create(null)).toBe(-EINVAL)
  })

  test('the judge of checksums is right about a known packet', () => {
    // RFC 1071 §3.
    expect(sum(Uint8Array.of(0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7))).toBe(0xddf2)
  })
})
