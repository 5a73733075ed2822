import { VIRTIO_NET_F_RSS } from '../abi/virtio.ts'
import { UserError } from '../base/errors.ts'
import type { Mac } from '../base/mac.ts'
import type { OpenedTap } from '../channel/worker-messages.ts'
import { type Features, featureNames, featuresByName, hasFeature, withoutUnmet } from '../device/features.ts'

/** What a device is created with and keeps for its life. */
export type CardIdentity = {
  readonly mac: Mac
  /** Bytes. */
  readonly mtu: number
  readonly offered: Features
  /** Entries of a ring at most. */
  readonly queueSize: number
}

/** Names of features that must be offered, and of features that must not be. */
export type FeatureOverrides = { readonly on: readonly string[]; readonly off: readonly string[] }

/**
 * The features to offer: all that the transport carries and the TAP can use, except those switched off. Throws
 * UserError if a feature requested by name is not among them; `uncarried` is the text for one that the transport does
 * not carry.
 */
export const chooseFeatures = (
  carried: Features,
  tap: OpenedTap,
  { on, off }: FeatureOverrides,
  uncarried: { readonly why: string; readonly hint: string },
): Features => {
  const set = (names: readonly string[]): Features =>
    names.reduce((features, name) => features | (featuresByName.get(name) ?? 0n), 0n)
  const offered = withoutUnmet(carried & ~tap.uselessFeatures & ~set(off))
  const missing = set(on) & ~offered
  if (missing === 0n) return offered
  const named = (features: Features): string =>
    featureNames(features)
      .map((name) => `+${name}`)
      .join(',')
  const foreign = missing & ~carried
  if (foreign !== 0n) throw new UserError(`--features ${named(foreign)}: ${uncarried.why}`, uncarried.hint)
  const useless = missing & tap.uselessFeatures
  if (useless === 0n) {
    const names = named(missing)
    throw new UserError(`--features ${names}: it depends on a feature that is not offered`, `leave out ${names}`)
  }
  throw new UserError(
    `--features ${named(useless)}: ${tap.name} cannot do it`,
    hasFeature(useless, VIRTIO_NET_F_RSS)
      ? 'leave rss out, or grant CAP_BPF: the kernel steers packets by an eBPF program'
      : 'leave it out, or use a TAP with a vnet header on Linux 6.2 or newer',
  )
}
