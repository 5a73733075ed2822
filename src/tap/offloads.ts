import { TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6 } from '../abi/tun.ts'
import {
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
  VIRTIO_NET_F_HOST_USO,
} from '../abi/virtio.ts'

/** Receive offloads of the TAP: frames with a partial checksum, and frames longer than the MTU. */
export type Offloads = {
  readonly csum: boolean
  readonly tso4: boolean
  readonly tso6: boolean
  readonly ecn: boolean
  /** For IPv4 and IPv6: the TUN driver switches both together. */
  readonly uso: boolean
}

export const NO_OFFLOADS: Offloads = Object.freeze({ csum: false, tso4: false, tso6: false, ecn: false, uso: false })

const has = (features: bigint, bit: number): boolean => ((features >> BigInt(bit)) & 1n) === 1n

/** Offloads for a driver with these negotiated features. A feature without its required feature counts as absent. */
export const offloadsOf = (features: bigint): Offloads => {
  const csum = has(features, VIRTIO_NET_F_GUEST_CSUM)
  const tso4 = csum && has(features, VIRTIO_NET_F_GUEST_TSO4)
  const tso6 = csum && has(features, VIRTIO_NET_F_GUEST_TSO6)
  return {
    csum,
    tso4,
    tso6,
    ecn: (tso4 || tso6) && has(features, VIRTIO_NET_F_GUEST_ECN),
    uso: csum && has(features, VIRTIO_NET_F_GUEST_USO4) && has(features, VIRTIO_NET_F_GUEST_USO6),
  }
}

/** The argument of TUNSETOFFLOAD. */
export const tunOffloadFlags = (offloads: Offloads): number =>
  (offloads.csum ? TUN_F_CSUM : 0) |
  (offloads.tso4 ? TUN_F_TSO4 : 0) |
  (offloads.tso6 ? TUN_F_TSO6 : 0) |
  (offloads.ecn ? TUN_F_TSO_ECN : 0) |
  (offloads.uso ? TUN_F_USO4 | TUN_F_USO6 : 0)

/**
 * Sets to try, best first: a kernel without USO (before 6.2) refuses the whole set, and one without segmentation
 * offloads may still accept the checksum offload.
 */
export const offloadFallbacks = (wanted: Offloads): Offloads[] => {
  const candidates = [wanted, { ...wanted, uso: false }, { ...NO_OFFLOADS, csum: wanted.csum }, NO_OFFLOADS]
  return candidates.filter(
    (candidate, index) => index === 0 || tunOffloadFlags(candidate) !== tunOffloadFlags(candidates[index - 1]!),
  )
}

/**
 * Features that a device over a TAP with these offloads does not offer. Receive: the TAP never delivers such frames.
 * GUEST_CSUM is always offered: without the TAP's checksum offload this program verifies the checksums of received
 * frames. Transmit: a kernel that does not deliver USO frames does not accept them either (both since Linux 6.2);
 * without a vnet header this program segments all frames itself.
 */
export const uselessFeatures = (offloads: Offloads, hasVnetHdr: boolean): bigint => {
  const useless = [
    ...(offloads.tso4 ? [] : [VIRTIO_NET_F_GUEST_TSO4]),
    ...(offloads.tso6 ? [] : [VIRTIO_NET_F_GUEST_TSO6]),
    ...(offloads.ecn ? [] : [VIRTIO_NET_F_GUEST_ECN]),
    ...(offloads.uso ? [] : [VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6]),
    ...(offloads.uso || !hasVnetHdr ? [] : [VIRTIO_NET_F_HOST_USO]),
  ]
  return useless.reduce((set, bit) => set | (1n << BigInt(bit)), 0n)
}
