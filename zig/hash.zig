//! Receive-side scaling: the hash of a received frame, and the queue pair that it belongs to (VIRTIO 1.2 §5.1.6.4.3).
//! Pure functions over private copies of a frame. zig/steering.zig makes the kernel choose the same queue pair.

const std = @import("std");
const frames = @import("frame.zig");

/// Bits of `hash_types`, as in include/uapi/linux/virtio_net.h.
pub const VIRTIO_NET_RSS_HASH_TYPE_IPv4 = 1 << 0;
pub const VIRTIO_NET_RSS_HASH_TYPE_TCPv4 = 1 << 1;
pub const VIRTIO_NET_RSS_HASH_TYPE_UDPv4 = 1 << 2;
pub const VIRTIO_NET_RSS_HASH_TYPE_IPv6 = 1 << 3;
pub const VIRTIO_NET_RSS_HASH_TYPE_TCPv6 = 1 << 4;
pub const VIRTIO_NET_RSS_HASH_TYPE_UDPv6 = 1 << 5;

/// Values of hash_report, as in include/uapi/linux/virtio_net.h.
pub const VIRTIO_NET_HASH_REPORT_NONE = 0;
pub const VIRTIO_NET_HASH_REPORT_IPv4 = 1;
pub const VIRTIO_NET_HASH_REPORT_TCPv4 = 2;
pub const VIRTIO_NET_HASH_REPORT_UDPv4 = 3;
pub const VIRTIO_NET_HASH_REPORT_IPv6 = 4;
pub const VIRTIO_NET_HASH_REPORT_TCPv6 = 5;
pub const VIRTIO_NET_HASH_REPORT_UDPv6 = 6;

/// Two IPv6 addresses and two ports.
pub const input_bytes_max = 36;
pub const indirection_max = 128;
pub const ports_bytes = 4;

/// struct vn_scaling of src/abi/receive-scaling.ts, which documents the fields. TypeScript aligns it to 4 bytes.
pub const Scaling = extern struct {
    toeplitz: [input_bytes_max][256]u32,
    indirection: [indirection_max]u32,
    hash_types: u32,
    indirection_mask: u32,
    unclassified_queue: u32,
    reserved: u32,
};

/// hash_value, hash_report and padding of struct virtio_net_hdr_v1_hash.
pub const Report = extern struct {
    value: u32 = 0,
    kind: u16 = VIRTIO_NET_HASH_REPORT_NONE,
    padding: u16 = 0,
};

/// The hash of `frame`: over addresses and ports if the driver has enabled that for the protocol and the frame has both
/// ports, else over the addresses if that is enabled, else none. A fragment counts as without ports: only the first one
/// has them, and all must have the same hash. IPv6 extension headers are skipped, as no `_EX` type is offered (VIRTIO
/// 1.2 §5.1.6.4.3.4).
///
/// ORDERING: plain loads of `scaling`: it changes only while unused.
pub fn hash(scaling: *align(4) const Scaling, frame: []const u8) Report {
    const layout = frames.parse(frame) orelse return .{};
    return switch (layout.version) {
        .ipv4 => hashOf(ipv4, scaling, frame, layout),
        .ipv6 => hashOf(ipv6, scaling, frame, layout),
    };
}

/// The queue pair that receives `frame`.
pub fn queueOf(scaling: *align(4) const Scaling, frame: []const u8) u32 {
    const report = hash(scaling, frame);
    if (report.kind == VIRTIO_NET_HASH_REPORT_NONE) return scaling.unclassified_queue;
    return scaling.indirection[report.value & scaling.indirection_mask];
}

/// What differs between the versions of IP.
const Version = struct {
    /// Offset of the source address in the header. The destination address follows.
    addresses: usize,
    /// Length of both addresses.
    addresses_bytes: usize,
    ip: Kind,
    tcp: Kind,
    udp: Kind,
};

const Kind = struct { wanted: u32, report: u16 };

const ipv4 = Version{
    .addresses = 12,
    .addresses_bytes = 8,
    .ip = .{ .wanted = VIRTIO_NET_RSS_HASH_TYPE_IPv4, .report = VIRTIO_NET_HASH_REPORT_IPv4 },
    .tcp = .{ .wanted = VIRTIO_NET_RSS_HASH_TYPE_TCPv4, .report = VIRTIO_NET_HASH_REPORT_TCPv4 },
    .udp = .{ .wanted = VIRTIO_NET_RSS_HASH_TYPE_UDPv4, .report = VIRTIO_NET_HASH_REPORT_UDPv4 },
};

const ipv6 = Version{
    .addresses = 8,
    .addresses_bytes = 32,
    .ip = .{ .wanted = VIRTIO_NET_RSS_HASH_TYPE_IPv6, .report = VIRTIO_NET_HASH_REPORT_IPv6 },
    .tcp = .{ .wanted = VIRTIO_NET_RSS_HASH_TYPE_TCPv6, .report = VIRTIO_NET_HASH_REPORT_TCPv6 },
    .udp = .{ .wanted = VIRTIO_NET_RSS_HASH_TYPE_UDPv6, .report = VIRTIO_NET_HASH_REPORT_UDPv6 },
};

fn hashOf(
    comptime version: Version,
    scaling: *align(4) const Scaling,
    frame: []const u8,
    layout: frames.Layout,
) Report {
    const kind = kindOf(version, scaling.hash_types, layout, frame.len) orelse return .{};
    var value = fold(scaling, 0, frame[layout.network + version.addresses ..][0..version.addresses_bytes]);
    if (kind.report != version.ip.report) {
        value ^= fold(scaling, version.addresses_bytes, frame[layout.transport..][0..ports_bytes]);
    }
    return .{ .value = value, .kind = kind.report };
}

fn kindOf(comptime version: Version, hash_types: u32, layout: frames.Layout, frame_bytes: usize) ?Kind {
    if (!layout.fragment and layout.transport + ports_bytes <= frame_bytes) {
        switch (layout.protocol) {
            frames.IPPROTO_TCP => if (hash_types & version.tcp.wanted != 0) return version.tcp,
            frames.IPPROTO_UDP => if (hash_types & version.udp.wanted != 0) return version.udp,
            else => {},
        }
    }
    return if (hash_types & version.ip.wanted != 0) version.ip else null;
}

/// The share of `bytes` in a hash whose input has them from index `first` on. Their number is known at compile time, so
/// that the loop unrolls without index checks.
fn fold(scaling: *align(4) const Scaling, comptime first: usize, bytes: anytype) u32 {
    var value: u32 = 0;
    for (scaling.toeplitz[first..][0..bytes.len], bytes) |*adds, byte| value ^= adds[byte];
    return value;
}

comptime {
    std.debug.assert(@sizeOf(Scaling) == 36 * 1024 + 512 + 16);
    std.debug.assert(@alignOf(Scaling) == 4);
    std.debug.assert(@offsetOf(Scaling, "toeplitz") == 0);
    std.debug.assert(@offsetOf(Scaling, "indirection") == 36 * 1024);
    std.debug.assert(@offsetOf(Scaling, "hash_types") == 36 * 1024 + 512);
    std.debug.assert(@offsetOf(Scaling, "indirection_mask") == 36 * 1024 + 516);
    std.debug.assert(@offsetOf(Scaling, "unclassified_queue") == 36 * 1024 + 520);
    std.debug.assert(ipv6.addresses_bytes + ports_bytes == input_bytes_max);
}

/// Makes frames and scalings for tests, here and in the files that import this one.
pub const examples = struct {
    pub const Key = [40]u8;
    pub const all_types = 0x3f;

    /// Microsoft's RSS verification suite: its key, and inputs (source first) with their hashes.
    pub const key = Key{
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67,
        0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb,
        0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
        0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    };
    pub const flows = [_]Flow{
        four(.{ 66, 9, 149, 187 }, .{ 161, 142, 100, 80 }, 2794, 1766, 0x323e8fc2, 0x51ccc178),
        four(.{ 199, 92, 111, 2 }, .{ 65, 69, 140, 83 }, 14230, 4739, 0xd718262a, 0xc626b0ea),
        four(.{ 24, 19, 198, 95 }, .{ 12, 22, 207, 184 }, 12898, 38024, 0xd2d0a5de, 0x5c2b394a),
        four(.{ 38, 27, 205, 30 }, .{ 209, 142, 163, 6 }, 48228, 2217, 0x82989176, 0xafc7327f),
        four(.{ 153, 39, 163, 191 }, .{ 202, 188, 127, 2 }, 44251, 1303, 0x5d1809c5, 0x10e828a2),
        six(
            0x3ffe_2501_0200_1fff_0000_0000_0000_0007,
            0x3ffe_2501_0200_0003_0000_0000_0000_0001,
            2794,
            1766,
            0x2cc18cd5,
            0x40207d3d,
        ),
        six(
            0x3ffe_0501_0008_0000_0260_97ff_fe40_efab,
            0xff02_0000_0000_0000_0000_0000_0000_0001,
            14230,
            4739,
            0x0f0c461c,
            0xdde51bbf,
        ),
        six(
            0x3ffe_1900_4545_0003_0200_f8ff_fe21_67cf,
            0xfe80_0000_0000_0000_0200_f8ff_fe21_67cf,
            44251,
            38024,
            0x4b61e985,
            0x02d1feef,
        ),
    };

    pub const Flow = struct {
        addresses: []const u8,
        ports: [4]u8,
        addresses_hash: u32,
        ports_hash: u32,

        fn isSix(self: Flow) bool {
            return self.addresses.len == ipv6.addresses_bytes;
        }

        fn version(self: Flow) Version {
            return if (self.isSix()) ipv6 else ipv4;
        }

        /// Appends an IP packet to `builder`: a header, `options` bytes of options or an extension header, ports and
        /// zeroes.
        pub fn put(self: Flow, builder: *frames.Builder, protocol: u8, options: usize) void {
            const addresses = builder.len + 2 + self.version().addresses;
            if (!self.isSix()) builder.ipv4(
                protocol,
                options,
                20,
            ) else if (options == 0) builder.ipv6(protocol, 20) else {
                builder.ipv6(60, 20 + options);
                builder.extension(protocol, options / 8);
            }
            @memcpy(builder.bytes[addresses..][0..self.addresses.len], self.addresses);
            builder.put(&self.ports);
            builder.put(&[_]u8{0} ** 16);
        }
    };

    fn four(
        comptime source: [4]u8,
        comptime destination: [4]u8,
        from: u16,
        to: u16,
        addresses_hash: u32,
        ports_hash: u32,
    ) Flow {
        return flowOf(&(source ++ destination), from, to, addresses_hash, ports_hash);
    }

    fn six(
        comptime source: u128,
        comptime destination: u128,
        from: u16,
        to: u16,
        addresses_hash: u32,
        ports_hash: u32,
    ) Flow {
        return flowOf(
            &comptime (inPacket(u128, source) ++ inPacket(u128, destination)),
            from,
            to,
            addresses_hash,
            ports_hash,
        );
    }

    fn flowOf(addresses: []const u8, from: u16, to: u16, addresses_hash: u32, ports_hash: u32) Flow {
        const ports = inPacket(u16, from) ++ inPacket(u16, to);
        return .{ .addresses = addresses, .ports = ports, .addresses_hash = addresses_hash, .ports_hash = ports_hash };
    }

    fn inPacket(comptime T: type, number: T) [@sizeOf(T)]u8 {
        return std.mem.toBytes(std.mem.nativeToBig(T, number));
    }

    /// A scaling with this key, all hash types, and a different queue pair at each place.
    pub fn scalingOf(with: Key) Scaling {
        var scaling = Scaling{
            .toeplitz = undefined,
            .indirection = undefined,
            .hash_types = all_types,
            .indirection_mask = indirection_max - 1,
            .unclassified_queue = 777,
            .reserved = 0,
        };
        const wide = std.mem.readIntBig(u320, &with);
        for (&scaling.toeplitz, 0..) |*adds, place| {
            for (adds, 0..) |*word, value| {
                word.* = 0;
                for (0..8) |bit| {
                    if (value & @as(usize, 0x80) >> @intCast(bit) == 0) continue;
                    word.* ^= @truncate(wide >> @intCast(320 - 32 - place * 8 - bit));
                }
            }
        }
        for (&scaling.indirection, 0..) |*queue, place| queue.* = @intCast(1000 + place);
        return scaling;
    }
};

/// The definition, bit by bit without a table: the key moves left under a window of 32 bits.
fn toeplitz(key: examples.Key, input: []const u8) u32 {
    var bits = key;
    var value: u32 = 0;
    for (input) |byte| {
        var mask: u8 = 0x80;
        while (mask != 0) : (mask >>= 1) {
            if (byte & mask != 0) value ^= std.mem.readIntBig(u32, bits[0..4]);
            for (&bits, 0..) |*low, index| low.* = low.* << 1 | if (index + 1 < bits.len) bits[index + 1] >> 7 else 0;
        }
    }
    return value;
}

const expect = std.testing.expect;
const expectEqual = std.testing.expectEqual;

fn expectKind(kind: Kind, value: u32, report: Report) !void {
    try expectEqual(Report{ .value = value, .kind = kind.report }, report);
}

const none = Kind{ .wanted = 0, .report = VIRTIO_NET_HASH_REPORT_NONE };
const IPPROTO_SCTP = 132;

test "Microsoft's verification suite" {
    var scaling = examples.scalingOf(examples.key);
    for (examples.flows) |flow| {
        const version = flow.version();
        for ([_]u8{ frames.IPPROTO_TCP, frames.IPPROTO_UDP }) |protocol| {
            var builder = frames.Builder.init();
            flow.put(&builder, protocol, 0);
            scaling.hash_types = examples.all_types;
            const kind = if (protocol == frames.IPPROTO_TCP) version.tcp else version.udp;
            try expectKind(kind, flow.ports_hash, hash(&scaling, builder.frame()));
            try expectEqual(1000 + flow.ports_hash % 128, queueOf(&scaling, builder.frame()));
            scaling.hash_types = version.ip.wanted;
            try expectKind(version.ip, flow.addresses_hash, hash(&scaling, builder.frame()));
        }
        var input: [input_bytes_max]u8 = undefined;
        @memcpy(input[0..flow.addresses.len], flow.addresses);
        @memcpy(input[flow.addresses.len..][0..4], &flow.ports);
        try expectEqual(flow.addresses_hash, toeplitz(examples.key, flow.addresses));
        try expectEqual(flow.ports_hash, toeplitz(examples.key, input[0 .. flow.addresses.len + 4]));
    }
}

test "any key and any packet hash as the definition says" {
    var prng = std.rand.DefaultPrng.init(0x755);
    const random = prng.random();
    for (0..20) |_| {
        var key: examples.Key = undefined;
        random.bytes(&key);
        const scaling = examples.scalingOf(key);
        for ([_]Version{ ipv4, ipv6 }) |version| {
            var input: [input_bytes_max]u8 = undefined;
            random.bytes(&input);
            const whole = input[0 .. version.addresses_bytes + ports_bytes];
            const flow = examples.Flow{
                .addresses = whole[0..version.addresses_bytes],
                .ports = whole[version.addresses_bytes..][0..4].*,
                .addresses_hash = toeplitz(key, whole[0..version.addresses_bytes]),
                .ports_hash = toeplitz(key, whole),
            };
            var builder = frames.Builder.init();
            flow.put(&builder, frames.IPPROTO_TCP, 0);
            try expectKind(version.tcp, flow.ports_hash, hash(&scaling, builder.frame()));
            builder = frames.Builder.init();
            flow.put(&builder, IPPROTO_SCTP, 0);
            try expectKind(version.ip, flow.addresses_hash, hash(&scaling, builder.frame()));
        }
    }
}

test "each hash type is on and off by itself" {
    var scaling = examples.scalingOf(examples.key);
    for ([_]examples.Flow{ examples.flows[0], examples.flows[5] }) |flow| {
        const version = flow.version();
        const packets = [_]struct { protocol: u8, kind: ?Kind }{
            .{ .protocol = frames.IPPROTO_TCP, .kind = version.tcp },
            .{ .protocol = frames.IPPROTO_UDP, .kind = version.udp },
            .{ .protocol = IPPROTO_SCTP, .kind = null },
        };
        for (packets) |packet| {
            var builder = frames.Builder.init();
            flow.put(&builder, packet.protocol, 0);
            for (0..examples.all_types + 1) |types| {
                scaling.hash_types = @intCast(types);
                const report = hash(&scaling, builder.frame());
                if (packet.kind) |kind| {
                    if (types & kind.wanted != 0) {
                        try expectKind(kind, flow.ports_hash, report);
                        continue;
                    }
                }
                if (types & version.ip.wanted != 0) {
                    try expectKind(version.ip, flow.addresses_hash, report);
                } else {
                    try expectKind(none, 0, report);
                }
            }
        }
    }
}

test "VLAN tags, options and extension headers change nothing" {
    const scaling = examples.scalingOf(examples.key);
    for (examples.flows) |flow| {
        for (0..4) |tags| {
            for ([_]usize{ 0, 8, 40 }) |options| {
                var builder = frames.Builder.init();
                for (0..tags) |index| builder.vlan(if (index == 0) 0x88a8 else 0x8100);
                flow.put(&builder, frames.IPPROTO_UDP, options);
                const report = hash(&scaling, builder.frame());
                if (tags > 2) try expectKind(none, 0, report) else try expectKind(
                    flow.version().udp,
                    flow.ports_hash,
                    report,
                );
            }
        }
    }
}

test "all fragments of a packet hash the same: without ports" {
    var scaling = examples.scalingOf(examples.key);
    const four = examples.flows[0];
    for ([_]u16{ 0x2000, 0x2001, 0x00b9, 0x1fff }) |fragment| {
        var builder = frames.Builder.init();
        four.put(&builder, frames.IPPROTO_UDP, 0);
        std.mem.writeInt(u16, builder.frame()[14 + 6 ..][0..2], fragment, .Big);
        scaling.hash_types = examples.all_types;
        try expectKind(ipv4.ip, four.addresses_hash, hash(&scaling, builder.frame()));
        scaling.hash_types &= ~@as(u32, ipv4.ip.wanted);
        try expectKind(none, 0, hash(&scaling, builder.frame()));
    }
    var whole = frames.Builder.init();
    four.put(&whole, frames.IPPROTO_UDP, 0);
    // "Do not fragment" does not mean a fragment.
    whole.frame()[14 + 6] = 0x40;
    try expectKind(ipv4.udp, four.ports_hash, hash(&scaling, whole.frame()));

    const six = examples.flows[5];
    var builder = frames.Builder.init();
    six.put(&builder, frames.IPPROTO_UDP, 8);
    builder.frame()[14 + 6] = 44;
    scaling.hash_types = examples.all_types;
    try expectKind(ipv6.ip, six.addresses_hash, hash(&scaling, builder.frame()));
    scaling.hash_types &= ~@as(u32, ipv6.ip.wanted);
    try expectKind(none, 0, hash(&scaling, builder.frame()));
}

test "a frame hashes by what is there of it, and nothing is read beyond" {
    const scaling = examples.scalingOf(examples.key);
    for ([_]examples.Flow{ examples.flows[0], examples.flows[5] }) |flow| {
        const version = flow.version();
        var builder = frames.Builder.init();
        builder.vlan(0x8100);
        flow.put(&builder, frames.IPPROTO_TCP, 8);
        const whole = builder.frame();
        const ports_end = whole.len - 16;
        for (0..whole.len + 1) |length| {
            // A copy of exact length: a read beyond it fails the test.
            const cut = try std.testing.allocator.dupe(u8, whole[0..length]);
            defer std.testing.allocator.free(cut);
            const report = hash(&scaling, cut);
            if (length >= ports_end) {
                try expectKind(version.tcp, flow.ports_hash, report);
            } else if (length >= ports_end - ports_bytes) {
                try expectKind(version.ip, flow.addresses_hash, report);
            } else {
                try expectKind(none, 0, report);
            }
        }
    }
}

test "a frame without a hash goes to the queue pair for those" {
    const scaling = examples.scalingOf(examples.key);
    var arp = frames.Builder.init();
    arp.putNumber(0x0806);
    arp.put(&[_]u8{0x45} ** 46);
    try expectKind(none, 0, hash(&scaling, arp.frame()));
    try expectEqual(@as(u32, 777), queueOf(&scaling, arp.frame()));
    try expectEqual(@as(u32, 777), queueOf(&scaling, ""));

    var endless = frames.Builder.init();
    endless.ipv6(60, 0);
    for (0..8) |_| endless.extension(60, 1);
    try expectEqual(@as(u32, 777), queueOf(&scaling, endless.frame()));
}

test "the mask says how much of the indirection table counts" {
    var scaling = examples.scalingOf(examples.key);
    const flow = examples.flows[1];
    var builder = frames.Builder.init();
    flow.put(&builder, frames.IPPROTO_TCP, 0);
    for ([_]u32{ 0, 1, 15, 127 }) |mask| {
        scaling.indirection_mask = mask;
        try expectEqual(1000 + (flow.ports_hash & mask), queueOf(&scaling, builder.frame()));
    }
    // A hash of zero is a hash.
    @memset(&scaling.toeplitz, [_]u32{0} ** 256);
    try expectKind(ipv4.tcp, 0, hash(&scaling, builder.frame()));
    try expectEqual(@as(u32, 1000), queueOf(&scaling, builder.frame()));
}
