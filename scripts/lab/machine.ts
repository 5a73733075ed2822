import { closeSync, openSync, unlinkSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { patiently } from '../patience.ts'
import { Agent } from './agent.ts'
import { onDeath } from './cleanup.ts'
import { LabError } from './command.ts'
import { Console } from './console.ts'
import { describeEnding } from './ending.ts'
import type { Kernel } from './kernel.ts'
import { temporaryFolder } from './temporary.ts'

/** How the guest's processors are run. */
export type Accel = 'kvm' | 'tcg'

/** The options of QEMU for each. */
export const ACCEL_ARGS: Record<Accel, readonly string[]> = {
  kvm: ['-accel', 'kvm', '-cpu', 'host'],
  // Five-level page tables only make every emulated page walk longer.
  tcg: ['-accel', 'tcg,thread=multi', '-cpu', 'max,la57=off'],
}

/** Kernel parameters of every guest. */
const KERNEL_PARAMETERS = [
  'console=ttyS0',
  // Up to warnings: what `Console` looks for. More would slow the boot, since an emulated serial port is slow.
  'loglevel=5',
  'rdinit=/init',
  // With -no-reboot a panic ends QEMU at once.
  'panic=-1',
  'mitigations=off',
  // An emulated processor on a busy machine may stand still for long without being at fault: neither the timer
  // interrupt that is late at boot (a panic otherwise) nor a task that does not get on is worth an alarm.
  'no_timer_check',
  // Emulated processors share the host's counter. Under load the kernel would take it for unstable and turn to a clock
  // that is twice as slow to read.
  'tsc=reliable',
  'watchdog_thresh=60',
  'rcupdate.rcu_cpu_stall_timeout=120',
]

/** What to boot. */
export interface MachineSpec {
  /** The command words that start QEMU. */
  qemu: readonly string[]
  kernel: Kernel
  accel: Accel
  memoryMb: number
  /** What there can be with memory plugged in; none can be where it is undefined. */
  maxMemoryMb: number | undefined
  /** Further properties of memory-backend-memfd. */
  memoryBackend: readonly string[]
  cpus: number
  /** Loaded by /init, in this order. */
  modules: readonly string[]
  qemuArgs: readonly string[]
  /**
   * The guest is not booted but comes by migration: nobody waits for it. Whoever sends it says when commands can be
   * run.
   */
  incoming: boolean
  /** Runs QEMU in this network namespace of `ip netns`. */
  netns: string | undefined
  /** Connects the terminal of this process to /dev/hvc0 of the guest. */
  terminal: boolean
  timeoutMs: number
  log: (line: string) => void
  /** Writes the initramfs to a path. */
  writeImage: (path: string) => Promise<void>
}

/** A guest that is up. */
export interface Machine {
  agent: Agent
  console: Console
  /** Ends the guest and everything of it on this machine. The console's log is kept on request or after a problem. */
  stop: (keepLog: boolean) => Promise<void>
}

/** A Unix socket that takes one connection, after which it has no name any more. */
const acceptOne = (path: string, onConnect: (socket: Socket) => void): Disposable => {
  const server = createServer((socket) => {
    // An error is followed by the end of QEMU, which is watched.
    socket.on('error', () => {})
    server.close()
    onConnect(socket)
  })
  server.listen(path)
  return { [Symbol.dispose]: () => void server.close() }
}

/** The command that runs the machine, with its initramfs on descriptor 3. */
const qemuCommand = (spec: MachineSpec, consolePath: string, agentPath: string): string[] => {
  const parameters = [...KERNEL_PARAMETERS, `lab.modules=${spec.modules.join(',')}`]
  // Shared memory lets a vhost-user device outside see the guest's rings.
  const memory = ['memory-backend-memfd,id=ram', `size=${spec.memoryMb}M`, 'share=on', ...spec.memoryBackend].join(',')
  const slots = spec.maxMemoryMb === undefined ? '' : `,slots=4,maxmem=${spec.maxMemoryMb}M`
  const terminal = ['-chardev', 'stdio,id=terminal,signal=off', '-device', 'virtconsole,chardev=terminal']
  return [
    // QEMU must not outlive this process, however that ends.
    ...['setpriv', '--pdeathsig', 'KILL', ...(spec.netns === undefined ? [] : ['ip', 'netns', 'exec', spec.netns])],
    ...[...spec.qemu, '-name', `vduse-net-lab-${spec.kernel.name}`],
    ...['-machine', 'pc,hpet=off,memory-backend=ram', ...ACCEL_ARGS[spec.accel]],
    ...['-object', memory, '-m', `${spec.memoryMb}M${slots}`, '-smp', String(spec.cpus)],
    ...['-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none'],
    ...['-kernel', spec.kernel.image, '-initrd', '/proc/self/fd/3', '-append', parameters.join(' ')],
    ...['-chardev', `socket,id=console,path=${consolePath}`, '-serial', 'chardev:console'],
    ...['-device', 'virtio-serial-pci', '-chardev', `socket,id=agent,path=${agentPath}`],
    ...['-device', 'virtserialport,chardev=agent,name=lab.agent'],
    ...(spec.terminal ? terminal : []),
    ...spec.qemuArgs,
  ]
}

/** Boots a machine and waits for its agent, or fails with the end of the console's log. */
export const startMachine = async (spec: MachineSpec): Promise<Machine> => {
  using folder = temporaryFolder(tmpdir(), 'vduse-net-lab-')
  const imagePath = join(folder.path, 'initramfs')
  await spec.writeImage(imagePath)

  const console = new Console(spec.kernel.release, spec.log)
  let consoleEnded = Promise.resolve()
  const consolePath = join(folder.path, 'console')
  using _console = acceptOne(consolePath, (socket) => {
    consoleEnded = new Promise((resolve) => socket.on('close', () => resolve()))
    socket.on('data', (bytes: Buffer) => console.write(bytes))
  })
  const connected = Promise.withResolvers<Agent>()
  const agentPath = join(folder.path, 'agent')
  using _agent = acceptOne(agentPath, (socket) => connected.resolve(new Agent(socket)))

  // QEMU inherits the image without a name: hundreds of megabytes cannot stay behind, whoever is killed first.
  const image = openSync(imagePath, 'r')
  unlinkSync(imagePath)
  const ownStream = spec.terminal ? 'inherit' : 'ignore'
  const qemu = Bun.spawn(qemuCommand(spec, consolePath, agentPath), { stdio: [ownStream, ownStream, 'pipe', image] })
  const forgetQemu = onDeath(() => qemu.kill('SIGKILL'))
  closeSync(image)

  let stopping = false
  const complaints = new Response(qemu.stderr).text()
  const ended = (async (): Promise<LabError> => {
    const code = await qemu.exited
    // The end of a panic message may still be in the socket.
    await consoleEnded
    if (stopping) return new LabError('the guest was stopped')
    const last = [(await complaints).trim(), console.tail()].filter((part) => part !== '').join('\n')
    const what = `the guest ended by itself: QEMU ${describeEnding(code)}; last it said:\n${last}`
    return new LabError(what, `the whole console: ${console.logFile}`)
  })()
  const stop = async (keepLog: boolean): Promise<void> => {
    if (stopping) return
    stopping = true
    qemu.kill('SIGKILL')
    await ended
    forgetQemu()
    console.close(keepLog)
  }

  try {
    const agent = await withBound(spec.timeoutMs, ended, connected.promise, () => 'QEMU did not start')
    ended.then((error) => agent.fail(error))
    const late = (): string =>
      `the guest did not come up in ${spec.timeoutMs / 1000} s (${spec.accel}); last it said:\n${console.tail()}`
    if (!spec.incoming) {
      await patiently(`lab: booting ${spec.kernel.release}`, withBound(spec.timeoutMs, ended, agent.ready, late))
    }
    return { agent, console, stop }
  } catch (error) {
    await stop(true)
    throw error
  }
}

/** `wanted`, or an error when the guest ends or `timeoutMs` pass first. */
const withBound = async <T>(
  timeoutMs: number,
  ended: Promise<LabError>,
  wanted: Promise<T>,
  what: () => string,
): Promise<T> => {
  let timer: Timer | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new LabError(what())), timeoutMs)
  })
  const dead = ended.then((error) => Promise.reject(error))
  try {
    return await Promise.race([wanted, late, dead])
  } finally {
    clearTimeout(timer)
  }
}
