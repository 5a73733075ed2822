import { createHash } from 'node:crypto'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { patiently } from '../patience.ts'
import { LabError, progress, run } from './command.ts'
import { containLinks } from './root-links.ts'
import { type TemporaryFolder, temporaryFolder } from './temporary.ts'

const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'

/** The mirror of the Debian archive that is used. */
export const debianMirror = (): string => process.env.VDUSE_NET_DEBIAN_MIRROR || 'http://deb.debian.org/debian'

/** One package file of the archive. */
export interface DebFile {
  /** `name=version`, as apt takes it. */
  spec: string
  name: string
  version: string
  sizeBytes: number
}

/** `linux-image_6.12.95-1%7ebpo_amd64.deb` as the archive names it, taken apart. */
const parseUris = (text: string): DebFile[] =>
  [...text.matchAll(/^'[^']*' (\S+?)_(\S+)_[^_\s]+\.deb (\d+)/gm)].map(([, name = '', version = '', size]) => {
    const decoded = decodeURIComponent(version)
    return { spec: `${name}=${decoded}`, name, version: decoded, sizeBytes: Number(size) }
  })

/** apt.conf(5), read after the machine's. */
const settings = (folder: string): string => `
Dir::Etc::sourcelist "${join(folder, 'sources.list')}";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "-";
Dir::Etc::preferencesparts "-";
Dir::State::Lists "${join(folder, 'lists')}";
Dir::Cache "${join(folder, 'cache')}";
Dir::State::status "/dev/null";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
// The unprivileged apt user cannot reach a cache under a home directory.
APT::Sandbox::User "";
// Without it a failed fetch is a warning and an old or empty list is used.
APT::Update::Error-Mode "any";
// Hooks of the machine's own updates do not apply here.
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
`

/**
 * One suite of the Debian archive with an apt state of its own, as if on an empty machine: the machine's sources,
 * lists and installed packages are neither used nor touched, and root is not needed. The machine's apt.conf stays in
 * force, which is where proxies are configured.
 */
export class PrivateApt implements Disposable {
  readonly #temporary: TemporaryFolder
  readonly #options: string[]

  private constructor(temporary: TemporaryFolder) {
    this.#temporary = temporary
    this.#options = ['-c', join(temporary.path, 'apt.conf')]
  }

  /** Fetches the package list of `suite`. Disposing removes everything again. */
  static async open(suite: string): Promise<PrivateApt> {
    const temporary = temporaryFolder(tmpdir(), 'vduse-net-apt-')
    const folder = temporary.path
    const apt = new PrivateApt(temporary)
    try {
      const mirror = debianMirror()
      await mkdir(join(folder, 'lists/partial'), { recursive: true })
      await mkdir(join(folder, 'cache/archives/partial'), { recursive: true })
      await writeFile(join(folder, 'apt.conf'), settings(folder))
      await writeFile(join(folder, 'sources.list'), `deb [signed-by=${KEYRING}] ${mirror} ${suite} main\n`)
      progress(`reading the package list of ${suite}`)
      const update = run(['apt-get', ...apt.#options, '-qq', 'update'], {
        hint:
          `is ${mirror} reachable and the package debian-archive-keyring installed? A proxy goes ` +
          'into /etc/apt/apt.conf.d, another mirror into VDUSE_NET_DEBIAN_MIRROR',
      })
      await patiently(`lab: reading the package list of ${suite}`, update)
      return apt
    } catch (error) {
      apt[Symbol.dispose]()
      throw error
    }
  }

  [Symbol.dispose](): void {
    this.#temporary[Symbol.dispose]()
  }

  /** Those packages that `root` depends on, at any depth and satisfiable or not, whose name matches. */
  async dependencies(root: string, name: RegExp): Promise<DebFile[]> {
    const text = await run(['apt-cache', ...this.#options, '--recurse', '--important', 'depends', root])
    const names = new Set(
      text
        .toString()
        .split('\n')
        .filter((line) => name.test(line)),
    )
    if (names.size === 0) throw new LabError(`${root}: depends on nothing like ${name.source}`)
    return this.#locate(['download', ...names])
  }

  /** The packages and all that they need on an empty machine. */
  async closure(packages: readonly string[]): Promise<DebFile[]> {
    return this.#locate(['install', '--yes', ...packages])
  }

  /** Downloads and unpacks package files, on top of each other, into `target`; nothing of theirs is ever run. */
  async unpack(files: readonly DebFile[], target: string): Promise<void> {
    const downloads = await mkdtemp(join(this.#temporary.path, 'debs-'))
    const megabytes = files.reduce((sum, file) => sum + file.sizeBytes, 0) / 1e6
    const first = files.reduce((a, b) => (b.sizeBytes > a.sizeBytes ? b : a))
    const others = files.length > 1 ? ` and ${files.length - 1} more` : ''
    progress(`fetching ${first.name} ${first.version}${others}: ${megabytes.toFixed(0)} MB`)
    const download = ['apt-get', ...this.#options, '-qq', 'download', ...files.map((file) => file.spec)]
    await patiently(`lab: fetching ${first.name}${others}`, run(download, { cwd: downloads }))
    progress('unpacking')
    const unpackAll = async (): Promise<void> => {
      for (const deb of await Array.fromAsync(new Bun.Glob('*.deb').scan({ cwd: downloads, absolute: true }))) {
        await unpackDeb(deb, target)
        await rm(deb)
      }
    }
    await patiently('lab: unpacking', unpackAll())
  }

  async #locate(command: readonly string[]): Promise<DebFile[]> {
    const files = parseUris((await run(['apt-get', ...this.#options, '--print-uris', ...command])).toString())
    if (files.length === 0) throw new LabError(`apt-get ${command.join(' ')}: named no package files`)
    return files
  }
}

/**
 * Unpacks a package file on top of what is in `target`. Its absolute links become relative ones, so that `target` can
 * be used from outside: `lib64/ld-linux-x86-64.so.2` of Debian 12 would be this machine's loader, with the libraries of
 * another glibc.
 */
export const unpackDeb = async (deb: string, target: string): Promise<void> => {
  await run(['dpkg-deb', '--extract', deb, target])
  // Before the next package, which must not be unpacked through a link to somewhere else.
  containLinks(target)
}

/** A short name for this exact set of package files. */
export const debKey = (files: readonly DebFile[]): string =>
  createHash('sha256')
    .update(
      files
        .map((file) => file.spec)
        .sort()
        .join('\n'),
    )
    .digest('hex')
    .slice(0, 16)
