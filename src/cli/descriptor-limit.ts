import { UserError } from '../base/errors.ts'
import { native } from '../sys/native.ts'

/** Of the program itself, its workers' event loops, the admin API's connections, and memory that a front-end shares. */
const BASE = 96
/** Of a queue pair: TAP queue, eventfds and the event loop of its worker, and what a front-end gives for two rings. */
const PER_PAIR = 16

/**
 * Makes sure that the process may have as many descriptors as the card needs: the runtime does not survive it if there
 * are none left.
 * @throws {UserError} if it may not.
 */
export const demandDescriptors = (pairs: number): void => {
  const needed = BASE + PER_PAIR * pairs
  const limit = native.vn_descriptor_limit(needed)
  if (limit < 0 || limit >= needed) return
  throw new UserError(
    `a card with ${pairs} queue pair${pairs === 1 ? '' : 's'} needs ${needed} open files, and this ` +
      `process may have ${limit}`,
    'ulimit -n 1024 in the shell, LimitNOFILE=1024 in a unit, --ulimit nofile=1024 for a container',
  )
}
