/**
 * `npm start`: builds the card and shows it at work: over VDUSE on a real kernel in a virtual machine, over vhost-user
 * on this machine. `npm start -- ARGUMENT...`: builds it and runs it on this host, with these arguments.
 */
import { resolve } from 'node:path'
import { buildExecutable } from './build.ts'
import { showNative } from './demo/native.ts'
import { Report, StepFailure } from './demo/report.ts'
import { closing, formatSummary } from './demo/summary.ts'
import { runVduseDemo } from './demo/vduse-demo.ts'
import { cacheRoot } from './lab/cache.ts'
import { asLabError } from './lab/disk-error.ts'
import { environmentWithoutLab } from './lab/environment.ts'
import { isArch } from './native.ts'

const build = async (): Promise<string> => {
  if (!isArch(process.arch)) throw new StepFailure(`no executable for ${process.arch}: x64 and arm64 only`)
  try {
    return await buildExecutable(process.arch)
  } catch (error) {
    throw new StepFailure((error as Error).message)
  }
}

/** Becomes the card: signals, descriptors and the exit code are its own from here on. */
const runHere = async (args: string[]): Promise<never> => {
  const executable = await build()
  return process.execve!(executable, [executable, ...args], environmentWithoutLab())
}

/** What a folder takes on the disk, in words. */
const diskUse = (folder: string): string => {
  const megabytes = Number.parseInt(Bun.spawnSync(['du', '-sm', folder], { stderr: 'ignore' }).stdout.toString(), 10)
  return `${folder}: ${(megabytes / 1000).toFixed(1)} GB`
}

const show = async (): Promise<number> => {
  const report = new Report()
  report.title(
    'vduse-net: a virtio-net card in userspace, at work on real Linux kernels: in a virtual machine, ' +
      'and at native speed',
  )
  report.step('Building; the first time this takes about a minute')
  const executable = await build()
  report.note(`dist/vduse-net, ${(Bun.file(executable).size / 1e6).toFixed(0)} MB, one file`)
  const vduse = await runVduseDemo(executable, '6.12', report)
  const native = await showNative(report)

  const { title, notShown, exitCode } = closing(native)
  report.step(title)
  for (const line of formatSummary(vduse, 'why' in native ? null : native)) report.note(line)
  for (const line of notShown) report.note(`not shown: ${line}`)
  report.note('')
  report.note(`on the disk: ${diskUse(resolve(import.meta.dir, '..'))}; ${diskUse(cacheRoot())}`)
  return exitCode
}

const args = process.argv.slice(2)
try {
  process.exitCode = await (args.length > 0 ? runHere(args) : show())
} catch (error) {
  const expected = error instanceof StepFailure ? error : asLabError(error)
  process.stderr.write(
    `\nnpm start: ${expected !== null ? expected.message : ((error as Error).stack ?? String(error))}\n`,
  )
  process.exitCode = 1
}
