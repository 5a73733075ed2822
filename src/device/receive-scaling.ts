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
  /** Queue pairs, indexed by the lowest bits of the hash. The length is a power of two, at most INDIRECTION_MAX. */
  readonly indirection: readonly number[]
  /** The queue pair of packets without a hash. */
  readonly unclassified: number
  /** Count of active queue pairs: those that the driver sends on, and those in the table. */
  readonly pairs: number
}

/** A driver's configuration of RSS or hash reports. */
export type ScalingConfig = {
  /** Bits of HASH_TYPES. */
  readonly hashTypes: number
  /** At most HASH_KEY_BYTES_MAX bytes; a shorter key is padded with zeroes. */
  readonly key: Uint8Array
  /** Null: the hash is only reported. */
  readonly steering: Steering | null
}

/**
 * Offset of the table in `struct virtio_net_rss_config`: behind hash_types, indirection_table_mask and
 * unclassified_queue.
 */
const TABLE_AT = 8

/**
 * Parses `hash_types` and the key at `keyAt`, the last field of a command's data (a length byte, then the key). Null if
 * the lengths do not match.
 */
const hashOf = (data: Uint8Array, keyAt: number): { hashTypes: number; key: Uint8Array } | null => {
  const keyBytes = data[keyAt]
  if (keyBytes === undefined || keyBytes > HASH_KEY_BYTES_MAX || data.length !== keyAt + 1 + keyBytes) return null
  const hashTypes = viewOf(data).getUint32(0, true)
  if ((hashTypes & ~HASH_TYPES) !== 0) return null
  return { hashTypes, key: data.slice(keyAt + 1) }
}

/**
 * Parses `struct virtio_net_rss_config` for `pairsMax` queue pairs. Null if it is truncated, or has an unsupported hash
 * type, queue pair or table size. VIRTIO 1.2 §5.1.6.5.7.1.
 */
export const parseRssConfig = (data: Uint8Array, pairsMax: number): ScalingConfig | null => {
  if (data.length < TABLE_AT) return null
  const view = viewOf(data)
  const places = view.getUint16(4, true) + 1
  const unclassified = view.getUint16(6, true)
  // Checked before it is used as a length: the driver chooses the number.
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
 * Parses `struct virtio_net_hash_config`. Null if it is truncated or has an unsupported hash type. Reserved fields are
 * ignored: Linux before 6.5 leaves a number there. VIRTIO 1.2 §5.1.6.5.6.4.
 */
export const parseHashConfig = (data: Uint8Array): ScalingConfig | null => {
  const hash = hashOf(data, 4 + 4 * 2)
  return hash === null ? null : { ...hash, steering: null }
}

/**
 * Hash configurations compiled for zig/hash.zig and for the TAP's steering program. There are two places, so that the
 * queue workers can switch while packets pass: the device thread writes only to the unused one.
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
   * Compiles `config` into the unused place. Returns its number, 0 or 1. Before the next call all users have switched
   * to it.
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

  /** `struct vn_scaling` at place 0 or 1. */
  words(place: number): Uint32Array {
    const words = this.#places[place]
    assert(words !== undefined)
    return words
  }
}

/** `struct vn_scaling` at place 0 or 1 of the shared memory of a {@link ReceiveScaling}. */
export const scalingPlace = (buffer: SharedArrayBuffer, place: number): Uint32Array =>
  new Uint32Array(buffer, place * SCALING.sizeBytes, SCALING.sizeBytes / 4)

/** 32 bits of the key from bit `bit` on. */
const windowOf = (key: Uint8Array, bit: number): number => {
  const byte = bit >> 3
  const at = (index: number): number => key[index] ?? 0
  const high = (at(byte) << 24) | (at(byte + 1) << 16) | (at(byte + 2) << 8) | at(byte + 3)
  const shift = bit & 7
  return shift === 0 ? high : (high << shift) | (at(byte + 4) >> (8 - shift))
}

/**
 * A Toeplitz hash is the XOR of the key's 32-bit windows at the set bits of the input. The share of an input byte
 * depends only on its place and value: the table holds it, so that a packet needs lookups only. VIRTIO 1.2 §5.1.6.4.3.
 */
const fillToeplitz = (table: Uint32Array, key: Uint8Array): void => {
  for (let place = 0; place < HASH_INPUT_BYTES_MAX; place++) {
    const adds = table.subarray(place * 256, (place + 1) * 256)
    adds[0] = 0
    for (let value = 1; value < 256; value++) {
      const lowest = value & -value
      // One bit: its window, counted from the byte's highest bit. Several bits: the XOR of their windows.
      adds[value] =
        lowest === value ? windowOf(key, place * 8 + Math.clz32(value) - 24) : adds[value ^ lowest]! ^ adds[lowest]!
    }
  }
}

const viewOf = (data: Uint8Array): DataView => new DataView(data.buffer, data.byteOffset, data.length)
