import {
  HASH_INPUT_BYTES_MAX,
  HASH_KEY_BYTES_MAX,
  HASH_TYPES,
  INDIRECTION_MAX,
  SCALING,
} from '../abi/receive-scaling.ts'
import { assert } from '../base/assert.ts'

/** Which queue pair receives a packet. */
export type Steering = {
  /** Queue pairs; a power of two of them, at most INDIRECTION_MAX. The lowest bits of the hash say which. */
  readonly indirection: readonly number[]
  /** The queue pair of packets without a hash. */
  readonly unclassified: number
  /** How many queue pairs are in use, from 0 on: the driver sends on them, or its table names them. */
  readonly pairs: number
}

/** What a driver wants hashed, and what for. */
export type ScalingConfig = {
  /** Bits of HASH_TYPES. */
  readonly hashTypes: number
  /** At most HASH_KEY_BYTES_MAX; what is missing counts as zeroes. */
  readonly key: Uint8Array
  /** Null: the hash is only reported. */
  readonly steering: Steering | null
}

/**
 * Where in `struct virtio_net_rss_config` the table starts: behind hash_types, indirection_table_mask and
 * unclassified_queue.
 */
const TABLE_AT = 8

/**
 * `hash_types` and the key at `keyAt`, the last field of a command's data: a length and so many bytes. Null if that
 * does not fit.
 */
const hashOf = (data: Uint8Array, keyAt: number): { hashTypes: number; key: Uint8Array } | null => {
  const keyBytes = data[keyAt]
  if (keyBytes === undefined || keyBytes > HASH_KEY_BYTES_MAX || data.length !== keyAt + 1 + keyBytes) return null
  const hashTypes = viewOf(data).getUint32(0, true)
  if ((hashTypes & ~HASH_TYPES) !== 0) return null
  return { hashTypes, key: data.slice(keyAt + 1) }
}

/**
 * `struct virtio_net_rss_config`, for `pairsMax` queue pairs; null if it is not whole, or names a hash type, a queue
 * pair or a table that there is not. VIRTIO 1.2 §5.1.6.5.7.1.
 */
export const parseRssConfig = (data: Uint8Array, pairsMax: number): ScalingConfig | null => {
  if (data.length < TABLE_AT) return null
  const view = viewOf(data)
  const places = view.getUint16(4, true) + 1
  const unclassified = view.getUint16(6, true)
  // Compared before it is used as a length: the number is the driver's.
  if (places > INDIRECTION_MAX || (places & (places - 1)) !== 0) return null
  const maxTxAt = TABLE_AT + 2 * places
  if (data.length < maxTxAt + 2) return null
  const hash = hashOf(data, maxTxAt + 2)
  if (hash === null) return null
  const indirection = Array.from({ length: places }, (_, place) => view.getUint16(TABLE_AT + 2 * place, true))
  const maxTx = view.getUint16(maxTxAt, true)
  const pairs = Math.max(maxTx, unclassified + 1, ...indirection.map((pair) => pair + 1))
  if (maxTx < 1 || pairs > pairsMax) return null
  return { ...hash, steering: { indirection, unclassified, pairs } }
}

/**
 * `struct virtio_net_hash_config`; null if it is not whole, or names a hash type that there is not. Its reserved fields
 * are not looked at: Linux before 6.5 leaves a number there. VIRTIO 1.2 §5.1.6.5.6.4.
 */
export const parseHashConfig = (data: Uint8Array): ScalingConfig | null => {
  const hash = hashOf(data, 4 + 4 * 2)
  return hash === null ? null : { ...hash, steering: null }
}

/**
 * How packets are hashed, compiled for zig/hash.zig and for the program that steers the TAP. There are two places, so
 * that the queue workers can go from one to the other while packets flow: the device thread writes only into the one
 * that nobody uses.
 */
export class ReceiveScaling {
  static readonly byteLength = 2 * SCALING.sizeBytes
  readonly #places: readonly Uint32Array[]
  #next = 0

  /** `buffer`: {@link byteLength} bytes, shared with the queue workers. */
  constructor(buffer: SharedArrayBuffer) {
    this.#places = [0, 1].map((place) => scalingPlace(buffer, place))
  }

  /**
   * Compiles `config` into the place that is free; its number, 0 or 1. The one written before is free once nobody uses
   * it.
   */
  write(config: ScalingConfig): number {
    const place = this.#next
    this.#next = 1 - place
    const words = this.words(place)
    fillToeplitz(words.subarray(SCALING.toeplitz / 4, SCALING.indirection / 4), config.key)
    const { indirection, unclassified } = config.steering ?? { indirection: [0], unclassified: 0 }
    words.set(indirection, SCALING.indirection / 4)
    words[SCALING.hash_types / 4] = config.hashTypes
    words[SCALING.indirection_mask / 4] = indirection.length - 1
    words[SCALING.unclassified_queue / 4] = unclassified
    return place
  }

  /** `struct vn_scaling` at a place. */
  words(place: number): Uint32Array {
    const words = this.#places[place]
    assert(words !== undefined)
    return words
  }
}

/** `struct vn_scaling` at place 0 or 1 of the shared memory of a {@link ReceiveScaling}. */
export const scalingPlace = (buffer: SharedArrayBuffer, place: number): Uint32Array =>
  new Uint32Array(buffer, place * SCALING.sizeBytes, SCALING.sizeBytes / 4)

/** Four bytes of the key from bit `bit` on. */
const windowOf = (key: Uint8Array, bit: number): number => {
  const byte = bit >> 3
  const at = (index: number): number => key[index] ?? 0
  const high = (at(byte) << 24) | (at(byte + 1) << 16) | (at(byte + 2) << 8) | at(byte + 3)
  const shift = bit & 7
  return shift === 0 ? high : (high << shift) | (at(byte + 4) >> (8 - shift))
}

/**
 * A Toeplitz hash is the XOR of the key's windows at the input's set bits, so that each byte of the input adds what
 * only its place and value decide: looked up, not computed, for each packet. VIRTIO 1.2 §5.1.6.4.3.
 */
const fillToeplitz = (table: Uint32Array, key: Uint8Array): void => {
  for (let place = 0; place < HASH_INPUT_BYTES_MAX; place++) {
    const adds = table.subarray(place * 256, (place + 1) * 256)
    adds[0] = 0
    for (let value = 1; value < 256; value++) {
      const lowest = value & -value
      // A single bit, counted from the highest of the byte; of several each adds its own.
      adds[value] =
        lowest === value ? windowOf(key, place * 8 + Math.clz32(value) - 24) : adds[value ^ lowest]! ^ adds[lowest]!
    }
  }
}

const viewOf = (data: Uint8Array): DataView => new DataView(data.buffer, data.byteOffset, data.length)
