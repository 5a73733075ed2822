import { createHash } from 'node:crypto'
import { copyFile, lstat, readdir, readFile, realpath, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { buildAgent } from './agent-binary.ts'
import { cacheRoot, folderOnce } from './cache.ts'
import { LabError, progress, run } from './command.ts'
import { type CpioEntry, writeCpio } from './cpio.ts'
import type { Kernel } from './kernel.ts'
import { collectModules, type Module, modulesAlias, modulesDep } from './modules.ts'

/** Modules that every guest of the lab carries, loaded or not. */
const BASE_MODULES = [
  'vduse',
  'virtio_vdpa',
  'vhost_vdpa',
  'vhost_net',
  'virtio_net',
  'virtio_console',
  'virtio_pci',
  'tun',
  'bridge',
  'veth',
  'dummy',
  'af_packet',
]

/** Programs of the guest that are Debian's own and not busybox's. */
const PROGRAMS = ['bridge', 'ethtool', 'ip', 'iperf3', 'nstat', 'ping', 'ss', 'strace', 'tc', 'tcpdump', 'vdpa']

/** What a guest gets besides the base image: its path there -> a file or folder here, or the content itself. */
export type GuestFiles = Record<string, string | { content: string | Uint8Array; mode?: number }>

/** Raised when the layout of the base image changes otherwise than by the files that are part of its key. */
const LAYOUT = 1

/** What an image needs to know of its kernel. */
type ImageKernel = Pick<Kernel, 'release' | 'modules'>

/**
 * The base image for a kernel, from the cache or built: an uncompressed cpio archive. `modules` replaces those that
 * every guest of the lab carries, for a kernel that cannot have them.
 */
export const baseImage = async (
  kernel: ImageKernel,
  userland: string,
  modules: readonly string[] = BASE_MODULES,
): Promise<string> => {
  const agent = await buildAgent()
  const init = await readFile(join(import.meta.dir, 'guest/init.sh'))
  const key = createHash('sha256')
    .update(JSON.stringify([LAYOUT, kernel.modules, userland, agent, modules, PROGRAMS]))
    .update(init)
    .digest('hex')
    .slice(0, 16)
  const folder = await folderOnce(join(cacheRoot(), 'images', `${kernel.release}-${key}`), async (target) => {
    progress(`building the initramfs for ${kernel.release}`)
    const entries: CpioEntry[] = [
      ...skeleton(),
      ...(await programEntries(userland)),
      ...moduleEntries(kernel, await collectModules(kernel.modules, modules)),
      {
        path: `/usr/lib/modules/${kernel.release}/modules.builtin`,
        mode: 0o644,
        content: await readFile(join(kernel.modules, 'modules.builtin')),
      },
      { path: '/usr/lib/lab/agent', mode: 0o755, content: await readFile(agent) },
      { path: '/init', mode: 0o755, content: init },
    ]
    await writeCpio(join(target, 'base.cpio'), entries, 'w')
  })
  return join(folder, 'base.cpio')
}

/** Writes to `path` the initramfs of one boot: the base image, further modules of the same kernel, and `files`. */
export const bootImage = async (
  path: string,
  kernel: ImageKernel,
  base: string,
  modules: readonly string[],
  files: GuestFiles,
): Promise<void> => {
  await copyFile(base, path)
  const entries: CpioEntry[] = []
  const collected = modules.length === 0 ? [] : await collectModules(kernel.modules, [...BASE_MODULES, ...modules])
  if (collected.length > 0) entries.push(...moduleEntries(kernel, collected))
  for (const [guestPath, source] of Object.entries(files)) entries.push(...(await fileEntries(guestPath, source)))
  if (entries.length > 0) await writeCpio(path, entries, 'a')
}

/** Is this module in every guest, so that `bootImage` need not add it? */
export const isBaseModule = (name: string): boolean => BASE_MODULES.includes(name.replaceAll('-', '_'))

const text = (path: string, content: string): CpioEntry => ({ path, mode: 0o644, content: Buffer.from(content) })

const skeleton = (): CpioEntry[] => [
  ...['dev', 'proc', 'sys', 'run', 'tmp', 'root', 'mnt', 'var', 'usr/bin', 'usr/sbin', 'usr/lib', 'usr/lib64'].map(
    (name): CpioEntry => ({ path: `/${name}`, folder: true }),
  ),
  ...['bin', 'sbin', 'lib', 'lib64'].map((name): CpioEntry => ({ path: `/${name}`, link: `usr/${name}` })),
  { path: '/var/run', link: '/run' },
  text('/etc/passwd', 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n'),
  text('/etc/group', 'root:x:0:\nnogroup:x:65534:\n'),
  text('/etc/hosts', '127.0.0.1 localhost lab\n::1 localhost\n'),
  text('/etc/nsswitch.conf', 'passwd: files\ngroup: files\nhosts: files\n'),
]

const moduleEntries = (kernel: ImageKernel, modules: readonly Module[]): CpioEntry[] => {
  const home = `/usr/lib/modules/${kernel.release}`
  return [
    ...modules.map(({ path, content }): CpioEntry => ({ path: `${home}/${path}`, mode: 0o644, content })),
    text(`${home}/modules.dep`, modulesDep(modules)),
    text(`${home}/modules.alias`, modulesAlias(modules)),
  ]
}

/** The programs with the shared libraries they need, and busybox under the names of all its applets that are free. */
const programEntries = async (userland: string): Promise<CpioEntry[]> => {
  const entries = new Map<string, CpioEntry>()
  const add = async (path: string): Promise<void> => {
    // The file under its own name, with links followed.
    const content = await readFile(await realpath(join(userland, path)))
    entries.set(path, { path, mode: 0o755, content })
  }
  const loader = '/usr/lib64/ld-linux-x86-64.so.2'
  const libraries = '/usr/lib/x86_64-linux-gnu'
  // Runs a program of the packages with their own loader and libraries.
  const load = async (...words: string[]): Promise<string> =>
    (await run([join(userland, loader), '--library-path', join(userland, libraries), ...words])).toString()

  await add(loader)
  // An executable from outside may want more of glibc than these programs do.
  for (const library of ['libc.so.6', 'libm.so.6', 'libdl.so.2', 'libpthread.so.0', 'librt.so.1', 'libgcc_s.so.1']) {
    await add(`${libraries}/${library}`)
  }
  for (const name of ['busybox', ...PROGRAMS]) {
    const path = await findProgram(userland, name)
    await add(path)
    const list = await load('--list', join(userland, path))
    for (const [, library] of list.matchAll(/=> \S*\/(\S+) \(/g)) await add(`${libraries}/${library}`)
  }
  const link = await findProgram(userland, 'busybox')
  for (const applet of (await load(join(userland, link), '--list')).trim().split('\n')) {
    const taken = entries.has(`/usr/bin/${applet}`) || entries.has(`/usr/sbin/${applet}`)
    if (!taken) entries.set(`/usr/bin/${applet}`, { path: `/usr/bin/${applet}`, link })
  }
  // The kernel calls modprobe by this name (CONFIG_MODPROBE_PATH).
  entries.set('/usr/sbin/modprobe', { path: '/usr/sbin/modprobe', link })
  return [...entries.values()]
}

const findProgram = async (userland: string, name: string): Promise<string> => {
  for (const path of [`/usr/bin/${name}`, `/usr/sbin/${name}`, `/bin/${name}`, `/sbin/${name}`]) {
    if (await lstat(join(userland, path)).catch(() => undefined)) return path
  }
  throw new LabError(`the guest's packages hold no program ${name}`)
}

const fileEntries = async (guestPath: string, source: GuestFiles[string]): Promise<CpioEntry[]> => {
  if (!guestPath.startsWith('/')) throw new LabError(`${guestPath}: a guest path must be absolute`)
  if (typeof source !== 'string') {
    const content = typeof source.content === 'string' ? Buffer.from(source.content) : source.content
    return [{ path: guestPath, mode: source.mode ?? 0o644, content }]
  }
  const found = await stat(source).catch(() => undefined)
  if (found === undefined) throw new LabError(`${source}: no such file (wanted as ${guestPath} in the guest)`)
  if (!found.isDirectory()) return [{ path: guestPath, mode: found.mode & 0o777, content: await readFile(source) }]
  const nested = await Promise.all(
    (await readdir(source)).map((name) => fileEntries(`${guestPath}/${name}`, join(source, name))),
  )
  return [{ path: guestPath, folder: true }, ...nested.flat()]
}
