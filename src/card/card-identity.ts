import { VIRTIO_NET_F_RSS } from '../abi/virtio.ts'
import { UserError } from '../base/errors.ts'
import type { Mac } from '../base/mac.ts'
import type { OpenedTap } from '../channel/worker-messages.ts'
import { type Features, featureNames, featuresByName, hasFeature, withoutUnmet } from '../device/features.ts'

/** What a device is created with, and keeps as long as it lives. */
export type CardIdentity = {
  readonly mac: Mac
  /** Bytes. */
  readonly mtu: number
  readonly offered: Features
  /** Entries of a ring at most. */
  readonly queueSize: number
}

/** Names of features that must be offered, and of those that must not. */
export type FeatureWishes = { readonly on: readonly string[]; readonly off: readonly string[] }

/**
 * What to offer: of what the transport can carry, all that makes sense over the TAP and is not switched off. Throws UserError if
 * that leaves out what was asked for by name.
 */
export const chooseFeatures = (carried: Features, tap: OpenedTap, { on, off }: FeatureWishes): Features => {
  const set = (names: readonly string[]): Features =>
    names.reduce((features, name) => features | (featuresByName.get(name) ?? 0n), 0n)
  const offered = withoutUnmet(carried & ~tap.uselessFeatures & ~set(off))
  const missing = set(on) & ~offered
  if (missing === 0n) return offered
  const names = featureNames(missing).join(', ')
  if ((missing & ~carried) !== 0n)
    throw new UserError(`--features: ${names} cannot be had over this transport`, 'leave them out')
  throw new UserError(
    `--features: ${tap.name} cannot do ${names}`,
    hasFeature(missing, VIRTIO_NET_F_RSS)
      ? 'leave rss out, or grant CAP_BPF: the kernel steers packets by an eBPF program'
      : 'leave them out, or use a TAP with a vnet header on Linux 6.2 or newer',
  )
}
