import { beforeAll, describe, expect, test } from 'bun:test'
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'

const executable = resolve(import.meta.dir, '../../dist/vduse-net')
/** Of a TAP that nobody has. */
const TAP = `vn-e${process.pid % 100_000}`

const run = (...words: string[]) => {
  const { exitCode, stdout, stderr } = Bun.spawnSync([executable, ...words], { cwd: '/', env: {} })
  return { exitCode, stdout: stdout.toString(), stderr: stderr.toString() }
}

const entries = (folder: string): string[] => (existsSync(folder) ? readdirSync(folder).sort() : [])

/** What a start could leave behind on this machine. */
const traces = (): unknown => [entries('/sys/class/net'), entries('/dev/vduse'), entries('/run/vduse-net')]

beforeAll(() => expect(existsSync(executable), 'run `npm run build` first').toBe(true))

describe('the executable says', () => {
  test('what it understands (--help), and nothing on stderr', () => {
    const { exitCode, stdout, stderr } = run('--help')
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
    for (const word of ['--tap', '--bind', '--socket-path', '--no-vnet-hdr', 'doctor', 'VDUSE_NET_', 'Exit codes']) {
      expect(stdout).toContain(word)
    }
  })

  test('what it would be configured to (--print-config), as JSON', () => {
    const { exitCode, stdout } = run('--tap', TAP, '--mtu', '9000', '--mac', '02:00:5E:10:00:01', '--print-config')
    expect(exitCode).toBe(0)
    expect(JSON.parse(stdout)).toMatchObject({ name: TAP, mtu: 9000, mac: '02:00:5e:10:00:01', bind: 'virtio' })
  })

  test('what it would do (--dry-run), and does nothing of it', () => {
    const before = traces()
    const { stdout } = run('--tap', TAP, '--dry-run')
    expect(stdout).toContain(`open TAP ${TAP}, create it if there is none`)
    expect(stdout).toContain(`create /dev/vduse/${TAP}`)
    expect(traces()).toEqual(before)
  })

  test('what is wrong with a flag in two lines, with exit code 2', () => {
    const { exitCode, stdout, stderr } = run('--tap', TAP, '--mtu', '5')
    expect({ exitCode, stdout }).toEqual({ exitCode: 2, stdout: '' })
    expect(stderr).toMatch(/^vduse-net: --mtu 5: not in 68\.\.65535\nhint: [^\n]+\n$/)
  })

  test('what it lacks where it has too little address space, in two lines', () => {
    const { exitCode, stderr } = Bun.spawnSync([
      'sh',
      '-c',
      'ulimit -v 1500000 && exec "$1" --version',
      'sh',
      executable,
    ])
    expect(exitCode).toBe(1)
    expect(stderr.toString()).toMatch(
      /^vduse-net: the native library cannot be loaded: [^\n]+\nhint: [^\n]*ulimit -v[^\n]*\n$/,
    )
  })

  test('its output to a reader that has gone, without a failure', () => {
    const { exitCode, stderr } = Bun.spawnSync(['sh', '-c', '"$1" --help | true', 'sh', executable], {
      env: process.env,
    })
    expect({ exitCode, stderr: stderr.toString() }).toEqual({ exitCode: 0, stderr: '' })
  })
})

describe('the executable without VDUSE', () => {
  const hasVduse = existsSync('/dev/vduse/control')
  if (hasVduse) console.warn('skipped, the executable without VDUSE: this machine has the module vduse loaded')

  test.skipIf(hasVduse)('ends with exit code 66, says what to do, and leaves nothing', () => {
    const folder = mkdtempSync(join(tmpdir(), 'vduse-net-command-line-'))
    const before = traces()
    const pid = join(folder, 'pid')
    const { exitCode, stdout, stderr } = run('--tap', TAP, '--admin', `unix:${folder}/admin.sock`, '--pid', pid)
    expect({ exitCode, stdout }).toEqual({ exitCode: 66, stdout: '' })
    expect(stderr).toContain('the kernel module vduse is not loaded')
    expect(stderr).toContain('hint: run: modprobe vduse')
    expect(traces()).toEqual(before)
    expect(readdirSync(folder)).toEqual([])
    rmSync(folder, { recursive: true })
  })

  test.skipIf(hasVduse)('doctor and --dry-run end with the same code', () => {
    for (const words of [
      ['doctor', '--for', 'vduse'],
      ['--tap', TAP, '--dry-run'],
    ]) {
      const { exitCode, stdout } = run(...words)
      expect(exitCode).toBe(66)
      expect(stdout).toMatch(/^fail +vduse module +not loaded\n +fix: modprobe vduse/m)
    }
  })
})
