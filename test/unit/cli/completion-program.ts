import { readCommandLine } from '../../../src/cli/command-line.ts'
import { thisHost } from '../../../src/cli/host.ts'
import { machineProbes } from '../../../src/cli/probes.ts'

// A program of its own: the completion library prints to the stdout of its process.
const invocation = await readCommandLine(
  process.argv.slice(2),
  thisHost,
  machineProbes({ trySteering: () => null, vduseControlQueue: () => null }),
)
process.exitCode = invocation.kind === 'done' ? invocation.exitCode : 1
