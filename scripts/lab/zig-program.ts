import { createHash } from 'node:crypto'
import { copyFile, readFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { zigPath } from '../native.ts'
import { patiently } from '../patience.ts'
import { cacheRoot, folderOnce } from './cache.ts'
import { progress, run } from './command.ts'
import { temporaryFolder } from './temporary.ts'

/** How {@link buildZigProgram} compiles. */
export interface ZigProgramOptions {
  /** Says what is compiled, and names its folder in the cache. */
  name: string
  /** Options of `zig build-exe`. */
  flags: readonly string[]
  /** Further source files that it is made of. */
  imports?: readonly string[]
}

/** The path of the executable made of a Zig source file. Compiled once per version of its sources and options. */
export const buildZigProgram = async (source: string, options: ZigProgramOptions): Promise<string> => {
  const program = basename(source, '.zig')
  const hash = createHash('sha256').update(options.flags.join('\0'))
  for (const file of [source, ...(options.imports ?? [])]) hash.update(await readFile(file))
  const key = hash.digest('hex').slice(0, 16)
  const folder = await folderOnce(join(cacheRoot(), options.name.replaceAll(' ', '-'), key), async (target) => {
    progress(`compiling the ${options.name}`)
    // Zig keeps what it compiles of a C library: most of the time that the first program takes, and little of the next.
    const zig = join(cacheRoot(), 'zig')
    const caches = ['--cache-dir', zig, '--global-cache-dir', zig]
    using scratch = temporaryFolder(tmpdir(), 'vduse-net-zig-')
    const output = join(scratch.path, program)
    const words = [zigPath(), 'build-exe', source, ...options.flags, ...caches, `-femit-bin=${output}`]
    await patiently(`lab: compiling the ${options.name}`, run(words, { hint: 'run: npm ci' }))
    await copyFile(output, join(target, program))
  })
  return join(folder, program)
}
