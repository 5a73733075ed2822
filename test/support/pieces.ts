import { type DropReason, dropReasons } from '../../src/abi/drop-reason.ts'
import type { IovecArena } from '../../src/memory/iovec-arena.ts'
import type { TestMemory } from './memory.ts'

/** A piece of a popped chain, by its offset from the start of the test memory. */
export type Piece = { readonly offset: number; readonly length: number }

/** The chains of an arena as the native helper reads them. */
export const piecesOf = (arena: IovecArena, memory: TestMemory): Piece[][] => {
  const chains: Piece[][] = []
  for (let chain = 0; chain < arena.chainCount; chain++) {
    const first = arena.chains[2 * chain]!
    const pieces: Piece[] = []
    for (let at = first; at < first + arena.chains[2 * chain + 1]!; at++) {
      const [low, high, length] = arena.iovecs.subarray(4 * at, 4 * at + 3)
      pieces.push({ offset: high! * 2 ** 32 + low! - memory.address, length: length! })
    }
    chains.push(pieces)
  }
  return chains
}

/** Reasons counted, with how often. */
export const countsOf = (drops: Uint32Array | Float64Array): Partial<Record<DropReason, number>> =>
  Object.fromEntries(dropReasons.flatMap((reason, index) => (drops[index] === 0 ? [] : [[reason, drops[index]]])))
