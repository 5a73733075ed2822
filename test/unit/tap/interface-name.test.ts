import { expect, test } from 'bun:test'
import { refuseInterfaceName } from '../../../src/tap/interface-name.ts'

test.each(['tap0', 'a', 'fifteen-bytes-x', 'wan.10', 'ünïcode', '-', '...'])('%s is taken', (name) => {
  expect(refuseInterfaceName(name)).toBeNull()
})

test.each([
  ['', 'an interface name cannot be empty'],
  ['sixteen-bytes-xx', 'an interface name has at most 15 bytes, this one has 16'],
  ['üüüüüüüü', 'an interface name has at most 15 bytes, this one has 16'],
  ['.', 'no interface can have this name'],
  ['..', 'no interface can have this name'],
  ['all', 'no interface can have this name'],
  ['default', 'no interface can have this name'],
  ['a/b', 'an interface name cannot contain "/"'],
  ['eth0:1', 'an interface name cannot contain ":"'],
  ['tap%d', 'an interface name cannot contain "%"'],
  ['a b', 'an interface name cannot contain " "'],
  ['a\tb', 'an interface name cannot contain "\\t"'],
  ['a\0b', 'an interface name cannot contain "\\u0000"'],
])('%j is refused', (name, why) => {
  expect(refuseInterfaceName(name)).toBe(why)
})
