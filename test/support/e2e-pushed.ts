import { join, resolve } from 'node:path'
import type { Lab } from './e2e-lab.ts'

const GUEST = resolve(import.meta.dir, 'guest')

const pushed = new Map<string, Promise<string>>()

const push = async (lab: Lab, name: string): Promise<string> => {
  const { outputs } = await Bun.build({ entrypoints: [join(GUEST, `${name}.ts`)], target: 'bun' })
  const path = `/usr/lib/e2e-${name}.js`
  await lab.push(await outputs[0]!.text(), path)
  return path
}

/** The words that run `test/support/guest/NAME.ts` in the shared guest, which gets it when it is first asked for. */
export const pushedProgram = async (lab: Lab, name: string): Promise<string[]> => {
  const path = pushed.get(name) ?? push(lab, name)
  pushed.set(name, path)
  return ['bun', await path]
}
