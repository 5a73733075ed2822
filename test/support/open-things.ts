import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { withNetns } from '../../src/sys/netns.ts'
import type { NetworkNamespace } from './network-namespace.ts'

const readLink = (path: string): string => {
  try {
    return readlinkSync(path)
  } catch {
    return '' // Closed between the listing and now.
  }
}

/** What of a TAP could leak: clone device and namespace descriptors, and netlink sockets in the namespace. */
export const openThings = (ns: NetworkNamespace): { readonly files: number; readonly sockets: number } => {
  const targets = readdirSync('/proc/self/fd').map((fd) => readLink(`/proc/self/fd/${fd}`))
  const files = targets.filter((target) => target === '/dev/net/tun' || target.startsWith('net:['))
  const sockets = withNetns(ns.name, () => readFileSync('/proc/thread-self/net/netlink', 'utf8').split('\n').length)
  return { files: files.length, sockets }
}
