import { bench, group, run } from 'mitata'
import { layouts, newDriverRound, newRound, shapes } from './ring-round.ts'

/**
 * Time for one chain through a packed ring, beside the same through a split one. The driver of a packed ring has to
 * write its descriptors anew each time: its share is told apart. Run with: bun bench/micro/packed-ring.ts
 */
for (const shape of shapes) {
  for (const batch of [1, 8, 64]) {
    // One call handles as many chains whatever the batch is, so that the times compare.
    const rounds = 64 / batch
    group(`${shape}: 64 chains in batches of ${batch}`, () => {
      for (const layout of layouts) {
        const round = newRound(layout, shape, batch)
        bench(layout, () => {
          for (let left = rounds; left > 0; left--) round()
        })
      }
      const driver = newDriverRound('packed', shape, batch)
      bench('of packed, the driver', () => {
        for (let left = rounds; left > 0; left--) driver()
      })
    })
  }
}

await run()
