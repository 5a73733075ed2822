/**
 * Packets a second through vn_tap_tx and vn_tap_rx, one thread, against a real TAP in a namespace of its own: `bun
 * bench/micro/tap-io.ts` as root. Prints nanoseconds of processor time a packet (a TAP's work is done in the caller's
 * system call), the best of several rounds; machines differ, so compare lines of one run only.
 */

import { TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 } from '../../src/abi/tun.ts'
import {
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_MRG_RXBUF,
} from '../../src/abi/virtio.ts'
import { check, native } from '../../src/sys/native.ts'
import { bits } from '../../test/support/bits.ts'
import { concat, encodeHeader, gsoHeader, makePacket, noise, type PacketShape } from '../../test/support/frames.ts'
import { drain, Io, Namespace } from '../../test/support/tap-lab.ts'

const features = bits(
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_MRG_RXBUF,
)
const rounds = 7
const roundNs = 40e6

using namespace = new Namespace()
namespace.bridge('br0')
const sink = namespace.tap({ name: 'sink', vnetHdr: true })
const bareSink = namespace.tap({ name: 'baresink', vnetHdr: false })
const offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6
const peer = namespace.tap({ name: 'peer', vnetHdr: true, bridge: 'br0', offloads })
const card = namespace.tap({ name: 'card', vnetHdr: true, bridge: 'br0', offloads })

/**
 * One chain: the header apart, as Linux's driver has it without room in front of the packet, or in one piece with it.
 */
const chainOf = (payloadBytes: number, gsoSize: number, apart: boolean): Uint8Array[] => {
  const shape: PacketShape = { protocol: gsoSize > 0 ? 'tcp' : 'udp', version: 4, payload: noise(payloadBytes) }
  const packet = makePacket(shape, gsoSize === 0)
  const header = encodeHeader(gsoSize > 0 ? gsoHeader(shape, packet, gsoSize) : {})
  return apart ? [header, packet.frame] : [concat(header, packet.frame)]
}

/** Processor time of this process so far, ns. Unlike the clock it does not count what others take. */
const spentNs = (): number => {
  const { user, system } = process.cpuUsage()
  return (user + system) * 1000
}

const best = (measure: () => number): string =>
  Math.min(...Array.from({ length: rounds }, measure))
    .toFixed(0)
    .padStart(7)

console.log('ns a packet                          batch 1      8     64    256')
const sizes: [string, number, number][] = [
  ['64 B', 22, 0],
  ['250 B', 208, 0],
  ['300 B', 258, 0],
  ['1514 B', 1472, 0],
  ['65 kB GSO', 65_000, 1448],
]
for (const [tap, vnetHdr] of [
  [sink, true],
  [bareSink, false],
] as const) {
  for (const [name, payload, gso] of sizes) {
    for (const apart of [false, true]) {
      const chain = chainOf(payload, gso, apart)
      using io = new Io({ tap, vnetHdr, features, chainCapacity: 256, iovecCapacity: 1024 })
      io.tx(Array.from({ length: 256 }, () => chain))
      const line = [1, 8, 64, 256].map((batch) =>
        best(() => {
          const start = spentNs()
          let packets = 0
          while (spentNs() - start < roundNs) {
            for (let calls = 0; calls < 1024 / batch; calls++) check('vn_tap_tx', native.vn_tap_tx(io.handle, 0, batch))
            packets += 1024
          }
          return (spentNs() - start) / packets
        }),
      )
      console.log(
        `tx ${name.padEnd(10)} ${apart ? 'two pieces' : 'one piece '} ${vnetHdr ? 'vnet' : 'bare'}   `,
        ...line,
      )
    }
  }
}

const merge = bits(VIRTIO_NET_F_MRG_RXBUF)
for (const [[name, payload, gso], rxFeatures, buffers] of [
  ...sizes.map((size) => [size, features, 'merging'] as const),
  ...sizes.map((size) => [size, features & ~merge, 'big    '] as const),
]) {
  using feeder = new Io({ tap: peer, vnetHdr: true, features, chainCapacity: 256, iovecCapacity: 1024 })
  using io = new Io({ tap: card, vnetHdr: true, features: rxFeatures, chainCapacity: 256, iovecCapacity: 1024 })
  drain(card)
  const chains = Array.from({ length: 256 }, () => [new Uint8Array(gso > 0 ? 66_000 : 2000)])
  io.rx(chains)
  feeder.tx(Array.from({ length: 256 }, () => chainOf(payload, gso, true)))
  io.rx(chains)
  const line = [1, 8, 64, 256].map((batch) =>
    best(() => {
      let spent = 0
      let packets = 0
      while (spent < roundNs) {
        const sent = check('feed', native.vn_tap_tx(feeder.handle, 0, 256))
        const start = spentNs()
        for (let left = sent; left > 0; left -= batch) {
          const got = check('vn_tap_rx', native.vn_tap_rx(io.handle, 0, Math.min(batch, left), batch))
          if (got !== Math.min(batch, left)) throw new Error(`${got} packets came`)
        }
        spent += spentNs() - start
        packets += sent
      }
      return spent / packets
    }),
  )
  console.log(`rx ${name.padEnd(10)} ${buffers}    vnet   `, ...line)
}
for (const fd of [sink, bareSink, peer, card]) fd[Symbol.dispose]()
