// `npm start`. With arguments the card runs here, and needs nothing of Debian's; without, it is shown at work. What is
// missing for that is said before anything else.

import { frontendsRefusal } from './host.mjs'
import { runScript } from './run.mjs'

const args = process.argv.slice(2)
if (args.length === 0) {
  const refusal = frontendsRefusal()
  // setup installs iproute2.
  if (refusal !== null && !refusal.why.includes('iproute2')) {
    process.stderr.write(`start: half of it cannot be shown here: ${refusal.why}\nstart: ${refusal.hint}\n`)
  }
}
await runScript(args.length === 0 ? ['lab', 'frontends'] : [], ['scripts/start.ts', ...args])
