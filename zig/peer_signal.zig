//! Signals eventfds that belong to a peer. Both sides share one open file description, so the peer can clear O_NONBLOCK
//! at any time, and a write to a full counter then sleeps as long as the peer wants. The kernel's eventfd_signal()
//! never sleeps. Asynchronous I/O calls it: a read of an empty file completes at once and signals the peer's eventfd
//! (io_submit(2), IOCB_FLAG_RESFD).

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

/// Most completions in the kernel's ring before they are removed.
const pending_max = 64;

/// One for each thread that signals: a context is used by one thread, and freed with the process.
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

/// The fallback without asynchronous I/O, or if its limit is reached: a write. It may sleep on a full counter if the
/// peer has cleared O_NONBLOCK. A timer of the thread then interrupts it, repeatedly, since the first signal may come
/// before the write.
const Alarm = struct {
    timer: i32 = -1,
    state: enum { new, ready, unavailable } = .new,

    /// A real-time signal: Bun and its JavaScript engine use none.
    const signal_number = 60;
    const interval_ns = std.time.ns_per_ms;

    fn onAlarm(_: c_int) callconv(.C) void {}

    /// struct sigevent, which SIGEV_THREAD_ID (4) gives a thread.
    const SigEvent = extern struct {
        value: u64 = 0,
        signo: i32 = signal_number,
        notify: i32 = 4,
        thread: i32,
        rest: [11]i32 = .{0} ** 11,
    };
    comptime {
        std.debug.assert(@sizeOf(SigEvent) == 64);
    }

    /// SYSCALLS: rt_sigaction, timer_create.
    fn prepare(self: *Alarm) void {
        self.state = .unavailable;
        // Without SA_RESTART, so that the write ends.
        const action = linux.Sigaction{ .handler = .{ .handler = onAlarm }, .mask = linux.empty_sigset, .flags = 0 };
        if (sigaction(signal_number, &action, null) != 0) return;
        const event = SigEvent{ .thread = linux.gettid() };
        const rc = linux.syscall3(.timer_create, linux.CLOCK.MONOTONIC, @intFromPtr(&event), @intFromPtr(&self.timer));
        if (linux.getErrno(rc) == .SUCCESS) self.state = .ready;
    }

    /// SYSCALLS: timer_settime.
    fn set(self: *Alarm, nanoseconds: isize) void {
        const span = linux.timespec{ .tv_sec = 0, .tv_nsec = nanoseconds };
        const spec = [2]linux.timespec{ span, span };
        _ = linux.syscall4(.timer_settime, @intCast(self.timer), 0, @intFromPtr(&spec), 0);
    }

    /// SYSCALLS: fcntl, write. An interrupted write found a full counter: the peer is awake.
    fn write(self: *Alarm, eventfd: i32) i32 {
        if (self.state == .new) self.prepare();
        // A well-behaved peer does not clear the flag, and the timer is not needed.
        const flagged = sys.vn_set_nonblock(eventfd, 1);
        if (flagged < 0) return flagged;
        if (self.state == .ready) self.set(interval_ns);
        defer if (self.state == .ready) self.set(0);
        return self.plainWrite(eventfd);
    }

    fn plainWrite(_: *Alarm, eventfd: i32) i32 {
        const rc = sys.vn_eventfd_signal(eventfd);
        return if (rc == -@as(i32, @intFromEnum(linux.E.INTR))) 0 else rc;
    }
};

extern "c" fn sigaction(sig: c_int, noalias act: ?*const linux.Sigaction, noalias oact: ?*linux.Sigaction) c_int;

threadlocal var alarm = Alarm{};

/// Adds 1 to a peer's eventfd. Never sleeps longer than a few milliseconds. A full counter is success: it wakes the
/// peer already. 0, or -errno (EINVAL: not an eventfd).
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
    return alarm.write(eventfd);
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

test "without asynchronous I/O neither" {
    const fd: i32 = @intCast(linux.eventfd(0, 0));
    defer _ = linux.close(fd);
    const full: u64 = std.math.maxInt(u64) - 1;
    _ = linux.write(fd, std.mem.asBytes(&full), 8);
    const before = context.state;
    context.state = .unavailable;
    defer context.state = before;
    try std.testing.expectEqual(@as(i32, 0), vn_peer_eventfd_signal(fd));
    // The peer clears the flag between fcntl and write.
    var round: u32 = 0;
    while (round < 5) : (round += 1) {
        _ = sys.vn_set_nonblock(fd, 0);
        alarm.set(Alarm.interval_ns);
        defer alarm.set(0);
        try std.testing.expectEqual(@as(i32, 0), alarm.plainWrite(fd));
    }
    var count: u64 = 0;
    _ = linux.read(fd, std.mem.asBytes(&count), 8);
    try std.testing.expectEqual(full, count);
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
