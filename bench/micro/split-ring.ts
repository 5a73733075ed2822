import { bench, group, run } from 'mitata'
import { newRound, shapes } from './ring-round.ts'

/**
 * Time for one chain through a split ring: popped, checked, translated, used, published, once a batch. The driver costs
 * nothing: its chains stay as they are, and only avail.idx moves. Run with: bun bench/micro/split-ring.ts
 */
for (const shape of shapes) {
  group(shape, () => {
    for (const batch of [1, 8, 64]) {
      const round = newRound('split', shape, batch)
      // One call handles as many chains whatever the batch is, so that the times compare.
      const rounds = 64 / batch
      bench(`64 chains in batches of ${batch}`, () => {
        for (let left = rounds; left > 0; left--) round()
      })
    }
  })
}

await run()
