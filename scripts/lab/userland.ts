import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { packageFolder } from './pinned.ts'

/** The guest's programs always come from one suite, so that a guest is the same on every machine. */
const SUITE = 'trixie'

/** Not busybox-static: its shell takes its own small ip and ping before those on the PATH. */
const PACKAGES = ['busybox', 'ethtool', 'iperf3', 'iproute2', 'iputils-ping', 'strace', 'tcpdump'] as const

/** A folder that looks like the root of a Debian system, from which the guest's files are taken. */
export const fetchUserland = (): Promise<string> =>
  packageFolder({
    name: 'userland',
    suite: SUITE,
    select: (apt) => apt.closure(PACKAGES),
    build: async (apt, files, target) => {
      await apt.unpack(files, target)
      await rm(join(target, 'usr/share'), { recursive: true, force: true })
    },
  })
