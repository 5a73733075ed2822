import { describe, expect, test } from 'bun:test'
import type { Check } from '../../../src/cli/doctor.ts'
import { goodFiles, type Machine, read, unwrapped } from './fake-host.ts'

/** A good host without some files, and with others. */
const host = (without: readonly string[], others: Readonly<Record<string, string>> = {}): Machine => ({
  files: { ...Object.fromEntries(Object.entries(goodFiles).filter(([path]) => !without.includes(path))), ...others },
})

const examine = async (machine: Machine, ...words: string[]) => {
  const { out, exitCode, message } = await read(['doctor', '--for', 'vduse', '--json', ...words], machine)
  expect(message).toBe('')
  const { ok, checks } = JSON.parse(out) as { ok: boolean; checks: Check[] }
  expect(ok).toBe(exitCode === 0)
  const check = (name: string): Check => {
    const found = checks.find((one) => one.name === name)
    if (found === undefined) throw new Error(`no check of ${name} in ${out}`)
    return found
  }
  return { exitCode, checks, check }
}

test('a good host passes everything, with no fix to make', async () => {
  const { exitCode, checks } = await examine({}, '--tap', 'tap0')
  expect(exitCode).toBe(0)
  expect(checks.map(({ name, verdict, fix }) => [name, verdict, fix])).toEqual([
    ['vduse module', 'ok', null],
    ['/dev/vduse/control', 'ok', null],
    ['VDUSE control queue', 'ok', null],
    ['virtio_vdpa module', 'ok', null],
    ['virtio_net driver', 'ok', null],
    ['vhost_vdpa module', 'ok', null],
    ['CAP_NET_ADMIN', 'ok', null],
    ['user namespace', 'ok', null],
    ['network namespace', 'ok', null],
    ['/dev/net/tun', 'ok', null],
    ['TAP tap0', 'ok', null],
  ])
})

test('for a person each fix stands below its check', async () => {
  const { out } = await read(['doctor', '--for', 'vduse'], { ...host([]), nodes: { '/dev/net/tun': 'ENOENT' } })
  expect(out).toMatch(/^ok {4}vduse module +loaded\n/)
  expect(out).toMatch(/\nfail {2}\/dev\/net\/tun +open: ENOENT\n {6}fix: modprobe tun; .*\n$/)
})

test('no line is wider than a terminal, whatever the host lacks', async () => {
  const nodes = { '/dev/vduse/control': 'EACCES', '/dev/net/tun': 'EACCES' } as const
  const modules = { '/lib/modules/6.1.0-test/modules.dep': '' }
  for (const files of [{}, modules, { ...modules, '/proc/self/status': 'CapEff:\t0000000000000000\n' }]) {
    for (const words of [
      ['doctor'],
      ['--tap', 'tap0', '--dry-run'],
      ['--tap', 'tap0', '-s', '/nosuch/x', '--dry-run'],
    ]) {
      const { out } = await read(words, { files, nodes, steering: 'EPERM', env: { VDUSE_NET_QUEUE_PAIRS: '1' } })
      expect(out).toContain('fix: ')
      expect(out.split('\n').filter((line) => line.length > 80)).toEqual([])
    }
  }
})

describe('what stops a card', () => {
  const noVduse = ['/sys/module/vduse']
  const modules = '/lib/modules/6.1.0-test/modules.dep'
  const failures: readonly (readonly [
    what: string,
    machine: Machine,
    name: string,
    found: string,
    fix: string,
    code: number,
  ])[] = [
    [
      'vduse not loaded',
      host(noVduse, { [modules]: 'kernel/drivers/vdpa/vdpa_user/vduse.ko.xz: kernel/drivers/vdpa/vdpa.ko.xz\n' }),
      'vduse module',
      'not loaded',
      'modprobe vduse',
      66,
    ],
    [
      'a kernel without vduse',
      host(noVduse, { [modules]: 'kernel/drivers/net/tun.ko:\n' }),
      'vduse module',
      'not loaded',
      'this kernel (6.1.0-test) has no vduse: use one with CONFIG_VDPA_USER',
      66,
    ],
    ['the modules out of sight', host(noVduse), 'vduse module', 'not loaded', 'modprobe vduse on the host', 66],
    [
      'no control node',
      { nodes: { '/dev/vduse/control': 'ENOENT' } },
      '/dev/vduse/control',
      'open: ENOENT',
      '--device /dev/vduse/control',
      66,
    ],
    [
      'a control node of others',
      { nodes: { '/dev/vduse/control': 'EACCES' } },
      '/dev/vduse/control',
      'open: EACCES',
      'udev rule',
      77,
    ],
    [
      'a device cgroup',
      { nodes: { '/dev/vduse/control': 'EPERM' } },
      '/dev/vduse/control',
      'open: EPERM',
      'run as root',
      77,
    ],
    [
      'VDUSE without network devices',
      { controlQueue: 'no network devices' },
      'VDUSE control queue',
      'refuses all network devices',
      'Linux 6.10',
      66,
    ],
    ['no TUN node', { nodes: { '/dev/net/tun': 'ENOENT' } }, '/dev/net/tun', 'open: ENOENT', 'modprobe tun', 66],
    ['a dead TUN node', { nodes: { '/dev/net/tun': 'ENODEV' } }, '/dev/net/tun', 'open: ENODEV', 'modprobe tun', 66],
    ['a closed TUN node', { nodes: { '/dev/net/tun': 'EACCES' } }, '/dev/net/tun', 'open: EACCES', 'chmod 0666', 77],
    [
      'no capability',
      host([], { '/proc/self/status': 'CapPrm:\t000001ffffffffff\nCapEff:\t000001ffffffefff\n' }),
      'CAP_NET_ADMIN',
      'not in the effective set',
      'AmbientCapabilities=CAP_NET_ADMIN',
      77,
    ],
    [
      'a user namespace',
      host([], { '/proc/self/uid_map': '         0       1000          1\n' }),
      'user namespace',
      'not the initial one',
      'outside rootless containers',
      77,
    ],
    [
      'a network namespace',
      host(['/proc/sys/net/core/netdev_budget']),
      'network namespace',
      'cannot be seen',
      '--network host',
      77,
    ],
  ]

  test.each(failures)('%s', async (_, machine, name, found, fix, code) => {
    const { exitCode, check } = await examine(machine)
    expect(check(name)).toMatchObject({ verdict: 'fail' })
    expect(check(name).found).toContain(found)
    expect(check(name).fix).toContain(fix)
    expect(exitCode).toBe(code)
  })

  test('the first one that fails gives the code', async () => {
    const machine = {
      ...failures[0]?.[1],
      nodes: { '/dev/vduse/control': 'ENOENT', '/dev/net/tun': 'EACCES' },
    } as const
    expect((await examine(machine)).exitCode).toBe(66)
  })

  test('a module built into the kernel has its node, if not its folder', async () => {
    expect((await examine(host(noVduse, { '/dev/vduse/control': '' }))).exitCode).toBe(0)
  })
})

describe('what only costs something', () => {
  const warnings: readonly (readonly [what: string, machine: Machine, name: string, found: string, fix: string])[] = [
    ['no status to read', host(['/proc/self/status']), 'CAP_NET_ADMIN', 'unknown', 'mount /proc'],
    [
      'no virtio_net',
      host(['/sys/bus/virtio/drivers/virtio_net']),
      'virtio_net driver',
      'not loaded',
      'modprobe virtio_net',
    ],
    ['no virtio_vdpa', host(['/sys/module/virtio_vdpa']), 'virtio_vdpa module', 'not loaded', 'modprobe virtio_vdpa'],
    ['no vhost_vdpa', host(['/sys/module/vhost_vdpa']), 'vhost_vdpa module', 'not loaded', 'modprobe vhost_vdpa'],
  ]

  test.each(warnings)('%s', async (_, machine, name, found, fix) => {
    const { exitCode, check } = await examine(machine)
    expect(check(name).verdict).toBe('warn')
    expect(check(name).found).toContain(found)
    expect(check(name).fix).toContain(fix)
    expect(exitCode).toBe(0)
  })
})

describe('the control queue over VDUSE', () => {
  const checked = async (machine: Machine) => (await examine(machine)).check('VDUSE control queue')

  test('its absence, and its being unused, mean one queue pair', async () => {
    expect(await checked({ controlQueue: 'refused' })).toMatchObject({
      verdict: 'ok',
      found: expect.stringMatching(/^refused .*one queue pair$/),
    })
    expect(await checked({ controlQueue: 'accepted' })).toMatchObject({
      verdict: 'ok',
      found: expect.stringMatching(/not used .*one queue pair$/),
    })
  })

  test('stops a card that is to have several', async () => {
    const machine: Machine = { controlQueue: 'refused', env: { VDUSE_NET_QUEUE_PAIRS: '4' } }
    const { exitCode, check } = await examine(machine)
    expect(exitCode).toBe(2)
    expect(check('VDUSE control queue')).toMatchObject({
      verdict: 'fail',
      fix: expect.stringContaining('--socket-path'),
    })
  })

  test('is not spoken of where the kernel cannot be asked', async () => {
    const { checks } = await examine({ controlQueue: null })
    expect(checks.map(({ name }) => name)).not.toContain('VDUSE control queue')
  })
})

describe('--bind and --no-attach decide what must be there', () => {
  const dryRun = async (machine: Machine, ...words: string[]) => {
    const { out, exitCode } = await read(['--tap', 'tap0', '--dry-run', ...words], machine)
    return { exitCode, names: [...out.matchAll(/^(?:ok|warn|fail) +(.+?) {2}/gm)].map(([, name]) => name) }
  }

  test('the chosen bus driver must be there, the other is not looked at', async () => {
    const virtio = await dryRun(host(['/sys/module/virtio_vdpa']))
    expect(virtio.exitCode).toBe(66)
    expect(virtio.names).not.toContain('vhost_vdpa module')
    const vhost = await dryRun(host(['/sys/module/vhost_vdpa']), '--bind', 'vhost')
    expect(vhost.exitCode).toBe(66)
    expect(vhost.names).not.toContain('virtio_vdpa module')
    expect(vhost.names).not.toContain('virtio_net driver')
    const none = await dryRun(host(['/sys/module/virtio_vdpa', '/sys/module/vhost_vdpa']), '--bind', 'none')
    expect(none.exitCode).toBe(0)
  })

  test('who does not attach is not told to leave it, but where to do it', async () => {
    const words = ['--tap', 'tap0', '--no-attach', '--dry-run']
    const { out } = await read(words, host(['/proc/sys/net/core/netdev_budget']))
    expect(unwrapped(out)).toMatch(/^warn {2}network namespace .*\n +fix: .*vdpa dev add.*$/m)
    expect(out).not.toMatch(/fix: .*--no-attach/)
  })

  test('without attaching, the network namespace does not matter', async () => {
    const machine = host(['/proc/sys/net/core/netdev_budget'])
    expect((await dryRun(machine)).exitCode).toBe(77)
    expect((await dryRun(machine, '--no-attach')).exitCode).toBe(0)
  })
})

describe('a card over vhost-user', () => {
  const bare = host(['/sys/module/vduse', '/sys/module/virtio_vdpa', '/proc/sys/net/core/netdev_budget'], {
    '/proc/self/status': 'CapEff:\t0000000000000000\n',
    '/proc/self/uid_map': '0 1000 1\n',
  })
  const machine: Machine = { ...bare, nodes: { '/dev/vduse/control': 'ENOENT' } }

  test.each([
    ['--dry-run', () => read(['--tap', 'tap0', '--socket-path', '/x.sock', '--dry-run'], machine)],
    ['doctor', () => read(['doctor'], { ...machine, env: { VDUSE_NET_SOCKET_PATH: '/x.sock' } })],
  ])('needs nothing of VDUSE, says %s, and no right but to the TAP', async (_, ask) => {
    const { out, exitCode } = await ask()
    expect(exitCode).toBe(0)
    expect(out).not.toContain('vduse module')
    expect(unwrapped(out)).toMatch(/^warn {2}CAP_NET_ADMIN .*\n +fix: .*only a TAP of this user will do$/m)
  })

  test('still needs a TUN device', async () => {
    const words = ['--tap', 'tap0', '--socket-path', '/x.sock', '--dry-run']
    expect((await read(words, { ...machine, nodes: { '/dev/net/tun': 'ENOENT' } })).exitCode).toBe(66)
  })
})

describe('several queue pairs over vhost-user', () => {
  const one = ['--tap', 'tap0', '--socket-path', '/x.sock', '--dry-run']
  const two = [...one, '--queue-pairs', '2']

  test('can have receive-side scaling where an eBPF program can be loaded', async () => {
    expect((await read(two)).out).toMatch(/^ok +eBPF +works/m)
  })

  test.each([
    ['without the capability', 'EPERM', 'CAP_BPF'],
    ['in a kernel without bpf', 'ENOSYS', 'CONFIG_BPF_SYSCALL'],
  ] as const)('do without it %s', async (_, steering, fix) => {
    const { exitCode, out } = await read(two, { steering })
    expect(unwrapped(out)).toMatch(new RegExp(`^warn +eBPF +bpf: ${steering}\n +fix: .*${fix}.*not offered$`, 'm'))
    expect(exitCode).toBe(0)
  })

  test('one pair, and VDUSE, do not ask', async () => {
    for (const words of [one, ['doctor']]) expect((await read(words, { steering: 'EPERM' })).out).not.toContain('eBPF')
  })
})

describe('the TAP', () => {
  const withTap = (flags: string | null): Machine =>
    host([], {
      '/sys/class/net/tap0': '',
      ...(flags === null ? {} : { '/sys/class/net/tap0/tun_flags': `${flags}\n` }),
    })

  test.each([
    ['no TAP at all', null, 'is no TAP', 'choose another name'],
    ['a TUN', '0x5001', 'no Ethernet header', 'ip link del tap0'],
    ['multi-queue', '0x5102', 'created with IFF_MULTI_QUEUE', 'ip link del tap0'],
  ] as const)('%s is told by the flag that differs', async (_, flags, found, fix) => {
    const { exitCode, check } = await examine(withTap(flags), '--tap', 'tap0')
    expect(check('TAP tap0').found).toContain(found)
    expect(check('TAP tap0').fix).toContain(fix)
    expect(exitCode).toBe(1)
  })

  test('one that fits, persistent or not, whatever header it was made with', async () => {
    for (const flags of ['0x5002', '0x5802', '0x1802', '0x4802', '0x802'])
      expect((await examine(withTap(flags), '--tap', 'tap0')).check('TAP tap0').found).toBe('a TAP that fits')
  })

  test('several queue pairs turn it round', async () => {
    const words = ['--tap', 'tap0', '--socket-path', '/x.sock', '--queue-pairs', '2', '--dry-run']
    expect((await read(words, withTap('0x5102'))).exitCode).toBe(0)
    const outcome = await read(words, withTap('0x5002'))
    expect(outcome.exitCode).toBe(1)
    expect(outcome.out).toContain('created without IFF_MULTI_QUEUE')
  })

  test('in another namespace it is not looked at', async () => {
    const machine = host([], { '/run/netns/blue': '' })
    const { out, exitCode } = await read(['--tap', 'tap0', '--netns', 'blue', '--dry-run'], machine)
    expect(exitCode).toBe(0)
    expect(out).toContain('not looked at: it is in network namespace blue')
  })

  test('a name that cannot be is refused before it becomes a path', async () => {
    expect(await read(['doctor', '--tap', '../../etc'])).toMatchObject({ exitCode: 2, out: '' })
  })
})

describe('doctor judges each transport', () => {
  const noVduse: Machine = { ...host(['/sys/module/vduse']), nodes: { '/dev/vduse/control': 'ENOENT' } }
  const unprivileged = { '/proc/self/status': 'CapEff:\t0000000000000000\n' }

  test('and ends with 0 if one of them works: over vhost-user where there is no VDUSE', async () => {
    const { out, exitCode } = await read(['doctor'], noVduse)
    expect(exitCode).toBe(0)
    expect(out).toMatch(/^for any card\nok .*\/dev\/net\/tun/)
    expect(out).toMatch(/\nover VDUSE, [^\n]+\nfail +vduse module +not loaded\n/)
    expect(out).toMatch(/\nover vhost-user, [^\n]+\nok +CAP_NET_ADMIN/)
    expect(out).toEndWith(
      '\nno     over VDUSE, for this kernel or a VM (vDPA): vduse module: not loaded\n' +
        'works  over vhost-user, for QEMU, DPDK or UML (--socket-path PATH)\n',
    )
  })

  test('with the code of what is missing if none does', async () => {
    expect(await read(['doctor'], { ...noVduse, nodes: { '/dev/net/tun': 'EACCES' } })).toMatchObject({ exitCode: 66 })
    expect(await read(['doctor'], { nodes: { '/dev/net/tun': 'EACCES' } })).toMatchObject({ exitCode: 77 })
  })

  test.each([
    [{}, { vduse: true, 'vhost-user': true }],
    [noVduse, { vduse: false, 'vhost-user': true }],
    [host([], unprivileged), { vduse: false, 'vhost-user': true }],
    [{ nodes: { '/dev/net/tun': 'ENOENT' } } as const, { vduse: false, 'vhost-user': false }],
  ] as const)('as JSON, too: %#', async (machine, works) => {
    const { out } = await read(['doctor', '--json'], machine)
    expect(JSON.parse(out).works).toEqual(works)
  })

  test('only that one which is asked for, by --for or by what the environment sets', async () => {
    for (const [words, env, works] of [
      [['--for', 'vduse'], {}, { vduse: false }],
      [['--for', 'vhost-user'], {}, { 'vhost-user': true }],
      [[], { VDUSE_NET_BIND: 'vhost' }, { vduse: false }],
      [[], { VDUSE_NET_FD: '3' }, { 'vhost-user': true }],
    ] as const) {
      const { out, exitCode } = await read(['doctor', '--json', ...words], { ...noVduse, env })
      expect(JSON.parse(out).works).toEqual(works)
      expect(exitCode).toBe('vduse' in works ? 66 : 0)
    }
    expect(await read(['doctor', '--for', 'virtio'])).toMatchObject({ exitCode: 2 })
  })
})
