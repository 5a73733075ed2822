/**
 * Constants of Linux: poll.h, mman.h, fcntl.h, sched.h, socket.h. Names are the headers'. For errno values see
 * `constants.errno` of node:os.
 */

/** `struct pollfd`: poll.h. Bytes. */
export const POLLFD = { fd: 0, events: 4, revents: 6, sizeBytes: 8 } as const
export const POLLIN = 0x1
export const POLLOUT = 0x4
export const POLLERR = 0x8
export const POLLHUP = 0x10
export const POLLNVAL = 0x20

/** asm-generic/mman-common.h. */
export const PROT_READ = 1
export const PROT_WRITE = 2

/** linux/sched.h: the kind of namespace for setns. */
export const CLONE_NEWNET = 0x40000000
