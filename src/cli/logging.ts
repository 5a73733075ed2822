import { isatty } from 'node:tty'
import {
  configureSync,
  getAnsiColorFormatter,
  getJsonLinesFormatter,
  getTextFormatter,
  type LogRecord,
  resetSync,
  type TextFormatter,
} from '@logtape/logtape'
import { LogLimit, leftOutNote } from '../base/log-limit.ts'
import type { Config } from './config.ts'
import { lineSink } from './line-sink.ts'
import { LineWriter } from './line-writer.ts'

/** The log's destination, which decides the format. */
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

/**
 * Areas without a limit here: main's own lines are few (start, end, signals), and the device worker limits its lines
 * itself.
 */
const unlimitedAreas: readonly (string | undefined)[] = ['main', 'device']

/** The record with a note appended to its message. */
const withNote = (record: LogRecord, note: string): LogRecord =>
  note === '' ? record : { ...record, message: record.message.with(-1, `${String(record.message.at(-1))}${note}`) }

/** How long to wait for the reader of the last lines. */
const FINISH_MS = 1_000

/** Running logging. */
export interface Logging {
  /** Number of lines of this thread that the limit has left out. */
  leftOutLines(): number
  /** Number of lines lost because the reader was too slow or gone. */
  droppedLines(): number
  /** Waits until all lines are written, at most a second. For the end of the process. */
  finish(): Promise<void>
  /** {@link finish}, then ends logging. */
  [Symbol.asyncDispose](): Promise<void>
}

/** Starts logging of this thread to stderr; once per process. Logging never throws and never blocks. */
export const startLogging = (
  log: Config['log'],
  target: LogTarget = { isTerminal: isatty(2), noColor: (process.env.NO_COLOR ?? '') !== '' },
): Logging => {
  const stderr = lineSink(2)
  const format = chooseFormatter(log.format, target)
  const writer = new LineWriter(stderr, (droppedLines) =>
    format({
      category: ['vduse-net', 'main'],
      level: 'warning',
      message: [`${droppedLines} log lines dropped: the reader of stderr is too slow`],
      rawMessage: 'log lines dropped: the reader of stderr is too slow',
      properties: { droppedLines },
      timestamp: Date.now(),
    }),
  )
  const limit = new LogLimit<LogRecord>(
    ({ category, level, rawMessage }) => `${level} ${category.join('.')} ${String(rawMessage)}`,
    (record, leftOut) => writer.write(format(withNote(record, leftOutNote(leftOut)))),
  )
  let timer: ReturnType<typeof setTimeout> | null = null
  const writeDue = (): void => {
    timer = null
    const dueMs = limit.tick()
    if (dueMs >= 0) timer = setTimeout(writeDue, dueMs).unref()
  }
  const sink = (record: LogRecord): void => {
    if (unlimitedAreas.includes(record.category[1])) writer.write(format(record))
    else {
      limit.log(record)
      if (timer === null) writeDue()
    }
  }
  configureSync({
    sinks: { stderr: sink },
    loggers: [
      { category: 'vduse-net', lowestLevel: log.level, sinks: ['stderr'] },
      // The library's own messages, such as a sink that failed.
      { category: ['logtape', 'meta'], lowestLevel: 'error', sinks: ['stderr'] },
    ],
  })
  return {
    leftOutLines: () => limit.leftOut,
    droppedLines: () => writer.droppedLines,
    finish: () => {
      limit.flush()
      return writer.finish(FINISH_MS)
    },
    [Symbol.asyncDispose]: async () => {
      if (timer !== null) clearTimeout(timer)
      limit.flush()
      await writer.finish(FINISH_MS)
      resetSync()
      stderr[Symbol.dispose]()
    },
  }
}
