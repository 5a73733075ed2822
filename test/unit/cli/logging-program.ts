import { logger } from '../../../src/base/log.ts'
import { startLogging } from '../../../src/cli/logging.ts'

// Logs more lines than a pipe holds, then says on stdout how long that took and what became of them.
const [level = 'info', lines = '0', text = 'line'] = process.argv.slice(2)
const logging = startLogging({ level: level as 'info', format: 'auto' })
const started = performance.now()
for (let number = 0; number < Number(lines); number++) logger('main').info(`${text} {number}`, { number })
logging.flush()
process.stdout.write(`${JSON.stringify({ elapsedMs: performance.now() - started, dropped: logging.droppedLines() })}\n`)
