//! Reads and writes guest memory given as pieces. The guest can change it at any time, and pages can vanish: the SIGBUS
//! guard then maps zero pages. So every byte is read once, into private memory, and checks use only that copy.

const std = @import("std");
const Iovec = @import("io.zig").Iovec;

/// A position in a list of pieces.
pub const Cursor = struct {
    pieces: []align(4) const Iovec,
    /// Bytes of `pieces[0]` before the position.
    offset: u32 = 0,

    /// Copies the next bytes from the guest. Returns how many: fewer than `out` holds only at the end of the list.
    pub fn read(self: *Cursor, out: []u8) usize {
        var done: usize = 0;
        while (done < out.len) {
            const piece = self.take(out.len - done) orelse break;
            // SAFETY: TypeScript has translated and bounded the piece, and keeps it mapped during the call.
            const source: [*]const u8 = @ptrFromInt(piece.address);
            @memcpy(out[done..][0..piece.length], source[0..piece.length]);
            done += piece.length;
        }
        // SAFETY: otherwise the compiler may read guest memory again instead of the copy.
        asm volatile ("" ::: "memory");
        return done;
    }

    /// Copies bytes to the guest. Returns how many: fewer than given only at the end of the list.
    pub fn write(self: *Cursor, bytes: []const u8) usize {
        var done: usize = 0;
        while (done < bytes.len) {
            const piece = self.take(bytes.len - done) orelse break;
            // SAFETY: as above.
            const target: [*]u8 = @ptrFromInt(piece.address);
            @memcpy(target[0..piece.length], bytes[done..][0..piece.length]);
            done += piece.length;
        }
        return done;
    }

    /// Skips the next bytes.
    pub fn skip(self: *Cursor, bytes: usize) void {
        var left = bytes;
        while (left > 0) left -= (self.take(left) orelse break).length;
    }

    /// Takes the next run of at most `bytes_max` bytes within one piece; null at the end. Never empty.
    pub fn take(self: *Cursor, bytes_max: usize) ?struct { address: usize, length: u32 } {
        while (self.pieces.len > 0) {
            const piece = self.pieces[0];
            const left = piece.length - self.offset;
            if (left == 0) {
                self.pieces = self.pieces[1..];
                self.offset = 0;
                continue;
            }
            const length: u32 = @intCast(@min(left, bytes_max));
            const address: usize = @intCast(piece.address + self.offset);
            self.offset += length;
            return .{ .address = address, .length = length };
        }
        return null;
    }
};

/// Control path: copies at most `length` bytes from the guest's pieces. Returns how many.
export fn vn_guest_read(pieces: [*]align(4) const Iovec, count: u32, out: [*]u8, length: u32) i32 {
    var cursor = Cursor{ .pieces = pieces[0..count] };
    return @intCast(cursor.read(out[0..length]));
}

/// Control path: copies at most `length` bytes to the guest's pieces. Returns how many.
export fn vn_guest_write(pieces: [*]align(4) const Iovec, count: u32, bytes: [*]const u8, length: u32) i32 {
    var cursor = Cursor{ .pieces = pieces[0..count] };
    return @intCast(cursor.write(bytes[0..length]));
}

/// Total bytes of all pieces.
pub fn totalBytes(pieces: []align(4) const Iovec) u64 {
    var total: u64 = 0;
    for (pieces) |piece| total += piece.length;
    return total;
}

test "reads and writes across pieces of any size, empty ones too" {
    var storage: [256]u8 = undefined;
    for (&storage, 0..) |*byte, index| byte.* = @intCast(index);
    const base = @intFromPtr(&storage);
    const pieces = [_]Iovec{
        .{ .address = base, .length = 0, .zero = 0 },
        .{ .address = base + 100, .length = 1, .zero = 0 },
        .{ .address = base + 50, .length = 7, .zero = 0 },
        .{ .address = base, .length = 0, .zero = 0 },
        .{ .address = base + 200, .length = 3, .zero = 0 },
    };
    try std.testing.expectEqual(@as(u64, 11), totalBytes(&pieces));
    var cursor = Cursor{ .pieces = &pieces };
    var out: [9]u8 = undefined;
    try std.testing.expectEqual(@as(usize, 2), cursor.read(out[0..2]));
    try std.testing.expectEqualSlices(u8, &.{ 100, 50 }, out[0..2]);
    try std.testing.expectEqual(@as(usize, 9), cursor.read(&out));
    try std.testing.expectEqualSlices(u8, &.{ 51, 52, 53, 54, 55, 56, 200, 201, 202 }, &out);
    try std.testing.expectEqual(@as(usize, 0), cursor.read(&out));

    var writer = Cursor{ .pieces = &pieces };
    try std.testing.expectEqual(@as(usize, 4), writer.write("abcd"));
    try std.testing.expectEqual(@as(usize, 7), writer.write("efghijklm"));
    try std.testing.expectEqual(@as(u8, 'a'), storage[100]);
    try std.testing.expectEqualSlices(u8, "bcdefgh", storage[50..57]);
    try std.testing.expectEqualSlices(u8, "ijk", storage[200..203]);
    try std.testing.expectEqual(@as(u8, 203), storage[203]);
}
