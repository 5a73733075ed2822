import { closeSync, mkdtempSync, openSync, rmSync, unlinkSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Agent } from './agent.ts'
import { onDeath } from './cleanup.ts'
import { LabError } from './command.ts'
import { Console } from './console.ts'
import type { Kernel } from './kernel.ts'

/** How the guest's processors are run. */
export type Accel = 'kvm' | 'tcg'

const ACCEL_ARGS: Record<Accel, string[]> = {
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
  // An emulated processor on a busy machine may stand still for long without being at fault.
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
  cpus: number
  /** Loaded by /init, in this order. */
  modules: readonly string[]
  qemuArgs: readonly string[]
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
const acceptOne = (path: string, onConnect: (socket: Socket) => void): { close: () => void } => {
  const server = createServer((socket) => {
    // An error is followed by the end of QEMU, which is watched.
    socket.on('error', () => {})
    server.close()
    onConnect(socket)
  })
  server.listen(path)
  return server
}

/** Boots a machine and waits for its agent, or fails with the end of the console's log. */
export const startMachine = async (spec: MachineSpec): Promise<Machine> => {
  const { kernel, accel } = spec
  const folder = mkdtempSync(join(tmpdir(), 'vduse-net-lab-'))
  const removeFolder = (): void => rmSync(folder, { recursive: true, force: true })
  const forgetFolder = onDeath(removeFolder)
  const servers: { close: () => void }[] = []
  const console = new Console(kernel.release, spec.log)
  try {
    const imagePath = join(folder, 'initramfs')
    await spec.writeImage(imagePath)
    // QEMU inherits the image without a name: hundreds of megabytes cannot stay behind, whoever is killed first.
    const image = openSync(imagePath, 'r')
    unlinkSync(imagePath)

    const connected = Promise.withResolvers<Agent>()
    const consolePath = join(folder, 'console')
    const agentPath = join(folder, 'agent')
    let consoleEnded = Promise.resolve()
    servers.push(
      acceptOne(consolePath, (socket) => {
        consoleEnded = new Promise((resolve) => socket.on('close', () => resolve()))
        socket.on('data', (bytes: Buffer) => console.write(bytes))
      }),
    )
    servers.push(acceptOne(agentPath, (socket) => connected.resolve(new Agent(socket))))
    const parameters = [...KERNEL_PARAMETERS, `lab.modules=${spec.modules.join(',')}`]
    // Shared memory lets a vhost-user device outside see the guest's rings.
    const memory = `memory-backend-memfd,id=ram,size=${spec.memoryMb}M,share=on`
    const qemu = Bun.spawn(
      [
        // QEMU must not outlive this process, however that ends.
        ...['setpriv', '--pdeathsig', 'KILL', ...spec.qemu, '-name', `vduse-net-lab-${kernel.name}`],
        ...['-machine', 'pc,hpet=off,memory-backend=ram', ...ACCEL_ARGS[accel]],
        ...['-object', memory, '-m', `${spec.memoryMb}M`, '-smp', String(spec.cpus)],
        ...['-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none'],
        ...['-kernel', kernel.image, '-initrd', '/proc/self/fd/3', '-append', parameters.join(' ')],
        ...['-chardev', `socket,id=console,path=${consolePath}`, '-serial', 'chardev:console'],
        ...['-device', 'virtio-serial-pci', '-chardev', `socket,id=agent,path=${agentPath}`],
        ...['-device', 'virtserialport,chardev=agent,name=lab.agent'],
        ...(spec.terminal
          ? ['-chardev', 'stdio,id=terminal,signal=off', '-device', 'virtconsole,chardev=terminal']
          : []),
        ...spec.qemuArgs,
      ],
      { stdio: [spec.terminal ? 'inherit' : 'ignore', spec.terminal ? 'inherit' : 'ignore', 'pipe', image] },
    )
    closeSync(image)
    const forgetQemu = onDeath(() => qemu.kill('SIGKILL'))
    const complaints = new Response(qemu.stderr).text()
    let stopping = false
    const ended = (async (): Promise<LabError> => {
      const code = await qemu.exited
      // The last words of a panic may still be in the socket.
      await consoleEnded
      const last = [(await complaints).trim(), console.tail()].filter((part) => part !== '').join('\n')
      const what = stopping ? 'was stopped' : `ended by itself (QEMU exit code ${code}); last it said:\n${last}`
      return new LabError(`the guest ${what}`, stopping ? undefined : `the whole console: ${console.logFile}`)
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
      await withBound(spec.timeoutMs, ended, agent.ready, () => {
        return `the guest did not come up in ${spec.timeoutMs / 1000} s (${accel}); last it said:\n${console.tail()}`
      })
      return { agent, console, stop }
    } catch (error) {
      await stop(true)
      throw error
    }
  } finally {
    for (const server of servers) server.close()
    removeFolder()
    forgetFolder()
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
    dead.catch(() => {})
  }
}
