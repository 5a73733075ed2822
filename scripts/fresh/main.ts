/**
 * `npm run test:fresh`: does what README says to a new user, on a bare Debian 12 and a bare Debian 13, as root and as
 * an ordinary user. It takes root, some gigabytes of disk and a few minutes for each of the four. What is tried is the
 * last commit.
 */
import { resolve } from 'node:path'
import { Command, Option } from 'commander'
import { wrap } from '../demo/layout.ts'
import { cacheRoot } from '../lab/cache.ts'
import { LabError, run } from '../lab/command.ts'
import { temporaryFolder } from '../lab/temporary.ts'
import { bareRoot, RELEASES, type Release, ROOT, requireRoot, VISITOR } from './bare-root.ts'
import { type Result, runVisit } from './visit.ts'

const repository = resolve(import.meta.dir, '../..')
const logs = resolve(repository, 'build/fresh')

const USERS = { root: ROOT, ordinary: VISITOR } as const
type UserName = keyof typeof USERS

interface Flags {
  release: string[]
  user: string[]
  check?: boolean
  test?: boolean
}

const releaseNames = Object.keys(RELEASES)
const userNames = Object.keys(USERS)

/** Lines of progress come every ten seconds; on a busy machine they may be late. */
const LONG_SILENCE_S = 15

const describe = (where: string, { what, problems, transcript, remark }: Result): string => {
  const verdict = problems.length === 0 ? 'ok' : 'FAIL'
  const time = `${transcript.seconds.toFixed(0).padStart(5)} s`
  const silence = `${transcript.silenceSeconds.toFixed(0).padStart(3)} s silent`
  return `${verdict.padEnd(5)}${where.padEnd(21)}${what.padEnd(24)}${time}  ${silence}  ${remark}`.trimEnd()
}

const visitAll = async (flags: Flags): Promise<number> => {
  requireRoot()
  const started = performance.now()
  const scripts = [...(flags.check ? ['run check'] : []), ...(flags.test ? ['test'] : [])]
  using folder = temporaryFolder(resolve(cacheRoot(), 'fresh'), 'bundle-')
  const bundle = resolve(folder.path, 'vduse-net.bundle')
  await run(['git', '-C', repository, 'bundle', 'create', '--quiet', bundle, 'HEAD'])
  const changed = await run(['git', '-C', repository, 'status', '--porcelain'])
  if (changed.length > 0) console.log('what is not committed is not tried')

  const table: string[] = []
  let failed = 0
  for (const release of flags.release) {
    for (const name of flags.user) {
      const where = `Debian ${release}, ${name}`
      console.log(`\n== ${where}`)
      using root = await bareRoot(Number(release) as Release)
      const visit = {
        root: root.path,
        user: USERS[name as UserName],
        bundle,
        logs: resolve(logs, `${RELEASES[Number(release) as Release]}-${name}`),
        onLine: (line: string) => console.log(`  | ${line}`),
        onResult: (result: Result) => {
          const line = describe(where, result)
          const { silenceSeconds, silenceAfter } = result.transcript
          table.push(line)
          if (silenceSeconds > LONG_SILENCE_S) table.push(`     silent after: ${silenceAfter.trim()}`)
          table.push(...result.problems.flatMap((problem) => wrap(`     ${problem}`, 120, 7)))
          if (result.problems.length > 0) failed++
          console.log(line)
        },
      }
      await runVisit(visit, scripts)
    }
  }
  console.log('\n== summary')
  for (const line of table) console.log(line)
  console.log(`all together ${((performance.now() - started) / 1000).toFixed(0)} s; what was printed: ${logs}`)
  return failed === 0 ? 0 : 1
}

const collect = (value: string, before: string[] | undefined): string[] => [...(before ?? []), value]
const choice = (flag: string, text: string, choices: string[]): Option =>
  new Option(flag, text).argParser((value: string, before: string[] | undefined) => {
    if (!choices.includes(value)) throw new LabError(`${value}: is none of ${choices.join(', ')}`)
    return collect(value, before)
  })

const program = new Command('test:fresh')
  .description('Does what README says in bare roots of Debian, as root and as an ordinary user. Takes root.')
  .addOption(choice('--release <number>', `only this one of ${releaseNames.join(', ')}; may be repeated`, releaseNames))
  .addOption(choice('--user <who>', `only this one of ${userNames.join(', ')}; may be repeated`, userNames))
  .option('--check', '`npm run check`, too')
  .option('--test', '`npm test`, too: an hour or so for each')

try {
  const { release = releaseNames, user = userNames, ...rest } = program.parse().opts<Partial<Flags>>()
  process.exitCode = await visitAll({ release, user, ...rest })
} catch (error) {
  if (!(error instanceof LabError)) throw error
  process.stderr.write(`test:fresh: ${error.message}\n`)
  process.exitCode = 1
}
