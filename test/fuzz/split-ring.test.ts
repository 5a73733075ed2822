import { describe, expect, test } from 'bun:test'
import type { IovecArena } from '../../src/memory/iovec-arena.ts'
import { SplitQueue } from '../../src/virtqueue/split.ts'
import { runSeed } from '../support/random.ts'
import { ringFeatures } from '../support/ring-features.ts'
import { brokenSpaces, type Coverage, fuzzedReasons, fuzzRings, Mismatch } from './ring-fuzz.ts'
import { fuzzSplitRing, realSubject, type SplitSubject } from './split-ring.fuzz.ts'

const RINGS = Number(process.env.VDUSE_NET_FUZZ_RINGS ?? 1500)

const fuzz = (seed: number, rings: number, subject: SplitSubject): Coverage =>
  fuzzRings(seed, rings, (random, steps, coverage) => fuzzSplitRing(random, steps, subject, coverage))

test(
  'a hostile driver cannot make the split ring differ from the reference',
  () => {
    const seed = runSeed()
    console.log(`split ring fuzz: VDUSE_NET_SEED=${seed}`)
    const coverage = fuzz(seed, RINGS, realSubject)
    // A run that does not come by every outcome proves less than it seems to.
    const faults = ['AVAIL_OVERRUN', 'HEAD_OUT_OF_RANGE', 'HEAD_IN_FLIGHT']
    for (const outcome of ['empty', 'full', 'chain', ...faults, ...fuzzedReasons]) {
      expect({ outcome, count: coverage.get(outcome) ?? 0 }).not.toEqual({ outcome, count: 0 })
    }
  },
  20_000 + 20 * RINGS,
)

describe('canaries: each must be caught', () => {
  const broken: Record<string, Partial<SplitSubject>> = {
    ...brokenSpaces,
    'indirect tables are followed though not negotiated': {
      newQueue: (space, config) =>
        new SplitQueue(space, { ...config, features: config.features | ringFeatures({ indirect: true }) }),
    },
    'notification ignores EVENT_IDX': {
      newQueue: (space, config) =>
        new SplitQueue(space, { ...config, features: config.features & ~ringFeatures({ eventIdx: true }) }),
    },
    'a used length is off by one': {
      newQueue: (space, config) =>
        new (class extends SplitQueue {
          override stageUsed(lengthBytes: number): void {
            super.stageUsed(lengthBytes + 1)
          }
        })(space, config),
    },
    'the ring has half its entries': {
      newQueue: (space, config) => new SplitQueue(space, { ...config, size: Math.max(1, config.size / 2) }),
    },
    'a chain given back is forgotten': {
      newQueue: (space, config) =>
        new (class extends SplitQueue {
          override unpop(count: number): void {
            super.unpop(Math.max(0, count - 1))
          }
        })(space, config),
    },
    'the arena is not cleaned up after a malformed chain': {
      newQueue: (space, config) =>
        new (class extends SplitQueue {
          override popInto(arena: IovecArena, direction: 0 | 1): 0 | 1 | 2 | 3 {
            const result = super.popInto(arena, direction)
            if (result === 2) arena.append(0, 1)
            return result
          }
        })(space, config),
    },
  }
  test.each(Object.entries(broken))('%s', (_, subject) => {
    expect(() => fuzz(1, 300, { ...realSubject, ...subject })).toThrow(Mismatch)
  })
})
