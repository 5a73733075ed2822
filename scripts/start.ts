/**
 * `npm start`: builds the card and shows it at work: over VDUSE on a real kernel in a virtual machine, over vhost-user on this machine.
 * `npm start -- ARGUMENT...`: builds it and runs it on this host, with these arguments.
 */
import { resolve } from 'node:path'
import { buildExecutable } from './build.ts'
import { showNative } from './demo/native.ts'
import { Report, StepFailure } from './demo/report.ts'
import { formatSummary } from './demo/summary.ts'
import { runVduseDemo } from './demo/vduse-demo.ts'
import { environmentWithoutLab } from './lab/environment.ts'
import { LabError } from './lab/lab.ts'
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

/** Lab and front-ends need a few programs of Debian's, which a host that only runs the card does not. Are they there now? */
const prepare = (purpose: 'lab' | 'frontends'): boolean =>
  Bun.spawnSync([process.execPath, resolve(import.meta.dir, 'setup.mjs'), purpose], {
    stdio: ['ignore', 'inherit', 'inherit'],
  }).success

const show = async (): Promise<void> => {
  const report = new Report()
  report.title(
    'vduse-net: a virtio-net card in userspace, at work on real Linux kernels: in a virtual machine, and at native speed',
  )
  report.step('Building; the first time this takes a while')
  const executable = await build()
  report.note(`dist/vduse-net, ${(Bun.file(executable).size / 1e6).toFixed(0)} MB, one file`)
  if (!prepare('lab')) throw new StepFailure('this machine cannot run the lab; setup says why above')
  const vduse = await runVduseDemo(executable, '6.12', report)
  // What is still missing then, it says itself.
  prepare('frontends')
  const native = await showNative(report)
  report.step('All shown; what was measured')
  for (const line of formatSummary(vduse, native)) report.note(line)
}

const args = process.argv.slice(2)
try {
  await (args.length > 0 ? runHere(args) : show())
} catch (error) {
  const expected = error instanceof StepFailure || error instanceof LabError
  process.stderr.write(`\nnpm start: ${expected ? error.message : ((error as Error).stack ?? String(error))}\n`)
  process.exitCode = 1
}
