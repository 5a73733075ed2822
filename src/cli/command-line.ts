import { CommanderError } from 'commander'
import { EXIT, type ExitCode, type UserError } from '../base/errors.ts'
import { capabilities, PRINT_CAPABILITIES } from './capabilities.ts'
import { type Config, resolveConfig } from './config.ts'
import { checksToJson, examine, examinedExitCode, formatChecks, type Probes } from './doctor.ts'
import type { Host } from './host.ts'
import { environmentLayer, flagLayer, resolveLayers, unknownVariables } from './layers.ts'
import { examinePlaces } from './places.ts'
import { planOf } from './plan.ts'
import { createProgram, type Request } from './program.ts'
import { withProgramName } from './program-name.ts'
import { usageError } from './usage-error.ts'

/** What main has to do: run a card, or end with an exit code because the command is done. */
export type Invocation =
  | { readonly kind: 'run'; readonly config: Config; readonly warnings: readonly string[] }
  | { readonly kind: 'done'; readonly exitCode: ExitCode }

const done = (exitCode: ExitCode = EXIT.ok): Invocation => ({ kind: 'done', exitCode })

/** Parses the words; null if help or the version was printed. */
const parseWords = async (words: readonly string[], host: Host): Promise<Request | null> => {
  let request: Request = { command: 'completion' }
  const program = createProgram(host, (taken) => {
    request = taken
  })
  try {
    await program.parseAsync(words, { from: 'user' })
    return request
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error
    if (error.exitCode === 0) return null
    throw usageError(error, words)
  }
}

const doctor = (request: Request & { command: 'doctor' }, host: Host, probes: Probes): Invocation => {
  for (const warning of unknownVariables(host.env)) host.warn(warning)
  const values = resolveLayers([flagLayer(request.texts), environmentLayer(host.env)])
  const { bind = null, attach = true, queuePairs = 1, tap = null, netns = null } = values
  const isVhostUser = values.socketPath !== undefined || values.fd !== undefined
  const isVduse = values.bind !== undefined || values.attach !== undefined
  const transport = request.transport ?? (isVhostUser ? 'vhost-user' : isVduse ? 'vduse' : null)
  const vduse = transport === 'vhost-user' ? null : { bind, attach }
  const checks = examine({ tap, netns, vduse, vhostUser: transport !== 'vduse', queuePairs }, probes)
  host.out(request.json ? checksToJson(checks) : formatChecks(checks))
  return done(examinedExitCode(checks))
}

const dryRun = (config: Config, host: Host, probes: Probes): Invocation => {
  const { tap, bind, attach, transport, queuePairs } = config
  const vduse = transport.kind === 'vduse' ? { bind, attach } : null
  const vhostUser = vduse === null
  const wanted = { tap: tap.fd === null ? tap.name : null, netns: tap.netns, vduse, vhostUser, queuePairs }
  const checks = [...examine(wanted, probes), ...examinePlaces(config, probes)]
  host.out(
    `${formatChecks(checks)}\nwould:\n${planOf(config)
      .map((step) => `  ${step}\n`)
      .join('')}`,
  )
  return done(examinedExitCode(checks))
}

/**
 * Reads the command line, `words` without the program's name. Handles help, version, doctor, completion, --print-config
 * and --dry-run itself, with output on the host's stdout.
 * @throws {UserError} for wrong usage.
 */
export const readCommandLine = async (words: readonly string[], host: Host, probes: Probes): Promise<Invocation> => {
  if (words.includes(PRINT_CAPABILITIES)) {
    host.out(`${JSON.stringify(capabilities, null, 2)}\n`)
    return done()
  }
  const request = await parseWords(words, host)
  if (request === null) return done()
  switch (request.command) {
    case 'completion':
      return done()
    case 'doctor':
      return doctor(request, host, probes)
    case 'run': {
      const { config, warnings } = resolveConfig([flagLayer(request.texts), environmentLayer(host.env)], host)
      // When a card runs, they go to its log instead.
      if (request.printConfig || request.dryRun) for (const warning of warnings) host.warn(warning)
      if (request.printConfig) {
        host.out(`${JSON.stringify(config, null, 2)}\n`)
        return done()
      }
      return request.dryRun ? dryRun(config, host, probes) : { kind: 'run', config, warnings }
    }
  }
}

/** The two lines on stderr for an error. `programName`: how the user can call this program. */
export const formatUserError = (error: UserError, programName = 'vduse-net'): string =>
  `vduse-net: ${error.message}\nhint: ${withProgramName(error.hint, programName)}\n`
