import { constants, fstatSync } from 'node:fs'
import {
  ANON_INODE_FS_MAGIC,
  BCACHEFS_SUPER_MAGIC,
  BTRFS_SUPER_MAGIC,
  EXT4_SUPER_MAGIC,
  F2FS_SUPER_MAGIC,
  HUGETLBFS_MAGIC,
  OVERLAYFS_SUPER_MAGIC,
  RAMFS_MAGIC,
  TMPFS_MAGIC,
  XFS_SUPER_MAGIC,
  ZFS_SUPER_MAGIC,
} from '../abi/linux.ts'
import { check, native } from './native.ts'

/**
 * File systems whose pages the kernel provides by itself. With FUSE or a network file system a page fault waits for
 * another program, perhaps the peer itself, for as long as that likes.
 */
const taken: ReadonlyMap<number, string> = new Map([
  [TMPFS_MAGIC, 'tmpfs'],
  [HUGETLBFS_MAGIC, 'hugetlbfs'],
  [RAMFS_MAGIC, 'ramfs'],
  [EXT4_SUPER_MAGIC, 'ext4'],
  [XFS_SUPER_MAGIC, 'XFS'],
  [BTRFS_SUPER_MAGIC, 'Btrfs'],
  [F2FS_SUPER_MAGIC, 'F2FS'],
  [BCACHEFS_SUPER_MAGIC, 'bcachefs'],
  [ZFS_SUPER_MAGIC, 'ZFS'],
  [OVERLAYFS_SUPER_MAGIC, 'overlayfs'],
])

const fileSystemOf = (fd: number): { readonly kind: number; readonly pageBytes: number } => {
  const out = new Float64Array(2)
  check('fstatfs', native.vn_file_system(fd, out))
  return { kind: out[0]!, pageBytes: out[1]! }
}

/** Bytes of the pages in which the file is mapped: more than usual for hugetlbfs. Throws SysError. */
export const pageBytesOf = (fd: number): number => fileSystemOf(fd).pageBytes

/**
 * True if its page faults could wait for another program. Areas that the kernel makes, like those of VDUSE, have none
 * that could.
 */
export const mayBlock = (fd: number): boolean => {
  const { kind } = fileSystemOf(fd)
  return kind !== ANON_INODE_FS_MAGIC && !taken.has(kind)
}

/**
 * Why `[offset, offset + lengthBytes)` of a peer's file is not mapped, or null: what is no file, too short, or on a
 * file system whose pages may never come.
 */
export const refuseMemoryFile = (fd: number, offset: number, lengthBytes: number): string | null => {
  const file = fstatSync(fd)
  if ((file.mode & constants.S_IFMT) !== constants.S_IFREG) return 'it is no file'
  const { kind } = fileSystemOf(fd)
  if (!taken.has(kind))
    return `its file system (type 0x${kind.toString(16)}) is not one of ${[...taken.values()].join(', ')}; use a memfd`
  if (offset + lengthBytes > file.size) return `it ends at ${offset + lengthBytes} of a file of ${file.size}`
  return null
}
