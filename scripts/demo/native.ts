import { resolve } from 'node:path'
import { fetchDpdk, fetchUml } from '../frontends/packages.ts'
import { asRoot, frontendsRefusal, type Refusal } from '../host.mjs'
import { describeEnding } from '../lab/ending.ts'
import { fetchUserland } from '../lab/userland.ts'
import { VHOST_USER_DRAWING } from './drawings.ts'
import { type Report, StepFailure } from './report.ts'
import type { NativeFigures } from './summary.ts'

/** What native-main.ts says at its end. */
export type NativeOutcome = { readonly figures: NativeFigures } | { readonly failure: string }

/**
 * Shows the card on this machine with real vhost-user front-ends: native-demo.ts, in a process that may make network
 * namespaces. Throws StepFailure or LabError if that fails; what this machine does not permit is only told, and
 * returned.
 */
export const showNative = async (report: Report): Promise<NativeFigures | Refusal> => {
  report.step('The same card without emulation: on this machine, over vhost-user')
  const refused = frontendsRefusal()
  if (refused !== null) {
    report.note(`not shown: ${refused.why}`)
    return refused
  }
  for (const line of VHOST_USER_DRAWING) report.note(line)
  report.note('in a network namespace of its own: nothing here touches the network of this machine')
  // In there nothing can be downloaded.
  for (const fetch of [fetchUserland, fetchUml, fetchDpdk]) await fetch()
  const outcome = await runChild(asRoot(), report)
  if ('failure' in outcome) throw new StepFailure(outcome.failure)
  return outcome.figures
}

const runChild = async (words: readonly string[], report: Report): Promise<NativeOutcome> => {
  let outcome: NativeOutcome = { failure: 'it ended without a word' }
  const child = Bun.spawn(
    [
      ...words,
      // It clears up behind itself and ends when this process is gone.
      ...['setpriv', '--pdeathsig', 'TERM'],
      ...[process.execPath, resolve(import.meta.dir, 'native-main.ts'), String(report.startedMs)],
    ],
    {
      stdio: ['ignore', 'inherit', 'inherit'],
      ipc: (message) => {
        outcome = message as NativeOutcome
      },
    },
  )
  const code = await child.exited
  return code === 0 ? outcome : { failure: `the native part ${describeEnding(code)}` }
}
