import {
  controlQueueFeatures,
  featureNames,
  featuresByName,
  implementedFeatures,
  mandatoryFeatures,
  packedRingFeatures,
  withoutUnmet,
} from '../device/features.ts'
import { closest } from './closest.ts'
import { shown } from './shown.ts'
import { Refusal, textSchema } from './value-schemas.ts'

/** All features that a card has over some transport. */
const nameable = implementedFeatures | controlQueueFeatures | packedRingFeatures

/**
 * The choice of `--features`, in names of `src/device/features.ts`: `on` is required, `off` is never offered. Other
 * features are offered as the TAP allows.
 */
export interface FeatureChoice {
  readonly on: readonly string[]
  readonly off: readonly string[]
}

/** `VIRTIO_NET_F_HOST_TSO4`, `Host-TSO4` and `host_tso4` are the same. */
const canonical = (name: string): string =>
  name
    .toLowerCase()
    .replaceAll('-', '_')
    .replace(/^virtio_(?:net_f_|ring_f_|f_)?/, '')

const parse = (text: string): FeatureChoice | Refusal => {
  const on = new Set<string>()
  const off = new Set<string>()
  for (const item of text.split(',').map((part) => part.trim())) {
    const sign = item[0]
    if (sign !== '+' && sign !== '-') return new Refusal(`${shown(item)} does not begin with + or -`)
    const name = canonical(item.slice(1))
    const bit = featuresByName.get(name)
    if (bit === undefined) {
      const near = closest(name, featuresByName.keys())
      return new Refusal(`unknown feature ${shown(item.slice(1))}${near === null ? '' : `, did you mean ${near}?`}`)
    }
    if (sign === '-' && (bit & mandatoryFeatures) !== 0n) return new Refusal(`${name} cannot be switched off`)
    ;(sign === '+' ? on : off).add(name)
    if (on.has(name) && off.has(name)) return new Refusal(`${name} is both on and off`)
  }
  const offered = withoutUnmet([...off].reduce((set, name) => set & ~(featuresByName.get(name) ?? 0n), nameable))
  for (const name of on) {
    if (((featuresByName.get(name) ?? 0n) & offered) === 0n)
      return new Refusal(`${name} needs a feature that is switched off`)
  }
  return { on: [...on], off: [...off] }
}

/** Schema of `--features`: names with + or -, separated by commas. */
export const featureList = textSchema(parse)

/** Every name that `--features` understands. */
export const knownFeatures: readonly string[] = featureNames(nameable)
