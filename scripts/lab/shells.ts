/** Shells whose completion is tested, from Debian's packages: a machine need not have them. */
import { join } from 'node:path'
import { packageFolder } from './pinned.ts'

const SUITE = 'trixie'

/** Programs, and what they need of packages that are not libraries. */
const PACKAGES: readonly string[] = ['zsh', 'zsh-common', 'fish', 'fish-common']

/** A folder with the shells, their own functions and their libraries, each where Debian's package has it. */
export const fetchShells = (): Promise<string> =>
  packageFolder({
    name: 'shells',
    suite: SUITE,
    select: async (apt) =>
      (await apt.closure(['zsh', 'fish'])).filter(({ name }) => PACKAGES.includes(name) || name.startsWith('lib')),
    build: (apt, files, target) => apt.unpack(files, target),
  })

/** The words that run a shell of that folder. */
export const shellWords = (folder: string, shell: 'zsh' | 'fish'): string[] => [
  join(folder, 'usr/lib64/ld-linux-x86-64.so.2'),
  '--library-path',
  join(folder, 'usr/lib/x86_64-linux-gnu'),
  join(folder, 'usr/bin', shell),
]
