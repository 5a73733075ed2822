import { constants } from 'node:os'
import { logger } from '../base/log.ts'
import { native } from '../sys/native.ts'

const log = logger('main')

/** Signals that end the card: from an operator, a supervisor, a terminal or a closed session. */
const ending = ['SIGTERM', 'SIGINT', 'SIGQUIT', 'SIGHUP', 'SIGXCPU'] as const

/** Signals that are logged and ignored. */
const meaningless = {
  SIGUSR1: 'it has no meaning here',
  SIGUSR2: 'it has no meaning here',
  SIGTSTP: 'a stopped card would stop its driver; end it with SIGINT, or start it in the background',
} as const

/** A terminal and a wrapper like npm may both send SIGINT for one Ctrl-C: within this time it is not a second one. */
const SECOND_AFTER_MS = 1_000

/**
 * Handles the signals of this process, so that none kills it and leaves a card behind. Calls `end` for each signal that
 * ends the card, and `endImmediately` for a second SIGINT or SIGQUIT that comes a second or more after the first.
 */
export const watchSignals = (end: (signal: string) => void, endImmediately: (signal: string) => void): void => {
  native.vn_signals_install()
  let firstMs = Number.POSITIVE_INFINITY
  for (const signal of ending) {
    // Under nohup(1) the program outlives its terminal.
    if (signal === 'SIGHUP' && native.vn_signal_is_ignored(constants.signals.SIGHUP) === 1) continue
    process.on(signal, () => {
      const now = performance.now()
      firstMs = Math.min(firstMs, now)
      if (now - firstMs >= SECOND_AFTER_MS && (signal === 'SIGINT' || signal === 'SIGQUIT')) endImmediately(signal)
      else end(signal)
    })
  }
  for (const [signal, why] of Object.entries(meaningless)) {
    process.on(signal, () => log.info(`${signal}: ignored, ${why}`))
  }
}
