// Makes the machine ready for everything else here. It runs on plain Node and needs nothing installed.
//
//   node scripts/setup.mjs [PURPOSE...]
//
// installs the npm packages if they are missing or older than package-lock.json, and the Debian packages of each
// PURPOSE below. When all is there it takes a moment and changes nothing.

import { spawn, spawnSync } from 'node:child_process'
import { statSync, utimesSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { hasProgram, isRoot } from './host.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))

/** Where npm puts Bun. */
export const bun = join(root, 'node_modules/.bin/bun')

/**
 * What the machine itself must have, by purpose. Kernels, QEMU and the guest's programs are no part of it: scripts/lab
 * fetches its own.
 */
export const PURPOSES = {
  lab: ['debian-archive-keyring', 'util-linux', 'xz-utils'],
  frontends: ['iproute2'],
  fresh: ['debootstrap', 'git'],
}

/** Something is missing that cannot be put right from here. */
export class SetupError extends Error {}

/** Prepares Debian's packages for each purpose, and npm's. Rejects with a `SetupError` that says what to do. */
export const setup = async (purposes) => {
  const wanted = purposes.flatMap((purpose) => {
    if (!Object.hasOwn(PURPOSES, purpose)) {
      throw new SetupError(`${purpose}: no such purpose; there is ${Object.keys(PURPOSES).join(', ')}`)
    }
    return PURPOSES[purpose]
  })
  // First what only root may install: nobody should wait for minutes and be refused then.
  await installDebianPackages([...new Set(wanted)])
  await installNpmPackages()
  await repairBun()
}

const say = (text) => process.stderr.write(`setup: ${text}\n`)

const STILL_MS = 10_000

/** Runs a program to its end. What it prints is kept, and every ten seconds a line says that it still runs. */
const run = (what, program, args, env = {}) =>
  new Promise((resolve) => {
    const started = Date.now()
    const still = () => say(`${what}: ${Math.round((Date.now() - started) / 1000)} s so far`)
    const timer = setInterval(still, STILL_MS)
    const child = spawn(program, args, {
      cwd: root,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...env },
    })
    let output = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (bytes) => (output += bytes))
    const end = (ok) => {
      clearInterval(timer)
      resolve({ ok, output })
    }
    child.on('error', (error) => {
      output += `${error.message}\n`
      end(false)
    })
    child.on('close', (code) => end(code === 0))
  })

const changedAt = (path) => statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0

/** What to do when npm has failed with these words. */
export const npmHint = (output) =>
  /ENOSPC|EDQUOT/.test(output) ? 'the disk is full: the packages take 0.6 GB' : 'is the npm registry reachable?'

const installNpmPackages = async () => {
  // npm's note of what it installed.
  const note = join(root, 'node_modules/.package-lock.json')
  if (changedAt(note) > 0 && changedAt(note) >= changedAt(join(root, 'package-lock.json'))) return
  if (!hasProgram('npm')) throw new SetupError('there is no npm; run as root: apt-get install npm')
  const what = 'installing npm packages'
  say(what)
  const quiet = ['--no-audit', '--no-fund', '--loglevel=error']
  const exact = await run(what, 'npm', ['ci', ...quiet])
  if (!exact.ok) {
    // `npm ci` refuses a lock file that it takes for incomplete, as another version of npm may. The versions stay those
    // of package-lock.json.
    const other = await run(what, 'npm', ['install', '--no-save', ...quiet])
    if (!other.ok) {
      process.stderr.write(exact.output + other.output)
      throw new SetupError(`npm could not install the packages, see above; ${npmHint(exact.output + other.output)}`)
    }
  }
  // npm leaves its note alone when it finds nothing to do.
  utimesSync(note, new Date(), new Date())
}

/** npm may be told to run no install scripts, and Bun's is what puts the executable in place. */
const repairBun = async () => {
  const works = () => /^\d+\.\d+/.test(spawnSync(bun, ['--version']).stdout?.toString() ?? '')
  if (works()) return
  say('putting Bun in place')
  const { ok, output } = await run('putting Bun in place', process.execPath, [
    join(root, 'node_modules/bun/install.js'),
  ])
  if (ok && works()) return
  process.stderr.write(output)
  throw new SetupError(`${bun} does not run; remove node_modules and try again`)
}

const installedDebianPackages = (names) => {
  // biome-ignore lint/suspicious/noTemplateCurlyInString: these are dpkg's placeholders.
  const query = spawnSync('dpkg-query', ['--show', '--showformat=${Package} ${db:Status-Status}\\n', ...names])
  if (query.error) throw new SetupError('this machine has no dpkg; Debian 12 or 13 is needed')
  const lines = query.stdout.toString().split('\n')
  return new Set(lines.filter((line) => line.endsWith(' installed')).map((line) => line.split(' ')[0]))
}

const mayUseSudo = () => hasProgram('sudo') && spawnSync('sudo', ['-n', 'true'], { stdio: 'ignore' }).status === 0

const installDebianPackages = async (names) => {
  if (names.length === 0) return
  const installed = installedDebianPackages(names)
  const missing = names.filter((name) => !installed.has(name)).sort()
  if (missing.length === 0) return
  const install = ['apt-get', 'install', '--yes', '--no-install-recommends', ...missing]
  if (!isRoot() && !mayUseSudo()) {
    const [who, words] = hasProgram('sudo') ? ['run', 'sudo apt-get'] : ['run as root', 'apt-get']
    throw new SetupError(
      `missing Debian packages: ${missing.join(' ')}\n` +
        `${who}:\n  ${words} install --no-install-recommends \\\n    ${missing.join(' ')}`,
    )
  }
  const what = `installing Debian packages: ${missing.join(' ')}`
  say(what)
  const apt = (...command) => {
    const [program, ...args] = isRoot() ? command : ['sudo', '-n', ...command]
    return run(what, program, args, { DEBIAN_FRONTEND: 'noninteractive' })
  }
  if ((await apt(...install)).ok) return
  // The package lists may be missing or old. A failure to update some other source of the machine is not decisive.
  const update = await apt('apt-get', 'update')
  const again = await apt(...install)
  if (again.ok) return
  process.stderr.write(update.output + again.output)
  throw new SetupError(`could not install ${missing.join(' ')}; apt-get says why above`)
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    await setup(process.argv.slice(2))
  } catch (error) {
    if (!(error instanceof SetupError)) throw error
    say(error.message)
    process.exit(1)
  }
}
