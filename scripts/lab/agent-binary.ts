import { createHash } from 'node:crypto'
import { copyFile, readFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { cacheRoot, folderOnce } from './cache.ts'
import { progress, run } from './command.ts'
import { temporaryFolder } from './temporary.ts'

const SOURCE = join(import.meta.dir, 'guest/agent.zig')
const ZIG = join(import.meta.dir, '../../node_modules/.bin/zig')

/** The path of the compiled guest agent, a static executable without libc. Compiled once per version of its source. */
export const buildAgent = async (): Promise<string> => {
  const key = createHash('sha256')
    .update(await readFile(SOURCE))
    .digest('hex')
    .slice(0, 16)
  const folder = await folderOnce(join(cacheRoot(), 'guest-agent', key), async (target) => {
    progress('compiling the guest agent')
    // Zig's own caches go to a scratch folder: nothing is left in the tree or the home directory.
    using scratch = temporaryFolder(tmpdir(), 'vduse-net-zig-')
    const caches = ['--cache-dir', join(scratch.path, 'local'), '--global-cache-dir', join(scratch.path, 'global')]
    const options = ['-target', 'x86_64-linux', '-OReleaseSafe', '-fstrip', '-fsingle-threaded']
    const output = join(scratch.path, 'agent')
    await run([ZIG, 'build-exe', SOURCE, ...options, ...caches, `-femit-bin=${output}`], { hint: 'run: npm ci' })
    await copyFile(output, join(target, 'agent'))
  })
  return join(folder, 'agent')
}
