/** linux/if_ether.h, RFC 791, 768, 792, 826: what a host needs to answer ping and UDP. */
const ETH_HEADER_BYTES = 14
const ETH_P_IP = 0x0800
const ETH_P_ARP = 0x0806
const IPPROTO_ICMP = 1
const IPPROTO_UDP = 17

const sum16 = (bytes: Uint8Array): number => {
  let sum = 0
  for (let at = 0; at < bytes.length; at += 2) sum += (bytes[at]! << 8) | (bytes[at + 1] ?? 0)
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16)
  return sum
}

/** Exchanges two neighbouring fields of `length` bytes. */
const swap = (bytes: Uint8Array, at: number, length: number): void => {
  const first = bytes.slice(at, at + length)
  bytes.copyWithin(at, at + length, at + 2 * length)
  bytes.set(first, at + length)
}

/**
 * What a host of this MAC and IPv4 address answers to a frame: to ARP requests, ping, and UDP, which it sends back.
 * Null for all else, a packet with a wrong checksum included.
 */
export const answerTo = (frame: Uint8Array, mac: Uint8Array, address: Uint8Array): Uint8Array | null => {
  if (frame.length < ETH_HEADER_BYTES + 20) return null
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length)
  const type = view.getUint16(12)
  const answer = frame.slice()
  const out = new DataView(answer.buffer)
  answer.set(frame.subarray(6, 12), 0)
  answer.set(mac, 6)
  const body = answer.subarray(ETH_HEADER_BYTES)
  if (type === ETH_P_ARP) {
    const isRequest = view.getUint16(20) === 1
    if (!isRequest || !body.subarray(24, 28).every((octet, i) => octet === address[i])) return null
    out.setUint16(20, 2)
    // Sender and target change places, and the sender says its MAC.
    body.copyWithin(18, 8, 18)
    body.set(mac, 8)
    body.set(address, 14)
    return answer
  }
  if (type !== ETH_P_IP || body[0] !== 0x45 || !body.subarray(16, 20).every((octet, i) => octet === address[i]))
    return null
  if (sum16(body.subarray(0, 20)) !== 0xffff) return null
  const packet = body.subarray(20, out.getUint16(ETH_HEADER_BYTES + 2))
  if (body[9] === IPPROTO_ICMP && packet[0] === 8) {
    if (sum16(packet) !== 0xffff) return null
    packet[0] = 0
    packet.fill(0, 2, 4)
    out.setUint16(ETH_HEADER_BYTES + 20 + 2, ~sum16(packet) & 0xffff)
  } else if (body[9] === IPPROTO_UDP) {
    // The checksum does not care about the order.
    swap(packet, 0, 2)
  } else return null
  swap(body, 12, 4)
  return answer
}
