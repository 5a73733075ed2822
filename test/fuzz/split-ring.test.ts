import { describe, expect, test } from 'bun:test'
import { dropReasons } from '../../src/abi/drop-reason.ts'
import { AddressSpace, TRANSLATED } from '../../src/memory/address-space.ts'
import type { IovecArena } from '../../src/memory/iovec-arena.ts'
import { ACCESS } from '../../src/memory/region.ts'
import { SplitQueue } from '../../src/virtqueue/split.ts'
import { Random, runSeed } from '../support/random.ts'
import { type Coverage, fuzzSplitRing, Mismatch, realSubject, type Subject } from './split-ring.fuzz.ts'

const RINGS = Number(process.env.VDUSE_NET_FUZZ_RINGS ?? 1500)
const STEPS = 30

/** Fuzzes up to `rings` rings, each with a seed of its own; the first mismatch names the one to repeat. */
const fuzz = (seed: number, rings: number, subject: Subject, coverage: Coverage = new Map()): Coverage => {
  for (let ring = 0; ring < rings; ring++) {
    const ringSeed = (seed + ring) >>> 0
    try {
      fuzzSplitRing(new Random(ringSeed), STEPS, subject, coverage)
    } catch (error) {
      if (error instanceof Error) error.message = `VDUSE_NET_SEED=${ringSeed} repeats this: ${error.message}`
      throw error
    }
  }
  return coverage
}

test(
  'a hostile driver cannot make the split ring differ from the reference',
  () => {
    const seed = runSeed()
    console.log(`split ring fuzz: VDUSE_NET_SEED=${seed}`)
    const coverage = fuzz(seed, RINGS, realSubject)
    // A run that does not come by every outcome proves less than it seems to. Only 4 GiB of mapped memory make a chain too long.
    const found = dropReasons
      .slice(0, dropReasons.indexOf('header_short'))
      .filter((reason) => reason !== 'chain_too_long')
    for (const outcome of [
      'empty',
      'full',
      'chain',
      'AVAIL_OVERRUN',
      'HEAD_OUT_OF_RANGE',
      'HEAD_IN_FLIGHT',
      ...found,
    ]) {
      expect({ outcome, count: coverage.get(outcome) ?? 0 }).not.toEqual({ outcome, count: 0 })
    }
  },
  20_000 + 20 * RINGS,
)

describe('canaries: each must be caught', () => {
  const broken: Record<string, Partial<Subject>> = {
    'a buffer may end one byte beyond its region': {
      newSpace: () =>
        new (class extends AddressSpace {
          override translate(address: number, length: number, access: 1 | 2 | 3, arena: IovecArena): 0 | 1 | 2 {
            const result = super.translate(address, length, access, arena)
            if (result !== TRANSLATED.fault || length === 1) return result
            arena.abandon()
            return super.translate(address, length - 1, access, arena)
          }
        })(),
    },
    'permissions are not looked at': {
      newSpace: () =>
        new (class extends AddressSpace {
          override add(region: Parameters<AddressSpace['add']>[0]): boolean {
            return super.add({ ...region, access: ACCESS.readWrite })
          }
        })(),
    },
    'indirect tables are followed though not negotiated': {
      newQueue: (space, config) => new SplitQueue(space, { ...config, indirect: true }),
    },
    'notification ignores EVENT_IDX': {
      newQueue: (space, config) => new SplitQueue(space, { ...config, eventIdx: false }),
    },
    'a used length is off by one': {
      newQueue: (space, config) =>
        new (class extends SplitQueue {
          override stageUsed(lengthBytes: number): void {
            super.stageUsed(lengthBytes + 1)
          }
        })(space, config),
    },
    'an index starts one too far': {
      newQueue: (space, config) =>
        new SplitQueue(space, {
          ...config,
          state: config.state === 'used' ? 'used' : { ...config.state, nextUsed: (config.state.nextUsed ?? 0) + 1 },
        }),
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
