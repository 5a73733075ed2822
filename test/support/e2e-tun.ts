import { resolve } from 'node:path'
import type { Lab } from './e2e-lab.ts'

const SOURCE = resolve(import.meta.dir, 'guest/with-tun.ts')
const PROGRAM = '/usr/lib/with-tun.js'

let pushed: Promise<void> | undefined

const push = async (lab: Lab): Promise<void> => {
  const { outputs } = await Bun.build({ entrypoints: [SOURCE], target: 'bun' })
  await lab.push(await outputs[0]!.text(), PROGRAM)
}

/** What a descriptor of /dev/net/tun can be attached to, in the words of `ip tuntap`. `pi`: a TAP with packet information. */
export type TunFlag = 'tun' | 'tap' | 'pi' | 'vnet_hdr' | 'multi_queue'

/**
 * The words in front of a command of the guest that give it descriptor 3, attached to the interface `name`, which is made if there is
 * none. Without flags it is attached to nothing.
 */
export const withTun = async (lab: Lab, name: string, ...flags: TunFlag[]): Promise<string[]> => {
  pushed ??= push(lab)
  await pushed
  return ['bun', PROGRAM, name, flags.length === 0 ? 'unattached' : flags.join(',')]
}
