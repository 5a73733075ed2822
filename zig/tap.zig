//! The TAP's side of a packet: what it answers to reads and writes, and one system call a packet. Why not io_uring:
//! docs/decisions/0006.

const std = @import("std");
const linux = std.os.linux;
const DropReason = @import("drop_reason.zig").DropReason;

pub const E = linux.E;
pub const iovec = std.os.iovec;
pub const iovec_const = std.os.iovec_const;

/// Longest list of pieces that the kernel takes (UIO_MAXIOV in linux/uio.h).
pub const max_iovecs = 1024;

/// What the TAP says to a write.
pub const Answer = union(enum) {
    sent,
    /// Nothing was sent: try again when it is writable.
    would_block,
    drop: DropReason,
};

/// Sorts an errno of a write. Total: a number that nobody expects is a refusal of this one packet.
pub fn answerTo(errno: E) Answer {
    return switch (errno) {
        .SUCCESS => .sent,
        .AGAIN => .would_block,
        // The interface is down.
        .IO => .{ .drop = .tap_down },
        // The interface is deleted (EBADFD), its queue detached (EBUSY under NAPI), or the descriptor is no TAP any
        // more.
        .BADFD, .BADF, .NXIO, .NODEV, .BUSY, .PIPE => .{ .drop = .tap_gone },
        .NOMEM, .NOBUFS => .{ .drop = .tap_no_memory },
        // Guest memory vanished between translation and copy.
        .FAULT => .{ .drop = .chain_address_unmapped },
        else => .{ .drop = .tap_rejected },
    };
}

/// SYSCALLS: write, writev. Sends one packet; a TAP takes all of it or nothing.
pub fn writePacket(fd: i32, iovecs: []const iovec_const) E {
    while (true) {
        // One piece is cheaper without a list.
        const result = if (iovecs.len == 1)
            linux.write(fd, iovecs[0].iov_base, iovecs[0].iov_len)
        else
            linux.writev(fd, iovecs.ptr, iovecs.len);
        const errno = linux.getErrno(result);
        if (errno != .INTR) return errno;
    }
}

/// Length of a packet, or the errno.
pub const Read = union(enum) { bytes: usize, errno: E };

/// SYSCALLS: read. One packet into `out`, which cuts it where it is too short.
pub fn readPacket(fd: i32, out: []u8) Read {
    while (true) return answered(linux.read(fd, out.ptr, out.len)) orelse continue;
}

/// SYSCALLS: readv. The same into pieces.
pub fn readPieces(fd: i32, pieces: []const iovec) Read {
    while (true) return answered(linux.readv(fd, pieces.ptr, pieces.len)) orelse continue;
}

/// Null for a call that has to be made again.
fn answered(result: usize) ?Read {
    return switch (linux.getErrno(result)) {
        .SUCCESS => .{ .bytes = result },
        .INTR => null,
        else => |errno| .{ .errno = errno },
    };
}

test "every errno has an answer" {
    for (0..4096) |number| {
        const answer = answerTo(@enumFromInt(number));
        try std.testing.expectEqual(number == 0, answer == .sent);
    }
    try std.testing.expectEqual(DropReason.tap_gone, answerTo(.BADFD).drop);
    try std.testing.expectEqual(DropReason.tap_down, answerTo(.IO).drop);
    try std.testing.expectEqual(DropReason.tap_rejected, answerTo(.INVAL).drop);
    try std.testing.expectEqual(DropReason.chain_address_unmapped, answerTo(.FAULT).drop);
}
