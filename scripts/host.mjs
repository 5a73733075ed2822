// What this machine permits. Plain Node, without packages: it is asked before anything is installed.

import { spawnSync } from 'node:child_process'
import { accessSync, closeSync, constants, openSync } from 'node:fs'
import { delimiter, join } from 'node:path'

const isExecutable = (path) => {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}

export const hasProgram = (name) =>
  (process.env.PATH ?? '').split(delimiter).some((folder) => folder !== '' && isExecutable(join(folder, name)))

export const isRoot = () => process.getuid?.() === 0

// `ip netns` returns to the namespace where it began, so that must be one made there; and it keeps what it makes in
// /run, of which it gets one of its own.
export const asRoot = () =>
  isRoot()
    ? []
    : [
        ...['unshare', '--user', '--map-root-user', '--mount', '--net'],
        ...['sh', '-c', 'mount -t tmpfs tmpfs /run && exec "$@"', 'sh'],
      ]

const tunRefusal = () => {
  try {
    closeSync(openSync('/dev/net/tun', 'r+'))
    return null
  } catch ({ code }) {
    return code === 'EACCES'
      ? {
          why: 'no permission to open /dev/net/tun',
          hint: 'run it as root, or: chmod 666 /dev/net/tun, as Debian has it',
        }
      : {
          why: `no /dev/net/tun (${code})`,
          hint: 'run: modprobe tun; in a container: start it with --device /dev/net/tun',
        }
  }
}

export const namespaceRefusal = (words = []) => {
  if (!isRoot() && words.length === 0) return { why: 'not root', hint: 'run it as root' }
  const [program = 'unshare', ...rest] = [...words, 'unshare', '--net', '--mount', 'true']
  if (spawnSync(program, rest, { stdio: 'ignore' }).status !== 0) {
    return {
      why: 'not permitted to make a network namespace',
      hint: isRoot() ? 'in a container: start it with --privileged' : 'run it as root',
    }
  }
  const tun = tunRefusal()
  if (tun !== null) return tun
  // The last, since it can be installed.
  if (!hasProgram('ip')) return { why: 'no ip command (iproute2)', hint: 'run: apt-get install iproute2' }
  return null
}

export const frontendsRefusal = () =>
  process.arch === 'x64'
    ? namespaceRefusal(asRoot())
    : { why: 'the front-ends are programs of Debian for x86-64', hint: 'run npm start on such a machine' }
