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

/** Which frames the TAP may hand over unfinished: without a checksum, longer than the MTU. */
export type Offloads = {
  readonly csum: boolean
  readonly tso4: boolean
  readonly tso6: boolean
  readonly ecn: boolean
  /** IPv4 and IPv6: the TUN driver knows them only together. */
  readonly uso: boolean
}

export const NO_OFFLOADS: Offloads = Object.freeze({ csum: false, tso4: false, tso6: false, ecn: false, uso: false })

const has = (features: bigint, bit: number): boolean => ((features >> BigInt(bit)) & 1n) === 1n

/** What a driver with these negotiated features takes. A feature whose requirement is missing counts as absent. */
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
 * What to ask for, best first: a kernel that does not know USO (before 6.2) refuses the whole set, and one that takes
 * no segmentation may still leave checksums to us.
 */
export const offloadFallbacks = (wanted: Offloads): Offloads[] => {
  const candidates = [wanted, { ...wanted, uso: false }, { ...NO_OFFLOADS, csum: wanted.csum }, NO_OFFLOADS]
  return candidates.filter(
    (candidate, index) => index === 0 || tunOffloadFlags(candidate) !== tunOffloadFlags(candidates[index - 1]!),
  )
}

/**
 * The features that a device over a TAP with these offloads has no use for. To receive: frames of that kind never come.
 * GUEST_CSUM stays in any case: where the TAP leaves no checksum open, we verify those of the frames that it delivers.
 * To transmit: a kernel that does not hand USO frames over does not take them either (both since Linux 6.2); without a
 * vnet header we cut all frames ourselves.
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
