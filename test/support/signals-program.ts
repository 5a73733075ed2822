import { watchSignals } from '../../src/cli/signals.ts'

// Says what it makes of each signal; ends when it is told to end at once.
watchSignals(
  (signal) => void process.stdout.write(`end: ${signal}\n`),
  (signal) => {
    process.stdout.write(`at once: ${signal}\n`)
    process.exit(3)
  },
)
setInterval(() => undefined, 60_000)
process.stdout.write('ready\n')
