import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buildInfo } from '../../../src/base/build-info.ts'
import { UserError } from '../../../src/base/errors.ts'
import { formatUserError } from '../../../src/cli/command-line.ts'
import { settingKeys, settings } from '../../../src/cli/settings.ts'
import { TEST_MS } from '../../support/patience.ts'
import { goodFiles, read } from './fake-host.ts'

setDefaultTimeout(TEST_MS)

describe('help', () => {
  test('names every option with its group, examples, environment and exit codes', async () => {
    const { out, exitCode } = await read(['--help'])
    expect(exitCode).toBe(0)
    for (const key of settingKeys) expect(out).toContain(settings[key].flags[0] as string)
    for (const part of ['Network:', 'Device:', 'Observe:', 'Lifecycle:', 'Examples:', 'Environment:', 'Exit codes:'])
      expect(out).toContain(`\n${part}\n`)
    expect(out.replace(/\s+/g, ' ')).toContain('(default: virtio)')
  })

  test('fits 80 columns', async () => {
    const { out } = await read(['-h'])
    expect(out.split('\n').filter((line) => line.length > 80)).toEqual([])
  })

  test('and names the program as it was called', async () => {
    const { out } = await read(['-h'], { programName: 'dist/vduse-net' })
    expect(out).toContain('Usage: dist/vduse-net [run]')
    expect(out).toContain('  dist/vduse-net --tap tap0 --bridge br0          the same, tap0 in bridge br0\n')
    expect(out.split('\n').filter((line) => line.length > 80)).toEqual([])
    const long = await read(['-h'], { programName: '/opt/virtual machines/bin/vduse-net' })
    expect(long.out).toContain(
      '  # the same, tap0 in bridge br0\n  /opt/virtual machines/bin/vduse-net --tap tap0 --br',
    )
    const error = new UserError('no', 'see `vduse-net doctor`, vduse-net --help or the log of vduse-net', 2)
    expect(formatUserError(error, './vn')).toBe(
      'vduse-net: no\nhint: see `./vn doctor`, ./vn --help or the log of vduse-net\n',
    )
  })

  test('says which size of ring each transport has', async () => {
    const { out } = await read(['-h'])
    expect(out.replace(/\s+/g, ' ')).toContain('(default: 256 over VDUSE, 1024 over vhost-user)')
    for (const [words, size] of [
      [[], 256],
      [['-s', '/x'], 1024],
      [['--fd', '3'], 1024],
    ] as const)
      expect(JSON.parse((await read(['--tap', 't', ...words, '--print-config'])).out).queueSize).toBe(size)
  })

  test('is the same for run, and has its own for doctor', async () => {
    const { out } = await read(['-h'])
    expect((await read(['run', '--help'])).out).toBe(out)
    expect((await read(['help'])).out).toBe(out)
    const doctor = await read(['doctor', '--help'])
    expect(doctor.out).toContain('--json')
    expect(doctor.exitCode).toBe(0)
  })

  test('wins over what else is wrong', async () => {
    expect((await read(['--mtu', '5', '--help'])).exitCode).toBe(0)
  })
})

test('-V and --version print the version that was built', async () => {
  for (const flag of ['-V', '--version'])
    expect(await read([flag])).toMatchObject({ out: `${buildInfo.version}\n`, exitCode: 0 })
})

test('--print-config prints the configuration as JSON and runs nothing', async () => {
  const outcome = await read(['--tap', 'tap0', '--mtu', '9000', '--print-config'])
  expect(outcome).toMatchObject({ config: null, exitCode: 0 })
  expect(JSON.parse(outcome.out)).toMatchObject({ name: 'tap0', mtu: 9000, admin: { listen: { kind: 'unix' } } })
})

test('--print-config refuses what run would refuse', async () => {
  expect(await read(['--tap', 'tap0', '--mtu', '5', '--print-config'])).toMatchObject({ out: '', exitCode: 2 })
})

describe('--dry-run', () => {
  test('says what would be done, in the order in which it would be', async () => {
    const files = { ...goodFiles, '/sys/class/net/br0': '', '/sys/class/net/br0/bridge': '' }
    const words = ['--tap', 'tap0', '--bridge', 'br0', '--mtu', '9000', '--dry-run']
    const { out, exitCode, config } = await read(words, { files })
    expect(config).toBeNull()
    expect(exitCode).toBe(0)
    const steps = out.slice(out.indexOf('would:\n'))
    expect(steps).toMatch(
      /open TAP tap0.*\n.*9000\n.*br0\n.*\/dev\/vduse\/tap0: MAC .*\n.*tap0\.sock\n.*virtio_vdpa\n$/,
    )
  })

  test('--no-attach, --netns, --tap-fd, --features and --pid show up', async () => {
    const files = { ...goodFiles, '/proc/self/fdinfo/7': 'iff:\ttap7\n' }
    const one = await read(['--tap-fd', '7', '--no-attach', '--dry-run', '--admin', 'off', '--pid', 'p'], { files })
    expect(one.out).toContain('use TAP tap7, open as descriptor 7')
    expect(one.out).toContain('wait for: vdpa dev add name tap7 mgmtdev vduse')
    expect(one.out).toContain('write p')
    expect(one.out).not.toContain('admin API')
    const two = await read([
      '--tap',
      't',
      '--netns',
      'blue',
      '--features',
      '-csum,+in_order',
      '--bind',
      'none',
      '--dry-run',
    ])
    expect(two.out).toContain('open TAP t in network namespace blue')
    expect(two.out).toContain('require in_order')
    expect(two.out).toContain('not offer csum')
    expect(two.out).toContain('add t to the vDPA bus\n')
  })

  test('ends with the code of what the host lacks', async () => {
    const { '/sys/module/vduse': _, ...files } = goodFiles
    const machine = { files, nodes: { '/dev/vduse/control': 'ENOENT' } } as const
    expect((await read(['--tap', 'tap0', '--dry-run'], machine)).exitCode).toBe(66)
  })
})

describe('completion', () => {
  const run = (...words: string[]) => {
    const program = join(import.meta.dir, 'completion-program.ts')
    const { stdout, exitCode } = Bun.spawnSync([process.execPath, program, ...words])
    return { out: stdout.toString(), exitCode }
  }

  test.each(['bash', 'zsh', 'fish'])('prints a script for %s', (shell) => {
    const { out, exitCode } = run('completion', shell)
    expect(exitCode).toBe(0)
    expect(out).toContain('vduse-net')
    expect(out).toContain('complete')
  })

  /** Runs a script of bash in which `vduse-net` is the program, and its completion stands in `./completion`. */
  const inBash = (script: string): string => {
    const folder = mkdtempSync(join(tmpdir(), 'vduse-net-completion-'))
    try {
      writeFileSync(join(folder, 'completion'), run('completion', 'bash').out)
      const program = join(import.meta.dir, 'completion-program.ts')
      writeFileSync(join(folder, 'vduse-net'), `#!/bin/sh\nexec '${process.execPath}' '${program}' "$@"\n`, {
        mode: 0o755,
      })
      const env = { PATH: `${folder}:/usr/bin:/bin`, HOME: folder }
      const { stdout, stderr } = Bun.spawnSync(['bash', '--norc', '-c', script], { cwd: folder, env })
      return stderr.toString() + stdout.toString()
    } finally {
      rmSync(folder, { recursive: true })
    }
  }

  test('in bash, without bash-completion, sourced twice; what is typed is not evaluated', () => {
    const script = `
      . ./completion; . ./completion; set -u
      t() { COMP_LINE=$1 COMP_POINT=\${#1}; COMPREPLY=(); _vduse_net; echo "$1: \${COMPREPLY[*]-}"; }
      t 'vduse-net --bind v'; t 'vduse-net --bind=v'; t './vduse-net --bind '; t 'vduse-net doct'
      t 'vduse-net --tap $(touch evaluated) --bind n'; ls evaluated 2> /dev/null; complete -p vduse-net`
    expect(inBash(script).split('\n')).toEqual([
      'vduse-net --bind v: virtio vhost',
      'vduse-net --bind=v: virtio vhost',
      './vduse-net --bind : virtio vhost none',
      'vduse-net doct: doctor',
      'vduse-net --tap $(touch evaluated) --bind n: none',
      'complete -o default -F _vduse_net vduse-net',
      '',
    ])
  })

  test('completes options and the values of those that have a few', () => {
    expect(run('complete', '--', '--queue').out).toStartWith('--queue-size\t')
    expect(run('complete', '--', '--bind', 'v').out).toBe('virtio\t\nvhost\t\n:4\n')
    expect(run('complete', '--', 'run', '--log-level', '').out).toContain('debug\t\n')
    expect(run('complete', '--', '--tap', 'l').out).toContain('lo\t\n')
    expect(run('complete', '--', 'do').out).toStartWith('doctor\t')
  })
})

test('a variable that looks like ours and is not is told, whatever is asked for', async () => {
  const env = { VDUSE_NET_MTUU: '9000', VDUSE_NET_NOTHING_LIKE_ANY: '1', VDUSE_NET_NAME: 'net0' }
  for (const words of [['doctor'], ['--tap', 't', '--print-config'], ['--tap', 't', '--dry-run'], ['--tap', 't']])
    expect((await read(words, { env })).warnings).toEqual([
      'VDUSE_NET_MTUU: unknown variable, ignored; did you mean VDUSE_NET_MTU?',
      'VDUSE_NET_NOTHING_LIKE_ANY: unknown variable, ignored',
    ])
})
