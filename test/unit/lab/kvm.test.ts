import { expect, test } from 'bun:test'
import { kvmAccessHint } from '../../../scripts/lab/kvm.ts'

const groups = 'root:x:0:\nkvm:x:104:qemu,anna\nvirt:x:993:\nnogroup:x:65534:\n'

test.each([
  [0o660, 104, 'bert', 'usermod -aG kvm bert'],
  [0o660, 993, 'bert', 'usermod -aG virt bert'],
  [0o660, 104, 'anna', 'log in again'],
  [0o600, 104, 'bert', 'as root give it'],
  [0o640, 104, 'bert', 'as root give it'],
  [0o660, 0, 'bert', 'as root give it'],
  [0o660, 77, 'bert', 'as root give it'],
  // A container: the host's group has no name here.
  [0o660, 65534, 'bert', 'as root give it'],
] as const)('/dev/kvm of mode %o and group %d: %s is told to %s', (mode, gid, user, hint) => {
  const text = kvmAccessHint({ node: { mode: 0o020000 | mode, gid }, groups, user })
  expect(text).toContain(hint)
  if (!hint.startsWith('usermod')) expect(text).not.toContain('usermod')
})
