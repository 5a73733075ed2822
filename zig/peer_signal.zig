//! Signals to eventfds that a peer has given us. Its end is the same open file description as ours, so that the peer can clear
//! O_NONBLOCK at any time, and a write to a full counter would then sleep for as long as the peer likes. The kernel's own
//! eventfd_signal() never sleeps, and asynchronous I/O is a way to have it called: a read that is complete at once, of an empty
//! file, with the peer's eventfd as the place to report to (io_submit(2), IOCB_FLAG_RESFD).

const std = @import("std");
const linux = std.os.linux;
const sys = @import("sys.zig");
const fds = @import("fd_passing.zig");

/// linux/aio_abi.h.
const Iocb = extern struct {
    data: u64 = 0,
    key: u32 = 0,
    rw_flags: u32 = 0,
    opcode: u16 = pread,
    priority: i16 = 0,
    fd: u32,
    buffer: u64,
    bytes: u64 = 0,
    offset: i64 = 0,
    reserved: u64 = 0,
    flags: u32 = resfd,
    eventfd: u32,

    const pread = 0;
    const resfd = 1;
};
const Event = extern struct { data: u64, object: u64, result: i64, result2: i64 };

comptime {
    std.debug.assert(@sizeOf(Iocb) == 64 and @sizeOf(Event) == 32);
}

/// Completions that may lie in the kernel's ring before they are taken out of it.
const pending_max = 64;

/// One for each thread that signals: contexts are not to be shared, and go with the process.
const Context = struct {
    id: usize = 0,
    empty_file: i32 = -1,
    pending: u32 = 0,
    state: enum { new, ready, unavailable } = .new,

    /// SYSCALLS: io_setup, memfd_create.
    fn prepare(self: *Context) void {
        self.state = .unavailable;
        const file = fds.vn_memfd("vduse-net-empty", 0);
        if (file < 0) return;
        if (linux.getErrno(linux.syscall2(.io_setup, 2 * pending_max, @intFromPtr(&self.id))) != .SUCCESS) {
            _ = linux.close(file);
            return;
        }
        self.empty_file = file;
        self.state = .ready;
    }

    /// SYSCALLS: io_submit, io_getevents.
    fn signal(self: *Context, eventfd: i32) usize {
        var byte: u8 = 0;
        const iocb = Iocb{
            .fd = @intCast(self.empty_file),
            .buffer = @intFromPtr(&byte),
            .eventfd = @intCast(eventfd),
        };
        const list = [1]*const Iocb{&iocb};
        const rc = linux.syscall3(.io_submit, self.id, 1, @intFromPtr(&list));
        if (linux.getErrno(rc) == .SUCCESS) self.pending += 1;
        if (self.pending == pending_max) {
            var events: [pending_max]Event = undefined;
            _ = linux.syscall5(.io_getevents, self.id, 0, pending_max, @intFromPtr(&events), 0);
            self.pending = 0;
        }
        return rc;
    }
};

threadlocal var context = Context{};

/// Adds 1 to a peer's eventfd, and never sleeps. A full counter is success: it wakes the peer already. Without asynchronous I/O in this
/// kernel or sandbox it is an ordinary write, O_NONBLOCK being set again just before. 0, or -errno (EINVAL: not an eventfd).
pub export fn vn_peer_eventfd_signal(eventfd: i32) i32 {
    if (eventfd < 0) return -@as(i32, @intFromEnum(linux.E.BADF));
    if (context.state == .new) context.prepare();
    if (context.state == .ready) {
        const rc = context.signal(eventfd);
        switch (linux.getErrno(rc)) {
            .SUCCESS => return 0,
            .AGAIN, .NOSYS, .PERM => context.state = .unavailable,
            else => |errno| return -@as(i32, @intFromEnum(errno)),
        }
    }
    const set = sys.vn_set_nonblock(eventfd, 1);
    return if (set < 0) set else sys.vn_eventfd_signal(eventfd);
}

test "a full counter of an eventfd that would block does not stop the thread, and later signals arrive" {
    const fd: i32 = @intCast(linux.eventfd(0, 0));
    defer _ = linux.close(fd);
    const full: u64 = std.math.maxInt(u64) - 1;
    _ = linux.write(fd, std.mem.asBytes(&full), 8);
    var round: u32 = 0;
    while (round < 3 * pending_max) : (round += 1) try std.testing.expectEqual(@as(i32, 0), vn_peer_eventfd_signal(fd));
    var count: u64 = 0;
    _ = linux.read(fd, std.mem.asBytes(&count), 8);
    try std.testing.expectEqual(@as(u64, std.math.maxInt(u64)), count);
    try std.testing.expectEqual(@as(i32, 0), vn_peer_eventfd_signal(fd));
    _ = linux.read(fd, std.mem.asBytes(&count), 8);
    try std.testing.expectEqual(@as(u64, 1), count);
}

test "what is no eventfd is refused" {
    const file = fds.vn_memfd("test", 0);
    defer _ = linux.close(file);
    try std.testing.expectEqual(-@as(i32, @intFromEnum(linux.E.INVAL)), vn_peer_eventfd_signal(file));
    try std.testing.expectEqual(-@as(i32, @intFromEnum(linux.E.BADF)), vn_peer_eventfd_signal(-1));
}
