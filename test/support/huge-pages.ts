import { dlopen } from 'bun:ffi'
import { closeSync, readFileSync, writeFileSync } from 'node:fs'

export const HUGE_PAGE_BYTES = 2 << 20

/** linux/memfd.h. */
const MFD_HUGETLB = 4
const COUNT = '/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages'
const FREE = '/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages'
/** As many as any test here has at once, with some for whoever else runs. */
const WANTED = 32

const libc = dlopen('libc.so.6', {
  memfd_create: { args: ['ptr', 'u32'], returns: 'i32' },
  ftruncate: { args: ['i32', 'i64'], returns: 'i32' },
})

const free = (): number => Number(readFileSync(FREE, 'utf8'))

/**
 * Sets pages aside if there are none; they stay so, since other tests may be using them. Why there are none, or null.
 */
const setAside = (): string | null => {
  try {
    if (free() < WANTED / 2) writeFileSync(COUNT, String(Number(readFileSync(COUNT, 'utf8')) + WANTED - free()))
    return free() >= WANTED / 2 ? null : `skipped, this machine has only ${free()} free huge pages`
  } catch (error) {
    return `skipped, no huge pages of 2 MiB can be set aside here: ${error instanceof Error ? error.message : error}`
  }
}

/** Why tests with huge pages are skipped, or null. */
export const noHugePages: string | null = setAside()

/** A memfd of `count` huge pages. */
export const hugeMemfd = (count: number): number => {
  const fd = libc.symbols.memfd_create(Buffer.from('vn-test-guest\0'), MFD_HUGETLB)
  if (fd < 0 || libc.symbols.ftruncate(fd, count * HUGE_PAGE_BYTES) !== 0) throw new Error('no memfd of huge pages')
  return fd
}

/** The same, closed by its owner. */
export class HugePages implements Disposable {
  readonly fd: number

  constructor(count: number) {
    this.fd = hugeMemfd(count)
  }

  [Symbol.dispose](): void {
    closeSync(this.fd)
  }
}
