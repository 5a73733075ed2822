import { describe, expect, test } from 'bun:test'
import { readdirSync, readlinkSync } from 'node:fs'
import { UserError } from '../../../src/base/errors.ts'
import { netnsPath, withNetns } from '../../../src/sys/netns.ts'
import { NetworkNamespace, noRealTaps } from '../../support/network-namespace.ts'

const here = (): string => readlinkSync('/proc/thread-self/ns/net')

const errorOf = (pathOrName: string): UserError => {
  try {
    withNetns(pathOrName, () => undefined)
  } catch (error) {
    if (error instanceof UserError) return error
    throw error
  }
  throw new Error('no error')
}

describe('withNetns', () => {
  test('takes a name for a file of ip netns, and a path as it is', () => {
    expect(netnsPath('blue')).toBe('/run/netns/blue')
    expect(netnsPath('/proc/1/ns/net')).toBe('/proc/1/ns/net')
    expect(netnsPath('./blue')).toBe('./blue')
  })

  test('says what to do about a namespace that is not there', () => {
    const error = errorOf('no-such-namespace')
    expect(error.message).toBe('network namespace no-such-namespace: /run/netns/no-such-namespace does not exist')
    expect(error.hint).toBe('create it: ip netns add no-such-namespace')
    expect(errorOf('/no/such/file').hint).toBe('give the path of a namespace file')
  })

  describe.skipIf(noRealTaps !== null)('as root', () => {
    test('is inside while it works, and outside again', () => {
      using namespace = new NetworkNamespace()
      const home = here()
      for (const name of [namespace.name, netnsPath(namespace.name)]) {
        const inside = withNetns(name, () => {
          expect(readdirSync('/proc/thread-self/net/dev_snmp6')).toEqual(['lo'])
          return here()
        })
        expect(inside).not.toBe(home)
        expect(here()).toBe(home)
      }
    })

    test('comes back when the work throws, and refuses to wait for it', () => {
      using namespace = new NetworkNamespace()
      const home = here()
      expect(() =>
        withNetns(namespace.name, () => {
          throw new Error('from inside')
        }),
      ).toThrow('from inside')
      expect(here()).toBe(home)
      expect(() => withNetns(namespace.name, async () => 1)).toThrow('must be synchronous')
      expect(here()).toBe(home)
    })

    test('moves its own thread only', async () => {
      using namespace = new NetworkNamespace()
      const home = here()
      withNetns(namespace.name, () => {
        expect(readlinkSync('/proc/self/ns/net')).toBe(process.pid === threadId() ? here() : home)
        const others = readdirSync('/proc/self/task').filter((task) => Number(task) !== threadId())
        expect(others.length).toBeGreaterThan(0)
        for (const task of others) expect(namespaceOf(task) ?? home).toBe(home)
      })
    })

    test('refuses a file that is no network namespace', () => {
      expect(errorOf('/proc/self/ns/uts').message).toBe('network namespace /proc/self/ns/uts: not a network namespace')
      expect(errorOf('/dev/null').message).toBe('network namespace /dev/null: not a network namespace')
    })
  })
})

const threadId = (): number => Number(readlinkSync('/proc/thread-self').split('/').at(-1))

/** undefined if the thread has ended meanwhile. */
const namespaceOf = (task: string): string | undefined => {
  try {
    return readlinkSync(`/proc/self/task/${task}/ns/net`)
  } catch {
    return undefined
  }
}
