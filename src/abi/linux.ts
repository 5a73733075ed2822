/**
 * What we use of Linux itself: poll.h, mman.h, magic.h, fcntl.h, sched.h, socket.h. Names are the headers'. Errno
 * values are those of `node:os` constants.errno.
 */

/** `struct pollfd`: poll.h. Bytes. */
export const POLLFD = { fd: 0, events: 4, revents: 6, sizeBytes: 8 } as const
export const POLLIN = 0x1
export const POLLOUT = 0x4
export const POLLERR = 0x8
export const POLLHUP = 0x10
export const POLLNVAL = 0x20

/** f_type of struct statfs: linux/magic.h, but for ZFS. */
export const ANON_INODE_FS_MAGIC = 0x09041934
export const BTRFS_SUPER_MAGIC = 0x9123683e
export const EXT4_SUPER_MAGIC = 0xef53
export const F2FS_SUPER_MAGIC = 0xf2f52010
export const HUGETLBFS_MAGIC = 0x958458f6
export const OVERLAYFS_SUPER_MAGIC = 0x794c7630
export const RAMFS_MAGIC = 0x858458f6
export const TMPFS_MAGIC = 0x01021994
export const XFS_SUPER_MAGIC = 0x58465342
export const BCACHEFS_SUPER_MAGIC = 0xca451a4e
export const ZFS_SUPER_MAGIC = 0x2fc12fc1

/** asm-generic/mman-common.h. */
export const PROT_READ = 1
export const PROT_WRITE = 2

/** linux/sched.h: the kind of namespace for setns. */
export const CLONE_NEWNET = 0x40000000
