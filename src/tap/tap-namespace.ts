import { fstatSync, statSync } from 'node:fs'
import { TUNGETDEVNETNS } from '../abi/tun.ts'
import { native } from '../sys/native.ts'
import { withNetns } from '../sys/netns.ts'

/**
 * Runs `make` in the network namespace (a name or a path); null for the current one. Throws UserError if it cannot be
 * entered.
 */
export const inNetns = <T>(netns: string | null, make: () => T): T => (netns === null ? make() : withNetns(netns, make))

/**
 * Runs `make` in the current network namespace of a TUN descriptor's interface (TUNGETDEVNETNS). Where the kernel does
 * not return it (before 5.2, or without CAP_NET_ADMIN there), runs it in `otherwise`.
 */
export const inNetnsOf = <T>(fd: number, otherwise: string | null, make: () => T): T => {
  const namespaceFd = native.vn_ioctl(fd, TUNGETDEVNETNS, 0)
  if (namespaceFd < 0) return inNetns(otherwise, make)
  try {
    const isOurs = fstatSync(namespaceFd).ino === statSync('/proc/thread-self/ns/net').ino
    return inNetns(isOurs ? null : `/proc/self/fd/${namespaceFd}`, make)
  } finally {
    native.vn_close(namespaceFd)
  }
}
