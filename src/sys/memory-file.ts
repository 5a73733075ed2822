import { constants, readFileSync, readlinkSync } from 'node:fs'
import { check, native } from './native.ts'

/**
 * File systems whose page faults the kernel serves by itself, by their names in /proc/self/mountinfo. With FUSE or a
 * network file system a page fault waits for another program, perhaps the peer, without a bound. So do most system
 * calls on the file: none is made before the file system is known.
 */
const taken: ReadonlySet<string> = new Set([
  'tmpfs',
  'hugetlbfs',
  'ramfs',
  'ext4',
  'ext3',
  'ext2',
  'xfs',
  'btrfs',
  'f2fs',
  'bcachefs',
  'zfs',
])

/** The file system of a descriptor, found by mount id or device; null if no visible mount has it. */
const fileSystemOf = (fd: number, device: string): string | null => {
  const mount = /^mnt_id:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1]
  for (const line of readFileSync('/proc/self/mountinfo', 'utf8').split('\n')) {
    const [place, what] = line.split(' - ')
    const [id, , at] = place!.split(' ')
    if (id === mount || at === device) return what?.split(' ')[0] ?? null
  }
  return null
}

/** Bytes of the file's pages: huge pages for hugetlbfs. Throws SysError. */
export const pageBytesOf = (fd: number): number => check('fstatfs', native.vn_page_bytes(fd))

/**
 * Why `[offset, offset + lengthBytes)` of a peer's file must not be mapped: not a regular file, too short, or on a file
 * system whose page faults may block. Null if it may be mapped.
 */
export const refuseMemoryFile = (fd: number, offset: number, lengthBytes: number): string | null => {
  const facts = new Float64Array(5)
  check('statx', native.vn_file_facts(fd, facts))
  const [isMemory, mode, bytes, major, minor] = facts
  if ((mode! & constants.S_IFMT) !== constants.S_IFREG) return 'it is not a regular file'
  if (isMemory === 0) {
    const fileSystem = fileSystemOf(fd, `${major}:${minor}`)
    if (fileSystem === null || !taken.has(fileSystem)) {
      const what = fileSystem === null ? 'a file system that is not mounted here' : fileSystem
      return `it is on ${what}, not on one of ${[...taken].join(', ')}; use a memfd`
    }
  }
  if (offset + lengthBytes > bytes!) return `it ends at ${offset + lengthBytes} of a file of ${bytes}`
  return null
}

/** True for a memory area that the kernel made for VDUSE: no file with a path can have this link target. */
export const isKernelArea = (fd: number): boolean => readlinkSync(`/proc/self/fd/${fd}`).startsWith('anon_inode:')
