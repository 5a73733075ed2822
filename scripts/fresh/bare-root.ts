import { chmodSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { debianMirror } from '../lab/apt.ts'
import { cacheRoot, folderOnce } from '../lab/cache.ts'
import { LabError, progress, run } from '../lab/command.ts'
import { temporaryFolder } from '../lab/temporary.ts'
import { patiently } from '../patience.ts'
import { copyAptSettings, copyCertificates, copyNpmSettings, networkEnvironment } from './host-settings.ts'

/** The releases that README names, and what the archive calls them. */
export const RELEASES = { 12: 'bookworm', 13: 'trixie' } as const

/** A release of Debian. */
export type Release = keyof typeof RELEASES

/** Packages that README takes for installed: Node, npm, git, and the certificates for https. */
const PACKAGES = ['nodejs', 'npm', 'git', 'ca-certificates'] as const

const ENTER = resolve(import.meta.dir, 'enter.sh')
const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

/** A user in a root. */
export interface User {
  name: string
  uid: number
  home: string
}

/** The superuser. */
export const ROOT: User = { name: 'root', uid: 0, home: '/root' }

/** An ordinary user without sudo. */
export const VISITOR: User = { name: 'visitor', uid: 1000, home: '/home/visitor' }

/**
 * Words that run a command as `user` below `root`, in the user's home. Of this process's environment only the variables
 * for registries are kept.
 */
export const enterCommand = (root: string, user: User, command: readonly string[]): string[] => [
  ...['unshare', '--mount', '--pid', '--fork', '--kill-child=KILL', '--uts', '--ipc', 'sh', ENTER, root],
  ...['setpriv', `--reuid=${user.uid}`, `--regid=${user.uid}`, '--init-groups'],
  ...['env', '-i', `--chdir=${user.home}`, `HOME=${user.home}`, `USER=${user.name}`, `LOGNAME=${user.name}`],
  ...[`PATH=${PATH}`, 'LANG=C.UTF-8', 'TERM=dumb'],
  ...Object.entries(networkEnvironment()).map(([name, value]) => `${name}=${value}`),
  ...command,
]

const inRoot = (root: string, script: string): Promise<Buffer> =>
  run(enterCommand(root, ROOT, ['sh', '-ec', `export DEBIAN_FRONTEND=noninteractive; ${script}`]))

const build = async (suite: string, root: string): Promise<void> => {
  const mirror = debianMirror()
  await mkdir(root)
  progress(`making a bare root of ${suite}`)
  const bootstrap = run(['debootstrap', '--variant=minbase', suite, root, mirror], {
    env: networkEnvironment(),
    hint: `is ${mirror} reachable, and has this machine's debootstrap a script for ${suite}?`,
  })
  await patiently(`lab: debootstrap of ${suite}`, bootstrap)
  chmodSync(root, 0o755)
  copyAptSettings(root)
  writeFileSync(join(root, 'etc/apt/sources.list'), `deb ${mirror} ${suite} main\n`)
  const install = `apt-get update -qq && apt-get install -y -qq --no-install-recommends ${PACKAGES.join(' ')}`
  await patiently(`lab: installing ${PACKAGES.join(' ')}`, inRoot(root, install))
  await inRoot(root, `apt-get clean; useradd --create-home --uid ${VISITOR.uid} --shell /bin/bash ${VISITOR.name}`)
  copyCertificates(root)
  for (const user of [ROOT, VISITOR]) copyNpmSettings(root, user.home, user.uid)
}

/**
 * A root of its own for one visit: Debian as debootstrap leaves it, with Node, npm and git, and the users `ROOT` and
 * `VISITOR`. A copy of one in the cache, which is made anew each month. It goes when it is disposed of.
 */
export const bareRoot = async (release: Release): Promise<Disposable & { path: string }> => {
  const suite = RELEASES[release]
  const home = join(cacheRoot(), 'fresh')
  const key = `${suite}-${new Date().toISOString().slice(0, 7)}`
  const base = await folderOnce(join(home, key), (target) => build(suite, join(target, 'root')))
  for (const name of readdirSync(home)) {
    if (name.startsWith(`${suite}-`) && name !== key) rmSync(join(home, name), { recursive: true })
  }
  const folder = temporaryFolder(home, 'visit-')
  try {
    await run(['cp', '--archive', '--reflink=auto', join(base, 'root'), folder.path])
  } catch (error) {
    folder[Symbol.dispose]()
    throw error
  }
  return { path: join(folder.path, 'root'), [Symbol.dispose]: () => folder[Symbol.dispose]() }
}

/** Throws unless this process may make roots. */
export const requireRoot = (): void => {
  if (process.getuid?.() !== 0)
    throw new LabError('bare roots take root: mounts, devices, debootstrap', 'run it as root')
}
