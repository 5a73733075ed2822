import { describe, expect, test } from 'bun:test'
import { UserError } from '../../../src/base/errors.ts'
import { formatUserError } from '../../../src/cli/command-line.ts'
import { goodFiles, read } from './fake-host.ts'

/** Words that are wrong, what the first line must say, and what the second must offer. */
type Case = readonly [words: readonly string[], message: string, hint: string]

const tap = ['--tap', 'tap0'] as const

const cases: readonly Case[] = [
  // The words themselves.
  [['--tpa', 'tap0'], '--tpa: unknown option', 'did you mean --tap?'],
  [[...tap, '--verbose'], '--verbose: unknown option', 'see vduse-net --help'],
  [[...tap, '-x'], '-x: unknown option', 'see vduse-net --help'],
  [[...tap, '--mtu'], '--mtu: needs a value', 'write --mtu <bytes>'],
  [[...tap, '-P'], '--pid: needs a value', 'write --pid <file>'],
  [['start', ...tap], 'start: neither an option nor a command', 'run, doctor and completion'],
  [['run', ...tap, 'extra'], 'extra: neither an option nor a command', 'see vduse-net --help'],
  [['run', ...tap, '--mut', '9000'], '--mut: unknown option', 'did you mean --mtu?'],
  [['doctor', '--mtu', '1500'], '--mtu: unknown option', 'see vduse-net --help'],
  [['doctor', '--for', 'virtio'], '--for virtio: not known', 'give one of vduse, vhost-user'],
  [['doctor', 'extra'], 'too many arguments', 'see vduse-net --help'],
  [['help', 'nosuch'], 'help nosuch: no such command', 'commands are run, doctor and completion'],
  [['completion'], 'shell: missing', 'vduse-net completion bash'],
  [['completion', 'tcsh'], 'tcsh: not known', 'zsh, bash, fish'],
  [[], '--tap: missing', '--tap tap0'],
  [['run'], '--tap: missing', '--tap tap0'],

  // The TAP.
  [['--tap', ''], '--tap "": empty', '--tap tap0'],
  [['--tap', 'a23456789012345x'], '--tap a23456789012345x: longer than 15 bytes', '1 to 15 characters'],
  [['--tap', 'täp456789012345'], 'longer than 15 bytes', '1 to 15 characters'],
  [['--tap', 'a/b'], '--tap a/b: contains a slash', '--tap tap0'],
  [['--tap', '../net'], '--tap ../net: contains a slash', '--tap tap0'],
  [['--tap', 'a b'], '--tap "a b": contains a slash, colon, percent sign or space', '--tap tap0'],
  [['--tap', 'a:0'], '--tap a:0: contains a slash, colon', '--tap tap0'],
  [['--tap', 'tap%d'], '--tap tap%d: contains a slash, colon, percent sign', '--tap tap0'],
  [['--tap', 'a\nb'], '--tap "a\\nb": contains', '--tap tap0'],
  [['--tap', 'a\tb'], '--tap "a\\tb": contains', '--tap tap0'],
  [['--tap', '.'], '--tap .: a reserved name', '--tap tap0'],
  [['--tap', '..'], '--tap ..: a reserved name', '--tap tap0'],
  [['--tap', 'all'], '--tap all: a reserved name', '--tap tap0'],
  [['--tap', 'default'], '--tap default: a reserved name', '--tap tap0'],
  [[...tap, '--tap-fd', '3'], '--tap tap0: not together with --tap-fd 3', 'keep one of them'],
  [['--tap-fd', 'x'], '--tap-fd x: not a whole number', 'inherited descriptor'],
  [['--tap-fd', '2'], '--tap-fd 2: not in 3..', 'inherited descriptor'],
  [['--tap-fd', '-1'], '--tap-fd -1: not a whole number', 'inherited descriptor'],
  [['--tap-fd', '9'], '--tap-fd 9: not an open descriptor', 'close-on-exec'],
  [['--tap-fd', '5'], '--tap-fd 5: not a TAP', 'TUNSETIFF'],
  [['--tap-fd', '7', '--tap-persist'], '--tap-persist: not together with --tap-fd 7', 'TUNSETPERSIST'],
  [['--tap-fd', '7', '--netns', 'blue'], '--netns blue: not together with --tap-fd 7', 'leave --netns out'],
  [[...tap, '--bridge', 'a/b'], '--bridge a/b: contains a slash', '--bridge br0'],
  [[...tap, '--netns', ''], '--netns "": empty', 'ip netns list'],
  [[...tap, '--netns', 'a/b'], '--netns a/b: neither a name nor an absolute path', 'ip netns list'],
  [[...tap, '--netns', '..'], '--netns ..: neither a name nor an absolute path', 'ip netns list'],

  // The socket.
  [[...tap, '-s', ''], 'empty', '/run/vn.sock'],
  [[...tap, '-s', '@'], '@: an abstract socket without a name', '@vn'],

  // MAC and MTU.
  [[...tap, '--mac', '02:00:5e:10:00'], '--mac 02:00:5e:10:00: not six octets', '--mac 02:00:5e:10:00:01'],
  [[...tap, '--mac', '02:00:5e:10:00:0g'], 'not six octets in hexadecimal', '--mac 02:00:5e:10:00:01'],
  [[...tap, '--mac', '02:00-5e:10:00:01'], 'not six octets in hexadecimal', '--mac 02:00:5e:10:00:01'],
  [[...tap, '--mac', '00:00:00:00:00:00'], 'all octets are zero', '--mac 02:00:5e:10:00:01'],
  [[...tap, '--mac', '01:00:5e:00:00:01'], 'a multicast address', 'unicast'],
  [[...tap, '--mac', 'ff:ff:ff:ff:ff:ff'], 'a multicast address', 'unicast'],
  [[...tap, '--mtu', '67'], '--mtu 67: not in 68..65535', '1500 is usual'],
  [[...tap, '--mtu', '65536'], '--mtu 65536: not in 68..65535', '1500 is usual'],
  [[...tap, '--mtu', '99999999999999999999'], 'not in 68..65535', '1500 is usual'],
  [[...tap, '--mtu', '1500.5'], '--mtu 1500.5: not a whole number', '1500 is usual'],
  [[...tap, '--mtu', '1e3'], '--mtu 1e3: not a whole number', '1500 is usual'],
  [[...tap, '--mtu', '0x5dc'], '--mtu 0x5dc: not a whole number', '1500 is usual'],
  [[...tap, '--mtu', '-1500'], '--mtu -1500: not a whole number', '1500 is usual'],
  [[...tap, '--mtu', 'jumbo'], '--mtu jumbo: not a whole number', '9000 for jumbo frames'],
  [[...tap, '--mtu', '１５００'], 'not a whole number', '1500 is usual'],

  // The device.
  [[...tap, '--name', ''], '--name "": not letters, digits', '--name net0'],
  [[...tap, '--name', '../x'], '--name ../x: not letters, digits', '--name net0'],
  [[...tap, '--name', '-x'], '--name -x: not letters, digits', '--name net0'],
  [[...tap, '--name', '..'], '--name ..: not letters, digits', '--name net0'],
  [[...tap, '--name', 'control'], '--name control: reserved for /dev/vduse/control', '--name net0'],
  [[...tap, '--name', 'n'.repeat(65)], 'longer than 64 characters', '--name net0'],
  [['--tap', 'täp0'], '--name: täp0 cannot be the name of a device', '--name net0'],
  [['--tap', 'control'], '--name: control cannot be the name of a device', '--name net0'],
  [[...tap, '--bind', 'vfio'], '--bind vfio: not one of virtio, vhost, none', 'give virtio, vhost or none'],
  [[...tap, '--bind', 'VIRTIO'], 'not one of virtio, vhost, none', 'give virtio, vhost or none'],
  [[...tap, '--no-attach', '--bind', 'vhost'], '--bind vhost: no driver is bound without --attach', 'leave --bind'],
  [[...tap, '--queue-size', '0'], '--queue-size 0: not in 2..1024', 'power of two up to 1024'],
  [[...tap, '--queue-size', '300'], '--queue-size 300: not a power of two', 'power of two up to 1024'],
  [[...tap, '--queue-size', '2048'], '--queue-size 2048: not in 2..1024', 'power of two up to 1024'],
  [[...tap, '--queue-size', 'big'], '--queue-size big: not a whole number', 'power of two up to 1024'],

  // Features.
  [[...tap, '--features', '+warp'], '--features +warp: unknown feature warp', 'host_tso4'],
  [[...tap, '--features', '-hots_tso4'], 'unknown feature hots_tso4, did you mean host_tso4?', 'give +name or -name'],
  [[...tap, '--features', 'host_tso4'], 'host_tso4 does not begin with + or -', 'give +name or -name'],
  [[...tap, '--features', ''], '"" does not begin with + or -', 'give +name or -name'],
  [[...tap, '--features', '+csum,'], '"" does not begin with + or -', 'give +name or -name'],
  [[...tap, '--features', '+'], 'unknown feature ""', 'give +name or -name'],
  [[...tap, '--features', '+rsc_ext'], 'unknown feature rsc_ext', 'give +name or -name'],
  [[...tap, '--features', '+csum,-csum'], 'csum is both on and off', 'give +name or -name'],
  [[...tap, '--features', '-version_1'], 'version_1 cannot be switched off', 'give +name or -name'],
  [[...tap, '--features', '-access_platform'], 'access_platform cannot be switched off', 'give +name or -name'],
  [[...tap, '--features', '-csum,+host_tso4'], 'host_tso4 needs a feature that is switched off', 'give +name'],

  // Observing.
  [[...tap, '--admin', '0.0.0.0:80'], '--admin 0.0.0.0:80: 0.0.0.0 is not loopback', 'ssh -L'],
  [[...tap, '--admin', ':80'], '--admin :80: every address is not loopback', 'ssh -L'],
  [[...tap, '--admin', 'example.com:80'], 'example.com is not loopback', 'ssh -L'],
  [[...tap, '--admin', '8080'], '--admin 8080: not HOST:PORT, unix:PATH or off', 'give unix:/PATH'],
  [[...tap, '--admin', 'unix:x.sock'], 'the path of the socket is not absolute', 'give unix:/PATH'],
  [[...tap, '--admin', `unix:/${'a'.repeat(100)}`], 'the path is longer than 98 bytes', 'give unix:/PATH'],
  [[...tap, '--admin', '127.0.0.1:80'], '--admin 127.0.0.1:80: TCP needs a token', '--admin-token-file'],
  [[...tap, '--admin-token-file', 'x'], '--admin-token-file x: has no effect on a unix socket', 'leave it out'],
  [[...tap, '--admin', 'off', '--admin-token-file', 'x'], '--admin-token-file x: has no effect', 'leave it out'],
  [[...tap, '--admin', '127.0.0.1:1', '--admin-token-file', ''], '--admin-token-file "": empty', 'openssl rand'],
  [[...tap, '--log-level', 'loud'], '--log-level loud: not one of trace, debug', 'give one of trace'],
  [[...tap, '--log-format', 'xml'], '--log-format xml: not one of auto, json, pretty', 'give one of auto'],
  [[...tap, '--pid', ''], '--pid "": empty', '--pid /run/'],
  [[...tap, '--pid', '/run/'], '--pid /run/: a folder, not a file', '--pid /run/'],
]

const files = { ...goodFiles, '/proc/self/fdinfo/5': 'pos:\t0\nflags:\t02\n', '/proc/self/fdinfo/7': 'iff:\ttap7\n' }

describe('a wrong command line', () => {
  test.each(
    cases.map(
      ([words, message, hint]) => [JSON.stringify(words.join(' ')).slice(1, -1), words, message, hint] as const,
    ),
  )('%s', async (_, words, message, hint) => {
    const outcome = await read(words, { files })
    expect(outcome.message).toContain(message)
    expect(outcome.hint).toContain(hint)
    expect(outcome.exitCode).toBe(2)
    expect(outcome.out).toBe('')
    for (const line of [outcome.message, outcome.hint]) expect(line).toMatch(/^[^\n\r\x1b\0]+$/)
  })

  test('a value of a megabyte makes a short message', async () => {
    const { message } = await read([...tap, '--mac', 'f'.repeat(1 << 20)])
    expect(message.length).toBeLessThan(200)
  })

  test('escape sequences do not reach the terminal', async () => {
    const { message } = await read([...tap, '--mac', '\x1b[31mred\x07'])
    expect(message).toBe('--mac "\\u001b[31mred\\u0007": not six octets in hexadecimal')
  })
})

describe('a wrong environment', () => {
  test.each([
    ['VDUSE_NET_MTU', '5', 'VDUSE_NET_MTU=5: not in 68..65535'],
    ['VDUSE_NET_MAC', 'zz', 'VDUSE_NET_MAC=zz: not six octets'],
    ['VDUSE_NET_ATTACH', 'perhaps', 'VDUSE_NET_ATTACH=perhaps: not true or false'],
    ['VDUSE_NET_VNET_HDR', '2', 'VDUSE_NET_VNET_HDR=2: not true or false'],
    ['VDUSE_NET_FEATURES', '+warp', 'VDUSE_NET_FEATURES=+warp: unknown feature warp'],
    ['VDUSE_NET_TAP_FD', '9', 'VDUSE_NET_TAP_FD=9'],
  ])('%s=%s names the variable', async (name, value, message) => {
    const outcome = await read([...tap], { env: { [name]: value } })
    expect(outcome.message).toContain(message)
    expect(outcome.exitCode).toBe(2)
  })

  test('an unknown variable of ours is a warning that names the near one', async () => {
    const { warnings, config } = await read([...tap], { env: { VDUSE_NET_MTUU: '9000', HOME: '/' } })
    expect(config?.mtu).toBeNull()
    expect(warnings).toEqual(['VDUSE_NET_MTUU: unknown variable, ignored; did you mean VDUSE_NET_MTU?'])
  })
})

test('a refusal is printed as two lines', () => {
  expect(formatUserError(new UserError('--mtu 5: too small', 'give more', 2))).toBe(
    'vduse-net: --mtu 5: too small\nhint: give more\n',
  )
})
