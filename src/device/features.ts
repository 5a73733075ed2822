import {
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
  VIRTIO_NET_F_CTRL_MAC_ADDR,
  VIRTIO_NET_F_CTRL_RX,
  VIRTIO_NET_F_CTRL_RX_EXTRA,
  VIRTIO_NET_F_CTRL_VLAN,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
  VIRTIO_NET_F_HASH_REPORT,
  VIRTIO_NET_F_HOST_ECN,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_USO,
  VIRTIO_NET_F_MAC,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_F_MTU,
  VIRTIO_NET_F_NOTF_COAL,
  VIRTIO_NET_F_RSS,
  VIRTIO_NET_F_SPEED_DUPLEX,
  VIRTIO_NET_F_STATUS,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../abi/virtio.ts'

/** A set of feature bits: bit number n of the specification is `1n << BigInt(n)`. Control path only. */
export type Features = bigint

type FeatureRule = {
  /** The specification's name without its VIRTIO_, VIRTIO_F_, VIRTIO_NET_F_ or VIRTIO_RING_F_ prefix, in lower case. */
  readonly name: string
  readonly bit: number
  /** The feature requires at least one of these. VIRTIO 1.2 §5.1.3.1. */
  readonly requiresAnyOf?: readonly number[]
  /** The kernel requires it of a VDUSE device. */
  readonly mandatory?: true
  /** It is the control queue, or is used through it. */
  readonly ofControlQueue?: true
  /** It decides the header's length: the driver uses it from FEATURES_OK on, even without its requirement. */
  readonly decidesLayout?: true
}

/**
 * A feature whose commands go through the control queue; the specification does not list all of them as requiring it.
 */
const commanded = (name: string, bit: number): FeatureRule => ({
  name,
  bit,
  requiresAnyOf: [VIRTIO_NET_F_CTRL_VQ],
  ofControlQueue: true,
})

const rules: readonly FeatureRule[] = [
  { name: 'csum', bit: VIRTIO_NET_F_CSUM },
  { name: 'guest_csum', bit: VIRTIO_NET_F_GUEST_CSUM },
  commanded('ctrl_guest_offloads', VIRTIO_NET_F_CTRL_GUEST_OFFLOADS),
  { name: 'mtu', bit: VIRTIO_NET_F_MTU },
  { name: 'mac', bit: VIRTIO_NET_F_MAC },
  { name: 'guest_tso4', bit: VIRTIO_NET_F_GUEST_TSO4, requiresAnyOf: [VIRTIO_NET_F_GUEST_CSUM] },
  { name: 'guest_tso6', bit: VIRTIO_NET_F_GUEST_TSO6, requiresAnyOf: [VIRTIO_NET_F_GUEST_CSUM] },
  {
    name: 'guest_ecn',
    bit: VIRTIO_NET_F_GUEST_ECN,
    requiresAnyOf: [VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6],
  },
  { name: 'host_tso4', bit: VIRTIO_NET_F_HOST_TSO4, requiresAnyOf: [VIRTIO_NET_F_CSUM] },
  { name: 'host_tso6', bit: VIRTIO_NET_F_HOST_TSO6, requiresAnyOf: [VIRTIO_NET_F_CSUM] },
  { name: 'host_ecn', bit: VIRTIO_NET_F_HOST_ECN, requiresAnyOf: [VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6] },
  { name: 'mrg_rxbuf', bit: VIRTIO_NET_F_MRG_RXBUF },
  { name: 'status', bit: VIRTIO_NET_F_STATUS },
  { name: 'ctrl_vq', bit: VIRTIO_NET_F_CTRL_VQ, ofControlQueue: true },
  commanded('ctrl_rx', VIRTIO_NET_F_CTRL_RX),
  commanded('ctrl_vlan', VIRTIO_NET_F_CTRL_VLAN),
  commanded('ctrl_rx_extra', VIRTIO_NET_F_CTRL_RX_EXTRA),
  commanded('guest_announce', VIRTIO_NET_F_GUEST_ANNOUNCE),
  commanded('mq', VIRTIO_NET_F_MQ),
  commanded('ctrl_mac_addr', VIRTIO_NET_F_CTRL_MAC_ADDR),
  { name: 'indirect_desc', bit: VIRTIO_RING_F_INDIRECT_DESC },
  { name: 'event_idx', bit: VIRTIO_RING_F_EVENT_IDX },
  { name: 'version_1', bit: VIRTIO_F_VERSION_1, mandatory: true },
  { name: 'access_platform', bit: VIRTIO_F_ACCESS_PLATFORM, mandatory: true },
  { name: 'ring_packed', bit: VIRTIO_F_RING_PACKED },
  { name: 'in_order', bit: VIRTIO_F_IN_ORDER },
  commanded('notf_coal', VIRTIO_NET_F_NOTF_COAL),
  { name: 'guest_uso4', bit: VIRTIO_NET_F_GUEST_USO4, requiresAnyOf: [VIRTIO_NET_F_GUEST_CSUM] },
  { name: 'guest_uso6', bit: VIRTIO_NET_F_GUEST_USO6, requiresAnyOf: [VIRTIO_NET_F_GUEST_CSUM] },
  { name: 'host_uso', bit: VIRTIO_NET_F_HOST_USO, requiresAnyOf: [VIRTIO_NET_F_CSUM] },
  { ...commanded('hash_report', VIRTIO_NET_F_HASH_REPORT), decidesLayout: true },
  commanded('rss', VIRTIO_NET_F_RSS),
  { name: 'speed_duplex', bit: VIRTIO_NET_F_SPEED_DUPLEX, requiresAnyOf: [VIRTIO_NET_F_STATUS] },
]

/** The one-bit set of a feature bit number. */
export const featureBit = (bit: number): Features => 1n << BigInt(bit)

/** True if feature bit `bit` is in `features`. */
export const hasFeature = (features: Features, bit: number): boolean => (features & featureBit(bit)) !== 0n

/** The names of `--features`, in bit order, and their sets. */
export const featuresByName: ReadonlyMap<string, Features> = new Map(
  rules.map((rule) => [rule.name, featureBit(rule.bit)]),
)

const setOf = (some: readonly FeatureRule[]): Features => some.reduce((set, rule) => set | featureBit(rule.bit), 0n)

/** Features that this device implements over any transport. */
export const implementedFeatures: Features = setOf(
  rules.filter((rule) => !rule.ofControlQueue && rule.bit !== VIRTIO_F_RING_PACKED),
)

/**
 * Features in addition over a transport whose other side keeps a queue's base: a packed ring alone does not tell a
 * successor where a dead process stopped.
 */
export const packedRingFeatures: Features = featureBit(VIRTIO_F_RING_PACKED)

/**
 * Features in addition over a transport that carries a control queue. Kernels refuse VIRTIO_NET_F_CTRL_VQ of a VDUSE
 * device (drivers/vdpa/vdpa_user/vduse_dev.c, features_is_valid), and the others require it.
 */
export const controlQueueFeatures: Features = setOf(rules.filter((rule) => rule.ofControlQueue))

/**
 * Features that the kernel requires of a VDUSE device and its driver: they cannot be switched off. Over vhost-user they
 * are optional for a driver: firmware often predates VERSION_1.
 */
export const mandatoryFeatures: Features = setOf(rules.filter((rule) => rule.mandatory))

/** Names of the features in the set, in bit order; an unknown bit is `bit_N`. */
export const featureNames = (features: Features): string[] => {
  const names: string[] = []
  for (let bit = 0; bit < 64; bit++) {
    if (hasFeature(features, bit)) names.push(rules.find((rule) => rule.bit === bit)?.name ?? `bit_${bit}`)
  }
  return names
}

const unmet = (features: Features): FeatureRule | undefined =>
  rules.find(
    (rule) =>
      hasFeature(features, rule.bit) &&
      rule.requiresAnyOf &&
      !rule.requiresAnyOf.some((bit) => hasFeature(features, bit)),
  )

/**
 * The set without the features whose requirement is missing: a set that may be offered. VIRTIO 1.2 §2.2.1, §5.1.3.1.
 */
export const withoutUnmet = (features: Features): Features => {
  const rule = unmet(features)
  return rule === undefined ? features : withoutUnmet(features & ~featureBit(rule.bit))
}

/** The result of a driver's choice. */
export type Agreement = {
  /** The features in use: the choice without features whose requirement is missing. */
  readonly features: Features
  /** Those features, for the log: `guest_tso4 without guest_csum`. */
  readonly unmet: readonly string[]
}

const describe = ({ name, requiresAnyOf = [] }: FeatureRule): string =>
  `${name} without ${requiresAnyOf.map((bit) => featureNames(featureBit(bit))[0]).join(' or ')}`

/**
 * Removes features whose requirement is missing from a driver's choice: some front-ends clear a feature and keep those
 * that require it. VIRTIO 1.2 §5.1.3.1.
 */
export const agree = (chosen: Features): Agreement => {
  const used = withoutUnmet(chosen)
  const dropped = rules.filter(({ bit }) => hasFeature(chosen & ~used, bit))
  const kept = setOf(dropped.filter((rule) => rule.decidesLayout))
  return { features: used | kept, unmet: dropped.map(describe) }
}

/**
 * Why a driver's choice is refused at FEATURES_OK (a bit that was not offered, or a required one missing); null if it
 * is accepted. VIRTIO 1.2 §2.2.2, §6.2.
 */
export const refuseFeatures = (offered: Features, required: Features, chosen: Features): string | null => {
  const extra = chosen & ~offered
  if (extra !== 0n) return `not offered: ${featureNames(extra).join(', ')}`
  const missing = offered & required & ~chosen
  return missing === 0n ? null : `mandatory: ${featureNames(missing).join(', ')}`
}
