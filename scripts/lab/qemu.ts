import { join } from 'node:path'
import { packageFolder } from './pinned.ts'

/** The machines that QEMU emulates for the tests, and the package of each. */
const PACKAGES = {
  x86_64: 'qemu-system-x86',
  ppc64: 'qemu-system-ppc',
  s390x: 'qemu-system-s390x',
} as const

/** An architecture, as QEMU names it. */
export type QemuArchitecture = keyof typeof PACKAGES

/** All of them. */
export const QEMU_ARCHITECTURES = Object.keys(PACKAGES) as QemuArchitecture[]

/**
 * The command words that start QEMU, which also comes from the archive and is not the machine's. Debian 12's QEMU 7.2
 * emulates cmpxchg16b wrongly (an interrupt right after it sees garbage in EFLAGS), and 6.12's slab allocator uses that
 * instruction on every allocation: one boot in five died of a double fault. Run with the loader and the libraries it
 * was built with, this one needs nothing of the machine and no root.
 */
export const fetchQemu = async (architecture: QemuArchitecture = 'x86_64'): Promise<string[]> => {
  const root = await packageFolder({
    name: architecture === 'x86_64' ? 'qemu' : `qemu-${architecture}`,
    suite: 'trixie',
    select: (apt) => apt.closure([PACKAGES[architecture]]),
    build: (apt, files, target) => apt.unpack(files, target),
  })
  const usr = join(root, 'usr')
  return [
    join(usr, 'lib64/ld-linux-x86-64.so.2'),
    ...['--library-path', join(usr, 'lib/x86_64-linux-gnu')],
    join(usr, `bin/qemu-system-${architecture}`),
    ...['-L', join(usr, 'share/qemu'), '-L', join(usr, 'share/seabios')],
  ]
}
