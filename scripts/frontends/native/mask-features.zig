//! Stands between a vhost-user frontend and its backend and takes features out of what the backend offers. Only
//! messages and descriptors go through it; the rings are shared memory of the two.
//!
//!   mask-features LISTEN CONNECT MASK
//!
//! Why it is needed: DPDK's vhost library offers a control queue that its port never looks at. Behind QEMU that goes
//! well, since QEMU answers the control queue itself; a driver that has only the backend, as in User Mode Linux, waits
//! forever.

const std = @import("std");
const linux = std.os.linux;

/// struct vhost_user_msg's header: docs/interop/vhost-user.rst, "Header".
const Header = extern struct { request: u32, flags: u32, size: u32 };

const get_features = 1;
const flag_reply = 1 << 2;
const max_fds = 16;
const max_payload = 64 << 10;

/// struct cmsghdr of sys/socket.h with room for descriptors.
const Control = extern struct { length: usize, level: i32, kind: i32, fds: [max_fds]i32 };
const control_header_bytes = @offsetOf(Control, "fds");

var payload: [max_payload]u8 = undefined;

fn fail(comptime what: []const u8, rc: usize) noreturn {
    std.debug.print("mask-features: " ++ what ++ ": {s}\n", .{@tagName(linux.getErrno(rc))});
    linux.exit(1);
}

fn call(comptime what: []const u8, rc: usize) usize {
    if (linux.getErrno(rc) != .SUCCESS) fail(what, rc);
    return rc;
}

fn unixAddress(path: []const u8) linux.sockaddr.un {
    var address = linux.sockaddr.un{ .family = linux.AF.UNIX, .path = undefined };
    if (path.len >= address.path.len) fail("path", @bitCast(@as(isize, -36)));
    @memset(&address.path, 0);
    @memcpy(address.path[0..path.len], path);
    return address;
}

fn unixSocket() i32 {
    return @intCast(call("socket", linux.socket(linux.AF.UNIX, linux.SOCK.STREAM | linux.SOCK.CLOEXEC, 0)));
}

/// Fills `buffer`. False at the end of the stream.
fn readAll(fd: i32, buffer: []u8) bool {
    var done: usize = 0;
    while (done < buffer.len) {
        const count = linux.read(fd, buffer.ptr + done, buffer.len - done);
        if (linux.getErrno(count) != .SUCCESS or count == 0) return false;
        done += count;
    }
    return true;
}

/// Passes one message on, with its descriptors. False when a side has gone.
fn relay(from: i32, to: i32, mask: u64) bool {
    var header: Header = undefined;
    var control: Control = undefined;
    var vector = [1]std.os.iovec{.{ .iov_base = std.mem.asBytes(&header), .iov_len = @sizeOf(Header) }};
    var message = linux.msghdr{
        .name = null,
        .namelen = 0,
        .iov = &vector,
        .iovlen = 1,
        .control = &control,
        .controllen = @sizeOf(Control),
        .flags = 0,
    };
    const count = linux.recvmsg(from, &message, 0);
    if (linux.getErrno(count) != .SUCCESS or count == 0) return false;
    if (!readAll(from, std.mem.asBytes(&header)[count..])) return false;
    if (header.size > payload.len) return false;
    const body = payload[0..header.size];
    if (!readAll(from, body)) return false;
    if (header.request == get_features and header.flags & flag_reply != 0 and body.len == 8) {
        const features = std.mem.readInt(u64, body[0..8], .Little);
        std.mem.writeInt(u64, body[0..8], features & ~mask, .Little);
    }

    const has_fds = message.controllen >= control_header_bytes;
    var vectors = [2]std.os.iovec_const{
        .{ .iov_base = std.mem.asBytes(&header), .iov_len = @sizeOf(Header) },
        .{ .iov_base = body.ptr, .iov_len = body.len },
    };
    const onward = linux.msghdr_const{
        .name = null,
        .namelen = 0,
        .iov = &vectors,
        .iovlen = 2,
        .control = if (has_fds) &control else null,
        .controllen = if (has_fds) message.controllen else 0,
        .flags = 0,
    };
    const sent = linux.sendmsg(to, &onward, linux.MSG.NOSIGNAL);
    if (has_fds) {
        for (control.fds[0 .. (control.length - control_header_bytes) / 4]) |fd| _ = linux.close(fd);
    }
    return linux.getErrno(sent) == .SUCCESS and sent == @sizeOf(Header) + body.len;
}

pub fn main() !void {
    const argv = std.os.argv;
    if (argv.len != 4) {
        std.debug.print("mask-features: LISTEN CONNECT MASK\n", .{});
        linux.exit(2);
    }
    const mask = try std.fmt.parseInt(u64, std.mem.span(argv[3]), 0);
    const listener = unixSocket();
    const here = unixAddress(std.mem.span(argv[1]));
    _ = call("bind", linux.bind(listener, @ptrCast(&here), @sizeOf(@TypeOf(here))));
    _ = call("listen", linux.listen(listener, 1));
    _ = linux.write(1, "ready\n", 6);
    const frontend: i32 = @intCast(call("accept", linux.accept(listener, null, null)));
    const backend = unixSocket();
    const there = unixAddress(std.mem.span(argv[2]));
    _ = call("connect", linux.connect(backend, &there, @sizeOf(@TypeOf(there))));

    while (true) {
        var polled = [2]linux.pollfd{
            .{ .fd = frontend, .events = linux.POLL.IN, .revents = 0 },
            .{ .fd = backend, .events = linux.POLL.IN, .revents = 0 },
        };
        _ = call("poll", linux.poll(&polled, polled.len, -1));
        if (polled[0].revents != 0 and !relay(frontend, backend, mask)) return;
        if (polled[1].revents != 0 and !relay(backend, frontend, mask)) return;
    }
}

comptime {
    std.debug.assert(control_header_bytes == 16 and @sizeOf(Header) == 12);
}
