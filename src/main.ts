import './cli/uncaught.ts'

import { startAdmin } from './admin/server.ts'
import { readToken } from './admin/token.ts'
import { awaitUnservedSocket } from './admin/unix-socket.ts'
import { buildInfo } from './base/build-info.ts'
import { EXIT, type ExitCode, SysError, UserError } from './base/errors.ts'
import { formatListenAddress } from './base/listen-address.ts'
import { logger } from './base/log.ts'
import type { CardOptions } from './card/served-card.ts'
import { VduseCard } from './card/vduse-card.ts'
import { VhostUserCard } from './card/vhost-user-card.ts'
import { formatUserError, readCommandLine } from './cli/command-line.ts'
import type { Config } from './cli/config.ts'
import { requireDescriptors } from './cli/descriptor-limit.ts'
import { writeFinalError } from './cli/final-error.ts'
import { thisHost } from './cli/host.ts'
import { type Logging, startLogging } from './cli/logging.ts'
import { writePidFile } from './cli/pid-file.ts'
import { machineProbes } from './cli/probes.ts'
import { watchSignals } from './cli/signals.ts'
import type { TransportEnd } from './device/control-transport.ts'
import { checkAbi } from './sys/abi-check.ts'
import { watchOwnedPaths } from './sys/owned-path.ts'
import { Steering } from './tap/steering.ts'
import { VduseControl } from './transport/vduse/control.ts'
import type { ControlQueueVerdict } from './transport/vduse/control-queue-verdict.ts'

const log = logger('main')

/** Why a card ends: a signal, or a reason of its own. */
type Ending = { readonly kind: 'signal'; readonly signal: string } | ({ readonly kind: 'ended' } & TransportEnd)

const startCard = (config: Config, onEnd: CardOptions['onEnd']): Promise<VduseCard | VhostUserCard> => {
  const { name, mac, queueSize, features, transport, queuePairs, tuning } = config
  const tap = {
    source: config.tap.fd === null ? { name: config.tap.name } : { fd: config.tap.fd },
    queues: queuePairs,
    vnetHdr: config.tap.vnetHdr,
    mac: config.tap.mac,
    persist: config.tap.persist,
    mtu: config.mtu,
    bridge: config.tap.bridge,
    netns: config.tap.netns,
  }
  if (transport.kind === 'vduse') {
    const { bind, attach } = config
    return VduseCard.start({ name, tap, mac, bind, attach, queueSize, features, tuning, onEnd })
  }
  const { socket, inBand } = transport
  return VhostUserCard.start({ name, socket, inBand, tap, mac, pairs: queuePairs, queueSize, features, tuning, onEnd })
}

/** `ending` resolves when the card has to end. `isStopped`: a signal has requested the end. */
type Endings = { readonly ending: PromiseWithResolvers<Ending>; readonly isStopped: () => boolean }

/** Handles signals, which end the card from now on, also while it starts. */
const watchEnd = (logging: Logging): Endings => {
  const ending = Promise.withResolvers<Ending>()
  let stopped = false
  watchSignals(
    (signal) => {
      stopped = true
      ending.resolve({ kind: 'signal', signal })
    },
    (signal) => {
      log.warning(`${signal} again: ending at once; what is still on the vDPA bus stays there for the next start`)
      void logging.finish().finally(() => process.exit(EXIT.runtime))
    },
  )
  return { ending, isStopped: () => stopped }
}

const warnOfLostPath = (path: string): void =>
  log.warning(
    `${path}: deleted or replaced by another program: nobody finds the card there any more; ` +
      'start the card again, and exclude this path where the folder is cleaned up',
  )

/** Makes the card and what is beside it, each with its undoing. A stop in between keeps it from drivers. */
const bringUp = async (
  config: Config,
  token: string | null,
  logging: Logging,
  { ending, isStopped }: Endings,
  cleanup: AsyncDisposableStack,
): Promise<void> => {
  if (config.pidFile !== null) cleanup.use(await writePidFile(config.pidFile))
  // Two cards of one name have the same admin socket: the second is refused before it creates a TAP.
  if (config.admin.listen.kind === 'unix') await awaitUnservedSocket(config.admin.listen.path)
  const card = await startCard(config, (end) => ending.resolve({ kind: 'ended', ...end }))
  cleanup.defer(() => card.stop())

  const admin = await startAdmin({
    listen: config.admin.listen,
    token,
    card,
    version: buildInfo.version,
    logLosses: () => ({
      leftOut: card.logLinesLeftOut() + logging.leftOutLines(),
      lost: logging.droppedLines(),
    }),
  })
  if (admin !== null) cleanup.defer(() => admin.close())
  cleanup.use(watchOwnedPaths(warnOfLostPath))
  if (isStopped()) return
  // Last, so that any error of this start is known before a driver sees the card.
  card.attach()
  if (admin !== null) log.info(`admin API on ${formatListenAddress(admin.address)}`)
}

/** Serves a card until it ends. Throws UserError if it cannot start. */
const serve = async (config: Config, warnings: readonly string[]): Promise<ExitCode> => {
  await using logging = startLogging(config.log)
  for (const warning of warnings) log.warning(warning)
  requireDescriptors(config.queuePairs)
  await using cleanup = new AsyncDisposableStack()
  const token = config.admin.tokenFile === null ? null : readToken(config.admin.tokenFile)
  const endings = watchEnd(logging)
  try {
    await bringUp(config, token, logging, endings, cleanup)
  } catch (error) {
    if (!endings.isStopped() || !(error instanceof UserError || error instanceof SysError)) throw error
    // After a signal a failed start is not an error.
    log.warning(`not started: ${error.message}`)
  }

  const end = await endings.ending.promise
  if (end.kind === 'signal') log.info(`${end.signal}: taking the card down`)
  else log[end.failed ? 'error' : 'info'](end.why)
  await cleanup.disposeAsync()
  await logging.finish()
  return end.kind === 'ended' && end.failed ? EXIT.runtime : EXIT.ok
}

const vduseControlQueue = (): ControlQueueVerdict | null => {
  try {
    using control = new VduseControl()
    return control.controlQueueVerdict()
  } catch (error) {
    // Other checks of doctor report what is missing.
    if (error instanceof UserError || error instanceof SysError) return null
    throw error
  }
}

const trySteering = (): number => {
  const loaded = Steering.load()
  if (typeof loaded === 'number') return loaded
  loaded[Symbol.dispose]()
  return 0
}

const main = async (): Promise<ExitCode> => {
  try {
    const invocation = await readCommandLine(
      process.argv.slice(2),
      thisHost,
      machineProbes({ trySteering, vduseControlQueue }),
    )
    if (invocation.kind === 'done') return invocation.exitCode
    checkAbi()
    return await serve(invocation.config, invocation.warnings)
  } catch (error) {
    if (error instanceof UserError) {
      await writeFinalError(formatUserError(error, thisHost.programName))
      return error.exitCode
    }
    if (error instanceof SysError) {
      await writeFinalError(`vduse-net: ${error.message}\nhint: see \`${thisHost.programName} doctor\`\n`)
      return EXIT.runtime
    }
    throw error
  }
}

// No top-level await: bytecode of the executable is CommonJS.
void main().then((code) => process.exit(code))
