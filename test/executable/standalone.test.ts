import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import manifest from '../../package.json' with { type: 'json' }
import { compile } from '../../scripts/build.ts'
import { isArch } from '../../scripts/native.ts'

const thisArch = isArch(process.arch) ? process.arch : 'x64'
const executable = resolve(import.meta.dir, '../../dist/vduse-net')

/** `command` in `cwd`, without any environment but the one given. */
const run = (command: readonly string[], cwd: string, env: Record<string, string> = {}) => {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command], {
    cwd,
    env: { PATH: process.env.PATH ?? '', ...env },
  })
  return { exitCode, stdout: stdout.toString(), stderr: stderr.toString() }
}

let folder = ''
beforeAll(() => {
  expect(existsSync(executable), 'run `npm run build` first').toBe(true)
  folder = mkdtempSync(join(tmpdir(), 'vduse-net-standalone-'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

describe('a compiled program', () => {
  test('has one native library for all its threads, in a memfd', async () => {
    const program = join(folder, 'program')
    await compile(resolve(import.meta.dir, '../support/compiled'), ['main.ts', 'fault-worker.ts'], thisArch, program)
    const { exitCode, stdout, stderr } = run([program], '/')
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
    expect(
      stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line)),
    ).toEqual([
      { slot: 0, hits: 1, seenFromMain: 1 },
      { slot: 1, hits: 1, seenFromMain: 1 },
      ['/memfd:vduse-net-native (deleted)'],
    ])
    rmSync(program)
  })
})

describe('the executable', () => {
  test('says its version from an empty folder', () => {
    const { exitCode, stdout, stderr } = run([executable, '--version'], folder)
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
    expect(stdout).toContain(manifest.version)
  })

  test('leaves nothing behind in the folder for temporary files', () => {
    const temporary = mkdtempSync(join(folder, 'tmp-'))
    for (const name of ['TMPDIR', 'BUN_TMPDIR']) {
      expect(run([executable, '--version'], folder, { [name]: temporary }).exitCode).toBe(0)
    }
    expect([...new Bun.Glob('**').scanSync({ cwd: temporary, dot: true })]).toEqual([])
  })

  test('takes nothing from the working directory', () => {
    writeFileSync(join(folder, 'bunfig.toml'), 'preload = ["./preload.ts"]\n')
    writeFileSync(join(folder, 'preload.ts'), 'console.log("taken from bunfig.toml")\n')
    writeFileSync(join(folder, '.env'), 'VDUSE_NET_MTU=taken from .env\n')
    const fromFile = run([executable, '--tap', 'vn-none', '--dry-run'], folder)
    expect(fromFile.stdout + fromFile.stderr).not.toContain('taken from')
    // The same setting is refused where it counts, so that the line above means something.
    const fromEnvironment = run([executable, '--tap', 'vn-none', '--dry-run'], folder, {
      VDUSE_NET_MTU: 'taken from .env',
    })
    expect(fromEnvironment.stderr).toContain('taken from .env')
    expect(fromEnvironment.exitCode).toBe(2)
  })

  const cannotIsolate =
    process.getuid?.() !== 0 ? 'not root' : Bun.which('unshare') === null ? 'no unshare (util-linux)' : null
  if (cannotIsolate !== null) console.warn(`skipped, the executable on a read-only root: ${cannotIsolate}`)

  test.skipIf(cannotIsolate !== null)('runs as nobody on a read-only root without a usable /tmp', () => {
    const script = [
      'mount --make-rprivate /',
      'mount -t tmpfs executable /mnt',
      'cp "$1" /mnt/vduse-net',
      'mount -o remount,ro /mnt',
      'for folder in /tmp /dev/shm /run; do mount -t tmpfs -o ro,noexec none $folder; done',
      'mount -o remount,bind,ro /',
      'cd /',
      'if touch /x 2>/dev/null; then echo "the root is not read-only"; exit 1; fi',
      'exec setpriv --reuid 65534 --regid 65534 --clear-groups /mnt/vduse-net --version',
    ].join(' && ')
    const { exitCode, stdout, stderr } = run(['unshare', '--mount', 'sh', '-c', script, 'sh', executable], '/')
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
    expect(stdout).toContain(manifest.version)
  })
})
