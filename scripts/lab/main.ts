import { Command, InvalidArgumentError, Option } from 'commander'
import { LabError, progress } from './command.ts'
import { asLabError } from './disk-error.ts'
import { baseImage } from './initramfs.ts'
import { fetchKernel } from './kernel.ts'
import { bootLab, KERNEL_NAMES, type KernelName, type Lab, type LabOptions } from './lab.ts'
import { fetchQemu } from './qemu.ts'
import { fetchUserland } from './userland.ts'

/** Options of the commands that boot. */
interface BootFlags {
  kernel: KernelName
  memory: number
  cpus: number
  file: string[]
  module: string[]
  console?: boolean
}

const boot = async (flags: BootFlags, more: Partial<LabOptions> = {}): Promise<Lab> => {
  const startedAt = performance.now()
  const files = Object.fromEntries(
    flags.file.map((pair) => {
      const [guest, host] = pair.split('=', 2)
      if (!guest || !host) throw new LabError(`--file ${pair}: not understood`, 'write GUEST_PATH=HOST_PATH')
      return [guest, host]
    }),
  )
  const lab = await bootLab({
    kernel: flags.kernel,
    memoryMb: flags.memory,
    cpus: flags.cpus,
    files,
    extraModules: flags.module,
    ...(flags.console ? { log: (line: string) => void process.stderr.write(`${line}\n`) } : {}),
    ...more,
  })
  progress(`${lab.kernelRelease} is up after ${((performance.now() - startedAt) / 1000).toFixed(1)} s (${lab.accel})`)
  return lab
}

const report = (lab: Lab): number => {
  for (const line of lab.kernelProblems()) progress(`kernel: ${line}`)
  if (lab.kernelProblems().length > 0) progress(`the whole console: ${lab.logFile}`)
  return lab.kernelProblems().length
}

/** Runs the commands in turn, output as it comes. The code of the first that fails. */
const runAll = async (commands: string[], flags: BootFlags): Promise<number> => {
  await using lab = await boot(flags)
  for (const command of commands) {
    const child = lab.spawn(command, {
      onLine: (line, stream) => void process[stream].write(`${line}\n`),
    })
    const code = await child.exited
    if (code !== 0) {
      progress(`${command}: exit code ${code}`)
      report(lab)
      return code
    }
  }
  return report(lab) === 0 ? 0 : 1
}

/** Runs stty on the terminal of this process, if it has one. */
const stty = (...words: string[]): string =>
  Bun.spawnSync(['stty', ...words], { stdin: 'inherit', stderr: 'ignore' })
    .stdout.toString()
    .trim()

const shell = async (flags: BootFlags): Promise<number> => {
  // QEMU makes the terminal raw and, being killed at the end, does not undo it.
  const settings = stty('-g')
  await using cleanup = new AsyncDisposableStack()
  cleanup.defer(() => void stty(settings))
  await using lab = await boot(flags, { terminal: true })
  progress('a shell in the guest; it ends with `exit`')
  // A terminal that does not know its size says 0.
  const rows = process.stdout.rows || 24
  const columns = process.stdout.columns || 80
  // The command leads a session without a terminal, so the one it opens becomes its own: Ctrl-C works.
  const session = lab.spawn(`cd; exec < /dev/hvc0 > /dev/hvc0 2>&1; stty rows ${rows} cols ${columns}; exec sh -i`)
  await session.exited
  report(lab)
  return 0
}

const fetchAll = async (kernels: KernelName[]): Promise<number> => {
  await fetchQemu()
  const userland = await fetchUserland()
  for (const name of kernels) {
    const kernel = await fetchKernel(name)
    await baseImage(kernel, userland)
    progress(`${name}: ${kernel.release} is in the cache`)
  }
  return 0
}

const positive = (value: string): number => {
  if (!/^[1-9]\d*$/.test(value)) throw new InvalidArgumentError('Not a positive number.')
  return Number(value)
}

const withBootOptions = (command: Command): Command => {
  const collect = (value: string, before: string[]): string[] => [...before, value]
  return command
    .addOption(new Option('--kernel <name>', 'kernel to boot').choices(KERNEL_NAMES).default('6.12'))
    .option('--memory <MB>', "the guest's memory", positive, 2048)
    .option('--cpus <n>', "the guest's processors", positive, 2)
    .option('--file <guest=host>', 'put a file or folder into the guest; may be repeated', collect, [])
    .option('--module <name>', 'have a further kernel module at hand; may be repeated', collect, [])
    .option('--console', "show the guest's serial console on stderr")
}

const program = new Command('lab')
  .description('Boots Debian kernels that have VDUSE, in QEMU, and runs commands in them.')
  .addHelpText(
    'after',
    `
Examples:
  npm run lab -- run 'uname -a' 'vdpa mgmtdev show'
  npm run lab -- run --kernel newest --file /usr/bin/vduse-net=dist/vduse-net 'vduse-net doctor'
  npm run lab -- shell --kernel newest

Kernels and programs come from the Debian archive once and stay in \${VDUSE_NET_CACHE:-~/.cache/vduse-net}.
Environment: VDUSE_NET_CACHE, VDUSE_NET_DEBIAN_MIRROR, VDUSE_NET_LAB_ACCEL=kvm|tcg`,
  )

withBootOptions(program.command('run'))
  .description('boot, run shell commands in turn; exit with the code of the first that fails')
  .argument('<commands...>')
  .action(async (commands: string[], flags: BootFlags) => {
    process.exitCode = await runAll(commands, flags)
  })

withBootOptions(program.command('shell'))
  .description('boot and open a shell in the guest')
  .action(async (flags: BootFlags) => {
    process.exitCode = await shell(flags)
  })

program
  .command('fetch')
  .description('fetch and build what a boot needs, so that later ones work without a network')
  .addOption(new Option('--kernel <name>', 'only this one').choices(KERNEL_NAMES))
  .action(async ({ kernel }: { kernel?: KernelName }) => {
    process.exitCode = await fetchAll(kernel === undefined ? KERNEL_NAMES : [kernel])
  })

try {
  await program.parseAsync()
} catch (error) {
  const known = asLabError(error)
  if (known === null) throw error
  process.stderr.write(`lab: ${known.message}\n`)
  process.exitCode = 1
}
