import { describe, expect, test } from 'bun:test'
import type { Config } from '../../../src/cli/config.ts'
import { binds, settingKeys, settings } from '../../../src/cli/settings.ts'
import { goodFiles, type Machine, read } from './fake-host.ts'

const configOf = async (words: readonly string[], machine?: Machine): Promise<Config> => {
  const { config, message } = await read(words, machine)
  if (config === null) throw new Error(`refused: ${message}`)
  return config
}

test('a TAP is enough', async () => {
  expect(await configOf(['--tap', 'tap0'])).toEqual({
    name: 'tap0',
    tap: {
      name: 'tap0',
      fd: null,
      mac: expect.stringMatching(/^fe(:[0-9a-f]{2}){5}$/),
      persist: false,
      vnetHdr: true,
      bridge: null,
      netns: null,
    },
    mac: expect.stringMatching(/^[0-9a-f][26ae](:[0-9a-f]{2}){5}$/),
    mtu: null,
    bind: 'virtio',
    attach: true,
    queueSize: 256,
    queuePairs: 1,
    transport: { kind: 'vduse' },
    tuning: { busyPollUs: null, cpus: [] },
    features: { on: [], off: [] },
    admin: { listen: { kind: 'unix', path: '/run/vduse-net/tap0.sock' }, tokenFile: null },
    log: { level: 'info', format: 'auto' },
    pidFile: null,
  })
})

test('every option arrives', async () => {
  const words =
    'run --tap tap1 --tap-persist --mac 02-00-5E-10-00-01 --mtu 9000 --bridge br0 --netns ' +
    '/proc/1/ns/net --no-vnet-hdr --name net0 --bind vhost ' +
    '--attach --queue-size 1024 --features -VIRTIO_NET_F_HOST_TSO4,+Mrg-RxBuf --admin [::1]:0 ' +
    '--admin-token-file token ' +
    '--busy-poll 20 --cpus 2,4-6 --log-level debug --log-format json -P /run/x.pid'
  expect(await configOf(words.split(' '))).toEqual({
    name: 'net0',
    tap: {
      name: 'tap1',
      fd: null,
      mac: expect.stringMatching(/^fe(:[0-9a-f]{2}){5}$/),
      persist: true,
      vnetHdr: false,
      bridge: 'br0',
      netns: '/proc/1/ns/net',
    },
    mac: '02:00:5e:10:00:01',
    mtu: 9000,
    bind: 'vhost',
    attach: true,
    queueSize: 1024,
    queuePairs: 1,
    transport: { kind: 'vduse' },
    tuning: { busyPollUs: 20, cpus: [2, 4, 5, 6] },
    features: { on: ['mrg_rxbuf'], off: ['host_tso4'] },
    admin: { listen: { kind: 'tcp', host: '::1', port: 0 }, tokenFile: 'token' },
    log: { level: 'debug', format: 'json' },
    pidFile: '/run/x.pid',
  })
})

test('a vhost-user socket takes the place of VDUSE', async () => {
  const config = await configOf('--tap tap0 -s /run/vn.sock --client -1 --in-band --queue-pairs 4'.split(' '))
  const socket = { kind: 'path', path: '/run/vn.sock', client: true, oneOff: true }
  expect(config).toMatchObject({
    transport: { kind: 'vhost-user', socket, inBand: true },
    queuePairs: 4,
    queueSize: 1024,
  })
})

test('a vhost-user connection can be inherited', async () => {
  const config = await configOf('--tap tap0 --fd 7'.split(' '))
  expect(config.transport).toEqual({ kind: 'vhost-user', socket: { kind: 'fd', fd: 7 }, inBand: false })
})

test.each([
  ['--tap tap0 --client', '--socket-path'],
  ['--tap tap0 --one-off', '--socket-path'],
  ['--tap tap0 --in-band', 'only for vhost-user'],
  ['--tap tap0 -s /a --fd 3', 'not together'],
  ['--tap tap0 -s /a --bind vhost', 'only for VDUSE'],
  ['--tap tap0 -s /a --no-attach', 'only for VDUSE'],
  ['--tap tap0 --queue-pairs 2', 'one queue pair'],
  ['--tap tap0 --queue-pairs 9 -s /a', 'not in 1..8'],
  ['--tap tap0 --cpus 3-1', 'runs backwards'],
  ['--tap tap0 --cpus 1,', 'an empty item'],
  ['--tap tap0 --cpus 1,x', 'not a number'],
  ['--tap tap0 --cpus 9999', 'more than 8191'],
  ['--tap tap0 --busy-poll 1000001', 'not in 0..1000000'],
  [`--tap tap0 -s /${'x'.repeat(200)}`, 'too long'],
])('%s is refused', async (words, why) => {
  const { message, exitCode } = await read(words.split(' '))
  expect(message).toContain(why)
  expect(exitCode).toBe(2)
})

test('nothing in it can be changed', async () => {
  const config = (await configOf(['--tap', 'tap0', '--features', '-csum'])) as { mtu: number; tap: { name: string } }
  expect(() => {
    config.mtu = 1
  }).toThrow(TypeError)
  expect(() => {
    config.tap.name = 'x'
  }).toThrow(TypeError)
})

describe('where a value comes from', () => {
  test('every setting can come from the environment', async () => {
    const env = {
      VDUSE_NET_TAP: 'tap2',
      VDUSE_NET_MAC: '02:00:00:00:00:09',
      VDUSE_NET_MTU: '1400',
      VDUSE_NET_BRIDGE: 'br1',
      VDUSE_NET_NETNS: 'blue',
      VDUSE_NET_VNET_HDR: 'false',
      VDUSE_NET_TAP_PERSIST: 'yes',
      VDUSE_NET_NAME: 'net2',
      VDUSE_NET_ATTACH: 'no',
      VDUSE_NET_QUEUE_SIZE: '512',
      VDUSE_NET_QUEUE_PAIRS: '1',
      VDUSE_NET_BUSY_POLL: '0',
      VDUSE_NET_CPUS: '1',
      VDUSE_NET_FEATURES: '-in_order',
      VDUSE_NET_ADMIN: 'off',
      VDUSE_NET_LOG_LEVEL: 'error',
      VDUSE_NET_LOG_FORMAT: 'pretty',
      VDUSE_NET_PID: '/run/y.pid',
    }
    expect(await configOf([], { env })).toEqual({
      name: 'net2',
      tap: {
        name: 'tap2',
        fd: null,
        mac: expect.stringMatching(/^fe/),
        persist: true,
        vnetHdr: false,
        bridge: 'br1',
        netns: 'blue',
      },
      mac: '02:00:00:00:00:09',
      mtu: 1400,
      bind: 'none',
      attach: false,
      queueSize: 512,
      queuePairs: 1,
      transport: { kind: 'vduse' },
      tuning: { busyPollUs: 0, cpus: [1] },
      features: { on: [], off: ['in_order'] },
      admin: { listen: { kind: 'off' }, tokenFile: null },
      log: { level: 'error', format: 'pretty' },
      pidFile: '/run/y.pid',
    })
    const ofSocket = ['socketPath', 'client', 'socketMode', 'socketGroup', 'fd', 'inBand', 'oneOff']
    const others = ['tapFd', 'bind', ...ofSocket, 'adminTokenFile']
    expect(settingKeys.filter((key) => !(settings[key].env in env))).toEqual(others as typeof settingKeys)
  })

  test('an option wins over the environment, on either side of the command', async () => {
    const env = { VDUSE_NET_MTU: '1400', VDUSE_NET_ATTACH: 'false', VDUSE_NET_TAP: 'other' }
    const config = await configOf(['--mtu', '9000', 'run', '--attach', '--tap', 'tap0'], { env })
    expect(config).toMatchObject({ mtu: 9000, attach: true, name: 'tap0' })
  })

  test('the last of two options counts', async () => {
    expect((await configOf(['--tap', 'a', '--tap', 'b'])).name).toBe('b')
    expect((await configOf(['--tap', 'a', '--no-attach', '--attach'])).attach).toBe(true)
  })

  test('an empty variable counts as unset', async () => {
    expect((await configOf(['--tap', 'tap0'], { env: { VDUSE_NET_MTU: '', VDUSE_NET_NAME: '' } })).mtu).toBeNull()
  })

  test('a switch in the environment can be on as well as off', async () => {
    for (const [text, value] of [
      ['1', true],
      ['TRUE', true],
      ['on', true],
      ['0', false],
      ['off', false],
    ] as const)
      expect((await configOf(['--tap', 't'], { env: { VDUSE_NET_ATTACH: text } })).attach).toBe(value)
  })
})

describe('what is derived', () => {
  test('the name and the socket come from the TAP, the socket from the name', async () => {
    const config = await configOf(['--tap', 'tap0', '--name', 'net0'])
    expect(config.admin.listen).toEqual({ kind: 'unix', path: '/run/vduse-net/net0.sock' })
    expect(config.tap.name).toBe('tap0')
  })

  test('the TAP of a descriptor names the device', async () => {
    const files = {
      ...goodFiles,
      '/proc/self/fdinfo/7': 'pos:\t0\nflags:\t0104002\nmnt_id:\t25\nino:\t12\niff:\ttap7\n',
    }
    expect(await configOf(['--tap-fd', '7'], { files })).toMatchObject({ name: 'tap7', tap: { name: 'tap7', fd: 7 } })
  })

  test.each([
    ['the MAC', (config: Config) => config.mac],
    ['the MAC of the TAP', (config: Config) => config.tap.mac],
  ])('%s stays at a restart, and differs by name and by host', async (_whose, pick) => {
    const macOf = async (words: string[], machine?: Machine) => pick(await configOf(words, machine))
    const mac = await macOf(['--tap', 'tap0'])
    expect(await macOf(['--tap', 'tap0', '--mtu', '9000'])).toBe(mac)
    expect(await macOf(['--tap', 'tap1'])).not.toBe(mac)
    const other = { files: { ...goodFiles, '/etc/machine-id': 'ffffffffffffffffffffffffffffffff\n' } }
    expect(await macOf(['--tap', 'tap0'], other)).not.toBe(mac)
  })

  test('the MAC of an open TAP is for others to choose', async () => {
    const files = { ...goodFiles, '/proc/self/fdinfo/7': 'iff:\ttap7\n' }
    expect((await configOf(['--tap-fd', '7'], { files })).tap.mac).toBeNull()
  })

  test.each([
    ['the MAC', (config: Config) => config.mac],
    ['the MAC of the TAP', (config: Config) => config.tap.mac],
  ])('without a machine-id the host name stands in for %s', async (_whose, pick) => {
    const on = async (hostname: string, id?: string) =>
      pick(await configOf(['--tap', 'tap0'], { hostname, files: id === undefined ? {} : { '/etc/machine-id': id } }))
    expect(await on('one')).toBe(await on('one'))
    expect(await on('one')).not.toBe(await on('two'))
    // Of an image that has not been started yet: machine-id(5).
    for (const id of ['\n', 'uninitialized\n']) expect(await on('one', id)).toBe(await on('one'))
  })
})

describe('what is no error but worth a word', () => {
  const warningsOf = async (...words: string[]) => (await read(['--tap', 'tap0', ...words])).warnings
  test('an MTU that breaks IPv6', async () => {
    expect(await warningsOf('--mtu', '1279')).toEqual(['--mtu 1279: IPv6 does not work below 1280 bytes'])
    expect(await warningsOf('--mtu', '1280')).toEqual([])
  })
  test('a ring on which Linux stops sending', async () => {
    expect(await warningsOf('--queue-size', '16')).toEqual([
      '--queue-size 16: the Linux driver stops sending on rings below 32',
    ])
    expect(await warningsOf('--queue-size', '32')).toEqual([])
  })
})

describe('the edges of ranges', () => {
  test.each([
    ['--mtu', '68'],
    ['--mtu', '65535'],
    ['--queue-size', '2'],
    ['--queue-size', '1024'],
    ['--name', 'n'.repeat(64)],
    ['--tap', 'a23456789012345'],
    ['--netns', 'blue'],
    ['--netns', '/proc/1/ns/net'],
    ...binds.map((bind) => ['--bind', bind] as const),
  ])('%s %s', async (flag, value) => {
    await configOf(['--tap', 'tap0', flag, value])
  })
})

describe('--cpus names processors that the process may run on', () => {
  test('else it is a usage error that names those', async () => {
    const { message, hint, exitCode } = await read(['--tap', 'tap0', '--cpus', '99,4,6,5,7'], { cpus: [0, 1, 2, 3, 6] })
    expect({ message, exitCode }).toEqual({
      message: '--cpus 99,4,6,5,7: this process cannot run on 4-5,7,99',
      exitCode: 2,
    })
    expect(hint).toStartWith('give processors of 0-3,6: ')
  })

  test('any is taken where the kernel does not tell', async () => {
    expect((await configOf(['--tap', 'tap0', '--cpus', '99'], { cpus: null })).tuning.cpus).toEqual([99])
  })
})

describe('who may connect to the vhost-user socket', () => {
  const files = { ...goodFiles, '/etc/group': 'root:x:0:\nkvm:x:104:qemu\n' }
  const socketOf = async (...words: string[]) =>
    (await configOf(['--tap', 'tap0', '-s', '/run/vn.sock', ...words], { files })).transport

  test('by umask, or by a mode and a group, by name or number', async () => {
    expect(await socketOf()).toMatchObject({ socket: { mode: null, gid: null } })
    expect(await socketOf('--socket-mode', '660', '--socket-group', 'kvm')).toMatchObject({
      socket: { mode: 0o660, gid: 104 },
    })
    expect(await socketOf('--socket-mode', '0600', '--socket-group', '42')).toMatchObject({
      socket: { mode: 0o600, gid: 42 },
    })
  })

  test('a group without a mode may write, and so connect', async () => {
    expect(await socketOf('--socket-group', 'kvm')).toMatchObject({ socket: { mode: 0o660, gid: 104 } })
    expect(await socketOf('--socket-group', '42')).toMatchObject({ socket: { mode: 0o660, gid: 42 } })
  })

  test.each([
    [['-s', '/x', '--socket-mode', '888'], '--socket-mode 888: not three octal digits'],
    [['-s', '/x', '--socket-mode', '4755'], '--socket-mode 4755: not three octal digits'],
    [['-s', '/x', '--socket-group', 'nobodys'], '--socket-group nobodys: not in /etc/group'],
    [['-s', '/x', '--socket-group', ''], '--socket-group "": empty'],
    [['--socket-mode', '660'], '--socket-mode 660: needs --socket-path'],
    [['--fd', '3', '--socket-group', 'kvm'], '--socket-group kvm: needs --socket-path'],
    [['-s', '/x', '--client', '--socket-mode', '660'], "with --client the socket is the front-end's"],
    [['-s', '@x', '--socket-mode', '660'], 'the abstract socket @x has neither mode nor group'],
  ] as const)('is refused where it means nothing: %p', async (words, message) => {
    const outcome = await read(['--tap', 'tap0', ...words], { files })
    expect(outcome.message).toContain(message)
    expect(outcome.exitCode).toBe(2)
  })
})
