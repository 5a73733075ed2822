import { expect } from 'bun:test'
import { quote } from '../../scripts/lab/lab.ts'
import { type Lab, traces } from './e2e-lab.ts'

/**
 * How a start that is refused ends: parts of the line of what and why, and of the line of what to do, and the exit
 * code.
 */
export type Refusal = { readonly says: string; readonly hints: string; readonly code: 1 | 2 | 66 | 77 }

/** Who starts the program, and how. */
export type Starter = {
  /** Words in front of `vduse-net`, like `ip netns exec x`. */
  readonly prefix?: readonly string[]
  /** A user of the guest other than root. */
  readonly user?: string
  /** Redirections of the shell, like `3</dev/null`. */
  readonly redirect?: string
}

const commandOf = (words: readonly string[], { prefix = [], user, redirect = '' }: Starter): string => {
  const command = `${[...prefix, 'vduse-net', ...words].map(quote).join(' ')} ${redirect}`
  return user === undefined ? command : `su ${user} -s /bin/sh -c ${quote(command)}`
}

/**
 * All that a card changes of the guest and could forget to change back: what there is, and how interfaces are set. The
 * kernel tells of a carrier that has gone only after a while: that is left out.
 */
const stateOf = async (lab: Lab): Promise<unknown> => {
  const settings = [
    'for name in $(ls /run/netns 2>/dev/null); do echo "$name:"; ip -n $name -o link; done',
    '{ ip -o link; bridge link; } | sed -E "s/NO-CARRIER,|,LOWER_UP| state [A-Z]+//g"',
    // Users of a module, and so whatever is open or bound.
    'cut -d " " -f 1,3 /proc/modules',
    'ls -A /run',
  ]
  return { ...(await traces(lab)), settings: (await lab.ok(settings.join('; '))).split('\n') }
}

/**
 * Runs `vduse-net` with these words. It must refuse to start, with two lines for the user, and leave the guest as it
 * was.
 */
export const expectRefusal = async (
  lab: Lab,
  words: readonly string[],
  { says, hints, code }: Refusal,
  starter: Starter = {},
): Promise<void> => {
  const before = await stateOf(lab)
  const result = await lab.sh(commandOf(words, starter))
  // What is not JSON is for the user. The log may have told before what was done and undone.
  const lines = result.stderr.split('\n').filter((line) => line !== '' && !line.startsWith('{'))
  const [message, hint] = [lines.at(-2) ?? '', lines.at(-1) ?? '']
  expect({ code: result.code, stdout: result.stdout, lines }).toEqual({ code, stdout: '', lines: [message, hint] })
  expect(message).toStartWith('vduse-net: ')
  expect(message).toContain(says)
  expect(hint).toStartWith('hint: ')
  expect(hint).toContain(hints)
  // What is refused is refused before any driver sees the card.
  expect(result.stderr).not.toMatch(/\b(at|de)tached /)
  expect(await stateOf(lab)).toEqual(before)
}

/** The same words with `--dry-run` end with the same code: what can be looked up is told before anything is done. */
export const expectForetold = async (
  lab: Lab,
  words: readonly string[],
  { code }: Refusal,
  starter: Starter = {},
): Promise<void> => {
  const foretold = await lab.sh(commandOf([...words, '--dry-run'], starter))
  expect({ code: foretold.code, stdout: foretold.stdout }).toEqual({
    code,
    stdout: expect.stringMatching(/^fail [\s\S]*^would:/m),
  })
}
