import { accessSync, constants, readFileSync, statSync } from 'node:fs'
import { userInfo } from 'node:os'

/** /dev/kvm, and the user who may not open it. */
export type DeniedKvm = {
  readonly node: { readonly mode: number; readonly gid: number }
  /** Text of /etc/group. */
  readonly groups: string
  readonly user: string
}

/** Linux shows it for a group that a user namespace does not know. */
const OVERFLOW_GID = 65534

/** What gives a user access to /dev/kvm, in one sentence. */
export const kvmAccessHint = ({ node, groups, user }: DeniedKvm): string => {
  const lines = groups.split('\n').map((line) => line.split(':'))
  const [name, , , members = ''] = lines.find(([, , gid]) => Number(gid) === node.gid) ?? []
  const forGroup = (node.mode & 0o060) === 0o060 && node.gid !== 0 && node.gid !== OVERFLOW_GID
  if (!forGroup || name === undefined)
    return '/dev/kvm is closed to you: as root give it to a group of yours, with mode 660'
  return members.split(',').includes(user)
    ? `/dev/kvm is open to the group ${name}, which you are in since you logged in: log in again`
    : `/dev/kvm is open to the group ${name} only: as root run usermod -aG ${name} ${user}, and log in again`
}

const textOf = (path: string): string => {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}

const userName = (): string => {
  try {
    return userInfo().username
  } catch {
    return 'USER'
  }
}

/** Why this process cannot use KVM and what to do, in one sentence; null if /dev/kvm opens. */
export const kvmObstacle = (): string | null => {
  const path = '/dev/kvm'
  try {
    accessSync(path, constants.R_OK | constants.W_OK)
    return null
  } catch {
    const node = statSync(path, { throwIfNoEntry: false })
    return node === undefined
      ? 'there is no /dev/kvm: load kvm_intel or kvm_amd, in a virtual machine with nested virtualization'
      : kvmAccessHint({ node, groups: textOf('/etc/group'), user: userName() })
  }
}
