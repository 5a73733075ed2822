import { isatty } from 'node:tty'
import {
  configureSync,
  getAnsiColorFormatter,
  getJsonLinesFormatter,
  getTextFormatter,
  resetSync,
  type TextFormatter,
} from '@logtape/logtape'
import type { Config } from './config.ts'
import { LineWriter, nonblockingWriter } from './line-writer.ts'

/** What decides how lines look. */
export interface LogTarget {
  readonly isTerminal: boolean
  /** NO_COLOR is set and not empty: https://no-color.org */
  readonly noColor: boolean
}

/** The formatter for a log format and its target. */
export const chooseFormatter = (format: Config['log']['format'], target: LogTarget): TextFormatter => {
  if (format === 'json' || (format === 'auto' && !target.isTerminal))
    return getJsonLinesFormatter({ properties: 'nest:data' })
  const options = { timestamp: 'time', level: 'full', category: '.' } as const
  return target.isTerminal && !target.noColor ? getAnsiColorFormatter(options) : getTextFormatter(options)
}

/** Running logging. */
export interface Logging {
  /** Lines that no reader took. */
  droppedLines(): number
  /** Writes what the reader of stderr takes now; call it before the process ends. */
  flush(): void
  [Symbol.dispose](): void
}

/** Sends all logs of this thread to stderr, once per process. Logging never throws and never blocks. */
export const startLogging = (
  log: Config['log'],
  target: LogTarget = { isTerminal: isatty(2), noColor: (process.env.NO_COLOR ?? '') !== '' },
): Logging => {
  const stderr = nonblockingWriter(2)
  const format = chooseFormatter(log.format, target)
  const writer = new LineWriter(stderr.write, (droppedLines) =>
    format({
      category: ['vduse-net', 'main'],
      level: 'warning',
      message: [`${droppedLines} log lines dropped: the reader of stderr is too slow`],
      rawMessage: 'log lines dropped: the reader of stderr is too slow',
      properties: { droppedLines },
      timestamp: Date.now(),
    }),
  )
  configureSync({
    sinks: { stderr: (record) => writer.write(format(record)) },
    loggers: [
      { category: 'vduse-net', lowestLevel: log.level, sinks: ['stderr'] },
      // The library's own messages, such as a sink that failed.
      { category: ['logtape', 'meta'], lowestLevel: 'error', sinks: ['stderr'] },
    ],
  })
  return {
    droppedLines: () => writer.droppedLines,
    flush: () => writer.flush(),
    [Symbol.dispose]() {
      writer.flush()
      resetSync()
      stderr[Symbol.dispose]()
    },
  }
}
