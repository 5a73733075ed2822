import { readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { DebFile } from '../lab/apt.ts'
import { packageFolder } from '../lab/pinned.ts'

/**
 * The suite with both: DPDK 22.11, and a User Mode Linux whose kernel has virtio_uml. Package names carry its versions.
 */
const SUITE = 'bookworm'

/** The libraries of Debian's multi-arch folder, under the root of a package set. */
export const LIBRARIES = 'usr/lib/x86_64-linux-gnu'

/** The drivers that testpmd is given; what they need is linked to them. */
export const DPDK_DRIVERS = ['mempool_ring', 'bus_vdev', 'net_virtio', 'net_vhost', 'net_tap', 'net_null'] as const

const DPDK_PACKAGES = [
  'dpdk-dev',
  'ibverbs-providers',
  'coreutils',
  ...DPDK_DRIVERS.map((name) => `librte-${name.replace('_', '-')}23`),
]

/** Shared libraries only: dpdk-dev is a development package and wants compilers, headers and two interpreters. */
const isRuntime = ({ name }: DebFile): boolean =>
  /^(dpdk-dev|coreutils)$/.test(name) ||
  (/^(lib|zlib1g|ibverbs-providers)/.test(name) && !/-dev$|-dev-bin$|perl|python|-common$|^librte-meta-/.test(name))

/** A folder that looks like the root of a Debian system with dpdk-testpmd in it. */
export const fetchDpdk = (): Promise<string> =>
  packageFolder({
    name: 'dpdk',
    suite: SUITE,
    select: async (apt) => (await apt.closure(DPDK_PACKAGES)).filter(isRuntime),
    build: async (apt, files, target) => {
      await apt.unpack(files, target)
      await keepOnly(join(target, 'usr/bin'), ['dpdk-testpmd'])
      await rm(join(target, 'usr/share'), { recursive: true, force: true })
    },
  })

/**
 * The kernel, and the ethtool of its age: a newer one says in its request for a hash key or an indirection table what
 * Linux 6.1 takes for a mistake.
 */
const UML_PACKAGES: readonly string[] = ['user-mode-linux', 'ethtool']

/** A folder with `usr/bin/linux.uml`, its modules under `usr/lib/uml/modules`, and `sbin/ethtool`. */
export const fetchUml = (): Promise<string> =>
  packageFolder({
    name: 'user-mode-linux',
    suite: SUITE,
    select: async (apt) => (await apt.closure(UML_PACKAGES)).filter(({ name }) => UML_PACKAGES.includes(name)),
    build: (apt, files, target) => apt.unpack(files, target),
  })

/**
 * The words that run dpdk-testpmd with the loader and the libraries it was built with. Its output, through a pipe,
 * comes line by line: that is what stdbuf(1) does, here with a library of the same suite.
 */
export const testpmdProgram = (root: string): string[] => [
  join(root, 'lib64/ld-linux-x86-64.so.2'),
  ...['--library-path', ['lib/x86_64-linux-gnu', LIBRARIES].map((path) => join(root, path)).join(':')],
  ...['--preload', join(root, 'usr/libexec/coreutils/libstdbuf.so')],
  join(root, 'usr/bin/dpdk-testpmd'),
  ...DPDK_DRIVERS.flatMap((name) => ['-d', join(root, LIBRARIES, 'dpdk/pmds-23.0', `librte_${name}.so.23`)]),
]

/** What has to be in the environment of {@link testpmdProgram}. */
export const TESTPMD_ENVIRONMENT = { _STDBUF_O: 'L' }

const keepOnly = async (folder: string, names: readonly string[]): Promise<void> => {
  for (const name of await readdir(folder)) {
    if (!names.includes(name)) await rm(join(folder, name), { recursive: true, force: true })
  }
}
