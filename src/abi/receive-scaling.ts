import { array, struct, u32 } from './layout.ts'
import {
  VIRTIO_NET_RSS_HASH_TYPE_IPv4,
  VIRTIO_NET_RSS_HASH_TYPE_IPv6,
  VIRTIO_NET_RSS_HASH_TYPE_TCPv4,
  VIRTIO_NET_RSS_HASH_TYPE_TCPv6,
  VIRTIO_NET_RSS_HASH_TYPE_UDPv4,
  VIRTIO_NET_RSS_HASH_TYPE_UDPv6,
} from './virtio-net.ts'

/** Bytes of the longest input of a hash: two IPv6 addresses and two ports. */
export const HASH_INPUT_BYTES_MAX = 36
/** Bytes of a hash key that count: a window of 32 bits goes over the input. */
export const HASH_KEY_BYTES_MAX = HASH_INPUT_BYTES_MAX + 4
/** Places of an indirection table; as many as Linux's driver has room for (drivers/net/virtio_net.c). */
export const INDIRECTION_MAX = 128

/** The `hash_types` that are offered. IPv6 options that name other addresses (the `_EX` types) are not looked at. */
export const HASH_TYPES =
  VIRTIO_NET_RSS_HASH_TYPE_IPv4 |
  VIRTIO_NET_RSS_HASH_TYPE_TCPv4 |
  VIRTIO_NET_RSS_HASH_TYPE_UDPv4 |
  VIRTIO_NET_RSS_HASH_TYPE_IPv6 |
  VIRTIO_NET_RSS_HASH_TYPE_TCPv6 |
  VIRTIO_NET_RSS_HASH_TYPE_UDPv6

/**
 * How received packets are hashed, and which queue pair gets them. zig/hash.zig declares the same struct; `vn_abi`
 * checks the offsets.
 */
export const SCALING = struct('vn_scaling', {
  /** For each byte of a hash's input, what each of its values adds (XOR) to the hash. */
  toeplitz: array(u32, HASH_INPUT_BYTES_MAX * 256),
  /** Queue pairs; the hash's lowest bits say which. */
  indirection: array(u32, INDIRECTION_MAX),
  hash_types: u32,
  /** Of the hash: which bits choose a place of `indirection`. */
  indirection_mask: u32,
  /** The queue pair of a packet without a hash. */
  unclassified_queue: u32,
  reserved: u32,
})
