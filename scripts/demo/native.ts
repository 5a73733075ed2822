import { resolve } from 'node:path'
import { namespaceRefusal, type Refusal } from '../frontends/network-namespace.ts'
import { fetchDpdk, fetchUml } from '../frontends/packages.ts'
import { fetchUserland } from '../lab/userland.ts'
import { type Report, StepFailure } from './report.ts'
import type { NativeFigures } from './summary.ts'

/** What native-main.ts says at its end. */
export type NativeOutcome = { readonly figures: NativeFigures } | { readonly failure: string }

/**
 * Whoever is not root can be it in a user namespace, where the kernel lets everybody have one: root over network namespaces that are made
 * there, and over nothing else. `ip netns` returns to the one where it began, so that must be such a one; and it keeps what it makes in
 * /run, of which it gets one of its own.
 */
const AS_ROOT = [
  ...['unshare', '--user', '--map-root-user', '--mount', '--net'],
  ...['sh', '-c', 'mount -t tmpfs tmpfs /run && exec "$@"', 'sh'],
]

/** Why it cannot be shown here, or null if it can. */
const refusal = (asRoot: readonly string[]): Refusal | null =>
  process.arch === 'x64'
    ? namespaceRefusal(asRoot)
    : { why: 'the front-ends are programs of Debian for x86-64', hint: 'run npm start on such a machine' }

/**
 * Shows the card on this machine with real vhost-user front-ends: native-demo.ts, in a process that may make network namespaces. Throws
 * StepFailure or LabError if that fails; what this machine does not permit is only told, and null returned.
 */
export const showNative = async (report: Report): Promise<NativeFigures | null> => {
  report.step('The same card without emulation: on this machine, over vhost-user')
  const asRoot = process.getuid?.() === 0 ? [] : AS_ROOT
  const refused = refusal(asRoot)
  if (refused !== null) {
    report.note(`not shown: ${refused.why}`)
    report.note(`hint: ${refused.hint}`)
    return null
  }
  report.note('in a network namespace of its own: nothing here touches the network of this machine')
  // In there nothing can be downloaded.
  for (const fetch of [fetchUserland, fetchUml, fetchDpdk]) await fetch()
  const outcome = await runChild(asRoot, report)
  if ('failure' in outcome) throw new StepFailure(outcome.failure)
  return outcome.figures
}

const runChild = async (asRoot: readonly string[], report: Report): Promise<NativeOutcome> => {
  let outcome: NativeOutcome = { failure: 'it ended without a word' }
  const child = Bun.spawn(
    [
      ...asRoot,
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
  return code === 0 ? outcome : { failure: `the native part ended with exit code ${code}` }
}
