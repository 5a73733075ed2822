import { constants as fsConstants } from 'node:fs'
import { constants } from 'node:os'
import { CLONE_NEWNET } from '../abi/linux.ts'
import { assert } from '../base/assert.ts'
import { EXIT, errnoName, SysError, UserError } from '../base/errors.ts'
import { OwnedFd, open, openRaw } from './fd.ts'
import { native } from './native.ts'

const { EINVAL, ENOENT, EACCES, EPERM } = constants.errno

/** Where `ip netns` keeps named namespaces. */
const NETNS_FOLDER = '/run/netns'

/** The file of a network namespace: `pathOrName` itself if it has a slash, else the name's in /run/netns. */
export const netnsPath = (pathOrName: string): string =>
  pathOrName.includes('/') ? pathOrName : `${NETNS_FOLDER}/${pathOrName}`

const openNetns = (pathOrName: string): OwnedFd => {
  const path = netnsPath(pathOrName)
  const fd = openRaw(path, fsConstants.O_RDONLY)
  if (fd >= 0) return new OwnedFd(fd)
  if (fd === -ENOENT) {
    const hint = pathOrName.includes('/')
      ? 'give the path of a namespace file'
      : `create it: ip netns add ${pathOrName}`
    throw new UserError(`network namespace ${pathOrName}: ${path} does not exist`, hint)
  }
  const exit = fd === -EACCES || fd === -EPERM ? EXIT.permission : EXIT.runtime
  throw new UserError(`network namespace ${pathOrName}: ${errnoName(-fd)}`, `check who may open ${path}`, exit)
}

/**
 * Runs `fn` with this thread in another network namespace, then comes back; sockets and TAPs made inside stay there.
 * `fn` must be synchronous: otherwise the thread would run other work in the wrong namespace. Throws UserError if the
 * namespace cannot be entered.
 */
export const withNetns = <T>(pathOrName: string, fn: () => T): T => {
  // Not /proc/self: that is the main thread's.
  using home = open('/proc/thread-self/ns/net', fsConstants.O_RDONLY)
  using there = openNetns(pathOrName)
  const entered = native.vn_setns(there.fd, CLONE_NEWNET)
  if (entered === -EPERM) {
    throw new UserError(`network namespace ${pathOrName}: EPERM`, 'run as root, or with CAP_SYS_ADMIN', EXIT.permission)
  }
  if (entered === -EINVAL) {
    throw new UserError(`network namespace ${pathOrName}: not a network namespace`, 'give the name or the file of one')
  }
  if (entered < 0) throw new SysError('setns', -entered)
  try {
    const result = fn()
    assert(!(result instanceof Promise), 'work in another network namespace must be synchronous')
    return result
  } finally {
    // A failure is a bug: the thread has just left this namespace, with the capability to return.
    assert(native.vn_setns(home.fd, CLONE_NEWNET) === 0, 'the way back from a network namespace is closed')
  }
}
