/** What tests and benchmarks with real vhost-user frontends run on. */
import { existsSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type DeviceOptions, deviceRefusal, startDevice } from '../../scripts/frontends/device.ts'
import { NativeProcess, until } from '../../scripts/frontends/native-process.ts'
import { onDeath } from '../../scripts/lab/cleanup.ts'
import { type TemporaryFolder, temporaryFolder } from '../../scripts/lab/temporary.ts'
import { fetchUserland } from '../../scripts/lab/userland.ts'
import { buildZigProgram } from '../../scripts/lab/zig-program.ts'
import { NetworkNamespace, noRealTaps } from './network-namespace.ts'

/** Why tests with real frontends cannot run here, or null if they can. */
export const noFrontends: string | null = noRealTaps ?? (await deviceRefusal())

if (noFrontends !== null) console.warn(`skipped, tests with real frontends: ${noFrontends}`)

/** Counters of an interface as its host sees them: `rx` is what the device wrote, `tx` what the device read. */
export interface InterfaceCounters {
  rxPackets: number
  rxBytes: number
  rxDropped: number
  txPackets: number
  txBytes: number
  txDropped: number
}

/** A network namespace with a folder for sockets, and programs that run in it. */
export class FrontendRig implements Disposable {
  readonly #namespace = new NetworkNamespace()
  readonly #folder: TemporaryFolder = temporaryFolder(tmpdir(), 'vduse-net-rig-')
  readonly #forget: () => void
  readonly #tapLoad: string
  readonly #userland: string
  #names = 0

  protected constructor(programs: { tapLoad: string; userland: string }) {
    this.#forget = onDeath(() => this.#namespace[Symbol.dispose]())
    this.#tapLoad = programs.tapLoad
    this.#userland = programs.userland
    // What is counted is what a test sends, not the host's own IPv6 chatter. A packet too many would be a packet unaccounted for.
    this.sysctl('net.ipv6.conf.all.disable_ipv6=1')
    this.sysctl('net.ipv6.conf.default.disable_ipv6=1')
  }

  protected static async programs(): Promise<{ tapLoad: string; userland: string }> {
    const tapLoad = await buildZigProgram(join(import.meta.dir, '../../bench/native/tap-load.zig'), {
      name: 'load generator',
      flags: ['-lc', '-target', 'x86_64-linux-gnu.2.28', '-OReleaseFast', '-fstrip', '-fsingle-threaded'],
    })
    return { tapLoad, userland: await fetchUserland() }
  }

  static async open(): Promise<FrontendRig> {
    return new FrontendRig(await FrontendRig.programs())
  }

  get netns(): string {
    return this.#namespace.name
  }

  /** A name for an interface that nobody had before: a TAP can outlive the program that made it for a moment. */
  interfaceName(): string {
    return `vn${this.#names++}`
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
    return {
      rxPackets: rx.packets,
      rxBytes: rx.bytes,
      rxDropped: rx.dropped,
      txPackets: tx.packets,
      txBytes: tx.bytes,
      txDropped: tx.dropped,
    }
  }

  /** Starts the device on a new TAP and a new socket. */
  async device(
    options: Partial<Omit<DeviceOptions, 'netns'>> = {},
  ): Promise<{ process: NativeProcess; ifname: string; socket: string }> {
    const ifname = options.ifname ?? this.interfaceName()
    const socket = options.socket ?? this.socket()
    const process = await startDevice({ ...options, netns: this.netns, ifname, socket })
    await this.interfaceUp(ifname)
    return { process, ifname, socket }
  }

  /** Waits until the interface is there and up. */
  async interfaceUp(ifname: string): Promise<void> {
    await until(`${ifname} is up`, () => {
      const links = JSON.parse(this.ip('-j link show up')) as { ifname: string }[]
      return links.some((link) => link.ifname === ifname)
    })
  }

  /** Starts bench/native/tap-load.zig and waits until it has begun. */
  async tapLoad(...words: readonly (string | number)[]): Promise<NativeProcess> {
    const child = this.start(`tap-load ${words[0]}`, [this.#tapLoad, ...words.map(String)])
    try {
      await child.line(/^ready$/)
      return child
    } catch (error) {
      await child.stop()
      throw error
    }
  }

  /** The words of a command of bench/native/tap-load.zig. */
  tapLoadWords(...words: readonly (string | number)[]): string[] {
    return [this.#tapLoad, ...words.map(String)]
  }

  /** The words that run a program of the lab's guests here, such as iperf3 and busybox: the same version at both ends. */
  guestProgram(name: string, ...words: readonly string[]): string[] {
    const usr = join(this.#userland, 'usr')
    const loader = [join(usr, 'lib64/ld-linux-x86-64.so.2'), '--library-path', join(usr, 'lib/x86_64-linux-gnu')]
    const path = ['bin', 'sbin'].map((folder) => join(usr, folder, name)).find(existsSync)
    if (path === undefined) throw new Error(`the guest's packages hold no program ${name}`)
    return [...loader, path, ...words]
  }

  /** Starts a program in the namespace. */
  start(name: string, argv: readonly string[]): NativeProcess {
    return new NativeProcess({ name, netns: this.netns, argv })
  }

  [Symbol.dispose](): void {
    this.#forget()
    this.#namespace[Symbol.dispose]()
    this.#folder[Symbol.dispose]()
  }
}
