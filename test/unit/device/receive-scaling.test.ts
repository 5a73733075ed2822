import { describe, expect, test } from 'bun:test'
import { HASH_INPUT_BYTES_MAX, HASH_KEY_BYTES_MAX, HASH_TYPES, SCALING } from '../../../src/abi/receive-scaling.ts'
import { ReceiveScaling, type ScalingConfig, scalingPlace } from '../../../src/device/receive-scaling.ts'
import { Random } from '../../support/random.ts'
import { MICROSOFT_KEY, toeplitz, vectors } from '../../support/toeplitz.ts'

/** The hash of `input` as the compiled table has it. */
const lookUp = (words: Uint32Array, input: Uint8Array): number =>
  input.reduce((hash, byte, place) => hash ^ words[SCALING.toeplitz / 4 + place * 256 + byte]!, 0) >>> 0

const newScaling = () => new ReceiveScaling(new SharedArrayBuffer(ReceiveScaling.byteLength))

const byKey = (key: Uint8Array): ScalingConfig => ({ hashTypes: HASH_TYPES, key, steering: null })

describe('the compiled hash', () => {
  test("is that of Microsoft's suite", () => {
    const scaling = newScaling()
    const words = scaling.words(scaling.write(byKey(MICROSOFT_KEY)))
    for (const { input, hash } of vectors) expect(lookUp(words, input)).toBe(hash)
  })

  test('is the bit by bit hash of any input under any key, short ones too', () => {
    const random = new Random(0x7e0)
    const scaling = newScaling()
    const bytes = (length: number): Uint8Array => Uint8Array.from({ length }, () => random.below(256))
    for (let round = 0; round < 40; round++) {
      const key = bytes(round < 2 ? round : random.below(HASH_KEY_BYTES_MAX + 1))
      const words = scaling.words(scaling.write(byKey(key)))
      for (let tries = 0; tries < 20; tries++) {
        const input = bytes(1 + random.below(HASH_INPUT_BYTES_MAX))
        expect(lookUp(words, input)).toBe(toeplitz(key, input))
      }
    }
  })
})

describe('places', () => {
  test('a new one is written beside the one that is in use', () => {
    const buffer = new SharedArrayBuffer(ReceiveScaling.byteLength)
    const scaling = new ReceiveScaling(buffer)
    const first = scaling.write(byKey(Uint8Array.of(1)))
    const before = scalingPlace(buffer, first).slice()
    const second = scaling.write({
      hashTypes: 5,
      key: Uint8Array.of(2),
      steering: { indirection: [3, 2, 1, 0], unclassified: 2, pairs: 4 },
    })
    expect(second).not.toBe(first)
    expect(scalingPlace(buffer, first)).toEqual(before)
    const words = scalingPlace(buffer, second)
    expect([...words.subarray(SCALING.indirection / 4, SCALING.indirection / 4 + 4)]).toEqual([3, 2, 1, 0])
    expect(words[SCALING.hash_types / 4]).toBe(5)
    expect(words[SCALING.indirection_mask / 4]).toBe(3)
    expect(words[SCALING.unclassified_queue / 4]).toBe(2)
    expect(scaling.write(byKey(Uint8Array.of(3)))).toBe(first)
  })

  test('nothing of an earlier table steers', () => {
    const scaling = newScaling()
    for (let twice = 0; twice < 2; twice++) {
      scaling.write({
        hashTypes: 1,
        key: new Uint8Array(),
        steering: { indirection: [3, 3], unclassified: 3, pairs: 4 },
      })
    }
    const words = scaling.words(scaling.write(byKey(new Uint8Array())))
    expect(words[SCALING.indirection / 4]).toBe(0)
    expect(words[SCALING.indirection_mask / 4]).toBe(0)
    expect(words[SCALING.unclassified_queue / 4]).toBe(0)
  })
})
