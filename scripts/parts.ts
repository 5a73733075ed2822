import { spawn } from 'node:child_process'
import { resolve } from 'node:path'
import { zigPath } from './native.ts'

const root = resolve(import.meta.dir, '..')
const bin = (name: string): string => resolve(root, 'node_modules/.bin', name)

/** One thing that `npm run check` or `npm test` does: a command, and how to count what it did. */
export type Part = {
  readonly name: string
  readonly command: readonly string[]
  readonly env?: Readonly<Record<string, string>>
}

type Counts = { passed: number; failed: number; skipped: number }
/** `failures`: what the runner printed of each failed test, its last lines. */
type Outcome = Counts & { seconds: number; failures: readonly string[] }

/**
 * The bound on a test that sets none, ms: for hangs, not for speed. Bun's own is 5 s, and it reads none from
 * bunfig.toml.
 */
const TEST_MS = 300_000

export const bunTest = (name: string, ...paths: string[]): Part => ({
  name,
  command: [bin('bun'), 'test', `--timeout=${TEST_MS}`, ...paths],
})

/**
 * Files of test/hostile and test/conformance: those that drive a running program, over a vhost-user socket, and the
 * others.
 */
const against = (program: boolean): string[] =>
  [...new Bun.Glob('test/{hostile,conformance}/*.test.ts').scanSync(root)]
    .filter((file) => file.includes('vhost-user') === program)
    .sort()

/** Hostile inputs and conformance of the running program. */
export const againstProgram: Part = bunTest('a hostile front-end', ...against(true))

/** DPDK, User Mode Linux and QEMU with Debian kernels, against the running program. */
export const realFrontends: Part = bunTest('real vhost-user front-ends', 'test/frontends')

/** Programs beside the card, compiled and fetched before the tests that use them. */
export const preparing: Part = { name: 'preparing', command: [process.execPath, 'scripts/prepare.ts'] }

/** What needs no kernel of its own: under 90 seconds. */
export const checks: readonly Part[] = [
  { name: 'native library', command: [bin('bun'), 'scripts/native.ts'] },
  { name: 'types', command: [bin('tsc'), '--noEmit'] },
  { name: 'lint', command: [bin('biome'), 'check', '--error-on-warnings', '.'] },
  { name: 'zig format', command: [zigPath(), 'fmt', '--check', 'zig'] },
  bunTest('rules', 'test/rules'),
  bunTest('unit', 'test/unit'),
  bunTest('hostile and conformance', ...against(false)),
  bunTest('fuzz', 'test/fuzz'),
]

/** Bun and Zig tell their counts in closing lines; a command without any counts as one check. */
const count = (output: string, code: number): Counts => {
  const sum = (pattern: RegExp): number => [...output.matchAll(pattern)].reduce((total, m) => total + Number(m[1]), 0)
  const passed = sum(/^ *(\d+) pass$/gm) + sum(/^All (\d+) tests? passed\.$/gm) + sum(/^(\d+) passed; /gm)
  const failed = sum(/^ *(\d+) fail$/gm)
  const skipped = sum(/^ *(\d+) skip$/gm) + sum(/^\d+ passed; (\d+) skipped; /gm)
  if (passed + failed + skipped === 0)
    return code === 0 ? { passed: 1, failed: 0, skipped: 0 } : { passed: 0, failed: 1, skipped: 0 }
  // A command that fails without a failed test has failed all the same: a crash, an unhandled error.
  return { passed, failed: code !== 0 && failed === 0 ? 1 : failed, skipped }
}

const FAILURE_LINES = 20

/** Bun prints the error in front of the test's name. */
const failuresOf = (output: string): string[] => {
  const lines = output.split('\n')
  return [...lines.entries()]
    .filter(([, line]) => line.startsWith('(fail) '))
    .map(([at]) => {
      const before = lines.slice(Math.max(0, at - FAILURE_LINES), at)
      const first = before.findLastIndex((line) => /^\((pass|fail)\) /.test(line)) + 1
      return [...before.slice(first), lines[at]!].join('\n')
    })
}

const run = (part: Part): Promise<Outcome> =>
  new Promise((done, fail) => {
    const started = performance.now()
    const [program, ...args] = part.command
    const child = spawn(program!, args, {
      cwd: root,
      env: { ...process.env, ...part.env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let output = ''
    const take = (stream: NodeJS.WriteStream) => (chunk: Buffer) => {
      output += chunk.toString()
      stream.write(chunk)
    }
    child.stdout.on('data', take(process.stdout))
    child.stderr.on('data', take(process.stderr))
    child.on('error', fail)
    child.on('close', (code) => {
      const text = Bun.stripANSI(output)
      done({
        ...count(text, code ?? 1),
        failures: failuresOf(text),
        seconds: (performance.now() - started) / 1000,
      })
    })
  })

/**
 * Runs the parts one after the other, all of them even if one fails, then prints how long each took, what failed, and
 * the total. Returns the exit code.
 */
export const runParts = async (parts: readonly Part[]): Promise<number> => {
  const outcomes: Outcome[] = []
  for (const part of parts) {
    console.log(`\n== ${part.name}`)
    outcomes.push(await run(part))
  }
  console.log('\n== summary')
  for (const [i, { passed, failed, skipped, seconds, failures }] of outcomes.entries()) {
    const verdict = failed > 0 ? 'FAIL' : 'ok'
    const counts = `${passed} passed, ${failed} failed, ${skipped} skipped`
    console.log(`${verdict.padEnd(5)}${parts[i]!.name.padEnd(28)}${seconds.toFixed(1).padStart(7)} s   ${counts}`)
    for (const failure of failures) console.log(failure)
  }
  const total = (key: keyof Counts | 'seconds'): number => outcomes.reduce((sum, outcome) => sum + outcome[key], 0)
  console.log(`all together ${total('seconds').toFixed(0)} s`)
  console.log(`total: ${total('passed')} passed, ${total('failed')} failed, ${total('skipped')} skipped`)
  return total('failed') === 0 ? 0 : 1
}
