import { describe, expect, test } from 'bun:test'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { temporaryFolder } from '../../../scripts/lab/temporary.ts'

const setup = resolve(import.meta.dir, '../../../scripts/setup.mjs')
const node = Bun.which('node')!
const ALL = 'debian-archive-keyring iproute2 util-linux xz-utils'

/** A user of this machine who is not root: in a user namespace, where the tests themselves are run by root. */
const OTHER_USER = process.getuid!() === 0 ? [Bun.which('unshare')!, '--user', '--map-user=1000'] : []
const noOtherUser = OTHER_USER.length > 0 && !Bun.spawnSync([...OTHER_USER, '/bin/true']).success

/** Runs setup where only these programs are there: name -> shell script. Nothing of Debian's is installed. */
const run = (by: readonly string[], programs: Record<string, string>) => {
  using folder = temporaryFolder(tmpdir(), 'vduse-net-test-setup-')
  const calls = join(folder.path, 'calls')
  for (const [name, script] of Object.entries({ 'dpkg-query': 'exit 1', ...programs })) {
    const text = `#!/bin/sh\n[ ${name} = dpkg-query ] || echo "${name} $*" >> ${calls}\n${script}\n`
    writeFileSync(join(folder.path, name), text, { mode: 0o755 })
  }
  const child = Bun.spawnSync([...by, node, setup, 'lab', 'frontends'], { env: { PATH: folder.path } })
  const called = existsSync(calls) ? readFileSync(calls, 'utf8').trim().split('\n') : []
  return { code: child.exitCode, said: child.stdout.toString() + child.stderr.toString(), called }
}

test('who has no space left is not sent to look for the registry', () => {
  const { npmHint } = require(setup) as { npmHint: (output: string) => string }
  expect(npmHint("npm ERR!   code: 'ENOSPC'\n")).toContain('the disk is full')
  expect(npmHint('npm ERR! code ENOTFOUND\n')).toContain('registry')
})

describe.skipIf(noOtherUser)('a user who may not install packages', () => {
  test('is told all that is missing in one line, and a command that is there', () => {
    const { code, said, called } = run(OTHER_USER, {})
    expect(code).toBe(1)
    expect(said).toStartWith(`setup: missing Debian packages: ${ALL}\nrun as root:\n`)
    expect(said).toContain(`  apt-get install --no-install-recommends \\\n    ${ALL}\n`)
    expect(said).not.toContain('sudo')
    expect(called).toEqual([])
  })

  test('is told to use sudo where that is there, but wants a password', () => {
    const { code, said, called } = run(OTHER_USER, { sudo: 'exit 1' })
    expect(code).toBe(1)
    expect(said).toContain('  sudo apt-get install ')
    expect(called).toEqual(['sudo -n true'])
  })
})

describe.skipIf(process.getuid!() !== 0)('root', () => {
  test('gets all packages by one call, without the words of apt', () => {
    const { code, said, called } = run([], { 'apt-get': 'echo "Reading package lists..."' })
    expect(code).toBe(0)
    expect(said).toBe(`setup: installing Debian packages: ${ALL}\n`)
    expect(called).toEqual([`apt-get install --yes --no-install-recommends ${ALL}`])
  })

  test('reads the words of apt when it fails, after it has tried newer package lists', () => {
    const { code, said, called } = run([], { 'apt-get': 'echo "E: Unable to locate package"; exit 100' })
    expect(code).toBe(1)
    expect(said).toContain('E: Unable to locate package')
    expect(said).toContain(`setup: could not install ${ALL}; apt-get says why above`)
    expect(called.map((call) => call.split(' ')[1])).toEqual(['install', 'update', 'install'])
  })
})
