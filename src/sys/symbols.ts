import { FFIType } from 'bun:ffi'

/**
 * The C interface of the Zig helper, typed once. Every function returns >= 0, or -errno.
 * Strings are NUL-terminated bytes, `ptr` is the address of a typed array or a number, u64 values stay below 2^53.
 */
export const symbols = {
  /** JSON of sizes, offsets and ioctl numbers read from the kernel's headers; compared with src/abi at start. */
  vn_abi: { args: [], returns: 'cstring' },

  vn_open: { args: ['ptr', 'i32'], returns: 'i32' },
  vn_close: { args: ['i32'], returns: 'i32' },
  vn_read: { args: ['i32', 'ptr', 'u32'], returns: 'i32' },
  vn_write: { args: ['i32', 'ptr', 'u32'], returns: 'i32' },
  vn_ioctl: { args: ['i32', 'u32', 'ptr'], returns: 'i32' },
  /** Set (1) or clear (0) O_NONBLOCK. */
  vn_set_nonblock: { args: ['i32', 'i32'], returns: 'i32' },
  vn_set_cloexec: { args: ['i32'], returns: 'i32' },
  /** (struct pollfd *, count, timeout ms or -1). EINTR is returned as 0 ready descriptors. */
  vn_poll: { args: ['ptr', 'u32', 'f64'], returns: 'i32' },
  vn_eventfd: { args: [], returns: 'i32' },
  /** Adds 1. A full counter (EAGAIN) already wakes the reader, so it is success. */
  vn_eventfd_signal: { args: ['i32'], returns: 'i32' },
  /** As vn_eventfd_signal, for a peer's eventfd: never blocks, whatever flags the peer has set on it. */
  vn_peer_eventfd_signal: { args: ['i32'], returns: 'i32' },
  /** Empties the counter; 0 if it was empty already. Never blocks. */
  vn_eventfd_drain: { args: ['i32'], returns: 'i32' },
  /** (fd, five f64): 1 if the file is memory, st_mode, bytes, major and minor device number. Asks no file system. */
  vn_file_facts: { args: ['i32', 'ptr'], returns: 'i32' },
  /** Bytes of the pages in which the file is mapped. */
  vn_page_bytes: { args: ['i32'], returns: 'i32' },
  /** (fd, length, file offset, PROT_*): MAP_SHARED; the address, or -errno. */
  vn_mmap: { args: ['i32', 'u64', 'u64', 'i32'], returns: FFIType.i64_fast },
  vn_munmap: { args: ['u64', 'u64'], returns: 'i32' },
  vn_socket: { args: ['i32', 'i32', 'i32'], returns: 'i32' },
  vn_bind: { args: ['i32', 'ptr', 'u32'], returns: 'i32' },
  /** (fd, level, option, value): an option whose value is an int. */
  vn_setsockopt: { args: ['i32', 'i32', 'i32', 'i32'], returns: 'i32' },
  /** Moves the calling thread into the namespace (fd, CLONE_NEW*). */
  vn_setns: { args: ['i32', 'i32'], returns: 'i32' },
  /** Moves the calling thread to a processor, for good. */
  vn_pin_thread: { args: ['u32'], returns: 'i32' },
  /** (bits, bytes): the processors that this thread may run on, a bit each; bytes written. */
  vn_allowed_cpus: { args: ['ptr', 'u32'], returns: 'i32' },
  /** (wanted): raises the limit of open files as far as it may be; the limit then. */
  vn_descriptor_limit: { args: ['u32'], returns: 'i32' },
  /** Locks the file for this process until the descriptor is closed; -EAGAIN where another one has it. */
  vn_lock: { args: ['i32'], returns: 'i32' },
  /** Sees to signals that would end the process at once: see zig/signals.zig. */
  vn_signals_install: { args: [], returns: 'i32' },
  /** 1 if the signal is ignored. */
  vn_signal_is_ignored: { args: ['i32'], returns: 'i32' },

  vn_listen: { args: ['i32', 'u32'], returns: 'i32' },
  /** The next connection, non-blocking. */
  vn_accept: { args: ['i32'], returns: 'i32' },
  vn_connect: { args: ['i32', 'ptr', 'u32'], returns: 'i32' },
  /** 1 if the descriptor is a unix socket. */
  vn_is_unix_socket: { args: ['i32'], returns: 'i32' },
  /** Closes a descriptor that a peer has sent; never waits, as close(2) of some files does. */
  vn_close_peer: { args: ['i32'], returns: 'i32' },
  /** (socket, buffer, length, {count, truncated, 8 fds} in i32): bytes read, 0 at the end. Never blocks. */
  vn_recv_fds: { args: ['i32', 'ptr', 'u32', 'ptr'], returns: 'i32' },
  /** (socket, buffer, length, fds, count up to 8): bytes written. Never blocks. */
  vn_send_fds: { args: ['i32', 'ptr', 'u32', 'ptr', 'u32'], returns: 'i32' },
  /** (name, bytes): a memfd. */
  vn_memfd: { args: ['ptr', 'u64'], returns: 'i32' },

  /** Installs the SIGBUS handler of this process (idempotent). */
  vn_guard_install: { args: [], returns: 'i32' },
  /** (address, length, bytes of a page): faults there map a zero page and count; a slot number, or -errno. */
  vn_guard_add: { args: ['u64', 'u64', 'u64'], returns: 'i32' },
  /** Faults seen in the slot so far. */
  vn_guard_hits: { args: ['i32'], returns: 'i32' },
  vn_guard_remove: { args: ['i32'], returns: 'i32' },

  /**
   * (iovecs, count, private buffer, length below 2^31): bytes copied out of guest memory, fewer than asked only if
   * there are no more.
   */
  vn_guest_read: { args: ['u64', 'u32', 'ptr', 'u32'], returns: 'i32' },
  /** (iovecs, count, bytes, length below 2^31): bytes copied into guest memory. */
  vn_guest_write: { args: ['u64', 'u32', 'ptr', 'u32'], returns: 'i32' },

  /** VDUSE_VQ_INJECT_IRQ (device fd, queue index). */
  vn_vduse_inject_irq: { args: ['i32', 'u32'], returns: 'i32' },

  /** Sizes of what follows: allocates the private packet pool. (struct vn_io *): a handle > 0, or -errno. */
  vn_io_create: { args: ['ptr'], returns: 'i32' },
  vn_io_destroy: { args: ['i32'], returns: 'i32' },
  /** (handle, first chain, chain count): chains done (sent or dropped), fewer than asked when the TAP would block. */
  vn_tap_tx: { args: ['i32', 'u32', 'u32'], returns: 'i32' },
  /** (handle, first chain, chain count, packets at most): packets delivered; why it stopped is in vn_io. */
  vn_tap_rx: { args: ['i32', 'u32', 'u32', 'u32'], returns: 'i32' },
  /** Throws away the received packet that waits for more chains: 1 if there was one. */
  vn_tap_rx_drop_pending: { args: ['i32'], returns: 'i32' },
  /** (handle, packets at most): throws away the received packet that waits and what the TAP holds; how many. */
  vn_tap_rx_discard: { args: ['i32', 'u32'], returns: 'i32' },

  /** A BPF map for one struct vn_scaling: its fd, or -errno. */
  vn_steering_map: { args: [], returns: 'i32' },
  /** (fd of that map): fd of the program that steers a TAP by it, or -errno. */
  vn_steering_program: { args: ['i32'], returns: 'i32' },
  /** (fd of that map, struct vn_scaling): 0. */
  vn_steering_update: { args: ['i32', 'ptr'], returns: 'i32' },
} as const
