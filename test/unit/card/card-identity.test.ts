import { describe, expect, test } from 'bun:test'
import { UserError } from '../../../src/base/errors.ts'
import { chooseFeatures } from '../../../src/card/card-identity.ts'
import type { OpenedTap } from '../../../src/channel/worker-messages.ts'
import { featureNames, featuresByName, implementedFeatures } from '../../../src/device/features.ts'

const bits = (...names: string[]): bigint => names.reduce((set, name) => set | featuresByName.get(name)!, 0n)
const tapWithout = (...names: string[]) => ({ name: 'tap0', uselessFeatures: bits(...names) }) as OpenedTap
const uncarried = { why: 'this transport cannot', hint: 'leave it out' } as const

const refusal = (on: string[], off: string[], tap: OpenedTap): readonly [string, string] => {
  try {
    chooseFeatures(implementedFeatures, tap, { on, off }, uncarried)
  } catch (error) {
    if (error instanceof UserError) return [error.message, error.hint]
    throw error
  }
  throw new Error('not refused')
}

describe('features that are asked for by name', () => {
  test('are offered where they can be', () => {
    const offered = chooseFeatures(implementedFeatures, tapWithout(), { on: ['csum'], off: ['host_uso'] }, uncarried)
    expect(featureNames(offered)).toContain('csum')
    expect(featureNames(offered)).not.toContain('host_uso')
  })

  test('are refused with what keeps them away: transport, TAP, or another feature', () => {
    expect(refusal(['ctrl_vq', 'csum'], [], tapWithout())).toEqual([
      '--features +ctrl_vq: this transport cannot',
      'leave it out',
    ])
    expect(refusal(['host_uso'], [], tapWithout('host_uso'))).toEqual([
      '--features +host_uso: tap0 cannot do it',
      'leave it out, or use a TAP with a vnet header on Linux 6.2 or newer',
    ])
    // Its dependency is what the TAP lacks.
    expect(refusal(['guest_tso4'], [], tapWithout('guest_csum'))[0]).toBe(
      '--features +guest_tso4: it depends on a feature that is not offered',
    )
  })
})
