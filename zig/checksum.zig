//! The internet checksum (RFC 1071): the one's complement sum of 16-bit words. Sums are kept in memory byte order, as
//! the RFC allows (§2 B): a sum of little-endian words, stored back as a little-endian word, gives the same bytes as
//! the big-endian one.

const std = @import("std");

const lanes = 8;
const Block = @Vector(lanes, u64);
const block_bytes = lanes * 8;
const low_half: Block = @splat(0xffff_ffff);
const half_shift: @Vector(lanes, u6) = @splat(32);

/// A running sum over pieces of one range. Pieces may have any length: after an odd one the bytes of the next count in
/// swapped places, which is the sum with its bytes swapped (RFC 1071 §2 B again).
pub const Sum = struct {
    folded: u32 = 0,
    odd: bool = false,

    /// Adds the bytes that follow those added so far.
    pub fn add(self: *Sum, bytes: []const u8) void {
        const piece = sum(bytes);
        self.folded += if (self.odd) @byteSwap(piece) else piece;
        self.folded = fold32(self.folded);
        if (bytes.len & 1 == 1) self.odd = !self.odd;
    }

    /// Adds a 16-bit number in host byte order, as if the range had its two bytes in network order.
    pub fn addNumber(self: *Sum, number: u16) void {
        self.folded = fold32(self.folded + @byteSwap(number));
    }

    /// Subtracts a number that is part of the sum.
    pub fn subtractNumber(self: *Sum, number: u16) void {
        // The complement is the negative number in one's complement arithmetic.
        self.addNumber(~number);
    }

    /// Adds a folded sum (of a range of even length) in memory byte order.
    pub fn addSum(self: *Sum, other: u16) void {
        self.folded = fold32(self.folded + other);
    }

    /// The folded sum, in memory byte order.
    pub fn value(self: Sum) u16 {
        return @intCast(self.folded);
    }

    /// The checksum to store (memory byte order): the complement of the sum.
    pub fn checksum(self: Sum) u16 {
        return ~self.value();
    }
};

/// The folded sum of `bytes`, in memory byte order; an odd last byte counts as if a zero followed.
pub fn sum(bytes: []const u8) u16 {
    var rest = bytes;
    var total: u64 = 0;
    if (rest.len >= block_bytes) {
        // A lane gains less than 2^33 a block, so a frame (64 KiB: 1024 blocks) cannot overflow it; nor can 2^30
        // blocks.
        var wide: Block = @splat(0);
        while (rest.len >= block_bytes) : (rest = rest[block_bytes..]) {
            const block: Block = @bitCast(rest[0..block_bytes].*);
            wide += (block & low_half) + (block >> half_shift);
        }
        // Each lane is folded to 33 bits first: their sum then has room.
        wide = (wide & low_half) + (wide >> half_shift);
        total = @reduce(.Add, wide);
    }
    while (rest.len >= 4) : (rest = rest[4..]) total += std.mem.readInt(u32, rest[0..4], .Little);
    if (rest.len >= 2) {
        total += std.mem.readInt(u16, rest[0..2], .Little);
        rest = rest[2..];
    }
    if (rest.len == 1) total += rest[0];
    return fold64(total);
}

/// Complements and stores a checksum at `offset` of `bytes`. Zero is stored as 0xffff, its other spelling, because UDP
/// reads a zero as "no checksum" (RFC 768); to every other protocol the two are equal. Linux does the same in
/// skb_checksum_help().
pub fn store(bytes: []u8, offset: usize, total: Sum) void {
    const complement = total.checksum();
    std.mem.writeInt(u16, bytes[offset..][0..2], if (complement == 0) 0xffff else complement, .Little);
}

/// Completes a checksum that was left to the device: sums `frame` from `start` to its end and stores the checksum
/// `offset` bytes after `start`, where the pseudo header's sum stands so far (VIRTIO 1.2 §5.1.6.2.1). The caller has
/// checked the range.
pub fn complete(frame: []u8, start: usize, offset: usize) void {
    var total = Sum{};
    total.add(frame[start..]);
    store(frame, start + offset, total);
}

fn fold64(total: u64) u16 {
    const once = (total & 0xffff_ffff) + (total >> 32);
    const twice: u64 = (once & 0xffff) + ((once >> 16) & 0xffff) + (once >> 32);
    return @intCast(fold32(@intCast(twice)));
}

fn fold32(total: u32) u32 {
    const once = (total & 0xffff) + (total >> 16);
    return (once & 0xffff) + (once >> 16);
}

/// The reference for the fast sum: one word after the other.
fn plainSum(bytes: []const u8) u16 {
    var total: u32 = 0;
    for (bytes, 0..) |byte, index| {
        total += if (index & 1 == 0) @as(u32, byte) else @as(u32, byte) << 8;
        if (total > 0xffff) total -= 0xffff;
    }
    return @intCast(total);
}

test "equals a plain loop at every alignment and length" {
    var storage: [64 + 2048]u8 align(64) = undefined;
    var prng = std.rand.DefaultPrng.init(0x5eed);
    prng.random().bytes(&storage);
    for (0..64) |alignment| {
        for (0..2049) |length| {
            const bytes = storage[alignment..][0..length];
            try std.testing.expectEqual(plainSum(bytes), sum(bytes));
        }
    }
}

test "equals a plain loop on long ranges and on extreme bytes" {
    const storage = try std.testing.allocator.alloc(u8, 1 << 20);
    defer std.testing.allocator.free(storage);
    var prng = std.rand.DefaultPrng.init(0xb16);
    const random = prng.random();
    random.bytes(storage);
    for (0..200) |_| {
        const start = random.uintLessThan(usize, 4096);
        const length = random.uintLessThan(usize, storage.len - start);
        try std.testing.expectEqual(plainSum(storage[start..][0..length]), sum(storage[start..][0..length]));
    }
    @memset(storage, 0xff);
    try std.testing.expectEqual(@as(u16, 0xffff), sum(storage));
    @memset(storage, 0);
    try std.testing.expectEqual(@as(u16, 0), sum(storage));
}

test "pieces of any length, odd ones too, give the sum of the whole" {
    var storage: [4096]u8 = undefined;
    var prng = std.rand.DefaultPrng.init(0x0dd);
    const random = prng.random();
    for (0..2000) |_| {
        const length = random.uintAtMost(usize, storage.len);
        random.bytes(storage[0..length]);
        var pieces = Sum{};
        var start: usize = 0;
        while (start < length) {
            const step = @min(length - start, 1 + random.uintLessThan(usize, 97));
            pieces.add(storage[start..][0..step]);
            start += step;
        }
        try std.testing.expectEqual(plainSum(storage[0..length]), pieces.value());
    }
}

test "a subtracted number leaves no trace" {
    var prng = std.rand.DefaultPrng.init(0x5ab);
    const random = prng.random();
    for (0..10000) |_| {
        const number = random.int(u16);
        var with = Sum{ .folded = random.intRangeAtMost(u16, 1, 0xffff) };
        const without = with.value();
        with.addNumber(number);
        with.subtractNumber(number);
        // 0 and 0xffff are the same number.
        try std.testing.expectEqual(without % 0xffff, with.value() % 0xffff);
    }
}

test "the example of RFC 1071 §3" {
    const bytes = [_]u8{ 0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7 };
    try std.testing.expectEqual(@as(u16, 0xddf2), @byteSwap(sum(&bytes)));
}

test "a checksum of zero is stored as 0xffff" {
    var bytes = [_]u8{ 0xff, 0xff, 0, 0 };
    var total = Sum{};
    total.add(&bytes);
    store(&bytes, 2, total);
    try std.testing.expectEqualSlices(u8, &.{ 0xff, 0xff, 0xff, 0xff }, &bytes);
}
