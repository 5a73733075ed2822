//! Messages with file descriptors over unix sockets: SCM_RIGHTS of unix(7).

const std = @import("std");
const linux = std.os.linux;

/// As many as a vhost-user message may carry: VHOST_MEMORY_BASELINE_NREGIONS.
const fds_max = 8;

/// `struct cmsghdr` and the descriptors behind it, aligned as CMSG_LEN and CMSG_SPACE have it on 64-bit Linux.
const Control = extern struct {
    len: usize = 0,
    level: i32 = 0,
    kind: i32 = 0,
    fds: [fds_max]i32 = undefined,
    const header_bytes = 16;
};

/// linux/socket.h.
const SCM_RIGHTS = 1;

/// Results of `vn_recv_fds` besides the bytes. src/sys/unix-socket.ts reads it.
const Received = extern struct {
    count: u32,
    /// 1 if descriptors did not fit and the kernel closed them.
    truncated: u32,
    fds: [fds_max]i32,
};

fn negative(errno: linux.E) i32 {
    return -@as(i32, @intFromEnum(errno));
}

/// Reads at most `length` bytes and the descriptors that came with them, which are closed on exec. Bytes, 0 at the end,
/// or -errno.
/// SYSCALLS: recvmsg.
export fn vn_recv_fds(socket: i32, buffer: [*]u8, length: u32, received: *Received) i32 {
    received.* = .{ .count = 0, .truncated = 0, .fds = [_]i32{-1} ** fds_max };
    var iov = [1]std.os.iovec{.{ .iov_base = buffer, .iov_len = length }};
    var control = Control{};
    var message = linux.msghdr{
        .name = null,
        .namelen = 0,
        .iov = &iov,
        .iovlen = 1,
        .control = &control,
        .controllen = @sizeOf(Control),
        .flags = 0,
    };
    const rc = while (true) {
        const rc = linux.recvmsg(socket, &message, linux.MSG.DONTWAIT | linux.MSG.CMSG_CLOEXEC);
        if (linux.getErrno(rc) != .INTR) break rc;
    };
    switch (linux.getErrno(rc)) {
        .SUCCESS => {},
        else => |errno| return negative(errno),
    }
    if (message.flags & linux.MSG.CTRUNC != 0) received.truncated = 1;
    if (message.controllen >= Control.header_bytes and
        control.level == linux.SOL.SOCKET and control.kind == SCM_RIGHTS and control.len >= Control.header_bytes)
    {
        const bytes = @min(control.len, message.controllen) - Control.header_bytes;
        const count = @min(bytes / @sizeOf(i32), fds_max);
        @memcpy(received.fds[0..count], control.fds[0..count]);
        received.count = @intCast(count);
    }
    return @intCast(rc);
}

/// Writes bytes and passes `count` descriptors (at most 8) with the first of them. Bytes written, or -errno. Never
/// blocks, raises no SIGPIPE.
/// SYSCALLS: sendmsg.
export fn vn_send_fds(socket: i32, buffer: [*]const u8, length: u32, fds: [*]const i32, count: u32) i32 {
    if (count > fds_max) return negative(.INVAL);
    var iov = [1]std.os.iovec_const{.{ .iov_base = buffer, .iov_len = length }};
    var control = Control{
        .len = Control.header_bytes + count * @sizeOf(i32),
        .level = linux.SOL.SOCKET,
        .kind = SCM_RIGHTS,
    };
    @memcpy(control.fds[0..count], fds[0..count]);
    const message = linux.msghdr_const{
        .name = null,
        .namelen = 0,
        .iov = &iov,
        .iovlen = 1,
        .control = if (count == 0) null else &control,
        .controllen = if (count == 0) 0 else @intCast(std.mem.alignForward(usize, control.len, @sizeOf(usize))),
        .flags = 0,
    };
    while (true) {
        const rc = linux.sendmsg(socket, &message, linux.MSG.DONTWAIT | linux.MSG.NOSIGNAL);
        switch (linux.getErrno(rc)) {
            .SUCCESS => return @intCast(rc),
            .INTR => {},
            else => |errno| return negative(errno),
        }
    }
}

/// SYSCALLS: listen.
export fn vn_listen(socket: i32, backlog: u32) i32 {
    return switch (linux.getErrno(linux.listen(socket, backlog))) {
        .SUCCESS => 0,
        else => |errno| negative(errno),
    };
}

/// The next connection, non-blocking and closed on exec; -EAGAIN if there is none.
/// SYSCALLS: accept4.
export fn vn_accept(socket: i32) i32 {
    while (true) {
        const rc = linux.accept4(socket, null, null, linux.SOCK.NONBLOCK | linux.SOCK.CLOEXEC);
        switch (linux.getErrno(rc)) {
            .SUCCESS => return @intCast(rc),
            .INTR => {},
            else => |errno| return negative(errno),
        }
    }
}

/// SYSCALLS: connect.
export fn vn_connect(socket: i32, address: *const anyopaque, length: u32) i32 {
    return switch (linux.getErrno(linux.connect(socket, address, length))) {
        .SUCCESS => 0,
        else => |errno| negative(errno),
    };
}

/// A memfd of `size` bytes, closed on exec, for shared state.
/// SYSCALLS: memfd_create, ftruncate, close.
pub export fn vn_memfd(name: [*:0]const u8, size: u64) i32 {
    const rc = linux.memfd_create(name, linux.MFD.CLOEXEC);
    switch (linux.getErrno(rc)) {
        .SUCCESS => {},
        else => |errno| return negative(errno),
    }
    const fd: i32 = @intCast(rc);
    switch (linux.getErrno(linux.ftruncate(fd, @intCast(size)))) {
        .SUCCESS => return fd,
        else => |errno| {
            _ = linux.close(fd);
            return negative(errno);
        },
    }
}

/// 1 if the descriptor is a unix socket. A peer can hold the lock of any other socket without a bound, by a system call
/// on its side.
/// SYSCALLS: getsockopt(SO_DOMAIN).
export fn vn_is_unix_socket(fd: i32) i32 {
    var domain: i32 = -1;
    var length: linux.socklen_t = @sizeOf(i32);
    const rc = linux.getsockopt(fd, linux.SOL.SOCKET, linux.SO.DOMAIN, std.mem.asBytes(&domain), &length);
    return @intFromBool(linux.getErrno(rc) == .SUCCESS and domain == linux.AF.UNIX);
}

/// 1 if the descriptor is a stream socket that is connected, or was until its peer closed it.
/// SYSCALLS: getsockopt(SO_TYPE), getpeername.
export fn vn_is_connected_stream(fd: i32) i32 {
    var kind: i32 = -1;
    var length: linux.socklen_t = @sizeOf(i32);
    const rc = linux.getsockopt(fd, linux.SOL.SOCKET, linux.SO.TYPE, std.mem.asBytes(&kind), &length);
    if (linux.getErrno(rc) != .SUCCESS or kind != linux.SOCK.STREAM) return 0;
    var address: linux.sockaddr.storage = undefined;
    length = @sizeOf(linux.sockaddr.storage);
    // A listening socket has no peer either.
    return @intFromBool(linux.getErrno(linux.getpeername(fd, @ptrCast(&address), &length)) == .SUCCESS);
}

const F_GET_SEALS = 1034;

/// True for files whose close never waits: an eventfd, a unix socket, memory (only memory has seals).
/// SYSCALLS: readlink, fcntl, getsockopt.
fn closesAtOnce(fd: i32) bool {
    if (vn_is_unix_socket(fd) == 1) return true;
    if (linux.getErrno(linux.fcntl(fd, F_GET_SEALS, 0)) == .SUCCESS) return true;
    var path: [32]u8 = undefined;
    var target: [32]u8 = undefined;
    const link = std.fmt.bufPrintZ(&path, "/proc/self/fd/{d}", .{fd}) catch return false;
    const rc = linux.readlink(link, &target, target.len);
    return linux.getErrno(rc) == .SUCCESS and std.mem.eql(u8, target[0..rc], "anon_inode:[eventfd]");
}

/// Most concurrent closes that wait; further descriptors stay open.
const closings_max = 64;
var closings = std.atomic.Atomic(u32).init(0);

fn closeThere(fd: i32) void {
    _ = linux.close(fd);
    _ = closings.fetchSub(1, .AcqRel);
}

/// Closes a descriptor from a peer and never waits. close(2) waits for a program if the file is on FUSE, may linger for
/// a TCP socket, and takes a lock for a pipe: a separate thread closes these. -EBADF if the descriptor is not open;
/// -EAGAIN if it stays open because too many closes wait.
/// SYSCALLS: close, clone.
export fn vn_close_peer(fd: i32) i32 {
    if (linux.getErrno(linux.fcntl(fd, linux.F.GETFD, 0)) != .SUCCESS) return negative(.BADF);
    if (closesAtOnce(fd)) {
        _ = linux.close(fd);
        return 0;
    }
    if (closings.fetchAdd(1, .AcqRel) < closings_max) {
        if (std.Thread.spawn(.{ .stack_size = 64 * 1024 }, closeThere, .{fd})) |thread| {
            thread.detach();
            return 0;
        } else |_| {}
    }
    _ = closings.fetchSub(1, .AcqRel);
    return negative(.AGAIN);
}

test "descriptors arrive with their bytes" {
    var pair: [2]i32 = undefined;
    try std.testing.expectEqual(@as(usize, 0), linux.socketpair(linux.AF.UNIX, linux.SOCK.STREAM, 0, &pair));
    const memfd = vn_memfd("test", 4096);
    try std.testing.expect(memfd >= 0);
    const sent = [_]i32{ memfd, memfd };
    try std.testing.expectEqual(@as(i32, 5), vn_send_fds(pair[0], "hello", 5, &sent, 2));
    var buffer: [16]u8 = undefined;
    var received: Received = undefined;
    try std.testing.expectEqual(@as(i32, 5), vn_recv_fds(pair[1], &buffer, buffer.len, &received));
    try std.testing.expectEqual(@as(u32, 2), received.count);
    try std.testing.expect(received.fds[0] != memfd and received.fds[0] > 0 and received.fds[1] != received.fds[0]);
    try std.testing.expectEqual(
        -@as(i32, @intFromEnum(linux.E.AGAIN)),
        vn_recv_fds(pair[1], &buffer, buffer.len, &received),
    );
    for ([_]i32{ pair[0], pair[1], memfd, received.fds[0] }) |fd| _ = linux.close(fd);
}
