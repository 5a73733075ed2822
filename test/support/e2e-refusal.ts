import { expect } from 'bun:test'
import { quote } from '../../scripts/lab/lab.ts'
import { type Lab, traces } from './e2e-lab.ts'

/** What a start that is refused must say and end with. */
export type Refusal = {
  /** Parts of the first line, of what and why. */
  readonly says: readonly string[]
  /** Parts of the second line, of what to do. */
  readonly hints: readonly string[]
  readonly code: number
}

/** All that a card could change of the guest and forget to change back. */
const stateOf = async (lab: Lab): Promise<Record<string, string[] | string>> => ({
  ...(await traces(lab)),
  details: await lab.ok('ip -o -d link; bridge link; for n in $(ip netns list); do ip -n $n -o -d link; done'),
  namespaces: await lab.ok('ip netns list'),
  drivers: await lab.ok('ls /sys/bus/vdpa/drivers /sys/class/vhost-vdpa /dev/vhost-vdpa* 2>/dev/null; true'),
})

/**
 * Runs a command of the guest's shell that ends in `vduse-net`, with further words, which must refuse to start: two lines, the exit code, and the guest as it was.
 */
export const expectRefusal = async (
  lab: Lab,
  words: readonly string[],
  { says, hints, code }: Refusal,
  shell: (command: string) => string = (command) => command,
): Promise<void> => {
  const before = await stateOf(lab)
  const result = await lab.sh(shell(['vduse-net', ...words].map(quote).join(' ')))
  // Lines of the log, which tells what is done and undone, are JSON.
  const lines = result.stderr.split('\n').filter((line) => line !== '' && !line.startsWith('{'))
  const [message = '', hint = ''] = lines
  for (const part of says) expect(message).toContain(part)
  for (const part of hints) expect(hint).toContain(part)
  expect({ code: result.code, lines: lines.length, stdout: result.stdout }).toEqual({ code, lines: 2, stdout: '' })
  expect(message).toStartWith('vduse-net: ')
  expect(hint).toStartWith('hint: ')
  expect(await stateOf(lab)).toEqual(before)
}
