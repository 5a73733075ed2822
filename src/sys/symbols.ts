import { FFIType } from 'bun:ffi'

/**
 * The C interface of the native library. Every function returns >= 0, or -errno. Strings are NUL-terminated bytes,
 * `ptr` is the address of a typed array or a number, u64 values stay below 2^53.
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
  /**
   * (fd, five f64): 1 if the file is memory, st_mode, bytes, major and minor device number. Never waits for a file
   * system.
   */
  vn_file_facts: { args: ['i32', 'ptr'], returns: 'i32' },
  /** Page size of the file's mappings in bytes. */
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
  /** Pins the calling thread to a processor. */
  vn_pin_thread: { args: ['u32'], returns: 'i32' },
  /** (bits, bytes): the processors that this thread may run on, a bit each; bytes written. */
  vn_allowed_cpus: { args: ['ptr', 'u32'], returns: 'i32' },
  /** (wanted): raises the limit of open files as far as allowed; returns the new limit. */
  vn_descriptor_limit: { args: ['u32'], returns: 'i32' },
  /** Locks the file until the descriptor is closed; -EAGAIN if another process holds the lock. */
  vn_lock: { args: ['i32'], returns: 'i32' },
  /** Handles signals that would end the process at once: zig/signals.zig. */
  vn_signals_install: { args: [], returns: 'i32' },
  /** 1 if the signal is ignored. */
  vn_signal_is_ignored: { args: ['i32'], returns: 'i32' },

  vn_listen: { args: ['i32', 'u32'], returns: 'i32' },
  /** The next connection, non-blocking. */
  vn_accept: { args: ['i32'], returns: 'i32' },
  vn_connect: { args: ['i32', 'ptr', 'u32'], returns: 'i32' },
  /** 1 if the descriptor is a unix socket. */
  vn_is_unix_socket: { args: ['i32'], returns: 'i32' },
  vn_is_connected_stream: { args: ['i32'], returns: 'i32' },
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
   * (iovecs, count, private buffer, length below 2^31): bytes copied from guest memory; fewer than requested only at
   * the end of the iovecs.
   */
  vn_guest_read: { args: ['u64', 'u32', 'ptr', 'u32'], returns: 'i32' },
  /** (iovecs, count, bytes, length below 2^31): bytes copied into guest memory. */
  vn_guest_write: { args: ['u64', 'u32', 'ptr', 'u32'], returns: 'i32' },

  /** VDUSE_VQ_INJECT_IRQ (device fd, queue index). */
  vn_vduse_inject_irq: { args: ['i32', 'u32'], returns: 'i32' },

  /** (struct vn_io *): allocates the private buffers; a handle > 0, or -errno. */
  vn_io_create: { args: ['ptr'], returns: 'i32' },
  vn_io_destroy: { args: ['i32'], returns: 'i32' },
  /** (handle, first chain, chain count): chains done (sent or dropped); fewer than requested if the TAP is full. */
  vn_tap_tx: { args: ['i32', 'u32', 'u32'], returns: 'i32' },
  /** (handle, first chain, chain count, packets at most): packets delivered; why it stopped is in vn_io. */
  vn_tap_rx: { args: ['i32', 'u32', 'u32', 'u32'], returns: 'i32' },
  /** Drops the received packet that waits for more chains: 1 if there was one. */
  vn_tap_rx_drop_pending: { args: ['i32'], returns: 'i32' },
  /** (handle, packets at most): drops the waiting packet and the packets in the TAP; returns how many. */
  vn_tap_rx_discard: { args: ['i32', 'u32'], returns: 'i32' },

  /** Makes a BPF map for one struct vn_scaling: its fd, or -errno. */
  vn_steering_map: { args: [], returns: 'i32' },
  /** (map fd): fd of a program that steers a TAP by the map, or -errno. */
  vn_steering_program: { args: ['i32'], returns: 'i32' },
  /** (map fd, struct vn_scaling): copies the struct into the map; 0 or -errno. */
  vn_steering_update: { args: ['i32', 'ptr'], returns: 'i32' },
} as const
