//! What the bytes of a packet cost where a TAP does not do it: nanoseconds for checksums and for cutting a large frame,
//! best of many rounds, since everything else that runs can only make a round longer.

const std = @import("std");
const checksum = @import("../../zig/checksum.zig");
const frames = @import("../../zig/frame.zig");
const segment = @import("../../zig/segment.zig");

const rounds = 300;

fn best(comptime what: []const u8, repeats: u32, context: anytype, comptime work: fn (@TypeOf(context)) void) !void {
    var fastest: u64 = std.math.maxInt(u64);
    var timer = try std.time.Timer.start();
    for (0..rounds) |_| {
        timer.reset();
        for (0..repeats) |_| {
            work(context);
            // Or the compiler would do it once for all: the bytes may have changed.
            asm volatile ("" ::: "memory");
        }
        fastest = @min(fastest, timer.read());
    }
    const ns = @as(f64, @floatFromInt(fastest)) / @as(f64, @floatFromInt(repeats));
    try std.io.getStdOut().writer().print("{s: <44}{d: >9.1} ns\n", .{ what, ns });
}

fn sumUp(bytes: []const u8) void {
    std.mem.doNotOptimizeAway(checksum.sum(bytes));
}

const Large = struct { frame: []const u8, how: segment.Segmentation };

fn cut(large: Large) void {
    var segmenter = segment.Segmenter.init(large.frame, large.how);
    while (segmenter.next()) |piece| std.mem.doNotOptimizeAway(piece.header.ptr);
}

/// TCP over IPv4 without options: as much payload as goes into 45 segments of 1448 bytes.
const payload_bytes = 45 * 1448 - 300;
var builder = frames.Builder.init();

pub fn main() !void {
    var bytes: [65_000]u8 = undefined;
    for (&bytes, 0..) |*byte, index| byte.* = @truncate(index *% 31);
    std.mem.doNotOptimizeAway(&bytes);
    try best("checksum, 64 B", 10_000, @as([]const u8, bytes[0..64]), sumUp);
    try best("checksum, 1,500 B", 1000, @as([]const u8, bytes[0..1500]), sumUp);
    try best("checksum, 65,000 B", 50, @as([]const u8, &bytes), sumUp);

    builder.ipv4(frames.IPPROTO_TCP, 0, 20 + payload_bytes);
    var tcp = [_]u8{0} ** 20;
    tcp[12] = 5 << 4;
    builder.put(&tcp);
    builder.put(bytes[0..payload_bytes]);
    const frame = builder.frame();
    const layout = frames.parse(frame).?;
    const how = .{ .layout = layout, .header_bytes = layout.transport + 20, .segment_bytes = 1448 };
    try best("segmentation of 65 kB into 45 frames", 20, Large{ .frame = frame, .how = how }, cut);
}
