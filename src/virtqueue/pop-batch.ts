import type { IovecArena } from '../memory/iovec-arena.ts'
import { type Direction, POP, type PopResult, type Virtqueue } from './virtqueue.ts'

/**
 * Pops until `chainsMax` chains have been looked at or the arena has `bytesMax` bytes: POP.chain, or why it ended
 * before that: POP.empty or POP.full. Malformed chains count. For faults see {@link Virtqueue.popInto}.
 */
export const popBatch = (
  queue: Virtqueue,
  arena: IovecArena,
  direction: Direction,
  chainsMax: number,
  bytesMax: number,
): PopResult => {
  let left = chainsMax
  // Where chains are unusual one after the other, trying first would be in vain each time.
  let bursts = true
  while (left > 0 && arena.bytes < bytesMax) {
    const taken: number = bursts ? queue.popBurst(arena, direction, left, bytesMax) : 0
    bursts = taken > 0
    left -= taken
    if (left === 0 || arena.bytes >= bytesMax) break
    const result = queue.popInto(arena, direction)
    if (result === POP.empty || result === POP.full) return result
    left--
  }
  return POP.chain
}
