import type { Lab } from './e2e-lab.ts'
import { pushedProgram } from './e2e-pushed.ts'

/**
 * What a descriptor of /dev/net/tun can be attached to, in the words of `ip tuntap`. `pi`: a TAP with packet
 * information.
 */
export type TunFlag = 'tun' | 'tap' | 'pi' | 'vnet_hdr' | 'multi_queue'

/**
 * The words in front of a command of the guest that give it descriptor 3, attached to the interface `name`, which is
 * made if there is none. Without flags it is attached to nothing.
 */
export const withTun = async (lab: Lab, name: string, ...flags: TunFlag[]): Promise<string[]> => [
  ...(await pushedProgram(lab, 'with-tun')),
  name,
  flags.length === 0 ? 'unattached' : flags.join(','),
]
