import { createHash } from 'node:crypto'

/** Six octets written as `02:00:5e:10:00:01`: lower case, colons. */
export type Mac = string

const spellings = [
  /^(?:[0-9a-f]{1,2}:){5}[0-9a-f]{1,2}$/i, // 2:0:5e:10:0:1
  /^(?:[0-9a-f]{1,2}-){5}[0-9a-f]{1,2}$/i, // 02-00-5e-10-00-01
  /^(?:[0-9a-f]{4}\.){2}[0-9a-f]{4}$/i, // 0200.5e10.0001
  /^[0-9a-f]{12}$/i, // 02005e100001
]

/** Parses a MAC address in any common spelling; null if it is none. */
export const parseMac = (text: string): Uint8Array | null => {
  if (!spellings.some((spelling) => spelling.test(text))) return null
  const parts = /[:-]/.test(text) ? text.split(/[:-]/) : (text.replaceAll('.', '').match(/../g) ?? [])
  return Uint8Array.from(parts, (part) => Number.parseInt(part, 16))
}

/** Formats six octets in the canonical spelling. */
export const formatMac = (octets: Uint8Array): Mac =>
  Array.from(octets, (octet) => octet.toString(16).padStart(2, '0')).join(':')

/** Why a network card cannot have this address, or null if it can. */
export const refuseMac = (octets: Uint8Array): string | null => {
  if (octets.every((octet) => octet === 0)) return 'all octets are zero'
  if (((octets[0] ?? 0) & 1) !== 0) return 'a multicast address: the lowest bit of the first octet is set'
  return null
}

/**
 * Six octets for one name on one host. The seed is hashed: machine-id(5) requires that its value does not leave the
 * host.
 */
const derive = (purpose: string, hostSeed: string, name: string): Uint8Array =>
  new Uint8Array(createHash('sha256').update(`vduse-net ${purpose}\0${hostSeed}\0${name}`).digest().subarray(0, 6))

/** A unicast, locally administered address that stays the same for one card on one host. */
export const deriveMac = (hostSeed: string, name: string): Mac => {
  const octets = derive('mac', hostSeed, name)
  octets[0] = ((octets[0] ?? 0) & 0xfc) | 0x02
  return formatMac(octets)
}

/**
 * The stable MAC of the card's TAP. It begins with fe (locally administered, unicast): a bridge uses the smallest MAC
 * of its ports, which should be another port's (net/bridge/br_stp_if.c, br_stp_recalculate_bridge_id).
 */
export const deriveTapMac = (hostSeed: string, ifname: string): Mac => {
  const octets = derive('tap mac', hostSeed, ifname)
  octets[0] = 0xfe
  return formatMac(octets)
}
