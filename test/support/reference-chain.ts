import type { DropReason } from '../../src/abi/drop-reason.ts'
import type { TestMemory } from './memory.ts'

/** A region as the reference sees it: bytes at a driver address, readable, writable or both (1, 2, 3). */
export type ReferenceRegion = { readonly memory: TestMemory; readonly access: number }

/** A piece of memory by host address. */
export type HostPiece = { readonly address: number; readonly length: number }

/** What popping must do. */
export type ExpectedPop =
  | { readonly kind: 'empty' | 'full' }
  | { readonly kind: 'dropped'; readonly head: number }
  | { readonly kind: 'chain'; readonly head: number; readonly pieces: readonly HostPiece[] }
  | { readonly kind: 'fault'; readonly code: string }

/** Room left in the arena. */
export type Room = { readonly chains: number; readonly iovecs: number; readonly empty: boolean }

/** Result of a walk: the buffers, the reason of a drop, or no room in the arena. */
export type Walk = { readonly pieces: HostPiece[] } | { readonly drop: DropReason } | 'full'

/** Driver memory, one byte at a time. */
export class Bytes {
  readonly #regions: readonly ReferenceRegion[]
  constructor(regions: readonly ReferenceRegion[]) {
    this.#regions = regions
  }

  /** The region that holds the byte, if it may be accessed so. */
  at(address: bigint, access: number): ReferenceRegion | undefined {
    return this.#regions.find(
      (region) =>
        address >= BigInt(region.memory.start) &&
        address < BigInt(region.memory.end) &&
        (region.access & access) === access,
    )
  }

  /** A little-endian number of `length` bytes, or undefined if a byte of it is not readable. */
  read(address: bigint, length: number): bigint | undefined {
    let value = 0n
    for (let index = length - 1; index >= 0; index--) {
      const at = address + BigInt(index)
      const region = this.at(at, 1)
      if (region === undefined) return undefined
      value = (value << 8n) | BigInt(region.memory.bytes[Number(at) - region.memory.start]!)
    }
    return value
  }
}

/** A slow implementation of walking one chain, for the reference rings. It shares no code with the real ones. */
export class ReferenceChain {
  readonly pieces: HostPiece[] = []
  readonly #bytes: Bytes
  readonly #writable: boolean
  readonly #room: Room
  #total = 0n

  constructor(bytes: Bytes, writable: boolean, room: Room) {
    this.#bytes = bytes
    this.#writable = writable
    this.#room = room
  }

  /** Takes a buffer; undefined if that was all right. */
  buffer(address: bigint, length: bigint, writable: boolean): Walk | undefined {
    if (length === 0n) return undefined
    if (writable !== this.#writable) return { drop: 'chain_wrong_direction' }
    this.#total += length
    if (this.#total > 2n ** 32n) return { drop: 'chain_too_long' }
    if (address + length >= 2n ** 53n) return { drop: 'chain_address_unmapped' }
    let at = address
    const end = address + length
    while (at < end) {
      const region = this.#bytes.at(at, this.#writable ? 2 : 1)
      if (region === undefined) return { drop: 'chain_address_unmapped' }
      if (this.pieces.length === this.#room.iovecs)
        return this.#room.empty ? { drop: 'chain_too_many_segments' } : 'full'
      const regionEnd = BigInt(region.memory.end)
      const until = end < regionEnd ? end : regionEnd
      this.pieces.push({
        address: region.memory.address + Number(at) - region.memory.start,
        length: Number(until - at),
      })
      at = until
    }
    return undefined
  }

  end(): Walk {
    return this.#total === 0n ? { drop: 'chain_empty' } : { pieces: this.pieces }
  }
}

/** How many descriptors an indirect table has, or why the chain is dropped. */
export const tableOf = (address: bigint, length: bigint, negotiated: boolean, alone: boolean): bigint | Walk => {
  if (!negotiated) return { drop: 'indirect_not_negotiated' }
  if (!alone || length === 0n || length % 16n !== 0n) return { drop: 'indirect_malformed' }
  if (length / 16n > 1024n) return { drop: 'chain_too_many_segments' }
  if (address + length >= 2n ** 53n) return { drop: 'chain_address_unmapped' }
  return length / 16n
}
