/** Completion in zsh and fish, by the executable: what `completion SHELL` prints is sourced in the shell itself. */
import { beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { fetchShells, shellWords } from '../../scripts/lab/shells.ts'
import { TEST_MS } from '../support/patience.ts'

setDefaultTimeout(TEST_MS)

const executable = resolve(import.meta.dir, '../../dist/vduse-net')

// The packages are Debian's for x86-64.
describe.skipIf(process.arch !== 'x64')('completion', () => {
  let shells: string

  beforeAll(async () => {
    shells = await fetchShells()
  }, TEST_MS)

  /**
   * What a script says in a shell that finds the program on its PATH, and the completion of that shell in
   * `./completion`.
   */
  const inShell = (shell: 'zsh' | 'fish', ...args: string[]): string => {
    const folder = mkdtempSync(join(tmpdir(), 'vduse-net-completion-'))
    try {
      symlinkSync(executable, join(folder, 'vduse-net'))
      writeFileSync(join(folder, 'completion'), Bun.spawnSync([executable, 'completion', shell]).stdout)
      const env = { PATH: `${folder}:/usr/bin:/bin`, HOME: folder }
      const { stdout, stderr } = Bun.spawnSync([...shellWords(shells, shell), ...args], { cwd: folder, env })
      return stderr.toString() + stdout.toString()
    } finally {
      rmSync(folder, { recursive: true })
    }
  }

  test('in zsh, whose completion has not been set up, sourced twice; what is typed is not evaluated', () => {
    const script = `
      module_path=(${shells}/usr/lib/x86_64-linux-gnu/zsh/*)
      fpath=(${shells}/usr/share/zsh/functions/**/*(/N))
      source ./completion; source ./completion
      _describe() { print -rl -- "$values[@]" }
      _files() { print files }
      words=(vduse-net --bind v) CURRENT=3; _vduse-net
      words=(vduse-net --tap '$(touch evaluated)' --pid x) CURRENT=5; _vduse-net
      ls evaluated 2> /dev/null; print $_comps[vduse-net]`
    expect(inShell('zsh', '-f', '-c', script).split('\n')).toEqual(['virtio:', 'vhost:', 'files', '_vduse-net', ''])
  })

  test('in fish, sourced twice', () => {
    const script = `source ./completion; source ./completion
      complete -C 'vduse-net --bind v'; complete -C 'vduse-net doct'`
    expect(inShell('fish', '--no-config', '-c', script)).toMatch(/^vhost\nvirtio\ndoctor\tsay what [^\n]+\n$/)
  })
})
