/**
 * The benchmark: `npm run bench`. Measures the compiled program on real frontends beside its peers and beside what a
 * TAP can do at best, in interleaved rounds, prints one table, and writes it to bench/results/ (JSON, text, and the
 * picture of the README).
 *
 *   --quick         fewer and shorter rounds: to see that it works, not to publish
 *   --rounds N      rounds (default 7)
 *   --seconds N     length of one measurement (default 3)
 *   --rows A,B      only rows whose id begins so
 *
 * The program is built first, unless VN_EXECUTABLE names another build of it.
 */
import { mkdir, writeFile } from 'node:fs/promises'
import { arch, cpus, loadavg, release, totalmem } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { deviceRefusal } from '../scripts/frontends/device.ts'
import { LabError, run as runProgram } from '../scripts/lab/command.ts'
import { asLabError } from '../scripts/lab/disk-error.ts'
import { noRealTaps } from '../test/support/network-namespace.ts'
import { chart } from './lib/chart.ts'
import { type RowResult, resultOf, table } from './lib/report.ts'
import { Rig } from './lib/rig.ts'
import type { Who } from './lib/row.ts'
import { type Pace, runRow } from './lib/run.ts'
import { allRows } from './rows/all.ts'

const RESULTS = join(import.meta.dir, 'results')

const { values } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    rows: { type: 'string' },
  },
})

const numberOf = (text: string | undefined, fallback: number): number => {
  const number = Number(text ?? fallback)
  if (!(number > 0)) throw new LabError(`${text}: not a number above 0`)
  return number
}

const pace: Pace = {
  rounds: numberOf(values.rounds, values.quick ? 2 : 7),
  seconds: numberOf(values.seconds, values.quick ? 1 : 3),
  warmUpSeconds: values.quick ? 0.3 : 1,
}
const wanted = values.rows?.split(',')

/** A run as it is kept. */
interface Run {
  date: string
  commit: string
  machine: { processors: number; model: string; arch: string; kernel: string; memoryBytes: number }
  /** What else was running: load averages when it began and when it ended. */
  load: { before: number[]; after: number[] }
  pace: Pace
  rows: RowResult[]
}

const commit = (): string => {
  const { stdout } = Bun.spawnSync(['git', 'describe', '--always', '--dirty'], { cwd: import.meta.dir })
  return stdout.toString().trim() || 'unknown'
}

const bench = async (): Promise<void> => {
  if (noRealTaps !== null) throw new LabError(`the benchmark cannot run here: ${noRealTaps}`)
  if (!process.env.VN_EXECUTABLE) {
    console.error('bench: building')
    await runProgram([process.execPath, join(import.meta.dir, '../scripts/build.ts')])
  }
  const refusal = await deviceRefusal()
  const unavailable: Partial<Record<Who, string>> = refusal === null ? {} : { 'vduse-net': refusal }
  const before = loadavg()
  using rig = await Rig.open()
  const rows: RowResult[] = []
  for (const row of allRows(rig, values.quick)) {
    if (wanted !== undefined && !wanted.some((id) => row.id.startsWith(id))) continue
    console.error(`bench: ${row.title}`)
    rows.push(resultOf(await runRow(row, pace, unavailable, (text) => console.error(text))))
  }
  const lines = table(rows)
  console.log(lines)
  const run: Run = {
    date: new Date().toISOString(),
    commit: commit(),
    machine: {
      processors: cpus().length,
      model: cpus()[0]?.model ?? 'unknown',
      arch: arch(),
      kernel: release(),
      memoryBytes: totalmem(),
    },
    load: { before, after: loadavg() },
    pace,
    rows,
  }
  await mkdir(RESULTS, { recursive: true })
  // A run of some rows, or a quick one, does not replace the results that are kept.
  const name = values.quick || wanted !== undefined ? 'quick' : 'latest'
  await writeFile(join(RESULTS, `${name}.json`), `${JSON.stringify(run, null, 2)}\n`)
  await writeFile(join(RESULTS, `${name}.svg`), chart(run))
  await writeFile(join(RESULTS, `${name}.txt`), `${lines}\n`)
  console.log(`\nwritten: bench/results/${name}.json, .svg and .txt`)
}

try {
  await bench()
} catch (error) {
  const known = asLabError(error)
  if (known === null) throw error
  console.error(`bench: ${known.message}`)
  process.exitCode = 1
}
