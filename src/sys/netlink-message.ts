/** Netlink messages and their attributes as bytes: linux/netlink.h. Little-endian hosts. */
import {
  NLA_TYPE_MASK,
  NLATTR,
  NLM_F_ACK_TLVS,
  NLM_F_CAPPED,
  NLMSGERR,
  NLMSGERR_ATTR_MSG,
  NLMSGHDR,
} from '../abi/netlink.ts'

/** A message without its `struct nlmsghdr`. */
export type NetlinkMessage = {
  readonly type: number
  readonly flags: number
  readonly sequence: number
  readonly body: Uint8Array
}

/** An attribute to be sent: its type and the bytes of its value. */
export type Attribute = readonly [type: number, value: Uint8Array]

const NLMSG_HDRLEN = NLMSGHDR.sizeBytes
const NLA_HDRLEN = NLATTR.sizeBytes

const align = (length: number): number => (length + 3) & ~3

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)

export const u8 = (value: number): Uint8Array => Uint8Array.of(value)
export const u16 = (value: number): Uint8Array => Uint8Array.of(value, value >>> 8)
export const u32 = (value: number): Uint8Array => Uint8Array.of(value, value >>> 8, value >>> 16, value >>> 24)
/** NUL-terminated. */
export const text = (value: string): Uint8Array => new TextEncoder().encode(`${value}\0`)

/** Values of received attributes. A value that is too short reads as undefined, like a missing one. */
export const asU8 = (value: Uint8Array | undefined): number | undefined => value?.[0]
export const asU16 = (value: Uint8Array | undefined): number | undefined =>
  value && value.length >= 2 ? viewOf(value).getUint16(0, true) : undefined
export const asU32 = (value: Uint8Array | undefined): number | undefined =>
  value && value.length >= 4 ? viewOf(value).getUint32(0, true) : undefined
export const asU64 = (value: Uint8Array | undefined): bigint | undefined =>
  value && value.length >= 8 ? viewOf(value).getBigUint64(0, true) : undefined
export const asText = (value: Uint8Array | undefined): string | undefined => {
  if (!value) return undefined
  const end = value.indexOf(0)
  return new TextDecoder().decode(end < 0 ? value : value.subarray(0, end))
}

/** The attributes one after another, each padded to 4 bytes. */
export const encodeAttributes = (attributes: readonly Attribute[]): Uint8Array => {
  const bytes = new Uint8Array(attributes.reduce((sum, [, value]) => sum + align(NLA_HDRLEN + value.length), 0))
  const view = viewOf(bytes)
  let at = 0
  for (const [type, value] of attributes) {
    view.setUint16(at + NLATTR.nla_len, NLA_HDRLEN + value.length, true)
    view.setUint16(at + NLATTR.nla_type, type, true)
    bytes.set(value, at + NLA_HDRLEN)
    at += align(NLA_HDRLEN + value.length)
  }
  return bytes
}

/** Values by attribute type, as views of `bytes`; of duplicates the last. A malformed rest is left out. */
export const decodeAttributes = (bytes: Uint8Array | undefined): ReadonlyMap<number, Uint8Array> => {
  const attributes = new Map<number, Uint8Array>()
  if (!bytes) return attributes
  const view = viewOf(bytes)
  let at = 0
  while (at + NLA_HDRLEN <= bytes.length) {
    const length = view.getUint16(at + NLATTR.nla_len, true)
    if (length < NLA_HDRLEN || at + length > bytes.length) break
    const type = view.getUint16(at + NLATTR.nla_type, true) & NLA_TYPE_MASK
    attributes.set(type, bytes.subarray(at + NLA_HDRLEN, at + length))
    at += align(length)
  }
  return attributes
}

/** The message with its header, and one body made of `parts`. */
export const encodeMessage = (
  type: number,
  flags: number,
  sequence: number,
  ...parts: readonly Uint8Array[]
): Uint8Array => {
  const length = parts.reduce((sum, part) => sum + align(part.length), NLMSG_HDRLEN)
  const bytes = new Uint8Array(length)
  const view = viewOf(bytes)
  view.setUint32(NLMSGHDR.nlmsg_len, length, true)
  view.setUint16(NLMSGHDR.nlmsg_type, type, true)
  view.setUint16(NLMSGHDR.nlmsg_flags, flags, true)
  view.setUint32(NLMSGHDR.nlmsg_seq, sequence, true)
  let at = NLMSG_HDRLEN
  for (const part of parts) {
    bytes.set(part, at)
    at += align(part.length)
  }
  return bytes
}

/** The messages of one datagram, as views of it; null if it is truncated or malformed. */
export const decodeMessages = (datagram: Uint8Array): NetlinkMessage[] | null => {
  const messages: NetlinkMessage[] = []
  const view = viewOf(datagram)
  let at = 0
  while (at < datagram.length) {
    if (at + NLMSG_HDRLEN > datagram.length) return null
    const length = view.getUint32(at + NLMSGHDR.nlmsg_len, true)
    if (length < NLMSG_HDRLEN || at + length > datagram.length) return null
    messages.push({
      type: view.getUint16(at + NLMSGHDR.nlmsg_type, true),
      flags: view.getUint16(at + NLMSGHDR.nlmsg_flags, true),
      sequence: view.getUint32(at + NLMSGHDR.nlmsg_seq, true),
      body: datagram.subarray(at + NLMSG_HDRLEN, at + length),
    })
    at += align(length)
  }
  return messages
}

/**
 * The result in an NLMSG_ERROR or NLMSG_DONE: errno (positive; 0 for success) and the kernel's error text, or ''. The
 * text is sent only on a socket with NETLINK_EXT_ACK.
 */
export const decodeResult = (message: NetlinkMessage, isDone: boolean): { errno: number; extack: string } => {
  const { body, flags } = message
  if (body.length < 4) return { errno: 0, extack: '' }
  const view = viewOf(body)
  const errno = Math.abs(view.getInt32(NLMSGERR.error, true))
  let at = 4
  if (!isDone) {
    if (body.length < NLMSGERR.sizeBytes) return { errno, extack: '' }
    const isRepeated = (flags & NLM_F_CAPPED) === 0 && errno !== 0
    const repeatedBytes = isRepeated ? align(view.getUint32(NLMSGERR.msg.nlmsg_len, true)) - NLMSG_HDRLEN : 0
    at = NLMSGERR.sizeBytes + repeatedBytes
  }
  if ((flags & NLM_F_ACK_TLVS) === 0 || at > body.length) return { errno, extack: '' }
  return { errno, extack: asText(decodeAttributes(body.subarray(at)).get(NLMSGERR_ATTR_MSG)) ?? '' }
}
