/** Runs in a Worker: a driver that adds chains to a packed ring, while another thread looks at it. */
import { VRING_DESC_F_NEXT } from '../../src/abi/virtio-ring.ts'
import { DESC_WORDS } from '../../src/virtqueue/descriptor-chain.ts'
import { advance, availableBits, FLAGS_SHIFT, ID_AND_FLAGS, slotOf } from '../../src/virtqueue/packed-descriptor.ts'

declare const self: Worker

/** Words by which the two threads keep step: rounds asked for, rounds in which it adds, rounds that are done. */
export const STEP = { asked: 0, adding: 1, done: 2 } as const

/** Where it adds, how many descriptors its chains have, and how long it rests after each of these. */
type Round = { readonly from: number; readonly descriptors: number; readonly rest: number }

export type Adding = {
  readonly size: number
  /** The ring, and the words of {@link STEP}. */
  readonly ring: SharedArrayBuffer
  readonly steps: SharedArrayBuffer
  readonly rounds: readonly Round[]
}

/**
 * Fills the ring. Of each chain the first descriptor is made available last (VIRTIO 1.2 §2.8.21), the others in order,
 * as drivers do (Linux's virtqueue_add_packed, DPDK's virtqueue_enqueue_xmit_packed).
 */
const fill = (words: Int32Array, size: number, { from, descriptors, rest }: Round): void => {
  for (let added = 0; added + descriptors <= size; added += descriptors) {
    for (let written = 1; written <= descriptors; written++) {
      const index = written % descriptors
      const position = advance(from, added + index, size)
      const at = slotOf(position, size) * DESC_WORDS
      const next = index + 1 < descriptors ? VRING_DESC_F_NEXT << FLAGS_SHIFT : 0
      words[at + 2] = 64
      Atomics.store(words, at + ID_AND_FLAGS, availableBits(position, size) | next | (added + 1))
      for (let left = rest; left > 0; left--) Atomics.load(words, 0)
    }
  }
}

const serve = ({ data: { size, ring, steps, rounds } }: MessageEvent<Adding>): void => {
  const words = new Int32Array(ring)
  const step = new Int32Array(steps)
  for (const [round, what] of rounds.entries()) {
    Atomics.wait(step, STEP.asked, round)
    Atomics.store(step, STEP.adding, round + 1)
    fill(words, size, what)
    Atomics.store(step, STEP.done, round + 1)
    Atomics.notify(step, STEP.done)
  }
}

if (!Bun.isMainThread) self.onmessage = serve
