/**
 * Makes `dist/vduse-net`: one executable with the runtime, the program and the native library inside.
 * `bun scripts/build.ts [--arch x64|arm64]`; another architecture than this machine's goes to `dist/vduse-net-ARCH`.
 */
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { type Arch, buildNative, isArch } from './native.ts'
import { patiently } from './patience.ts'

const root = resolve(import.meta.dir, '..')

/** `git describe`, or `unknown` outside a clone or without git. */
const revision = (): string => {
  if (Bun.which('git') === null) return 'unknown'
  const git = Bun.spawnSync(['git', 'describe', '--always', '--dirty', '--tags'], { cwd: root, stderr: 'ignore' })
  return git.success ? git.stdout.toString().trim() : 'unknown'
}

const run = async (command: readonly string[], cwd: string): Promise<string> => {
  const child = Bun.spawn([...command], { cwd, stdout: 'pipe', stderr: 'pipe' })
  const what = `build: ${command[1] === 'build' ? 'making one executable' : command.slice(0, 2).join(' ')}`
  const [stdout, stderr] = await patiently(what, Promise.all([child.stdout.text(), child.stderr.text()]))
  if ((await child.exited) !== 0) throw new Error(`${command.slice(0, 2).join(' ')} failed:\n${stdout}${stderr}`)
  return stdout
}

/** npm's names of the runtime's packages. */
const runtimePackages = { x64: '@oven/bun-linux-x64', arm64: '@oven/bun-linux-aarch64' } as const

/**
 * The runtime for another architecture, from npm: npm installs only this machine's, but the lock file has the version
 * and the hash of the others. Kept in build/runtime. Throws if the package is not the one that the lock file means.
 */
const foreignRuntime = async (arch: Arch): Promise<string> => {
  const name = runtimePackages[arch]
  const locked: { version: string; integrity: string } | undefined = JSON.parse(
    readFileSync(join(root, 'package-lock.json'), 'utf8'),
  ).packages[`node_modules/${name}`]
  if (locked === undefined) throw new Error(`${name} is not in package-lock.json`)
  const folder = join(root, 'build', 'runtime', `${arch}-${locked.version}`)
  const executable = join(folder, 'package', 'bin', 'bun')
  if (existsSync(executable)) return executable

  const scratch = `${folder}.${process.pid}`
  mkdirSync(scratch, { recursive: true })
  try {
    const [packed] = JSON.parse(await run(['npm', 'pack', '--json', `${name}@${locked.version}`], scratch))
    const archive = join(scratch, packed.filename)
    const integrity = `sha512-${createHash('sha512').update(readFileSync(archive)).digest('base64')}`
    if (integrity !== locked.integrity)
      throw new Error(`${name}: ${integrity}, not ${locked.integrity} of package-lock.json`)
    await run(['tar', '-xzf', archive], scratch)
    rmSync(archive)
    rmSync(folder, { recursive: true, force: true })
    renameSync(scratch, folder)
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
  return executable
}

/**
 * Compiles `entryPoints`, the first of them the program, all under the folder `entryRoot`, for `arch` to the file
 * `output`.
 */
export const compile = async (
  entryRoot: string,
  entryPoints: readonly string[],
  arch: Arch,
  output: string,
): Promise<void> => {
  await buildNative(arch)
  mkdirSync(dirname(output), { recursive: true })
  await run(
    [
      process.execPath,
      'build',
      '--compile',
      `--target=bun-linux-${arch}`,
      ...(arch === process.arch ? [] : [`--compile-executable-path=${await foreignRuntime(arch)}`]),
      '--bytecode',
      // Names stay: a stack trace in a bug report should be readable.
      '--minify-whitespace',
      '--minify-syntax',
      // A file of the working directory must not decide what a privileged program does.
      '--no-compile-autoload-dotenv',
      '--no-compile-autoload-bunfig',
      '--loader=.so:file',
      `--define=VDUSE_NET_BUILD_ARCH=${JSON.stringify(arch)}`,
      `--define=VDUSE_NET_BUILD_REVISION=${JSON.stringify(revision())}`,
      `--root=${entryRoot}`,
      `--outfile=${output}`,
      ...entryPoints.map((name) => join(entryRoot, name)),
    ],
    root,
  )
}

/** Builds the executable for `arch` and returns its path; throws with the words of what failed. */
export const buildExecutable = async (arch: Arch): Promise<string> => {
  const source = join(root, 'src')
  const output = join(root, 'dist', arch === process.arch ? 'vduse-net' : `vduse-net-${arch}`)
  // Each Worker is an entry point of its own: see src/sys/worker.ts.
  const workers = [...new Bun.Glob('**/*-worker.ts').scanSync(source)].sort()
  await compile(source, ['main.ts', ...workers], arch, output)
  return output
}

if (import.meta.main) {
  const { arch } = parseArgs({ options: { arch: { type: 'string', default: process.arch } } }).values
  try {
    if (!isArch(arch)) throw new Error(`no executable for ${arch}: x64 and arm64 only`)
    console.log(relative(process.cwd(), await buildExecutable(arch)))
  } catch (error) {
    process.stderr.write(`build: ${(error as Error).message}\n`)
    process.exitCode = 1
  }
}
