import { closeSync, openSync } from 'node:fs'

/** Something that this machine does not permit, and what to do about it. */
export type Refusal = { readonly why: string; readonly hint: string }

const tunRefusal = (): Refusal | null => {
  try {
    closeSync(openSync('/dev/net/tun', 'r+'))
    return null
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    return code === 'EACCES'
      ? {
          why: 'no permission to open /dev/net/tun',
          hint: 'run it as root, or: chmod 666 /dev/net/tun, as Debian has it',
        }
      : {
          why: `no /dev/net/tun (${code})`,
          hint: 'run: modprobe tun; in a container: start it with --device /dev/net/tun',
        }
  }
}

/**
 * Why this process cannot have network namespaces with TAPs in them, or null if it can. Or why programs cannot that it starts with the
 * words `asRoot` in front.
 */
export const namespaceRefusal = (asRoot: readonly string[] = []): Refusal | null => {
  const isRoot = process.getuid?.() === 0
  if (!isRoot && asRoot.length === 0) return { why: 'not root', hint: 'run it as root' }
  if (Bun.which('ip') === null) return { why: 'no ip command (iproute2)', hint: 'run: apt-get install iproute2' }
  const { success } = Bun.spawnSync([...asRoot, 'unshare', '--net', '--mount', 'true'], { stderr: 'ignore' })
  if (!success) {
    return {
      why: 'not permitted to make a network namespace',
      hint: isRoot ? 'in a container: start it with --privileged' : 'run it as root',
    }
  }
  return tunRefusal()
}

let made = 0

const run = (command: readonly string[]): string => {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command])
  if (exitCode !== 0) throw new Error(`${command.join(' ')}: ${stderr.toString().trim()}`)
  return stdout.toString()
}

/** A network namespace of its own, with `lo` only; everything in it goes with it. */
export class NetworkNamespace {
  readonly name = `vduse-net-${process.pid}-${made++}`

  constructor() {
    run(['ip', 'netns', 'add', this.name])
  }

  /** Sets a kernel parameter of the namespace. */
  sysctl(name: string, value: string): void {
    const script = `echo ${value} > /proc/sys/${name.replaceAll('.', '/')}`
    const { exitCode, stderr } = Bun.spawnSync(['ip', 'netns', 'exec', this.name, 'sh', '-c', script])
    if (exitCode !== 0) throw new Error(`sysctl ${name}=${value}: ${stderr.toString()}`)
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
