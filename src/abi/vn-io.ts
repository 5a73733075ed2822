import { dropReasons } from './drop-reason.ts'

/**
 * `struct vn_io`, the block that TypeScript and Zig share for one queue pair, in 32-bit words (little-endian; an
 * address is two words, low first). TypeScript allocates the block and all memory that it points to, and keeps both
 * alive as long as the handle. zig/io.zig declares the same struct; `vn_abi` checks the offsets.
 */
export const VN_IO = {
  /** in: the TAP queue's fd. */
  tapFd: 0,
  /** in: 1 if the TAP has a 12-byte vnet header in front of each frame (IFF_VNET_HDR), else 0. */
  tapHasVnetHdr: 1,
  /** in: the negotiated virtio features. */
  featuresLow: 2,
  featuresHigh: 3,
  /** in: longest frame without GSO, bytes: mtu + 14 + 4 for one VLAN tag. */
  maxFrameBytes: 4,
  /** in: length of the driver's virtio-net header in bytes: 10, 12 or 20. src/device/net-header.ts */
  headerBytes: 5,
  /** in: chains, in records of {first iovec, iovec count}, two words each. */
  txChains: 6,
  /** in: iovecs, in records of {address low, high, length, 0}: four words each (struct iovec). */
  txIovecs: 8,
  rxChains: 10,
  rxIovecs: 12,
  /** out: bytes written into each receive chain, header included, one word each, indexed like rxChains. */
  rxWritten: 14,
  /** in: capacities, in records. The same for TX and RX. */
  chainCapacity: 16,
  iovecCapacity: 17,
  /** out of vn_tap_tx, accumulated (wrapping u32): TypeScript reads and zeroes them after each call. */
  txPackets: 18,
  txBytes: 19,
  txGsoPackets: 20,
  txCsumPackets: 21,
  /** out of vn_tap_rx, likewise. */
  rxPackets: 22,
  rxBytes: 23,
  rxGsoPackets: 24,
  rxCsumPackets: 25,
  /** out of the last vn_tap_rx: chains used, why it stopped (RX_STOP), errno for RX_STOP.error. */
  rxChainsUsed: 26,
  rxStop: 27,
  rxErrno: 28,
  /** out of the last vn_tap_tx: the TAP's last errno, or 0. */
  txErrno: 29,
  /** in: struct vn_receive_filter, or 0: every frame passes. */
  rxFilter: 30,
  /** in: struct vn_scaling, or 0: no packet has a hash. */
  rxScaling: 32,
  /** out: drops by reason, accumulated; one word for each of dropReasons. */
  drops: 34,
} as const

/** Length of the block in words. */
export const VN_IO_WORDS = VN_IO.drops + 64
if (dropReasons.length > 64) throw new Error('vn_io has room for 64 drop reasons')

/** Why vn_tap_rx stopped. */
export const RX_STOP = {
  /** The TAP has no more packets. */
  empty: 0,
  /** The requested number of packets was delivered. */
  budget: 1,
  /** A packet waits in the private pool: it is longer than the chains given. */
  needChains: 2,
  /** A read of the TAP failed: see rxErrno. */
  error: 3,
} as const
