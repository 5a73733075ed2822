import { createHash } from 'node:crypto'
import { mkdir, mkdtemp, readFile, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { cacheRoot, exists } from './cache.ts'
import { progress, run } from './command.ts'

const SOURCE = join(import.meta.dir, 'guest/agent.zig')
const ZIG = join(import.meta.dir, '../../node_modules/.bin/zig')

/** The path of the compiled guest agent, a static executable without libc. Compiled once per version of its source. */
export const buildAgent = async (): Promise<string> => {
  const key = createHash('sha256')
    .update(await readFile(SOURCE))
    .digest('hex')
    .slice(0, 16)
  const path = join(cacheRoot(), 'agent', key)
  if (await exists(path)) return path
  await mkdir(join(cacheRoot(), 'agent'), { recursive: true })
  const temporary = await mkdtemp(join(cacheRoot(), 'agent/.tmp-'))
  try {
    progress('compiling the guest agent')
    // Zig's own caches go to the scratch folder too: nothing is left in the tree or the home directory.
    const caches = ['--cache-dir', join(temporary, 'local'), '--global-cache-dir', join(temporary, 'global')]
    const target = ['-target', 'x86_64-linux', '-OReleaseSafe', '-fstrip', '-fsingle-threaded']
    await run([ZIG, 'build-exe', SOURCE, ...target, ...caches, `-femit-bin=${join(temporary, 'agent')}`], {
      hint: 'run: npm ci',
    })
    await rename(join(temporary, 'agent'), path)
  } finally {
    await rm(temporary, { recursive: true, force: true })
  }
  return path
}
