import { join, resolve } from 'node:path'
import type { Lab } from './e2e-lab.ts'

const GUEST = resolve(import.meta.dir, 'guest')

const pushed = new Map<string, Promise<string[]>>()

const push = async (lab: Lab, name: string): Promise<string[]> => {
  const { outputs } = await Bun.build({
    entrypoints: [join(GUEST, `${name}.ts`)],
    target: 'bun',
    // For those that use the native library: it goes along, and is found from the folder that both are in.
    define: { VDUSE_NET_BUILD_ARCH: JSON.stringify(process.arch) },
  })
  const folder = `/usr/lib/e2e-${name}`
  for (const output of outputs) await lab.push(new Uint8Array(await output.arrayBuffer()), join(folder, output.path))
  return ['bun', `--cwd=${folder}`, join(folder, outputs[0]!.path)]
}

/** The words that run `test/support/guest/NAME.ts` in the shared guest, which gets it when it is first asked for. */
export const pushedProgram = (lab: Lab, name: string): Promise<string[]> => {
  const words = pushed.get(name) ?? push(lab, name)
  pushed.set(name, words)
  return words
}
