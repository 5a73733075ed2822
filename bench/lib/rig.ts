import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { NativeProcess, until } from '../../scripts/frontends/native-process.ts'
import { type TemporaryFolder, temporaryFolder } from '../../scripts/lab/temporary.ts'
import { buildZigProgram } from '../../scripts/lab/zig-program.ts'
import { NetworkNamespace } from '../../test/support/network-namespace.ts'

/** Which processor does what. With two, the generator has to share one with the frontend that polls. */
export interface Placement {
  device: number
  frontend: number
  generator: number
}

/** Counters of an interface as its host sees them: `rx` is what the device wrote, `tx` what the device read. */
export interface InterfaceCounters {
  rxPackets: number
  txPackets: number
  txDropped: number
}

/** What all rows of a run share: a network namespace, a folder for sockets, names, a plan for the processors. */
export class Rig implements Disposable {
  readonly placement: Placement
  readonly #namespace = new NetworkNamespace()
  readonly #folder: TemporaryFolder = temporaryFolder(tmpdir(), 'vduse-net-bench-')
  readonly #tapLoad: string
  #names = 0

  private constructor(tapLoad: string) {
    const cpus = availableParallelism()
    if (cpus < 2) throw new Error('the benchmark needs two processors: one for the device, one for the driver')
    this.#tapLoad = tapLoad
    this.placement = { device: 0, frontend: 1, generator: cpus > 2 ? 2 : 1 }
    // The only interface is the one measured: the host's own IPv6 chatter would be counted.
    this.sysctl('net.ipv6.conf.default.disable_ipv6=1')
  }

  static async open(): Promise<Rig> {
    return new Rig(
      await buildZigProgram(join(import.meta.dir, '../native/tap-load.zig'), {
        name: 'load generator',
        flags: ['-lc', '-target', 'x86_64-linux-musl', '-OReleaseFast', '-fstrip', '-fsingle-threaded'],
      }),
    )
  }

  get netns(): string {
    return this.#namespace.name
  }

  /** A name for an interface that nobody had before: a TAP can outlive the program that made it for a moment. */
  interfaceName(): string {
    return `vnb${this.#names++}`
  }

  /** A path for a socket. */
  socket(): string {
    return join(this.#folder.path, `${this.#names++}.sock`)
  }

  /** `ip` in the namespace. */
  ip(words: string): string {
    return this.#namespace.ip(words)
  }

  sysctl(assignment: string): void {
    const { exitCode, stderr } = Bun.spawnSync(['ip', 'netns', 'exec', this.netns, 'sysctl', '-qw', assignment])
    if (exitCode !== 0) throw new Error(`sysctl ${assignment}: ${stderr.toString()}`)
  }

  /** An interface's counters now. */
  counters(ifname: string): InterfaceCounters {
    const [link] = JSON.parse(this.ip(`-s -j link show ${ifname}`))
    const { rx, tx } = link.stats64
    return { rxPackets: rx.packets, txPackets: tx.packets, txDropped: tx.dropped }
  }

  /** Starts bench/native/tap-load.zig on a processor and waits until it has begun. */
  async tapLoad(cpu: number, ...words: readonly (string | number)[]): Promise<NativeProcess> {
    const child = this.tapLoadCommand(cpu, ...words)
    try {
      await child.line(/^ready$/)
      return child
    } catch (error) {
      await child.stop()
      throw error
    }
  }

  /** The same for a command that ends by itself. */
  tapLoadCommand(cpu: number, ...words: readonly (string | number)[]): NativeProcess {
    return new NativeProcess({
      name: `tap-load ${words[0]}`,
      netns: this.netns,
      argv: ['taskset', '--cpu-list', String(cpu), this.#tapLoad, ...words.map(String)],
    })
  }

  /** Waits until the interface is there and running. */
  async interfaceUp(ifname: string): Promise<void> {
    await until(`${ifname} is up`, () => {
      const links = JSON.parse(this.ip('-j link show up')) as { ifname: string }[]
      return links.some((link) => link.ifname === ifname)
    })
  }

  [Symbol.dispose](): void {
    this.#namespace[Symbol.dispose]()
    this.#folder[Symbol.dispose]()
  }
}
