import { dirname } from 'node:path'
import { EXIT } from '../base/errors.ts'
import { netnsPath } from '../sys/netns.ts'
import { isAbstract } from '../sys/unix-socket.ts'
import type { Config } from './config.ts'
import { type Check, fail, ok, type Probes } from './doctor.ts'
import { shown } from './shown.ts'

const bridge = (ifname: string, probes: Probes): Check => {
  const name = `bridge ${shown(ifname)}`
  const folder = `/sys/class/net/${ifname}`
  const make = `ip link add ${ifname} type bridge && ip link set ${ifname} up`
  if (!probes.exists(folder)) return fail(name, 'no such interface', make, EXIT.deviceMissing)
  if (probes.exists(`${folder}/bridge`)) return ok(name, 'a bridge')
  return fail(name, 'exists and is no bridge', 'choose another name', EXIT.runtime)
}

const file = (name: string, path: string, fix: string, code: Check['exitCode'], probes: Probes): Check =>
  probes.exists(path) ? ok(name, 'exists') : fail(name, `${shown(path)} does not exist`, fix, code)

/** A file that is to be made, named by an option: its folder must be there. */
const folderOf = (option: string, path: string, probes: Probes): Check =>
  file(`folder of ${option}`, dirname(path), `mkdir -p ${dirname(path)}`, EXIT.runtime, probes)

/** Checks of what the options of a card name on this host: a bridge, a namespace, descriptors, files and folders. */
export const examinePlaces = (config: Config, probes: Probes): Check[] => {
  const { tap, transport, admin, pidFile } = config
  const checks: Check[] = []
  if (tap.netns !== null) {
    const fix = tap.netns.includes('/') ? 'give the path of a namespace file' : `ip netns add ${tap.netns}`
    checks.push(file(`netns ${shown(tap.netns)}`, netnsPath(tap.netns), fix, EXIT.runtime, probes))
  }
  // In another network namespace it cannot be seen.
  if (tap.bridge !== null && tap.netns === null) checks.push(bridge(tap.bridge, probes))
  if (transport.kind === 'vhost-user') {
    const { socket } = transport
    if (socket.kind === 'fd') {
      const fix = 'give the number of a connected unix socket that the parent leaves open'
      checks.push(file(`--fd ${socket.fd}`, `/proc/self/fd/${socket.fd}`, fix, EXIT.usage, probes))
    } else if (!socket.client && !isAbstract(socket.path)) checks.push(folderOf('--socket-path', socket.path, probes))
  }
  if (admin.tokenFile !== null) {
    const fix = `make it: (umask 077; openssl rand -hex 32 > ${admin.tokenFile})`
    checks.push(file('--admin-token-file', admin.tokenFile, fix, EXIT.usage, probes))
  }
  if (pidFile !== null) checks.push(folderOf('--pid', pidFile, probes))
  return checks
}
