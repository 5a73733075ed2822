import { existsSync } from 'node:fs'

/** Why tests with real interfaces cannot run here, or null if they can. */
export const noRealTaps: string | null =
  process.getuid?.() !== 0
    ? 'not root'
    : !existsSync('/dev/net/tun')
      ? 'no /dev/net/tun'
      : Bun.which('ip') === null
        ? 'no ip command (iproute2)'
        : null

if (noRealTaps !== null) console.warn(`skipped, tests with real TAPs: ${noRealTaps}`)

let made = 0

const run = (command: readonly string[]): string => {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command])
  if (exitCode !== 0) throw new Error(`${command.join(' ')}: ${stderr.toString().trim()}`)
  return stdout.toString()
}

/** A network namespace of its own for one test, with `lo` only; everything in it goes with it. */
export class NetworkNamespace {
  readonly name = `vn-test-${process.pid}-${made++}`

  constructor() {
    run(['ip', 'netns', 'add', this.name])
  }

  /** `ip` in this namespace: `ns.ip('link set tap0 down')`. Its output; throws with what it says when it fails. */
  ip(words: string): string {
    return run(['ip', '-n', this.name, ...words.split(' ')])
  }

  /** Names of the interfaces, sorted. */
  interfaces(): string[] {
    const links = JSON.parse(this.ip('-json link')) as { ifname: string }[]
    return links.map((link) => link.ifname).sort()
  }

  [Symbol.dispose](): void {
    run(['ip', 'netns', 'delete', this.name])
  }
}
