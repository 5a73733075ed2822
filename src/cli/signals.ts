import { constants } from 'node:os'
import { logger } from '../base/log.ts'
import { native } from '../sys/native.ts'

const log = logger('main')

/** What an operator, a supervisor, a terminal or a closed session sends to end a program. */
const ending = ['SIGTERM', 'SIGINT', 'SIGQUIT', 'SIGHUP', 'SIGXCPU'] as const

/** What an operator may send to see what happens. */
const meaningless = {
  SIGUSR1: 'it has no meaning here',
  SIGUSR2: 'it has no meaning here',
  SIGTSTP: 'a stopped card would stop its driver; end it with SIGINT, or start it in the background',
} as const

/** Ctrl-C comes twice where both a terminal and a wrapper like npm send it: only a later one is meant as a second. */
const SECOND_AFTER_MS = 1_000

/**
 * Takes over the signals of this process, so that none ends it and leaves a card behind. `end` is called for each
 * signal that asks for the end; `endAtOnce` when SIGINT or SIGQUIT comes again, a second later or more: whoever types
 * it does not want to wait.
 */
export const watchSignals = (end: (signal: string) => void, endAtOnce: (signal: string) => void): void => {
  native.vn_signals_install()
  let firstMs = Number.POSITIVE_INFINITY
  for (const signal of ending) {
    // nohup(1) has the program outlive its terminal.
    if (signal === 'SIGHUP' && native.vn_signal_is_ignored(constants.signals.SIGHUP) === 1) continue
    process.on(signal, () => {
      const now = performance.now()
      firstMs = Math.min(firstMs, now)
      if (now - firstMs >= SECOND_AFTER_MS && (signal === 'SIGINT' || signal === 'SIGQUIT')) endAtOnce(signal)
      else end(signal)
    })
  }
  for (const [signal, why] of Object.entries(meaningless)) {
    process.on(signal, () => log.info(`${signal}: ignored, ${why}`))
  }
}
