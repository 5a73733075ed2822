import { describe, expect, test } from 'bun:test'
import type { IovecArena } from '../../src/memory/iovec-arena.ts'
import { PackedQueue } from '../../src/virtqueue/packed.ts'
import { runSeed } from '../support/random.ts'
import { ringFeatures } from '../support/ring-features.ts'
import { fuzzPackedRing, type PackedSubject, realSubject } from './packed-ring.fuzz.ts'
import { brokenSpaces, type Coverage, fuzzedReasons, fuzzRings, Mismatch } from './ring-fuzz.ts'

const RINGS = Number(process.env.VDUSE_NET_FUZZ_RINGS ?? 1500)

const fuzz = (seed: number, rings: number, subject: PackedSubject): Coverage =>
  fuzzRings(seed, rings, (random, steps, coverage) => fuzzPackedRing(random, steps, subject, coverage))

/** Only a split ring has these. */
const splitOnly = ['chain_next_out_of_range', 'chain_loop']

test(
  'a hostile driver cannot make the packed ring differ from the reference',
  () => {
    const seed = runSeed()
    console.log(`packed ring fuzz: VDUSE_NET_SEED=${seed}`)
    const coverage = fuzz(seed, RINGS, realSubject)
    // A run that does not come by every outcome proves less than it seems to.
    const reasons = fuzzedReasons.filter((reason) => !splitOnly.includes(reason))
    for (const outcome of ['empty', 'full', 'chain', 'AVAIL_OVERRUN', 'TAIL_NOT_AVAILABLE', ...reasons]) {
      expect({ outcome, count: coverage.get(outcome) ?? 0 }).not.toEqual({ outcome, count: 0 })
    }
  },
  20_000 + 20 * RINGS,
)

describe('canaries: each must be caught', () => {
  const broken: Record<string, Partial<PackedSubject>> = {
    ...brokenSpaces,
    'indirect tables are followed though not negotiated': {
      newQueue: (space, config) =>
        new PackedQueue(space, { ...config, features: config.features | ringFeatures({ indirect: true }) }),
    },
    'notification ignores EVENT_IDX': {
      newQueue: (space, config) =>
        new PackedQueue(space, { ...config, features: config.features & ~ringFeatures({ eventIdx: true }) }),
    },
    'a used length is off by one': {
      newQueue: (space, config) =>
        new (class extends PackedQueue {
          override stageUsed(lengthBytes: number): void {
            super.stageUsed(lengthBytes + 1)
          }
        })(space, config),
    },
    'the wrap counter is the other one': {
      newQueue: (space, config) => new PackedQueue(space, { ...config, base: config.base ^ 0x8000 }),
    },
    'the ring is one entry shorter': {
      newQueue: (space, config) => {
        const size = Math.max(1, config.size - 1)
        return new PackedQueue(space, { ...config, size, base: (config.base & 0x7fff) < size ? config.base : 0x8000 })
      },
    },
    'a chain given back is forgotten': {
      newQueue: (space, config) =>
        new (class extends PackedQueue {
          override unpop(count: number): void {
            super.unpop(Math.max(0, count - 1))
          }
        })(space, config),
    },
    'the device does not say where it waits': {
      newQueue: (space, config) =>
        new (class extends PackedQueue {
          override enableNotification(): boolean {
            this.disableNotification()
            return false
          }
        })(space, config),
    },
    'the arena is not cleaned up after a malformed chain': {
      newQueue: (space, config) =>
        new (class extends PackedQueue {
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
