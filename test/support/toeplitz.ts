/**
 * The hash of receive-side scaling, bit by bit as it is defined, and Microsoft's suite to verify one ("RSS Hashing
 * Functions").
 */

export const MICROSOFT_KEY = Uint8Array.fromHex(
  '6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa',
)

/**
 * The XOR of the 32 bits of `key` from each place on at which `input` has a set bit; a key that ends goes on with
 * zeroes.
 */
export const toeplitz = (key: Uint8Array, input: Uint8Array): number => {
  const bit = (bytes: Uint8Array, index: number): number => ((bytes[index >> 3] ?? 0) >> (7 - (index & 7))) & 1
  let hash = 0
  for (let at = 0; at < input.length * 8; at++) {
    if (bit(input, at) === 0) continue
    let window = 0
    for (let i = 0; i < 32; i++) window = window * 2 + bit(key, at + i)
    hash ^= window
  }
  return hash >>> 0
}

/** Bytes of an IPv4 or IPv6 address. */
export const addressBytes = (text: string): number[] => {
  if (!text.includes(':')) return text.split('.').map(Number)
  const groups = (part: string): number[] =>
    part.split(':').flatMap((group) => (group === '' ? [] : [Number.parseInt(group, 16)]))
  const [head = '', tail] = text.split('::')
  const [front, back] = [groups(head), groups(tail ?? '')]
  const zeroes = new Array<number>(8 - front.length - back.length).fill(0)
  return [...front, ...zeroes, ...back].flatMap((group) => [group >> 8, group & 0xff])
}

/** What is hashed of a packet: source and destination address, then, of TCP and UDP, the ports. */
export const hashInput = (source: string, destination: string, ports: readonly [number, number] | null): Uint8Array =>
  Uint8Array.from([
    ...addressBytes(source),
    ...addressBytes(destination),
    ...(ports ?? []).flatMap((port) => [port >> 8, port & 0xff]),
  ])

const suite = [
  ['66.9.149.187', 2794, '161.142.100.80', 1766, 0x323e8fc2, 0x51ccc178],
  ['199.92.111.2', 14230, '65.69.140.83', 4739, 0xd718262a, 0xc626b0ea],
  ['24.19.198.95', 12898, '12.22.207.184', 38024, 0xd2d0a5de, 0x5c2b394a],
  ['38.27.205.30', 48228, '209.142.163.6', 2217, 0x82989176, 0xafc7327f],
  ['153.39.163.191', 44251, '202.188.127.2', 1303, 0x5d1809c5, 0x10e828a2],
  ['3ffe:2501:200:1fff::7', 2794, '3ffe:2501:200:3::1', 1766, 0x2cc18cd5, 0x40207d3d],
  ['3ffe:501:8::260:97ff:fe40:efab', 14230, 'ff02::1', 4739, 0x0f0c461c, 0xdde51bbf],
  ['3ffe:1900:4545:3:200:f8ff:fe21:67cf', 44251, 'fe80::200:f8ff:fe21:67cf', 38024, 0x4b61e985, 0x02d1feef],
] as const

/** Inputs, and their hashes under {@link MICROSOFT_KEY}. */
export const vectors: readonly { readonly input: Uint8Array; readonly hash: number }[] = suite.flatMap(
  ([source, sourcePort, destination, destinationPort, addresses, withPorts]) => [
    { input: hashInput(source, destination, null), hash: addresses },
    { input: hashInput(source, destination, [sourcePort, destinationPort]), hash: withPorts },
  ],
)
