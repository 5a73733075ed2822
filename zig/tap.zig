//! Reads and writes of the TAP, one system call a packet, and their errors. Why not io_uring: docs/decisions/0006.

const std = @import("std");
const linux = std.os.linux;
const DropReason = @import("drop_reason.zig").DropReason;

pub const E = linux.E;
pub const iovec = std.os.iovec;
pub const iovec_const = std.os.iovec_const;

/// Longest list of pieces that the kernel takes (UIO_MAXIOV in linux/uio.h).
pub const max_iovecs = 1024;

/// The result of a write to the TAP.
pub const Answer = union(enum) {
    sent,
    /// Nothing was sent: try again when the TAP is writable.
    would_block,
    drop: DropReason,
};

/// Classifies the errno of a write. Total: an unexpected errno refuses this one packet.
pub fn answerTo(errno: E) Answer {
    return switch (errno) {
        .SUCCESS => .sent,
        .AGAIN => .would_block,
        // The interface is down.
        .IO => .{ .drop = .tap_down },
        // The interface is deleted (EBADFD), its queue detached (EBUSY under NAPI), or the descriptor is not a TAP any
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
        // write() is cheaper than writev() for one piece.
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

/// SYSCALLS: read. Reads one packet into `out`; a longer packet is truncated.
pub fn readPacket(fd: i32, out: []u8) Read {
    while (true) return answered(linux.read(fd, out.ptr, out.len)) orelse continue;
}

/// SYSCALLS: readv. Reads one packet into pieces.
pub fn readPieces(fd: i32, pieces: []const iovec) Read {
    while (true) return answered(linux.readv(fd, pieces.ptr, pieces.len)) orelse continue;
}

/// Null if the call must be repeated.
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
