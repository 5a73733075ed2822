import { describe, expect, test } from 'bun:test'
import { goodFiles, read } from './fake-host.ts'

/** `--dry-run` of a card over vhost-user on a good host with some files more. */
const dryRun = (words: readonly string[], ...more: string[]) => {
  const files = { ...goodFiles, ...Object.fromEntries(more.map((path) => [path, ''])) }
  const socket = words.some((word) => word === '--fd' || word === '-s') ? [] : ['-s', 'vn.sock']
  return read(['--tap', 'tap0', ...socket, ...words, '--dry-run'], { files })
}

const tcp = ['--admin', '127.0.0.1:8080', '--admin-token-file', '/etc/token']

describe('--dry-run looks at what the options name', () => {
  const cases: readonly (readonly [words: readonly string[], there: readonly string[], fix: string, code: number])[] = [
    [['--bridge', 'br0'], ['/sys/class/net/br0', '/sys/class/net/br0/bridge'], 'ip link add br0 type bridge', 66],
    [['--netns', 'blue'], ['/run/netns/blue'], 'ip netns add blue', 1],
    [['--netns', '/proc/7/ns/net'], ['/proc/7/ns/net'], 'path of a namespace file', 1],
    [['--fd', '9'], ['/proc/self/fd/9'], 'connected unix socket', 2],
    [['-s', '/srv/vm/1.sock'], ['/srv/vm'], 'mkdir -p /srv/vm', 1],
    [['--pid', '/run/cards/1.pid'], ['/run/cards'], 'mkdir -p /run/cards', 1],
    [tcp, ['/etc/token'], 'openssl rand', 2],
  ]

  test.each(cases)('%p', async (words, there, fix, code) => {
    const missing = await dryRun(words)
    expect(missing.exitCode).toBe(code)
    expect(missing.out).toMatch(/^fail {2}.*\n +fix: (.*)$/m)
    expect(missing.out).toContain(fix)
    const good = await dryRun(words, ...there)
    expect(good.exitCode).toBe(0)
    expect(good.out).not.toContain('fail')
  })

  test('an interface that is no bridge', async () => {
    const { out, exitCode } = await dryRun(['--bridge', 'eth0'], '/sys/class/net/eth0')
    expect(exitCode).toBe(1)
    expect(out).toContain('exists and is no bridge')
  })

  test.each([
    ['a bridge in another namespace', ['--netns', 'blue', '--bridge', 'br0'], ['/run/netns/blue']],
    ['the folder of a socket that the front-end makes', ['-s', '/srv/vm/1.sock', '--client'], []],
    ['the folder of an abstract socket', ['-s', '@a/b'], []],
  ])('but not at %s', async (_, words, there) => {
    expect((await dryRun(words, ...there)).exitCode).toBe(0)
  })
})
