import type { Goal, Sample, Who } from './row.ts'
import type { Outcome } from './run.ts'
import { median, type Summary, summarize } from './statistics.ts'

/** How one of a row did. */
export interface Entry {
  who: Who
  value: Summary
  cpuNs?: Summary
  samples: readonly Sample[]
}

/** A goal, and how far it is. */
export interface Verdict {
  goal: Goal
  /** The median of the rounds' own ratios; for a goal without `against` the median value. */
  reached: number
  ok: boolean
}

/** A row as it is written to JSON and drawn. */
export interface RowResult {
  id: string
  title: string
  unit: string
  better: 'higher' | 'lower'
  cpuPer?: 'packet' | 'GiB'
  entries: Entry[]
  verdicts: Verdict[]
  missing: Outcome['missing']
}

const judge = (goal: Goal, samples: Outcome['samples']): Verdict[] => {
  const ours = samples['vduse-net']
  const theirs = goal.against === undefined ? ours : samples[goal.against]
  if (ours === undefined || theirs === undefined) return []
  const numberOf = (sample: Sample): number => (goal.cpu === true ? (sample.cpuNs ?? Number.NaN) : sample.value)
  // Of one round both: what the machine was doing meanwhile cancels out.
  const ratios = ours.map((sample, i) => numberOf(sample) / (goal.against === undefined ? 1 : numberOf(theirs[i]!)))
  const reached = median(ratios)
  return [{ goal, reached, ok: goal.is === 'at least' ? reached >= goal.factor : reached <= goal.factor }]
}

/** Numbers of a row's rounds, and its goals. */
export const resultOf = ({ row, samples, missing }: Outcome): RowResult => ({
  id: row.id,
  title: row.title,
  unit: row.unit,
  better: row.better,
  ...(row.cpuPer === undefined ? {} : { cpuPer: row.cpuPer }),
  entries: row.contestants.flatMap(({ who }): Entry[] => {
    const list = samples[who]
    if (list === undefined) return []
    const cpu = list.flatMap(({ cpuNs }) => (cpuNs === undefined ? [] : [cpuNs]))
    const value = summarize(list.map((sample) => sample.value))
    return [{ who, value, ...(cpu.length === 0 ? {} : { cpuNs: summarize(cpu) }), samples: list }]
  }),
  verdicts: row.goals.flatMap((goal) => judge(goal, samples)),
  missing,
})

/** Three significant digits, without an exponent. */
export const short = (value: number): string =>
  value >= 100 ? value.toFixed(0) : value.toPrecision(3).replace(/e.*$/, '')

const range = ({ median: middle, min, max }: Summary): string => `${short(middle)} (${short(min)}-${short(max)})`

const goalText = ({ goal, reached, ok }: Verdict, unit: string): string => {
  const what = goal.cpu === true ? 'CPU ' : ''
  const sign = goal.is === 'at least' ? '>=' : '<='
  const mark = ok ? 'ok' : 'NO'
  return goal.against === undefined
    ? `${mark} ${sign} ${goal.factor} ${unit}`
    : `${mark} ${what}${short(reached)} x ${goal.against} (${sign} ${goal.factor})`
}

/** The table: a line for each contestant of each row, goals beside ours. */
export const table = (results: readonly RowResult[]): string => {
  const header = ['', 'who', 'median (min-max)', 'CPU or p99, p99.9', 'goals']
  const lines = results.flatMap((result): string[][] => {
    if (result.missing.row !== undefined) return [[result.title, '-', 'not measured', '', result.missing.row]]
    const measured = result.entries.map(({ who, value, cpuNs, samples }, i) => [
      i === 0 ? result.title : '',
      who,
      `${range(value)} ${result.unit}`,
      cpuNs === undefined ? percentileText(samples) : cpuText(cpuNs, result.cpuPer),
      who === 'vduse-net' ? result.verdicts.map((verdict) => goalText(verdict, result.unit)).join('; ') : '',
    ])
    const absent = Object.entries(result.missing).map(([who, reason], i) => [
      measured.length === 0 && i === 0 ? result.title : '',
      who,
      'not measured',
      '',
      // What, and the first line of why.
      reason.split('\n').slice(0, 2).join(' '),
    ])
    return [...measured, ...absent]
  })
  const all = [header, ...lines]
  const widths = header.map((_, column) => Math.max(...all.map((line) => line[column]!.length)))
  return all
    .map((line) =>
      line
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}

const cpuText = (cpuNs: Summary, per: RowResult['cpuPer']): string =>
  per === 'GiB' ? `${short(cpuNs.median / 1e9)} s/GiB` : `${short(cpuNs.median)} ns/packet`

/** The far percentiles of round trips, where there are any. */
const percentileText = (samples: readonly Sample[]): string => {
  const all = (key: string): number[] => samples.flatMap(({ details }) => details?.[key] ?? [])
  const [p99, p999] = [all('p99'), all('p999')]
  return p99.length === 0 || p999.length === 0 ? '' : `${short(median(p99))}, ${short(median(p999))}`
}
