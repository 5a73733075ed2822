import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { until } from '../../scripts/frontends/native-process.ts'
import { GUEST_MEMFD_NAME } from './guest-memory.ts'
import { NetworkNamespace } from './network-namespace.ts'
import { PacketSocket } from './packet-socket.ts'
import { HANG_MS } from './patience.ts'

const root = resolve(import.meta.dir, '../..')

/** What a process holds: its descriptors, and how often it maps what front-ends have given it. */
export type Resources = { readonly fds: readonly string[]; readonly guestMaps: number; readonly sharedMaps: number }

export type BackendOptions = {
  readonly pairs?: number
  /** More of the command line. */
  readonly args?: readonly string[]
  /** A connected socket of the caller's, for the process to inherit instead of opening a path. */
  readonly fd?: number
  /** The front-end listens. */
  readonly client?: boolean
  /** What stands in the namespace before: `tap0` for the program to open, unless told. */
  readonly prepare?: (namespace: NetworkNamespace) => void
  /** What to run it by: a command that runs another. */
  readonly by?: readonly string[]
}

/** True for a thread that a signal has stopped, and for one that has ended: proc_pid_stat(5). */
const isStopped = (pid: number, thread: string): boolean => {
  try {
    const stat = readFileSync(`/proc/${pid}/task/${thread}/stat`, 'utf8')
    // The name in front of the state may hold anything.
    return stat.charAt(stat.lastIndexOf(')') + 2) === 'T'
  } catch {
    return true
  }
}

/**
 * Stops a process with SIGSTOP, and waits until none of its threads runs: the signal is sent to one, which stops the
 * others when it comes to run.
 */
export const halt = async (process: Bun.Subprocess): Promise<void> => {
  const { pid } = process
  process.kill('SIGSTOP')
  await until(`process ${pid} to stop`, () =>
    readdirSync(`/proc/${pid}/task`).every((thread) => isStopped(pid, thread)),
  )
}

/** The running product on a socket, its TAP in a namespace of its own. */
export class Backend implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), 'vduse-net-vhost-user-'))
  readonly socketPath = join(this.folder, 'card.sock')
  readonly adminPath = join(this.folder, 'admin.sock')
  readonly namespace = new NetworkNamespace()
  /** On the interface that was `tap0` at the last start or {@link rewire}. */
  wire!: PacketSocket
  /** All it has logged so far, from its last start on. */
  log = ''
  readonly #options: BackendOptions
  #process: Bun.Subprocess<'ignore', 'pipe', 'pipe'>

  private constructor(options: BackendOptions) {
    this.#options = options
    if (options.prepare !== undefined) options.prepare(this.namespace)
    else {
      // Made here, so that there is something to listen on before the process runs; the process opens it by its name.
      this.namespace.ip(`tuntap add tap0 mode tap vnet_hdr${(options.pairs ?? 1) > 1 ? ' multi_queue' : ''}`)
      this.namespace.ip('link set tap0 up')
      this.rewire()
    }
    this.#process = this.#spawn()
  }

  /** Starts it, and waits until it can be connected to. */
  static async start(options: BackendOptions = {}): Promise<Backend> {
    const backend = new Backend(options)
    try {
      await backend.#started()
      if (options.prepare !== undefined) backend.rewire()
      return backend
    } catch (error) {
      await backend[Symbol.asyncDispose]()
      throw error
    }
  }

  /** Listens on what is `tap0` now. */
  rewire(): void {
    this.wire?.[Symbol.dispose]()
    this.wire = new PacketSocket(this.namespace.name, 'tap0')
  }

  /** Kills it with SIGKILL, and starts another one in its place. */
  async restart(): Promise<void> {
    this.#process.kill('SIGKILL')
    await this.#process.exited
    this.log = ''
    this.#process = this.#spawn()
    await this.#started()
  }

  get pid(): number {
    return this.#process.pid
  }

  /** Null while it runs. */
  get exitCode(): number | null {
    return this.#process.exitCode
  }

  signal(signal: NodeJS.Signals): void {
    this.#process.kill(signal)
  }

  /** Stops it with SIGSTOP: on return no thread of it runs. */
  halt(): Promise<void> {
    return halt(this.#process)
  }

  /** Waits until it has ended: its exit code. */
  async ended(): Promise<number> {
    await until('the backend to end', () => this.exitCode !== null)
    return this.exitCode!
  }

  #spawn(): Bun.Subprocess<'ignore', 'pipe', 'pipe'> {
    const { fd, pairs = 1, client = false, args = [], by = [] } = this.#options
    const place = fd === undefined ? ['--socket-path', this.socketPath] : ['--fd', '3']
    const child = Bun.spawn(
      [
        ...by,
        ...[process.execPath, join(root, 'src/main.ts'), '--tap', 'tap0', '--netns', this.namespace.name, ...place],
        ...['--admin', `unix:${this.adminPath}`, '--queue-pairs', String(pairs), '--log-level', 'debug'],
        ...(client ? ['--client'] : []),
        ...args,
      ],
      { stdio: ['ignore', 'pipe', 'pipe', ...(fd === undefined ? [] : [fd])] },
    ) as Bun.Subprocess<'ignore', 'pipe', 'pipe'>
    for (const stream of [child.stdout, child.stderr]) void this.#follow(child, stream)
    return child
  }

  async #started(): Promise<void> {
    await until('the backend to start', () => this.exitCode !== null || /admin API on/.test(this.log))
    if (this.exitCode !== null) throw new Error(`the backend ended with ${this.exitCode}:\n${this.log}`)
  }

  /** Waits until it has logged something that matches, from character `from` of the log on. */
  async logged(pattern: RegExp, from = 0): Promise<void> {
    await until(`the backend to log ${pattern}; it said:\n${this.log.slice(from)}`, () =>
      pattern.test(this.log.slice(from)),
    )
  }

  resources(): Resources {
    const folder = `/proc/${this.pid}`
    const fds: string[] = []
    for (const fd of readdirSync(`${folder}/fd`)) {
      try {
        fds.push(`${fd} ${readlinkSync(`${folder}/fd/${fd}`)}`)
      } catch {
        // Closed since the folder was read.
      }
    }
    const maps = readFileSync(`${folder}/maps`, 'utf8').split('\n')
    return {
      fds: fds.sort(),
      guestMaps: maps.filter((line) => line.includes(GUEST_MEMFD_NAME)).length,
      sharedMaps: maps.filter((line) => /^\S+ ...s /.test(line)).length,
    }
  }

  /** Waits until it holds no more than before. */
  async releases(before: Resources): Promise<void> {
    const left = (): string => JSON.stringify(this.resources(), null, 1)
    const wanted = JSON.stringify(before, null, 1)
    try {
      await until('resources', () => left() === wanted, HANG_MS)
    } catch {
      throw new Error(`the backend holds on to something:\n${left()}\nbefore:\n${wanted}`)
    }
  }

  /** What its admin API answers. */
  async ask(route: string): Promise<unknown> {
    // A kept-alive connection would count as a descriptor of the card.
    const response = await fetch(`http://localhost${route}`, { unix: this.adminPath, headers: { connection: 'close' } })
    return response.json()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill('SIGTERM')
    const timer = setTimeout(() => this.#process.kill('SIGKILL'), HANG_MS)
    await this.#process.exited
    clearTimeout(timer)
    this.wire?.[Symbol.dispose]()
    this.namespace[Symbol.dispose]()
    rmSync(this.folder, { recursive: true })
  }

  async #follow(child: Bun.Subprocess<'ignore', 'pipe', 'pipe'>, stream: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder()
    for await (const bytes of stream) {
      if (child === this.#process) this.log += decoder.decode(bytes, { stream: true })
    }
  }
}
