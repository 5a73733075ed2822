import { watchSignals } from '../../src/cli/signals.ts'

// Prints its reaction to each signal; ends at a request to end at once.
watchSignals(
  (signal) => void process.stdout.write(`end: ${signal}\n`),
  (signal) => {
    process.stdout.write(`at once: ${signal}\n`)
    process.exit(3)
  },
)
setInterval(() => undefined, 60_000)
process.stdout.write('ready\n')
