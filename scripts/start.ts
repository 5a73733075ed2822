/**
 * `npm start`: builds the card and shows it at work on a real kernel in a virtual machine.
 * `npm start -- ARGUMENT...`: builds it and runs it on this host, with these arguments.
 */
import { resolve } from 'node:path'
import { buildExecutable } from './build.ts'
import { runDemo } from './demo/demo.ts'
import { Report, StepFailure } from './demo/report.ts'
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

/** Settings of the lab, which the card would take for misspelt ones of its own. */
const ofTheLab = /^VDUSE_NET_(CACHE|DEBIAN_MIRROR|LAB_\w+|TEST_\w+)$/

/** Becomes the card: signals, descriptors and the exit code are its own from here on. */
const runHere = async (args: string[]): Promise<never> => {
  const executable = await build()
  const environment: Record<string, string> = {}
  for (const [name, value] of Object.entries(process.env)) {
    if (value !== undefined && !ofTheLab.test(name)) environment[name] = value
  }
  return process.execve!(executable, [executable, ...args], environment)
}

/** The lab needs a few programs of Debian's, which a host that only runs the card does not. */
const prepareLab = (): void => {
  const setup = Bun.spawnSync([process.execPath, resolve(import.meta.dir, 'setup.mjs'), 'lab'], {
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  if (!setup.success) throw new StepFailure('this machine cannot run the lab; setup says why above')
}

const show = async (): Promise<void> => {
  const report = new Report()
  report.title('vduse-net: a virtio-net card in userspace, at work on a real Linux kernel in a virtual machine')
  report.step('Building; the first time this takes a while')
  const executable = await build()
  report.note(`dist/vduse-net, ${(Bun.file(executable).size / 1e6).toFixed(0)} MB, one file`)
  prepareLab()
  await runDemo(executable, '6.12', report)
}

const args = process.argv.slice(2)
try {
  await (args.length > 0 ? runHere(args) : show())
} catch (error) {
  const expected = error instanceof StepFailure || error instanceof LabError
  process.stderr.write(`\nnpm start: ${expected ? error.message : ((error as Error).stack ?? String(error))}\n`)
  process.exitCode = 1
}
