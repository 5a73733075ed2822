import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { COLUMNS } from '../demo/layout.ts'
import { run } from '../lab/command.ts'
import { enterCommand, ROOT, type User, VISITOR } from './bare-root.ts'
import { type Transcript, transcribe } from './transcript.ts'

/** The result of one claim of the README. */
export interface Result {
  what: string
  /** Why it failed; empty if it passed. */
  problems: readonly string[]
  transcript: Transcript
  /** A note for the report, such as counts. */
  remark: string
}

/** A root, a user in it, and what to try. */
export interface Visit {
  root: string
  user: User
  /** A git bundle with what is tried. */
  bundle: string
  /** The folder for what is printed. */
  logs: string
  /** Gets each line as it comes. */
  onLine: (line: string) => void
  /** Gets each result as soon as it is known. */
  onResult: (result: Result) => void
}

/** Where the clone is, below a user's home. */
const CLONE = 'vduse-net'

/** The exit code of `npm start` on a machine that does not permit everything. */
const IN_PART = 3

/** The command in README with which root installs packages for an ordinary user. */
const INSTALL = /`(apt-get install --no-install-recommends ([^`]+))`/

const shell = (visit: Visit, user: User, script: string, name: string): Promise<Transcript> =>
  transcribe(enterCommand(visit.root, user, ['sh', '-c', script]), join(visit.logs, `${name}.log`), visit.onLine)

const npm = (visit: Visit, words: string, name: string): Promise<Transcript> =>
  shell(visit, visit.user, `cd ${CLONE} && exec npm ${words}`, name)

const clonePath = (visit: Visit): string => join(visit.root, visit.user.home, CLONE)

/** Megabytes of a folder below the root. */
const megabytes = async (folder: string): Promise<number> =>
  existsSync(folder) ? Number.parseInt((await run(['du', '-sm', folder])).toString(), 10) : 0

const diskUse = async (visit: Visit): Promise<string> => {
  const home = join(visit.root, visit.user.home)
  const clone = await megabytes(join(home, CLONE))
  return `clone ${clone} MB, cache ${await megabytes(join(home, '.cache/vduse-net'))} MB`
}

const tooWide = (transcript: Transcript): string[] => {
  const wide = transcript.lines.filter((line) => line.length > COLUMNS)
  return wide.length === 0 ? [] : [`${wide.length} lines wider than ${COLUMNS} columns: ${wide[0]}`]
}

/** A user who cannot install packages is told at once which all are missing. Then root runs README's command. */
const tryRefusal = async (visit: Visit): Promise<Result> => {
  const transcript = await npm(visit, 'start', 'refusal')
  const problems = tooWide(transcript)
  const said = transcript.lines.find((line) => line.startsWith('setup: missing Debian packages: ')) ?? ''
  const missing = said.split(' ').slice(4)
  if (transcript.code !== 1 || missing.length === 0) problems.push('was not told which packages are missing')
  if (transcript.lines.some((line) => /\bsudo\b/.test(line))) problems.push('was told to use sudo, which is not there')
  if (existsSync(join(clonePath(visit), 'node_modules'))) problems.push('npm packages were installed first')
  const [, command = 'false', named = ''] =
    INSTALL.exec(readFileSync(join(clonePath(visit), 'README.md'), 'utf8')) ?? []
  const absent = missing.filter((name) => !named.split(/\s+/).includes(name))
  if (absent.length > 0) problems.push(`README does not name ${absent.join(' ')}`)
  const install = await shell(visit, ROOT, `${command.replace(/\s+/g, ' ')} --yes -qq`, 'install')
  if (install.code !== 0) problems.push(`README's ${command} fails`)
  return { what: 'refused, then installed', problems, transcript, remark: missing.join(' ') }
}

const tryStart = async (visit: Visit): Promise<Result> => {
  const transcript = await npm(visit, 'start', 'start')
  const problems = tooWide(transcript)
  const shown = transcript.lines.some((line) => line.includes('All shown; what was measured'))
  const inPart = transcript.code === IN_PART && transcript.lines.some((line) => line.startsWith('    not shown: '))
  // If this machine itself has no TAPs, that part cannot work.
  const permitted = existsSync('/dev/net/tun')
  if (!(transcript.code === 0 && shown) && !(inPart && !permitted)) {
    problems.push(`exit code ${transcript.code}: ${transcript.lines.slice(-3).join(' / ')}`)
  }
  for (const name of ['.uml', '.bun']) {
    if (existsSync(join(visit.root, visit.user.home, name))) problems.push(`a folder ~/${name} was left behind`)
  }
  return { what: 'npm start', problems, transcript, remark: await diskUse(visit) }
}

/** A script of package.json that ends with a total. */
const tryTests = async (visit: Visit, script: string): Promise<Result> => {
  const transcript = await npm(visit, script, script.replaceAll(' ', '-'))
  const total = transcript.lines.findLast((line) => line.startsWith('total: ')) ?? 'no total'
  const failed = transcript.lines.filter((line) => line.startsWith('(fail) '))
  const problems = transcript.code === 0 ? [] : [`exit code ${transcript.code}`, ...new Set(failed)]
  return { what: `npm ${script}`, problems, transcript, remark: `${total}; ${await diskUse(visit)}` }
}

/** Does in a bare root what README says, step by step until one fails. */
export const runVisit = async (visit: Visit, scripts: readonly string[]): Promise<Result[]> => {
  const results: Result[] = []
  const take = (result: Result): boolean => {
    results.push(result)
    visit.onResult(result)
    return result.problems.length === 0
  }
  const bundle = '/opt/vduse-net.bundle'
  await run(['cp', visit.bundle, join(visit.root, bundle)])
  await run(['chmod', '644', join(visit.root, bundle)])
  const cloned = await shell(
    visit,
    visit.user,
    `git -c advice.detachedHead=false -c init.defaultBranch=main clone --quiet ${bundle} ${CLONE}`,
    'clone',
  )
  const problems = cloned.code === 0 ? [] : [cloned.lines.join(' ')]
  if (!take({ what: 'git clone', problems, transcript: cloned, remark: '' })) return results
  if (visit.user === VISITOR) take(await tryRefusal(visit))
  if (!take(await tryStart(visit))) return results
  for (const script of scripts) take(await tryTests(visit, script))
  return results
}
