// Makes the machine ready for everything else here. It runs on plain Node and needs nothing installed.
//
//   node scripts/setup.mjs [PURPOSE...]
//
// installs the npm packages if they are missing or older than package-lock.json, and the Debian packages of each
// PURPOSE below. When all is there it takes a moment and changes nothing.

import { spawnSync } from 'node:child_process'
import { statSync, utimesSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))

/** Where npm puts Bun. */
export const bun = join(root, 'node_modules/.bin/bun')

/** What the machine itself must have, by purpose. Kernels, QEMU and the guest's programs are no part of it: scripts/lab fetches its own. */
export const PURPOSES = {
  lab: ['debian-archive-keyring', 'util-linux', 'xz-utils'],
  frontends: ['iproute2'],
}

/** Something is missing that cannot be put right from here. */
export class SetupError extends Error {}

/** Prepares npm's packages and, for each purpose, Debian's. Throws a `SetupError` that says what to do. */
export const setup = (purposes) => {
  installNpmPackages()
  repairBun()
  const wanted = purposes.flatMap((purpose) => {
    if (!Object.hasOwn(PURPOSES, purpose)) {
      throw new SetupError(`${purpose}: no such purpose; there is ${Object.keys(PURPOSES).join(', ')}`)
    }
    return PURPOSES[purpose]
  })
  installDebianPackages([...new Set(wanted)])
}

const say = (text) => process.stderr.write(`setup: ${text}\n`)

/** Runs a program with its output on stderr, since stdout belongs to what is run afterwards. True if it succeeded. */
const succeeds = (program, args, env = {}) =>
  spawnSync(program, args, { cwd: root, stdio: ['ignore', 2, 2], env: { ...process.env, ...env } }).status === 0

const changedAt = (path) => statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0

const installNpmPackages = () => {
  // npm's note of what it installed.
  const note = join(root, 'node_modules/.package-lock.json')
  if (changedAt(note) > 0 && changedAt(note) >= changedAt(join(root, 'package-lock.json'))) return
  say('installing npm packages')
  // The versions are those of package-lock.json. Not `npm ci`: it refuses a lock file without the packages for other
  // platforms, which a registry mirror need not have.
  if (!succeeds('npm', ['install', '--no-save', '--no-audit', '--no-fund', '--loglevel=error'])) {
    throw new SetupError('npm could not install the packages; is the npm registry reachable?')
  }
  // npm leaves its note alone when it finds nothing to do.
  utimesSync(note, new Date(), new Date())
}

/** npm may be told to run no install scripts, and Bun's is what puts the executable in place. */
const repairBun = () => {
  const works = () => /^\d+\.\d+/.test(spawnSync(bun, ['--version']).stdout?.toString() ?? '')
  if (works()) return
  say('putting Bun in place')
  if (succeeds(process.execPath, [join(root, 'node_modules/bun/install.js')]) && works()) return
  throw new SetupError(`${bun} does not run; remove node_modules and try again`)
}

const installedDebianPackages = (names) => {
  // biome-ignore lint/suspicious/noTemplateCurlyInString: these are dpkg's placeholders.
  const query = spawnSync('dpkg-query', ['--show', '--showformat=${Package} ${db:Status-Status}\\n', ...names])
  if (query.error) throw new SetupError('this machine has no dpkg; Debian 12 or 13 is needed')
  const lines = query.stdout.toString().split('\n')
  return new Set(lines.filter((line) => line.endsWith(' installed')).map((line) => line.split(' ')[0]))
}

const installDebianPackages = (names) => {
  if (names.length === 0) return
  const installed = installedDebianPackages(names)
  const missing = names.filter((name) => !installed.has(name))
  if (missing.length === 0) return
  const install = ['apt-get', 'install', '--yes', '--no-install-recommends', ...missing]
  const isRoot = process.getuid() === 0
  if (!isRoot && spawnSync('sudo', ['-n', 'true'], { stdio: 'ignore' }).status !== 0) {
    throw new SetupError(`packages are missing and this is not root; run: sudo ${install.join(' ')}`)
  }
  say(`installing ${missing.join(' ')}`)
  const asRoot = (...command) => {
    const [program, ...args] = isRoot ? command : ['sudo', '-n', ...command]
    return succeeds(program, args, { DEBIAN_FRONTEND: 'noninteractive' })
  }
  if (asRoot(...install)) return
  // The package lists may be missing or old. A failure to update some other source of the machine is not decisive.
  say('reading the package lists')
  asRoot('apt-get', 'update')
  if (!asRoot(...install)) throw new SetupError(`could not install ${missing.join(' ')}; apt-get says why above`)
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    setup(process.argv.slice(2))
  } catch (error) {
    if (!(error instanceof SetupError)) throw error
    say(error.message)
    process.exit(1)
  }
}
