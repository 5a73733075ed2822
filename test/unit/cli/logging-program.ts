import { type LogArea, logger } from '../../../src/base/log.ts'
import { startLogging } from '../../../src/cli/logging.ts'

// Logs more lines than a pipe holds, then says on stdout how long that took and what became of them. With `wait` it
// logs them, says so, waits for a line on stdin, logs them again, and waits for stdin to end.
const [level = 'info', lines = '0', text = 'line', wait = '', area = 'main'] = process.argv.slice(2)
const logging = startLogging({ level: level as 'info', format: 'json' })
const started = performance.now()
const logLines = async (): Promise<void> => {
  for (let number = 0; number < Number(lines); number++) logger(area as LogArea).info(`${text} {number}`, { number })
  await logging.finish()
}
await logLines()
if (wait !== '') {
  process.stdout.write('logged\n')
  for await (const _ of console) break
  await logLines()
}
process.stdout.write(`${JSON.stringify({ elapsedMs: performance.now() - started, dropped: logging.droppedLines() })}\n`)
if (wait !== '') for await (const _ of console);
process.exit()
