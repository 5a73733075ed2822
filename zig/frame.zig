//! Finds the headers of an Ethernet frame. Reads only the bytes given, which must be private memory: the result is
//! valid only while they do not change.

const std = @import("std");

/// Bytes of an Ethernet header without tags.
pub const ethernet_bytes = 14;
pub const IPPROTO_TCP = 6;
pub const IPPROTO_UDP = 17;

pub const ETH_P_IP = 0x0800;
pub const ETH_P_IPV6 = 0x86dd;
pub const ETH_P_8021Q = 0x8100;
pub const ETH_P_8021AD = 0x88a8;
pub const vlan_tag_bytes = 4;
pub const max_vlan_tags = 2;

pub const ipv4_min_bytes = 20;
pub const ipv6_bytes = 40;
/// RFC 8200 §4.1 has each header at most once, destination options twice.
pub const max_extension_headers = 7;
pub const IPPROTO_HOPOPTS = 0;
pub const IPPROTO_ROUTING = 43;
pub const IPPROTO_FRAGMENT = 44;
pub const IPPROTO_DSTOPTS = 60;

pub const Version = enum { ipv4, ipv6 };

/// The layout of an IP packet in an Ethernet frame, offsets in bytes from the frame's start.
pub const Layout = struct {
    version: Version,
    /// Start of the IP header.
    network: u16,
    /// Start of what follows the IP header and its options or extension headers.
    transport: u16,
    /// The IP protocol at `transport`.
    protocol: u8,
    /// Part of a fragmented packet: there may be no transport header at `transport`.
    fragment: bool,
    /// An IPv6 routing header or IPv4 options are there: the address in the header may not be the one in the checksum.
    source_routed: bool,
};

/// The layout of `frame`, or null if it is not IP (behind at most two VLAN tags) or its headers go beyond the bytes
/// given.
pub fn parse(frame: []const u8) ?Layout {
    const network = networkOffset(frame) orelse return null;
    return switch (readNumber(frame, network - 2)) {
        ETH_P_IP => parseIpv4(frame, network),
        ETH_P_IPV6 => parseIpv6(frame, network),
        else => null,
    };
}

/// The IP version of the ethertype, behind at most two VLAN tags; null if it is not IP. Nothing else is checked.
pub fn version(frame: []const u8) ?Version {
    const network = networkOffset(frame) orelse return null;
    return switch (readNumber(frame, network - 2)) {
        ETH_P_IP => .ipv4,
        ETH_P_IPV6 => .ipv6,
        else => null,
    };
}

/// Length of the Ethernet header with its VLAN tags, or null if these are more than two or go beyond the bytes given.
pub fn networkOffset(frame: []const u8) ?usize {
    var offset: usize = ethernet_bytes;
    if (frame.len < offset) return null;
    for (0..max_vlan_tags + 1) |_| {
        const ethertype = readNumber(frame, offset - 2);
        if (ethertype != ETH_P_8021Q and ethertype != ETH_P_8021AD) return offset;
        offset += vlan_tag_bytes;
        if (frame.len < offset) return null;
    }
    return null;
}

fn parseIpv4(frame: []const u8, network: usize) ?Layout {
    if (frame.len < network + ipv4_min_bytes) return null;
    const header = frame[network..];
    if (header[0] >> 4 != 4) return null;
    const header_bytes = @as(usize, header[0] & 0xf) * 4;
    if (header_bytes < ipv4_min_bytes or header.len < header_bytes) return null;
    // More fragments, or an offset: RFC 791 §3.1.
    const fragment = readNumber(header, 6) & 0x3fff != 0;
    return .{
        .version = .ipv4,
        .network = @intCast(network),
        .transport = @intCast(network + header_bytes),
        .protocol = header[9],
        .fragment = fragment,
        .source_routed = header_bytes > ipv4_min_bytes,
    };
}

fn parseIpv6(frame: []const u8, network: usize) ?Layout {
    if (frame.len < network + ipv6_bytes) return null;
    if (frame[network] >> 4 != 6) return null;
    var protocol = frame[network + 6];
    var transport = network + ipv6_bytes;
    var source_routed = false;
    var fragment = false;
    for (0..max_extension_headers + 1) |_| {
        switch (protocol) {
            IPPROTO_HOPOPTS, IPPROTO_DSTOPTS => {},
            IPPROTO_ROUTING => source_routed = true,
            IPPROTO_FRAGMENT => fragment = true,
            else => return .{
                .version = .ipv6,
                .network = @intCast(network),
                .transport = @intCast(transport),
                .protocol = protocol,
                .fragment = fragment,
                .source_routed = source_routed,
            },
        }
        if (frame.len < transport + 8) return null;
        // The fragment header has a fixed length and a reserved byte where others have theirs.
        const extension_bytes = if (protocol == IPPROTO_FRAGMENT) 8 else (@as(usize, frame[transport + 1]) + 1) * 8;
        if (frame.len < transport + extension_bytes) return null;
        protocol = frame[transport];
        transport += extension_bytes;
    }
    return null;
}

fn readNumber(bytes: []const u8, offset: usize) u16 {
    return std.mem.readInt(u16, bytes[offset..][0..2], .Big);
}

/// Builds frames for tests, here and in the files that import this one.
pub const Builder = struct {
    bytes: [70_000]u8 = [_]u8{0} ** 70_000,
    len: usize = 12,

    pub fn init() Builder {
        var builder = Builder{};
        for (builder.bytes[0..12], 0..) |*byte, index| byte.* = @intCast(2 + index * 2);
        return builder;
    }
    pub fn put(self: *Builder, bytes: []const u8) void {
        @memcpy(self.bytes[self.len..][0..bytes.len], bytes);
        self.len += bytes.len;
    }
    pub fn putNumber(self: *Builder, number: u16) void {
        self.put(&std.mem.toBytes(std.mem.nativeToBig(u16, number)));
    }
    pub fn vlan(self: *Builder, ethertype: u16) void {
        self.putNumber(ethertype);
        self.putNumber(0x2007);
    }
    pub fn ipv4(self: *Builder, protocol: u8, options: usize, payload_bytes: usize) void {
        self.putNumber(ETH_P_IP);
        self.put(&.{ @intCast(0x45 + options / 4), 0 });
        self.putNumber(@intCast(ipv4_min_bytes + options + payload_bytes));
        self.put(&.{ 0xff, 0xfe, 0x40, 0, 64, protocol, 0, 0, 10, 1, 2, 3, 10, 4, 5, 6 });
        for (0..options) |_| self.put(&.{1});
    }
    pub fn ipv6(self: *Builder, next: u8, payload_bytes: usize) void {
        self.putNumber(ETH_P_IPV6);
        self.put(&.{ 0x60, 0, 0, 0 });
        self.putNumber(@intCast(payload_bytes));
        self.put(&.{ next, 64 });
        for (0..32) |index| self.put(&.{@intCast(0xa0 + index)});
    }
    /// An option header that names `next` and fills `units` times 8 bytes.
    pub fn extension(self: *Builder, next: u8, units: usize) void {
        self.put(&.{ next, @intCast(units - 1) });
        for (2..units * 8) |_| self.put(&.{0});
    }
    pub fn frame(self: *Builder) []u8 {
        return self.bytes[0..self.len];
    }
};

test "finds IPv4 and IPv6 behind no, one and two VLAN tags" {
    for (0..4) |tags| {
        for ([_]bool{ false, true }) |six| {
            var builder = Builder.init();
            for (0..tags) |index| builder.vlan(if (index == 0) ETH_P_8021AD else ETH_P_8021Q);
            if (six) builder.ipv6(IPPROTO_UDP, 8) else builder.ipv4(IPPROTO_UDP, 4, 8);
            builder.put(&[_]u8{0} ** 8);
            const layout = parse(builder.frame());
            if (tags > max_vlan_tags) {
                try std.testing.expectEqual(@as(?Layout, null), layout);
                continue;
            }
            const network = 14 + 4 * tags;
            try std.testing.expectEqual(network, layout.?.network);
            try std.testing.expectEqual(network + if (six) @as(usize, 40) else 24, layout.?.transport);
            try std.testing.expectEqual(@as(u8, IPPROTO_UDP), layout.?.protocol);
            try std.testing.expect(!layout.?.fragment);
        }
    }
}

test "walks extension headers and stops at a chain without an end" {
    var builder = Builder.init();
    builder.ipv6(IPPROTO_HOPOPTS, 0);
    builder.extension(IPPROTO_DSTOPTS, 1);
    builder.extension(IPPROTO_TCP, 3);
    builder.put(&[_]u8{0} ** 20);
    const layout = parse(builder.frame()).?;
    try std.testing.expectEqual(@as(u16, 14 + 40 + 8 + 24), layout.transport);
    try std.testing.expectEqual(@as(u8, IPPROTO_TCP), layout.protocol);

    var endless = Builder.init();
    endless.ipv6(IPPROTO_DSTOPTS, 0);
    for (0..100) |_| endless.extension(IPPROTO_DSTOPTS, 1);
    try std.testing.expectEqual(@as(?Layout, null), parse(endless.frame()));
}

test "marks fragments and source routes" {
    var four = Builder.init();
    four.ipv4(IPPROTO_TCP, 0, 0);
    four.frame()[14 + 6] = 0x20;
    try std.testing.expect(parse(four.frame()).?.fragment);
    four.frame()[14 + 6] = 0x40;
    try std.testing.expect(!parse(four.frame()).?.fragment);

    var six = Builder.init();
    six.ipv6(IPPROTO_ROUTING, 0);
    six.extension(IPPROTO_FRAGMENT, 1);
    six.extension(IPPROTO_TCP, 1);
    // The byte that would be the length of another header is reserved in this one.
    six.frame()[14 + 40 + 8 + 1] = 0xff;
    const layout = parse(six.frame()).?;
    try std.testing.expect(layout.fragment);
    try std.testing.expect(layout.source_routed);
    try std.testing.expectEqual(@as(u16, 14 + 40 + 16), layout.transport);
}

test "never reads beyond the bytes it is given" {
    var builder = Builder.init();
    builder.vlan(ETH_P_8021Q);
    builder.ipv6(IPPROTO_HOPOPTS, 28);
    builder.extension(IPPROTO_TCP, 1);
    const whole = builder.frame();
    for (0..whole.len) |length| try std.testing.expectEqual(@as(?Layout, null), parse(whole[0..length]));
    try std.testing.expect(parse(whole) != null);

    var prng = std.rand.DefaultPrng.init(0xf4a);
    const random = prng.random();
    var bytes: [96]u8 = undefined;
    for (0..200_000) |_| {
        random.bytes(&bytes);
        // Random ethertypes would hardly ever be IP.
        std.mem.writeInt(u16, bytes[12..14], if (random.boolean()) ETH_P_IP else ETH_P_IPV6, .Big);
        bytes[14] = if (bytes[12] == 8) 0x40 | (bytes[14] & 0xf) else 0x60;
        const length = random.uintAtMost(usize, bytes.len);
        if (parse(bytes[0..length])) |layout| try std.testing.expect(layout.transport <= length);
    }
}
