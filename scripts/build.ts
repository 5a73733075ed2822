/**
 * Makes `dist/vduse-net`: one executable with the runtime, the program and the native library inside.
 * `bun scripts/build.ts [--arch x64|arm64]`; another architecture than this machine's goes to `dist/vduse-net-ARCH`.
 */
import { mkdirSync } from 'node:fs'
import { join, relative, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import manifest from '../package.json' with { type: 'json' }
import { type Arch, buildNative, isArch } from './native.ts'

const root = resolve(import.meta.dir, '..')

/** `git describe`, or `unknown` outside a clone. */
const revision = (): string => {
  const git = Bun.spawnSync(['git', 'describe', '--always', '--dirty', '--tags'], { cwd: root, stderr: 'ignore' })
  return git.success ? git.stdout.toString().trim() : 'unknown'
}

/** The modules that become entry points: the program and each Worker (see src/sys/worker.ts). */
const entryPoints = (): string[] => {
  const workers = [...new Bun.Glob('**/*-worker.ts').scanSync(join(root, 'src'))].sort()
  return ['main.ts', ...workers].map((name) => join('src', name))
}

/** Builds the executable for `arch` and returns its path; throws with the bundler's words. */
export const buildExecutable = async (arch: Arch): Promise<string> => {
  await buildNative(arch)
  const output = join(root, 'dist', arch === process.arch ? 'vduse-net' : `vduse-net-${arch}`)
  mkdirSync(join(root, 'dist'), { recursive: true })
  const child = Bun.spawn(
    [
      process.execPath,
      'build',
      '--compile',
      `--target=bun-linux-${arch}`,
      '--bytecode',
      // Names stay: a stack trace in a bug report should be readable.
      '--minify-whitespace',
      '--minify-syntax',
      // A file of the working directory must not decide what a privileged program does.
      '--no-compile-autoload-dotenv',
      '--no-compile-autoload-bunfig',
      '--loader=.so:file',
      `--define=VDUSE_NET_BUILD_ARCH=${JSON.stringify(arch)}`,
      `--define=VDUSE_NET_BUILD_VERSION=${JSON.stringify(manifest.version)}`,
      `--define=VDUSE_NET_BUILD_REVISION=${JSON.stringify(revision())}`,
      '--root=src',
      `--outfile=${output}`,
      ...entryPoints(),
    ],
    { cwd: root, stdout: 'pipe', stderr: 'pipe' },
  )
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()])
  if ((await child.exited) !== 0) throw new Error(`the executable for ${arch} cannot be built:\n${stdout}${stderr}`)
  return output
}

if (import.meta.main) {
  const { arch } = parseArgs({ options: { arch: { type: 'string', default: process.arch } } }).values
  if (!isArch(arch)) throw new Error(`no executable for ${arch}: x64 and arm64 only`)
  console.log(relative(process.cwd(), await buildExecutable(arch)))
}
