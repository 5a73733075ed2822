import { UserError } from '../base/errors.ts'
import { native } from '../sys/native.ts'

/** Descriptors of the program, its workers' event loops, admin API connections and a front-end's memory regions. */
const BASE = 96
/** Descriptors of a queue pair: TAP queue, eventfds, its worker's event loop, and a front-end's for two rings. */
const PER_PAIR = 16

/**
 * Checks that the process may open as many descriptors as the card needs, and raises the soft limit to that if it can:
 * the runtime crashes when none are left.
 * @throws {UserError} if the hard limit is too low.
 */
export const requireDescriptors = (pairs: number): void => {
  const needed = BASE + PER_PAIR * pairs
  const limit = native.vn_descriptor_limit(needed)
  if (limit < 0 || limit >= needed) return
  throw new UserError(
    `a card with ${pairs} queue pair${pairs === 1 ? '' : 's'} needs ${needed} open files, and this ` +
      `process may have ${limit}`,
    'ulimit -n 1024 in the shell, LimitNOFILE=1024 in a unit, --ulimit nofile=1024 for a container',
  )
}
