import { existsSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { onDeath } from '../lab/cleanup.ts'
import { type TemporaryFolder, temporaryFolder } from '../lab/temporary.ts'
import { fetchUserland } from '../lab/userland.ts'
import { type DeviceOptions, startDevice } from './device.ts'
import { NativeProcess, until } from './native-process.ts'
import { NetworkNamespace } from './network-namespace.ts'

/** Counters of an interface as its host sees them: `rx` is what the device wrote, `tx` what the device read. */
export interface InterfaceCounters {
  rxPackets: number
  rxBytes: number
  rxDropped: number
  txPackets: number
  txBytes: number
  txDropped: number
}

/** What a rig needs on this machine. */
export interface RigPrograms {
  /** The folder of the guests' programs. */
  userland: string
}

/**
 * What runs real vhost-user front-ends on this machine: a network namespace, a folder for sockets, and programs in
 * there.
 */
export class NativeRig implements Disposable {
  readonly #namespace = new NetworkNamespace()
  readonly #folder: TemporaryFolder = temporaryFolder(tmpdir(), 'vduse-net-rig-')
  readonly #forget: () => void
  readonly #userland: string
  #names = 0

  protected constructor(programs: RigPrograms) {
    this.#forget = onDeath(() => this.#namespace[Symbol.dispose]())
    this.#userland = programs.userland
    // Without IPv6 the host sends no packets of its own, so the counters show only what a test sends.
    this.#namespace.sysctl('net.ipv6.conf.all.disable_ipv6', '1')
    this.#namespace.sysctl('net.ipv6.conf.default.disable_ipv6', '1')
  }

  static async open(): Promise<NativeRig> {
    return new NativeRig({ userland: await fetchUserland() })
  }

  get netns(): string {
    return this.#namespace.name
  }

  /** A name for an interface that nobody had before: a TAP can outlive the program that made it for a moment. */
  interfaceName(): string {
    return `vn${this.#names++}`
  }

  /** Names of the namespace's interfaces, sorted. */
  interfaces(): string[] {
    return this.#namespace.interfaces()
  }

  /** A path for a socket. */
  socket(): string {
    return join(this.#folder.path, `${this.#names++}.sock`)
  }

  /** `ip` in the namespace. */
  ip(words: string): string {
    return this.#namespace.ip(words)
  }

  /** Sets a kernel parameter of the namespace. */
  sysctl(name: string, value: string): void {
    this.#namespace.sysctl(name, value)
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

  /**
   * The words that run a program of the lab's guests here, such as iperf3 and busybox: the same version at both ends.
   */
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
