//! System calls for TypeScript. Every export returns the result or -errno; the caller decides which errors it expects.

const std = @import("std");
const linux = std.os.linux;

/// The kernel's answer as a return value of the C interface: never more than an i32, since counts are u32 and small.
fn answer(rc: usize) i32 {
    return switch (linux.getErrno(rc)) {
        .SUCCESS => @intCast(rc),
        else => |errno| -@as(i32, @intFromEnum(errno)),
    };
}

/// SYSCALLS: open.
export fn vn_open(path: [*:0]const u8, flags: i32) i32 {
    // Mode 0600 for a file that O_CREAT makes.
    return answer(linux.open(path, @bitCast(flags), 0o600));
}

/// SYSCALLS: close. EINTR is success: Linux has closed the descriptor by then, and a retry could close somebody else's.
export fn vn_close(fd: i32) i32 {
    const rc = linux.close(fd);
    return switch (linux.getErrno(rc)) {
        .SUCCESS, .INTR => 0,
        else => |errno| -@as(i32, @intFromEnum(errno)),
    };
}

/// SYSCALLS: read, again after EINTR.
export fn vn_read(fd: i32, buffer: [*]u8, length: u32) i32 {
    while (true) {
        const rc = linux.read(fd, buffer, length);
        if (linux.getErrno(rc) != .INTR) return answer(rc);
    }
}

/// SYSCALLS: write, again after EINTR.
export fn vn_write(fd: i32, buffer: [*]const u8, length: u32) i32 {
    while (true) {
        const rc = linux.write(fd, buffer, length);
        if (linux.getErrno(rc) != .INTR) return answer(rc);
    }
}

/// SYSCALLS: ioctl.
export fn vn_ioctl(fd: i32, request: u32, argument: usize) i32 {
    return answer(linux.ioctl(fd, request, argument));
}

/// SYSCALLS: fcntl(F_GETFL, F_SETFL).
pub export fn vn_set_nonblock(fd: i32, on: i32) i32 {
    const old = answer(linux.fcntl(fd, linux.F.GETFL, 0));
    if (old < 0) return old;
    const flag: i32 = linux.O.NONBLOCK;
    const new = if (on != 0) old | flag else old & ~flag;
    return answer(linux.fcntl(fd, linux.F.SETFL, @intCast(new)));
}

/// SYSCALLS: fcntl(F_SETFD).
export fn vn_set_cloexec(fd: i32) i32 {
    return answer(linux.fcntl(fd, linux.F.SETFD, linux.FD_CLOEXEC));
}

/// SYSCALLS: ppoll. A negative timeout waits for ever.
export fn vn_poll(fds: [*]linux.pollfd, count: u32, timeout_ms: f64) i32 {
    const timeout_ns: i64 = @intFromFloat(@max(timeout_ms, 0) * std.time.ns_per_ms);
    var timeout = linux.timespec{
        .tv_sec = @divTrunc(timeout_ns, std.time.ns_per_s),
        .tv_nsec = @rem(timeout_ns, std.time.ns_per_s),
    };
    // Not poll: arm64 has no such call.
    const rc = linux.ppoll(fds, count, if (timeout_ms < 0) null else &timeout, null);
    return switch (linux.getErrno(rc)) {
        .SUCCESS => @intCast(rc),
        .INTR => 0,
        .FAULT => unreachable, // Our bug: the array belongs to the caller's Poller.
        else => |errno| -@as(i32, @intFromEnum(errno)),
    };
}

/// SYSCALLS: eventfd2. Non-blocking and closed on exec.
export fn vn_eventfd() i32 {
    return answer(linux.eventfd(0, linux.EFD.CLOEXEC | linux.EFD.NONBLOCK));
}

/// SYSCALLS: write.
pub export fn vn_eventfd_signal(fd: i32) i32 {
    const one: u64 = 1;
    const rc = linux.write(fd, std.mem.asBytes(&one), @sizeOf(u64));
    return switch (linux.getErrno(rc)) {
        .SUCCESS, .AGAIN => 0, // A full counter already wakes the reader.
        .FAULT => unreachable, // Our bug: the value is on the stack.
        else => |errno| -@as(i32, @intFromEnum(errno)),
    };
}

/// linux/fs.h: fail with EAGAIN rather than wait.
const RWF_NOWAIT = 8;

/// Never sleeps, even if a peer that shares the descriptor has cleared O_NONBLOCK and has emptied the counter first.
/// SYSCALLS: preadv2, read (before Linux 5.8, where eventfds know no RWF_NOWAIT).
export fn vn_eventfd_drain(fd: i32) i32 {
    var count: u64 = undefined;
    const iov = [1]std.os.iovec{.{ .iov_base = std.mem.asBytes(&count), .iov_len = @sizeOf(u64) }};
    const current_position = std.math.maxInt(usize);
    var rc = linux.syscall6(
        .preadv2,
        @bitCast(@as(isize, fd)),
        @intFromPtr(&iov),
        1,
        current_position,
        current_position,
        RWF_NOWAIT,
    );
    if (linux.getErrno(rc) == .OPNOTSUPP) rc = linux.read(fd, std.mem.asBytes(&count), @sizeOf(u64));
    return switch (linux.getErrno(rc)) {
        .SUCCESS, .AGAIN => 0,
        .FAULT => unreachable, // Our bug: the value is on the stack.
        else => |errno| -@as(i32, @intFromEnum(errno)),
    };
}

/// Facts about a descriptor's file that need no call into its file system, which with FUSE is a program.
const FileFacts = extern struct {
    /// 1 if its pages are of shmem (a memfd, tmpfs) or hugetlbfs, which alone have seals.
    is_memory: f64,
    mode: f64,
    bytes: f64,
    device_major: f64,
    device_minor: f64,
};

const F_GET_SEALS = 1034;
const AT_EMPTY_PATH = 0x1000;
const AT_STATX_DONT_SYNC = 0x4000;
const STATX_BASIC_STATS = 0x7ff;

/// SYSCALLS: statx, fcntl(F_GET_SEALS).
export fn vn_file_facts(fd: i32, out: *FileFacts) i32 {
    var stat: linux.Statx = undefined;
    const rc = linux.statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &stat);
    if (linux.getErrno(rc) != .SUCCESS) return answer(rc);
    out.* = .{
        .is_memory = if (answer(linux.fcntl(fd, F_GET_SEALS, 0)) >= 0) 1 else 0,
        .mode = @floatFromInt(stat.mode),
        .bytes = @floatFromInt(stat.size),
        .device_major = @floatFromInt(stat.dev_major),
        .device_minor = @floatFromInt(stat.dev_minor),
    };
    return 0;
}

/// The beginning of struct statfs (asm-generic/statfs.h on 64 bits).
const FileSystem = extern struct { kind: i64, block_bytes: i64, rest: [13]i64 };
const hugetlbfs_magic = 0x958458f6;

extern "c" fn sysconf(name: c_int) c_long;
const _SC_PAGESIZE = 30;

/// Page size of a file's mappings in bytes. The caller has refused file systems that may not answer.
/// SYSCALLS: fstatfs.
export fn vn_page_bytes(fd: i32) i32 {
    var file_system: FileSystem = undefined;
    const rc = linux.syscall2(.fstatfs, @bitCast(@as(isize, fd)), @intFromPtr(&file_system));
    if (linux.getErrno(rc) != .SUCCESS) return answer(rc);
    // In hugetlbfs, and a memfd with MFD_HUGETLB, a block is a huge page: at most 1 GiB on x86-64, 16 GiB on arm64.
    const bytes = if (file_system.kind == hugetlbfs_magic) file_system.block_bytes else sysconf(_SC_PAGESIZE);
    return std.math.cast(i32, bytes) orelse -@as(i32, @intFromEnum(linux.E.OPNOTSUPP));
}

/// SYSCALLS: mmap.
export fn vn_mmap(fd: i32, length: u64, offset: u64, prot: i32) i64 {
    const rc = linux.mmap(null, length, @intCast(prot), linux.MAP.SHARED, fd, @bitCast(offset));
    return switch (linux.getErrno(rc)) {
        .SUCCESS => @intCast(rc),
        else => |errno| -@as(i64, @intFromEnum(errno)),
    };
}

/// SYSCALLS: munmap.
export fn vn_munmap(address: u64, length: u64) i32 {
    return answer(linux.syscall2(.munmap, address, length));
}

/// SYSCALLS: socket. Closed on exec, whatever the type says.
export fn vn_socket(domain: i32, socket_type: i32, protocol: i32) i32 {
    const kind: u32 = @bitCast(socket_type);
    return answer(linux.socket(@bitCast(domain), kind | linux.SOCK.CLOEXEC, @bitCast(protocol)));
}

/// SYSCALLS: bind.
export fn vn_bind(fd: i32, address: *const linux.sockaddr, length: u32) i32 {
    return answer(linux.bind(fd, address, length));
}

/// SYSCALLS: setsockopt, for options that are an int.
export fn vn_setsockopt(fd: i32, level: i32, option: i32, value: i32) i32 {
    return answer(linux.setsockopt(fd, @bitCast(level), @bitCast(option), std.mem.asBytes(&value), @sizeOf(i32)));
}

/// SYSCALLS: setns. For the calling thread only.
export fn vn_setns(fd: i32, kind: i32) i32 {
    return answer(linux.syscall2(.setns, @as(usize, @bitCast(@as(isize, fd))), @as(u32, @bitCast(kind))));
}

/// Moves the calling thread to one processor.
/// SYSCALLS: sched_setaffinity.
export fn vn_pin_thread(cpu: u32) i32 {
    var set = std.mem.zeroes(linux.cpu_set_t);
    const word_bits = @bitSizeOf(usize);
    if (cpu >= set.len * word_bits) return -@as(i32, @intFromEnum(linux.E.INVAL));
    set[cpu / word_bits] = @as(usize, 1) << @intCast(cpu % word_bits);
    return answer(linux.syscall3(.sched_setaffinity, 0, @sizeOf(linux.cpu_set_t), @intFromPtr(&set)));
}

/// Writes a bit for each processor that the calling thread may run on, at most `length` bytes. Bytes written, or
/// -errno.
/// SYSCALLS: sched_getaffinity.
export fn vn_allowed_cpus(bits: [*]u8, length: u32) i32 {
    return answer(linux.syscall3(.sched_getaffinity, 0, length, @intFromPtr(bits)));
}

/// Raises the limit of descriptors to `wanted`, as far as allowed. The new limit, or -errno.
/// SYSCALLS: prlimit64.
export fn vn_descriptor_limit(wanted: u32) i32 {
    var limit: linux.rlimit = undefined;
    const old = answer(linux.prlimit(0, .NOFILE, null, &limit));
    if (old < 0) return old;
    if (limit.cur < wanted) {
        limit.cur = @min(limit.max, wanted);
        _ = linux.prlimit(0, .NOFILE, &limit, null);
        _ = linux.prlimit(0, .NOFILE, null, &limit);
    }
    return @intCast(@min(limit.cur, std.math.maxInt(i32)));
}

/// Locks the descriptor's file; -EAGAIN if another process holds the lock. Closing unlocks.
/// SYSCALLS: flock.
export fn vn_lock(fd: i32) i32 {
    return answer(linux.flock(fd, linux.LOCK.EX | linux.LOCK.NB));
}

/// VDUSE_VQ_INJECT_IRQ of linux/vduse.h: _IOW(0x81, 0x17, __u32).
pub const VDUSE_VQ_INJECT_IRQ = linux.IOCTL.IOW(0x81, 0x17, u32);

/// SYSCALLS: ioctl.
export fn vn_vduse_inject_irq(fd: i32, index: u32) i32 {
    const rc = linux.ioctl(fd, VDUSE_VQ_INJECT_IRQ, @intFromPtr(&index));
    return switch (linux.getErrno(rc)) {
        .SUCCESS => 0,
        .FAULT => unreachable, // Our bug: the index is on the stack.
        else => |errno| -@as(i32, @intFromEnum(errno)),
    };
}
