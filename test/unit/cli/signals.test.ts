import { expect, setDefaultTimeout, test } from 'bun:test'
import { join } from 'node:path'
import { until } from '../../../scripts/frontends/native-process.ts'
import { TEST_MS } from '../../support/patience.ts'

setDefaultTimeout(TEST_MS)

const program = join(import.meta.dir, '../../support/signals-program.ts')

test('SIGINT again ends at once, but not the second one of a single Ctrl-C, and no other signal', async () => {
  const child = Bun.spawn([process.execPath, program], { stdio: ['ignore', 'pipe', 'inherit'] })
  let said = ''
  void (async () => {
    for await (const bytes of child.stdout) said += new TextDecoder().decode(bytes)
  })()
  await until('the program', () => said.includes('ready'), 60_000)
  const began = performance.now()
  for (const signal of ['SIGINT', 'SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    const from = said.length
    child.kill(signal)
    await until('an answer', () => said.length > from, 60_000)
  }
  // On a machine that took a second for this, the second SIGINT may have counted.
  if (performance.now() - began < 900) {
    expect(said).toBe('ready\nend: SIGINT\nend: SIGINT\nend: SIGTERM\nend: SIGHUP\n')
    await until('a second to pass', () => performance.now() - began > 1_100)
    child.kill('SIGTERM')
    await until('an answer', () => said.endsWith('end: SIGTERM\n') && said.split('end: SIGTERM').length === 3, 60_000)
    child.kill('SIGINT')
  }
  expect(await child.exited).toBe(3)
  expect(said).toEndWith('at once: SIGINT\n')
})
