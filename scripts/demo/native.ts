import { resolve } from 'node:path'
import type { Refusal } from '../frontends/network-namespace.ts'
import { type Report, StepFailure } from './report.ts'
import type { NativeFigures } from './summary.ts'

/** What native-main.ts says at its end. */
export type NativeOutcome =
  | { readonly figures: NativeFigures }
  | { readonly refusal: Refusal }
  | { readonly failure: string }

/**
 * Whoever is not root can be it in a user namespace, where the kernel lets everybody have one: root over network namespaces that are made
 * there, and over nothing else. `ip netns` keeps them in /run, of which it gets one of its own.
 */
const AS_ROOT = [
  ...['unshare', '--user', '--map-root-user', '--mount'],
  ...['sh', '-c', 'mount -t tmpfs tmpfs /run && exec "$@"', 'sh'],
]

/**
 * Shows the card on this machine with real vhost-user front-ends: native-demo.ts, in a process that may make network namespaces. Throws
 * StepFailure if that fails; what this machine does not permit is only told, and null returned.
 */
export const showNative = async (report: Report): Promise<NativeFigures | null> => {
  report.step('The same card without emulation: on this machine, over vhost-user')
  const outcome = process.arch === 'x64' ? await runChild(report) : NO_FRONTENDS
  if ('failure' in outcome) throw new StepFailure(outcome.failure)
  if ('figures' in outcome) return outcome.figures
  report.note(`not shown: ${outcome.refusal.why}`)
  report.note(`to see it: ${outcome.refusal.hint}`)
  return null
}

const NO_FRONTENDS: NativeOutcome = {
  refusal: { why: 'the front-ends are programs of Debian for x86-64', hint: 'run npm start on such a machine' },
}

const NO_NAMESPACE: NativeOutcome = {
  refusal: {
    why: 'it needs a network namespace, and here only root may have one',
    hint: 'run npm start as root, or first: sudo sysctl kernel.unprivileged_userns_clone=1',
  },
}

const runChild = async (report: Report): Promise<NativeOutcome> => {
  const wrapper = process.getuid?.() === 0 ? [] : AS_ROOT
  if (!Bun.spawnSync([...wrapper, 'true'], { stderr: 'ignore' }).success) return NO_NAMESPACE
  let outcome: NativeOutcome = { failure: 'it ended without a word' }
  const child = Bun.spawn(
    [
      ...wrapper,
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
