import { array, struct, u32 } from './layout.ts'
import {
  VIRTIO_NET_RSS_HASH_TYPE_IPv4,
  VIRTIO_NET_RSS_HASH_TYPE_IPv6,
  VIRTIO_NET_RSS_HASH_TYPE_TCPv4,
  VIRTIO_NET_RSS_HASH_TYPE_TCPv6,
  VIRTIO_NET_RSS_HASH_TYPE_UDPv4,
  VIRTIO_NET_RSS_HASH_TYPE_UDPv6,
} from './virtio-net.ts'

/** Longest input of a hash in bytes: two IPv6 addresses and two ports. */
export const HASH_INPUT_BYTES_MAX = 36
/** Bytes of a hash key in use: a 32-bit window moves along the input. */
export const HASH_KEY_BYTES_MAX = HASH_INPUT_BYTES_MAX + 4
/** Most entries of an indirection table: Linux's driver has room for this many (drivers/net/virtio_net.c). */
export const INDIRECTION_MAX = 128

/** The supported `hash_types`. IPv6 options with other addresses (the `_EX` types) are not supported. */
export const HASH_TYPES =
  VIRTIO_NET_RSS_HASH_TYPE_IPv4 |
  VIRTIO_NET_RSS_HASH_TYPE_TCPv4 |
  VIRTIO_NET_RSS_HASH_TYPE_UDPv4 |
  VIRTIO_NET_RSS_HASH_TYPE_IPv6 |
  VIRTIO_NET_RSS_HASH_TYPE_TCPv6 |
  VIRTIO_NET_RSS_HASH_TYPE_UDPv6

/**
 * How received packets are hashed and steered to queue pairs. zig/hash.zig declares the same struct; `vn_abi` checks
 * the offsets.
 */
export const SCALING = struct('vn_scaling', {
  /** For each byte of the input and each of its values, its share of the hash (combined by XOR). */
  toeplitz: array(u32, HASH_INPUT_BYTES_MAX * 256),
  /** Queue pairs, indexed by the lowest bits of the hash. */
  indirection: array(u32, INDIRECTION_MAX),
  hash_types: u32,
  /** The bits of the hash that index `indirection`. */
  indirection_mask: u32,
  /** The queue pair of a packet without a hash. */
  unclassified_queue: u32,
  reserved: u32,
})
