import type { IovecArena } from '../memory/iovec-arena.ts'
import { type BufferDirection, POP, type PopResult, type Virtqueue } from './virtqueue.ts'

/**
 * Pops until `chainsMax` chains are popped, malformed ones included, or the arena has `bytesMax` bytes. Returns
 * POP.chain, or why it ended earlier: POP.empty or POP.full. Throws as {@link Virtqueue.popInto}.
 */
export const popBatch = (
  queue: Virtqueue,
  arena: IovecArena,
  direction: BufferDirection,
  chainsMax: number,
  bytesMax: number,
): PopResult => {
  let left = chainsMax
  // After an empty burst no more are tried: the next chains are likely to be out of the ordinary too.
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
