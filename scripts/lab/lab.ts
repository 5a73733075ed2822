import { constants } from 'node:os'
import { chooseAccel } from './accel.ts'
import type { RemoteCommand, Stream } from './agent.ts'
import { LabError, progress } from './command.ts'
import { describeEnding } from './ending.ts'
import { baseImage, bootImage, type GuestFiles, isBaseModule } from './initramfs.ts'
import { fetchKernel, KERNEL_NAMES, type KernelName } from './kernel.ts'
import { type Accel, type Machine, type MachineSpec, startMachine } from './machine.ts'
import { fetchQemu } from './qemu.ts'
import { fetchUserland } from './userland.ts'

export type { Accel, GuestFiles, KernelName, Stream }
export { KERNEL_NAMES, LabError }

/** Limit for a condition or a line that must come. It bounds hangs, not speed. */
const WAIT_TIMEOUT_MS = 120_000

/** A command that is given no bound of its own. */
const COMMAND_TIMEOUT_MS = 180_000

/** Emulated boots take 3 to 5 s, and twenty times that on a machine with ten times too much to do. */
const BOOT_TIMEOUT_MS = 300_000

/** Loaded at boot. vhost_vdpa is there but not loaded: of two loaded vDPA drivers either may take a new device. */
const DEFAULT_MODULES = ['tun', 'vduse', 'virtio_net', 'virtio_vdpa'] as const

/** Content is pushed in pieces of this size: the agent takes a command's input in one frame. */
const PUSH_BYTES = 8 << 20

/** What to boot and what to put into it. */
export interface LabOptions {
  kernel: KernelName
  /**
   * Files and folders of the guest: its path -> a path here (mode and content are kept), or the content itself. An
   * executable for the guest's PATH goes to /usr/bin.
   */
  files?: GuestFiles
  /** Modules to load at boot, in order; replaces tun, vduse, virtio_net, virtio_vdpa. */
  loadModules?: readonly string[]
  /** Further modules to have at hand for modprobe; vhost_vdpa, bridge, veth and dummy always are. */
  extraModules?: readonly string[]
  memoryMb?: number
  /** Memory that can be plugged in besides, up to this together; none unless told. */
  maxMemoryMb?: number
  /** Further properties of the guest's memory-backend-memfd, such as `hugetlb=on`. */
  memoryBackend?: readonly string[]
  cpus?: number
  /**
   * Further arguments for QEMU. The guest's memory is shared, so a vhost-user network card needs only
   * `-chardev socket,id=c,path=… -netdev vhost-user,id=n,chardev=c -device virtio-net-pci,netdev=n`.
   */
  qemuArgs?: readonly string[]
  /** Waits for no boot: the guest comes by migration, as `-incoming` in `qemuArgs` says. */
  incoming?: boolean
  /** Runs QEMU in this network namespace of `ip netns`: for its own TAPs. */
  netns?: string
  /** Connects this process's terminal to /dev/hvc0 of the guest. */
  terminal?: boolean
  /** Bound on the boot. */
  timeoutMs?: number
  /** Gets each line of the guest's serial console. */
  log?: (line: string) => void
}

/** How a command ended. */
export interface ShellResult {
  /** Exit code, or 128 + signal number. */
  code: number
  stdout: string
  stderr: string
}

/** Options of commands that are awaited. */
export interface ShellOptions {
  /** After this the command is killed and the call rejects. 180 s unless told. */
  timeoutMs?: number
  stdin?: string | Uint8Array
}

/** Options of `Lab.spawn`. */
export interface SpawnOptions {
  stdin?: string | Uint8Array
  /** Gets each line of output when it is complete. */
  onLine?: (line: string, stream: Stream) => void
}

/** A command in the background of the guest. */
export interface LabProcess {
  /** Complete lines of stdout and stderr so far, in the order in which they came. */
  readonly lines: readonly string[]
  /** Exit code, or 128 + signal number. Rejects if the guest dies first. */
  readonly exited: Promise<number>
  /** Signals the command and its children. TERM unless told. */
  kill(signal?: SignalName): void
  /** The first line, past or to come, that matches. Rejects when the command ends without one, or after 120 s. */
  line(pattern: RegExp, options?: { timeoutMs?: number }): Promise<string>
}

/** A signal without its SIG. */
export type SignalName = 'TERM' | 'INT' | 'HUP' | 'KILL' | 'QUIT' | 'USR1' | 'USR2' | 'ALRM' | 'ABRT' | 'STOP' | 'CONT'

const signalNumber = (name: SignalName): number => constants.signals[`SIG${name}`]

const toBytes = (content: string | Uint8Array): Uint8Array =>
  typeof content === 'string' ? Buffer.from(content) : content

/** A word for the guest's shell, whatever is in it. */
export const quote = (word: string): string => `'${word.replaceAll("'", "'\\''")}'`

const describe = (command: string, result: ShellResult): string =>
  `${command}: exit code ${result.code}\n${result.stdout}${result.stderr}`.trimEnd()

/** All of `options` that a machine is made of, but for how its processors are run. */
const machineSpec = async (options: LabOptions): Promise<Omit<MachineSpec, 'accel'>> => {
  const kernel = await fetchKernel(options.kernel)
  const base = await baseImage(kernel, await fetchUserland())
  const modules = options.loadModules ?? DEFAULT_MODULES
  const added = [...modules, ...(options.extraModules ?? [])].filter((name) => !isBaseModule(name))
  return {
    qemu: await fetchQemu(),
    kernel,
    memoryMb: options.memoryMb ?? 2048,
    maxMemoryMb: options.maxMemoryMb,
    memoryBackend: options.memoryBackend ?? [],
    cpus: options.cpus ?? 2,
    modules,
    qemuArgs: options.qemuArgs ?? [],
    incoming: options.incoming ?? false,
    netns: options.netns,
    terminal: options.terminal ?? false,
    timeoutMs: options.timeoutMs ?? BOOT_TIMEOUT_MS,
    log: options.log ?? (() => {}),
    writeImage: (path) => bootImage(path, kernel, base, added, options.files ?? {}),
  }
}

/** How guests' processors are run on this machine, which a boot of this kernel decides. */
export const labAccel = async (kernel: KernelName): Promise<Accel> => chooseAccel(await machineSpec({ kernel }))

/**
 * An emulated kernel measures at boot how fast the processor's counter runs. On a busy machine that goes wrong now and
 * then, by a factor of 20 or more, and a minute of the guest is over in seconds.
 */
export const CLOCK_TOO_FAST = 1.5
const CLOCK_ATTEMPTS = 4

/** How fast the clock of a guest runs at least, by its /proc/uptime and the time since before its start: 1 is right. */
export const clockSpeed = (uptime: string, elapsedMs: number): number => (Number.parseFloat(uptime) * 1000) / elapsedMs

/** Boots a guest. It ends with `stop`, at the end of an `await using` block, or with this process. */
export const bootLab = async (options: LabOptions): Promise<Lab> => {
  if (!KERNEL_NAMES.includes(options.kernel)) {
    throw new LabError(`${options.kernel}: no such kernel`, `one of ${KERNEL_NAMES.join(', ')}`)
  }
  const accel = await labAccel(options.kernel)
  const spec = await machineSpec(options)
  for (let attempt = 1; ; attempt++) {
    const started = performance.now()
    const lab = new Lab(await startMachine({ ...spec, accel }), spec.kernel.release, accel)
    // Under KVM the kernel is told how fast its counter runs.
    if (accel === 'kvm' || spec.incoming || attempt === CLOCK_ATTEMPTS) return lab
    const uptime = await lab.ok('cat /proc/uptime')
    const speed = clockSpeed(uptime, performance.now() - started)
    if (speed < CLOCK_TOO_FAST) return lab
    progress(`the guest's clock runs ${speed.toFixed(0)} times too fast: booting it again`)
    await lab.stop()
  }
}

/** A running guest. */
export class Lab implements AsyncDisposable {
  /** As `uname -r` says it. */
  readonly kernelRelease: string
  /** `native` for a kernel that is itself a process of this machine. */
  readonly accel: Accel | 'native'
  readonly #machine: Machine

  constructor(machine: Machine, kernelRelease: string, accel: Accel | 'native') {
    this.#machine = machine
    this.kernelRelease = kernelRelease
    this.accel = accel
  }

  /** Where the serial console is logged. The file stays after `stop` if the kernel complained. */
  get logFile(): string {
    return this.#machine.console.logFile
  }

  /** Runs a shell command to its end. Rejects on a timeout, with the output so far; not on an exit code. */
  async sh(command: string, options: ShellOptions = {}): Promise<ShellResult> {
    const { code, stdout, stderr } = await this.#collect(command, options)
    return { code, stdout: stdout.toString(), stderr: stderr.toString() }
  }

  /** Runs a shell command that must succeed, and returns its stdout. */
  async ok(command: string, options: ShellOptions = {}): Promise<string> {
    const result = await this.sh(command, options)
    if (result.code !== 0) throw new LabError(describe(command, result))
    return result.stdout
  }

  /**
   * Starts a command in the background. A simple command is the process itself, with no shell in between; a list of
   * words is taken as it is, without expansion.
   */
  spawn(command: string | readonly string[], options: SpawnOptions = {}): LabProcess {
    const text = typeof command === 'string' ? command : `exec ${command.map(quote).join(' ')}`
    const lines: string[] = []
    const waiters = new Set<(line: string) => void>()
    const partial = { stdout: '', stderr: '' }
    const decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() }
    const take = (line: string, stream: Stream): void => {
      lines.push(line)
      options.onLine?.(line, stream)
      for (const waiter of [...waiters]) waiter(line)
    }
    const remote = this.#start(text, options.stdin ?? '', (stream, bytes) => {
      const pieces = (partial[stream] + decoders[stream].decode(bytes, { stream: true })).split('\n')
      partial[stream] = pieces.pop() ?? ''
      for (const piece of pieces) take(piece, stream)
    })
    const exited = remote.exited.finally(() => {
      for (const stream of ['stdout', 'stderr'] as const) if (partial[stream] !== '') take(partial[stream], stream)
    })
    exited.catch(() => {})
    return {
      lines,
      exited,
      kill: (signal = 'TERM') => remote.signal(signalNumber(signal)),
      line: (pattern, { timeoutMs = WAIT_TIMEOUT_MS } = {}) => {
        const past = lines.find((line) => pattern.test(line))
        if (past !== undefined) return Promise.resolve(past)
        const { promise, resolve, reject } = Promise.withResolvers<string>()
        const complain = (why: string): void =>
          reject(new LabError(`${text}: no line like ${pattern}: ${why}; it said:\n${lines.join('\n')}`))
        const timer = setTimeout(() => complain(`not in ${timeoutMs} ms`), timeoutMs)
        const waiter = (line: string): void => {
          if (pattern.test(line)) resolve(line)
        }
        waiters.add(waiter)
        exited.then((code) => complain(`it ${describeEnding(code)}`), reject)
        return promise.finally(() => {
          clearTimeout(timer)
          waiters.delete(waiter)
        })
      },
    }
  }

  /**
   * Waits until a shell command succeeds, trying every 50 ms inside the guest, and returns what it then printed. 120 s
   * unless told; after that it rejects with what the command says.
   */
  async waitFor(condition: string, options: { timeoutMs?: number } = {}): Promise<string> {
    const timeoutMs = options.timeoutMs ?? WAIT_TIMEOUT_MS
    const loop = `until out=$(${condition}\n); do sleep 0.05; done 2>/dev/null; printf '%s\\n' "$out"`
    try {
      return await this.ok(loop, { timeoutMs })
    } catch (error) {
      // The condition's own words say more than the loop around it.
      const last = await this.sh(condition, { timeoutMs: 5000 }).catch(() => {
        throw error
      })
      throw new LabError(`not in ${timeoutMs} ms: ${describe(condition, last)}`)
    }
  }

  /** Writes a file of the guest: content, or with `Bun.file(path)` a file from here. Folders are made. */
  async push(content: string | Uint8Array | Blob, guestPath: string, options: { mode?: number } = {}): Promise<void> {
    const bytes = content instanceof Blob ? new Uint8Array(await content.arrayBuffer()) : toBytes(content)
    const target = quote(guestPath)
    await this.ok(`mkdir -p "$(dirname ${target})" && : > ${target}`)
    for (let at = 0; at < bytes.length; at += PUSH_BYTES) {
      await this.ok(`cat >> ${target}`, { stdin: bytes.subarray(at, at + PUSH_BYTES) })
    }
    if (options.mode !== undefined) await this.ok(`chmod ${options.mode.toString(8)} ${target}`)
  }

  /** Reads a file of the guest. */
  async pull(guestPath: string): Promise<Uint8Array> {
    const command = `cat ${quote(guestPath)}`
    const { code, stdout, stderr } = await this.#collect(command, {})
    if (code !== 0) throw new LabError(describe(command, { code, stdout: '', stderr: stderr.toString() }))
    return stdout
  }

  /** Lines of the console, since /init began, in which the kernel reports trouble: BUG, WARNING, Oops, hung tasks. */
  kernelProblems(): string[] {
    return this.#machine.console.problems()
  }

  /** Ends the guest, at once: nothing in it is worth saving. `keepLog` keeps the console's log in any case. */
  async stop(options: { keepLog?: boolean } = {}): Promise<void> {
    await this.#machine.stop(options.keepLog ?? false)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }

  #start(
    command: string,
    stdin: string | Uint8Array,
    onOutput: (stream: Stream, bytes: Buffer) => void,
  ): RemoteCommand {
    return this.#machine.agent.spawn(command, toBytes(stdin), onOutput)
  }

  async #collect(command: string, options: ShellOptions): Promise<{ code: number; stdout: Buffer; stderr: Buffer }> {
    const chunks: Record<Stream, Buffer[]> = { stdout: [], stderr: [] }
    const timeoutMs = options.timeoutMs ?? COMMAND_TIMEOUT_MS
    const remote = this.#start(command, options.stdin ?? '', (stream, bytes) => chunks[stream].push(bytes))
    let timer: Timer | undefined
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        remote.signal(signalNumber('KILL'))
        const output = Buffer.concat([...chunks.stdout, ...chunks.stderr]).toString()
        reject(new LabError(`${command}: not done in ${timeoutMs} ms, killed\n${output}`.trimEnd()))
      }, timeoutMs)
    })
    try {
      const code = await Promise.race([remote.exited, late])
      return { code, stdout: Buffer.concat(chunks.stdout), stderr: Buffer.concat(chunks.stderr) }
    } finally {
      clearTimeout(timer)
    }
  }
}
