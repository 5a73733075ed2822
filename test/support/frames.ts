/** Frames and virtio-net headers for tests, and a plain judge of checksums. */
import {
  VIRTIO_NET_HDR_F_NEEDS_CSUM,
  VIRTIO_NET_HDR_GSO_TCPV4,
  VIRTIO_NET_HDR_GSO_TCPV6,
  VIRTIO_NET_HDR_GSO_UDP_L4,
} from '../../src/abi/virtio-net.ts'
import { HEADER_BYTES } from './tap-lab.ts'

/** struct virtio_net_hdr_v1, field by field. */
export type Header = {
  flags: number
  gso_type: number
  hdr_len: number
  gso_size: number
  csum_start: number
  csum_offset: number
  num_buffers: number
}

export const noHeader: Header = {
  flags: 0,
  gso_type: 0,
  hdr_len: 0,
  gso_size: 0,
  csum_start: 0,
  csum_offset: 0,
  num_buffers: 0,
}

const words = ['hdr_len', 'gso_size', 'csum_start', 'csum_offset', 'num_buffers'] as const

export const encodeHeader = (header: Partial<Header>): Uint8Array => {
  const whole = { ...noHeader, ...header }
  const bytes = new Uint8Array(HEADER_BYTES)
  bytes[0] = whole.flags
  bytes[1] = whole.gso_type
  const view = new DataView(bytes.buffer)
  words.forEach((word, index) => {
    view.setUint16(2 + index * 2, whole[word], true)
  })
  return bytes
}

export const decodeHeader = (bytes: Uint8Array): Header => {
  const view = new DataView(bytes.buffer, bytes.byteOffset)
  const header = { ...noHeader, flags: bytes[0]!, gso_type: bytes[1]! }
  words.forEach((word, index) => {
    header[word] = view.getUint16(2 + index * 2, true)
  })
  return header
}

export const concat = (...parts: readonly Uint8Array[]): Uint8Array => new Uint8Array(Buffer.concat(parts))

const number16 = (value: number): Uint8Array => Uint8Array.of(value >> 8, value & 0xff)

/** The one's complement sum of big-endian words. */
export const sum = (bytes: Uint8Array, start = 0): number => {
  let total = start
  for (let index = 0; index < bytes.length; index += 2) total += (bytes[index]! << 8) + (bytes[index + 1] ?? 0)
  while (total > 0xffff) total = (total & 0xffff) + (total >>> 16)
  return total
}

export type PacketShape = {
  readonly protocol: 'tcp' | 'udp'
  readonly version: 4 | 6
  readonly payload: Uint8Array
  readonly vlan?: boolean
  /** VLAN tags by ethertype, the outer first: in place of `vlan`. */
  readonly tags?: readonly number[]
  /** TCP flags. */
  readonly flags?: number
  /** TCP options or, for UDP, nothing. A multiple of 4 bytes. */
  readonly optionBytes?: number
  /** IPv4 identification. */
  readonly identification?: number
  readonly sequence?: number
  /** 16 bytes of destination options in front of the transport header. IPv6. */
  readonly extension?: boolean
  /**
   * Extension headers, each a protocol number and a length of 8 bytes or more, a multiple of 8: in place of
   * `extension`. IPv6.
   */
  readonly extensions?: readonly (readonly [protocol: number, bytes: number])[]
}

export type Packet = {
  readonly frame: Uint8Array
  readonly transport: number
  readonly headerBytes: number
  readonly checksumOffset: number
}

/**
 * An IPv6 extension header that says nothing: padding options, or a routing header without segments left. RFC 8200 §4.
 */
const extensionHeader = (next: number, bytes: number): Uint8Array => {
  const header = new Uint8Array(bytes)
  header.set([next, bytes / 8 - 1])
  // PadN takes at most 255 bytes with its type and length.
  for (let at = 2; at < bytes; at += 200) header.set([1, Math.min(200, bytes - at) - 2], at)
  return header
}

/**
 * An Ethernet frame, as a driver hands it over with VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum field has the pseudo
 * header's sum; or, `complete`, with its checksum.
 */
export const makePacket = (shape: PacketShape, complete = false): Packet => {
  const tcp = shape.protocol === 'tcp'
  const protocol = tcp ? 6 : 17
  const optionBytes = tcp ? (shape.optionBytes ?? 0) : 0
  const transportBytes = tcp ? 20 + optionBytes : 8
  const lengthBytes = transportBytes + shape.payload.length
  const tags = shape.tags ?? (shape.vlan === true ? [0x8100] : [])
  const ethernet = concat(
    // To nobody whom a bridge knows: it goes out everywhere, and the bridge keeps no copy.
    Uint8Array.of(2, 0, 0, 0, 0, 8, 2, 0, 0, 0, 0, 9),
    ...tags.map((ethertype, index) => concat(number16(ethertype), Uint8Array.of(0x20, 77 + index))),
    number16(shape.version === 4 ? 0x0800 : 0x86dd),
  )
  const addressBytes = shape.version === 4 ? 4 : 16
  const addresses = Uint8Array.from({ length: addressBytes * 2 }, (_, index) =>
    index % addressBytes === 0 ? 10 : index + 1,
  )
  if (shape.version === 6) addresses[0] = addresses[addressBytes] = 0xfd
  const extensions = shape.extensions ?? (shape.extension === true ? [[60, 16] as const] : [])
  const extension = concat(
    ...extensions.map(([, bytes], index) => extensionHeader(extensions[index + 1]?.[0] ?? protocol, bytes)),
  )
  let network: Uint8Array
  if (shape.version === 4) {
    network = concat(
      Uint8Array.of(0x45, 0),
      number16(20 + lengthBytes),
      number16(shape.identification ?? 0x1234),
      Uint8Array.of(0x40, 0, 64, protocol, 0, 0),
      addresses,
    )
    network.set(number16(~sum(network) & 0xffff), 10)
  } else {
    const next = extensions[0]?.[0] ?? protocol
    const ipPayload = extension.length + lengthBytes
    network = concat(Uint8Array.of(0x60, 0, 0, 0), number16(ipPayload), Uint8Array.of(next, 64), addresses, extension)
  }
  const transport = new Uint8Array(transportBytes)
  transport.set([0x30, 0x39, 0x00, 0x50])
  const checksumOffset = tcp ? 16 : 6
  if (tcp) {
    new DataView(transport.buffer).setUint32(4, shape.sequence ?? 0xffff_ff00)
    transport[12] = (transportBytes / 4) << 4
    transport[13] = shape.flags ?? 0x10
    transport.set([0x10, 0x00], 14)
    transport.fill(1, 20)
  } else {
    transport.set(number16(lengthBytes), 4)
  }
  const pseudo = sum(concat(addresses, number16(0), number16(protocol), number16(lengthBytes)))
  transport.set(number16(pseudo), checksumOffset)
  if (complete) {
    const total = ~sum(concat(transport, shape.payload)) & 0xffff
    transport.set(number16(total === 0 ? 0xffff : total), checksumOffset)
  }
  return {
    frame: concat(ethernet, network, transport, shape.payload),
    transport: ethernet.length + network.length,
    headerBytes: ethernet.length + network.length + transportBytes,
    checksumOffset,
  }
}

/** The header with which a driver asks for `segmentBytes` of payload in each frame. */
export const gsoHeader = (shape: PacketShape, packet: Packet, segmentBytes: number): Partial<Header> => ({
  flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
  gso_type:
    shape.protocol === 'udp'
      ? VIRTIO_NET_HDR_GSO_UDP_L4
      : shape.version === 4
        ? VIRTIO_NET_HDR_GSO_TCPV4
        : VIRTIO_NET_HDR_GSO_TCPV6,
  hdr_len: packet.headerBytes,
  gso_size: segmentBytes,
  csum_start: packet.transport,
  csum_offset: packet.checksumOffset,
})

/** Cuts `bytes` into pieces of the given lengths; the last takes what is left. */
export const cut = (bytes: Uint8Array, ...lengths: readonly number[]): Uint8Array[] => {
  const pieces: Uint8Array[] = []
  let start = 0
  for (const length of lengths) {
    pieces.push(bytes.slice(start, start + length))
    start += length
  }
  pieces.push(bytes.slice(start))
  return pieces
}

/** Bytes that look random and are the same each time. */
export const noise = (length: number, seed = 1): Uint8Array => {
  let state = seed >>> 0 || 1
  return Uint8Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state >>> 24
  })
}
