export { namespaceRefusal, type Refusal } from '../host.mjs'

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
