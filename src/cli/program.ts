import { readdirSync } from 'node:fs'
import completions from '@bomb.sh/tab/commander'
import { Command, Option } from 'commander'
import { buildInfo } from '../base/build-info.ts'
import { EXIT, UserError } from '../base/errors.ts'
import { PRINT_CAPABILITIES } from './capabilities.ts'
import { completionScripts, isCompletedShell } from './completion-scripts.ts'
import type { TransportKind } from './doctor.ts'
import { knownFeatures } from './feature-list.ts'
import type { Host } from './host.ts'
import type { Layer } from './layers.ts'
import { binds, logFormats, logLevels, type Setting, type SettingKey, settingKeys, settings } from './settings.ts'
import { shown } from './shown.ts'
import { COLUMNS } from './wrapped.ts'

/** The parsed command line, before its values are validated. */
export type Request =
  | { readonly command: 'run'; readonly texts: Layer['texts']; readonly printConfig: boolean; readonly dryRun: boolean }
  | {
      readonly command: 'doctor'
      readonly texts: Layer['texts']
      readonly json: boolean
      readonly transport: TransportKind | null
    }
  /** Shell completion, which has printed its output already. */
  | { readonly command: 'completion' }

const examples: readonly (readonly [words: string, what: string])[] = [
  ['--tap tap0', 'a card for this kernel'],
  ['--tap tap0 --bridge br0', 'the same, tap0 in bridge br0'],
  ['--tap tap0 --bind vhost', 'a card for a VM, over vDPA'],
  ['--tap tap0 -s /run/vn.sock', 'a card for QEMU, DPDK or UML'],
  ['--tap tap0 --features -host_uso', 'without one offload'],
  ['--tap tap0 --dry-run', 'only say what would be done'],
  ['doctor --tap tap0', 'what this host lacks'],
]

/** Each command with its description: beside it, or above it where a long program name leaves no room. */
const examplesOf = (name: string): string => {
  const commands = examples.map(([words, what]) => [`  ${name} ${words}`, what] as const)
  const width = Math.max(...commands.map(([command]) => command.length)) + 2
  const isWide = commands.some(([, what]) => width + what.length > COLUMNS)
  const lines = commands.map(([command, what]) => (isWide ? `  # ${what}\n${command}` : command.padEnd(width) + what))
  const curl = '  curl --unix-socket /run/vduse-net/tap0.sock http://localhost/v1/device'
  return `\nExamples:\n${[...lines, curl].join('\n')}\n`
}

const notes = `
Environment:
  Each option can come from VDUSE_NET_ and its name: VDUSE_NET_MTU=9000,
  VDUSE_NET_ATTACH=false. An option wins over the environment.
  NO_COLOR switches colours off.

Exit codes:
  0 ok        1 failed while running          2 wrong usage
  66 no VDUSE or TAP on this host             77 not permitted`

const addSettings = (command: Command): Command => {
  for (const key of settingKeys) {
    const { flags, help, group, fallback } = settings[key] as Setting<unknown>
    const description = fallback === undefined ? help : `${help} (default: ${fallback})`
    for (const [index, flag] of flags.entries())
      command.addOption(new Option(flag, description).helpGroup(group).hideHelp(index > 0))
  }
  return (
    command
      .addOption(new Option('--print-config', 'print the configuration as JSON and stop').helpGroup('Lifecycle:'))
      // Handled before parsing; listed here for --help.
      .addOption(
        new Option(PRINT_CAPABILITIES, 'print the vhost-user capabilities as JSON and stop').helpGroup('vhost-user:'),
      )
      .addOption(new Option('--dry-run', 'check the host, print what would be done and stop').helpGroup('Lifecycle:'))
  )
}

/** Settings of the command line, as text. With `vduse-net --mtu 9000 run` some belong to the parent command. */
const textsOf = (command: Command): Layer['texts'] => {
  const texts: Partial<Record<SettingKey, string>> = {}
  for (const level of [command.parent, command]) {
    for (const key of settingKeys) {
      if (level?.getOptionValueSource(key) === 'cli') texts[key] = String(level.getOptionValue(key))
    }
  }
  return texts
}

const names = (folder: string): string[] => {
  try {
    return readdirSync(folder)
  } catch {
    return []
  }
}

/** Completions of option values, by option. */
const completionValues: Readonly<Record<string, () => readonly string[]>> = {
  tap: () => names('/sys/class/net'),
  bridge: () => names('/sys/class/net').filter((name) => names(`/sys/class/net/${name}`).includes('bridge')),
  netns: () => names('/run/netns'),
  bind: () => binds,
  'log-level': () => logLevels,
  'log-format': () => logFormats,
  features: () => knownFeatures.flatMap((name) => [`+${name}`, `-${name}`]),
  'queue-size': () => ['64', '128', '256', '512', '1024'],
  admin: () => ['off', 'unix:', '127.0.0.1:'],
}

const addCompletion = (program: Command, host: Host): void => {
  const root = completions(program, { completionCommandName: 'completion' })
  // The library's own scripts need bash-completion, fail when sourced twice, and evaluate typed text.
  program.commands
    .find((command) => command.name() === 'completion')
    ?.description('print a script for completion: bash, zsh, fish or powershell')
    .action((shell: string) => {
      if (isCompletedShell(shell)) host.out(completionScripts[shell])
      else root.setup('vduse-net', 'vduse-net', shell)
    })
  for (const command of [root, ...root.commands.values()]) {
    for (const [flag, values] of Object.entries(completionValues)) {
      const option = command.options.get(flag)
      if (option !== undefined) {
        option.handler = (complete) => {
          for (const value of values()) complete(value, '')
        }
      }
    }
  }
}

/** The commander program. `take` gets the parsed command; help, version and errors throw a CommanderError. */
export const createProgram = (host: Host, take: (request: Request) => void): Command => {
  const takeRun = (_: unknown, command: Command): void => {
    const [extra] = command.args
    if (extra !== undefined)
      throw new UserError(
        `${shown(extra)}: neither an option nor a command`,
        'commands are run, doctor and completion; see vduse-net --help',
        EXIT.usage,
      )
    const on = (key: string): boolean => command.optsWithGlobals()[key] === true
    take({ command: 'run', texts: textsOf(command), printConfig: on('printConfig'), dryRun: on('dryRun') })
  }
  const program = new Command(host.programName)
  program
    .description('A virtio-net card in userspace, bridged to a TAP interface.')
    .usage(`[run] [options]\n       ${host.programName} doctor|completion [options]`)
    .version(buildInfo.version, '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print this help')
    .helpCommand('help [command]', 'print help on a command')
    .enablePositionalOptions()
    .exitOverride()
    .configureOutput({
      writeOut: (text) => host.out(text),
      outputError: () => undefined,
      writeErr: () => undefined,
    })
    .addHelpText('after', examplesOf(host.programName) + notes)
  addSettings(program).allowExcessArguments().action(takeRun)

  const run = addSettings(program.command('run').description('run a card; the default'))
    .allowExcessArguments()
    .action(takeRun)
  run.outputHelp = () => program.outputHelp()

  program
    .command('doctor')
    .description('say what this host lacks, and how to get it')
    .allowExcessArguments(false)
    .addOption(new Option('--tap <ifname>', 'also check this TAP interface'))
    .addOption(new Option('--for <transport>', 'only for a card over this').choices(['vduse', 'vhost-user']))
    .addOption(new Option('--json', 'print the checks as JSON'))
    .action((options: { json?: boolean; for?: TransportKind }, command: Command) =>
      take({ command: 'doctor', texts: textsOf(command), json: options.json === true, transport: options.for ?? null }),
    )
  addCompletion(program, host)
  return program
}
