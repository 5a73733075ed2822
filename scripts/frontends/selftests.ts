/** Linux's own selftests of network cards, compiled from Debian's source of the kernel. */
import { copyFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { progress, run } from '../lab/command.ts'
import { packageFolder } from '../lab/pinned.ts'
import { temporaryFolder } from '../lab/temporary.ts'
import { zigPath } from '../native.ts'

const SOURCE = 'linux-source-6.12'

/** The programs, each under tools/testing/selftests/net. */
const PROGRAMS = { csum: 'lib/csum.c', gro: 'gro.c', udpgso: 'udpgso.c' } as const

/** A folder with the programs `csum`, `gro` and `udpgso`, which run on any Linux of Debian. */
export const fetchSelftests = (): Promise<string> =>
  packageFolder({
    name: 'linux-selftests',
    suite: 'trixie',
    select: async (apt) => (await apt.closure([SOURCE])).filter(({ name }) => name === SOURCE),
    build: async (apt, files, target) => {
      using scratch = temporaryFolder(tmpdir(), 'vduse-net-selftests-')
      await apt.unpack(files, scratch.path)
      progress("taking Linux's selftests out of its source")
      const selftests = `${SOURCE}/tools/testing/selftests`
      const wanted = [`${selftests}/net/*`, `${selftests}/*.h`]
      const archive = join(scratch.path, 'usr/src', `${SOURCE}.tar.xz`)
      await run(['tar', '-xf', archive, '-C', scratch.path, '--wildcards', ...wanted])
      const folder = join(scratch.path, selftests, 'net')
      const env = { ZIG_LOCAL_CACHE_DIR: join(scratch.path, 'zig'), ZIG_GLOBAL_CACHE_DIR: join(scratch.path, 'zig') }
      for (const [name, source] of Object.entries(PROGRAMS)) {
        const output = join(scratch.path, name)
        const flags = ['-target', 'x86_64-linux-gnu.2.28', '-O2', '-D_GNU_SOURCE', `-I${join(folder, '..')}`]
        await run([zigPath(), 'cc', ...flags, '-o', output, join(folder, source)], { env, hint: 'run: npm ci' })
        await copyFile(output, join(target, name))
      }
    },
  })
