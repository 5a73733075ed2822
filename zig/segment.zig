//! Segmentation in software, for a TAP that cannot do it: one large TCP or UDP frame becomes frames of at most
//! `segment_bytes` payload. The result is the same, byte for byte, as that of net/ipv4/tcp_offload.c and udp_offload.c.

const std = @import("std");
const checksum = @import("checksum.zig");
const frames = @import("frame.zig");
const Layout = frames.Layout;

/// Longest headers (Ethernet to transport) of a segmented frame: the most that a frame of 1,500 bytes of payload can
/// have.
pub const max_header_bytes = 1536;

const tcp_fin = 0x01;
const tcp_psh = 0x08;
const tcp_cwr = 0x80;
const tcp_sequence_at = 4;
const tcp_flags_at = 13;
const tcp_checksum_at = 16;
const udp_length_at = 4;
const udp_checksum_at = 6;

/// How to cut a frame. header.zig has checked that the frame has `header_bytes`, and that the protocol is TCP or UDP.
pub const Segmentation = struct {
    layout: Layout,
    /// All headers, Ethernet to transport: each segment starts with a copy of them.
    header_bytes: u16,
    /// Payload of each segment but the last, 8 or more.
    segment_bytes: u16,
};

/// A frame to send: the two parts follow each other on the wire.
pub const Segment = struct { header: []const u8, payload: []const u8 };

/// Yields the segments of one frame in order. Allocates nothing; the header of a segment lives until the next call.
pub const Segmenter = struct {
    how: Segmentation,
    payload: []const u8,
    header: [max_header_bytes]u8,
    sent_bytes: usize = 0,
    index: u16 = 0,
    /// FIN and PSH of the large frame, for its last segment.
    last_flags: u8 = 0,
    /// The driver's sum of the pseudo header (VIRTIO 1.2 §5.1.6.2: it is in the checksum field), without the length. It
    /// can be trusted: a wrong sum harms only the driver's own packet, and routing headers come out right.
    pseudo: checksum.Sum,

    /// `frame` is private memory and stays unchanged while segments are taken.
    pub fn init(frame: []const u8, how: Segmentation) Segmenter {
        const header_bytes: usize = how.header_bytes;
        std.debug.assert(header_bytes <= max_header_bytes and frame.len >= header_bytes);
        std.debug.assert(how.segment_bytes >= 8);
        var header: [max_header_bytes]u8 = undefined;
        @memcpy(header[0..header_bytes], frame[0..header_bytes]);
        var segmenter = Segmenter{
            .how = how,
            .payload = frame[header_bytes..],
            .header = header,
            .pseudo = .{},
        };
        const transport: usize = how.layout.transport;
        segmenter.pseudo.addSum(std.mem.readInt(u16, frame[transport + checksumOffset(how) ..][0..2], .Little));
        // Longer than 16 bits only in a jumbogram, which header.zig drops.
        segmenter.pseudo.subtractNumber(@intCast(frame.len - transport));
        return segmenter;
    }

    pub fn next(self: *Segmenter) ?Segment {
        const rest = self.payload[self.sent_bytes..];
        if (rest.len == 0) return null;
        const piece = rest[0..@min(rest.len, self.how.segment_bytes)];
        const first = self.sent_bytes == 0;
        const last = piece.len == rest.len;
        const header = self.header[0..self.how.header_bytes];

        self.fillNetwork(header[self.how.layout.network..], piece.len);
        const transport = header[self.how.layout.transport..];
        if (self.how.layout.protocol == frames.IPPROTO_TCP) {
            self.fillTcp(transport, first, last);
        } else {
            write(transport, udp_length_at, @intCast(transport.len + piece.len));
        }
        self.fillChecksum(transport, piece);

        self.sent_bytes += piece.len;
        self.index +%= 1;
        return .{ .header = header, .payload = piece };
    }

    /// Sets the length, and for IPv4 the identification and the header's checksum.
    fn fillNetwork(self: *Segmenter, network: []u8, payload_bytes: usize) void {
        const packet_bytes = network.len + payload_bytes;
        switch (self.how.layout.version) {
            .ipv4 => {
                write(network, 2, @intCast(packet_bytes));
                if (self.index > 0) write(network, 4, read(network, 4) +% 1);
                write(network, 10, 0);
                const ip_header = network[0 .. self.how.layout.transport - self.how.layout.network];
                std.mem.writeInt(u16, network[10..12], ~checksum.sum(ip_header), .Little);
            },
            .ipv6 => write(network, 4, @intCast(packet_bytes - 40)),
        }
    }

    /// Advances the sequence number. FIN and PSH go to the last segment, CWR to the first (RFC 3168 §6.1.2: once for
    /// each reduction).
    fn fillTcp(self: *Segmenter, tcp: []u8, first: bool, last: bool) void {
        if (!first) {
            const sequence = std.mem.readInt(u32, tcp[tcp_sequence_at..][0..4], .Big);
            std.mem.writeInt(u32, tcp[tcp_sequence_at..][0..4], sequence +% self.how.segment_bytes, .Big);
            tcp[tcp_flags_at] &= ~@as(u8, tcp_cwr);
        }
        if (first) self.last_flags = tcp[tcp_flags_at] & (tcp_fin | tcp_psh);
        tcp[tcp_flags_at] &= ~@as(u8, tcp_fin | tcp_psh);
        if (last) tcp[tcp_flags_at] |= self.last_flags;
    }

    fn fillChecksum(self: *Segmenter, transport: []u8, payload: []const u8) void {
        const offset = checksumOffset(self.how);
        write(transport, offset, 0);
        var total = self.pseudo;
        total.addNumber(@intCast(transport.len + payload.len));
        total.add(transport);
        total.add(payload);
        if (self.how.layout.protocol == frames.IPPROTO_UDP) {
            checksum.store(transport, offset, total);
        } else {
            std.mem.writeInt(u16, transport[offset..][0..2], total.checksum(), .Little);
        }
    }
};

/// Offset of the checksum in the transport header.
pub fn checksumOffset(how: Segmentation) u16 {
    return if (how.layout.protocol == frames.IPPROTO_TCP) tcp_checksum_at else udp_checksum_at;
}

fn read(bytes: []const u8, offset: usize) u16 {
    return std.mem.readInt(u16, bytes[offset..][0..2], .Big);
}

fn write(bytes: []u8, offset: usize, number: u16) void {
    std.mem.writeInt(u16, bytes[offset..][0..2], number, .Big);
}

/// The sum over the pseudo header of a segment: what the transport checksum starts from (RFC 9293 §3.1, RFC 8200 §8.1).
pub fn pseudoSum(frame: []const u8, layout: Layout) checksum.Sum {
    const network: usize = layout.network;
    const addresses = switch (layout.version) {
        .ipv4 => frame[network + 12 ..][0..8],
        .ipv6 => frame[network + 8 ..][0..32],
    };
    var total = checksum.Sum{};
    total.add(addresses);
    total.addNumber(layout.protocol);
    return total;
}

const Flavour = struct { tcp: bool, six: bool, options: usize = 0, tags: usize = 0, extension: bool = false };

/// A frame as a driver hands it over: headers, payload, and the pseudo header's sum in the checksum field.
fn largeFrame(builder: *frames.Builder, flavour: Flavour, payload_bytes: usize, random: std.rand.Random) Segmentation {
    const protocol: u8 = if (flavour.tcp) frames.IPPROTO_TCP else frames.IPPROTO_UDP;
    const transport_bytes: usize = if (flavour.tcp) 20 + flavour.options else 8;
    for (0..flavour.tags) |_| builder.vlan(0x8100);
    const ip_payload = transport_bytes + payload_bytes;
    if (!flavour.six) {
        builder.ipv4(protocol, flavour.options, ip_payload);
    } else if (flavour.extension) {
        builder.ipv6(60, ip_payload + 16);
        builder.extension(protocol, 2);
    } else {
        builder.ipv6(protocol, ip_payload);
    }
    const transport = builder.len;
    var header: [60]u8 = undefined;
    random.bytes(&header);
    if (flavour.tcp) {
        header[12] = @intCast(transport_bytes / 4 << 4);
        // All flags that segmentation touches, and one that it does not.
        header[tcp_flags_at] = tcp_fin | tcp_psh | tcp_cwr | 0x10;
        // Close to the end, so that sequence numbers wrap.
        std.mem.writeInt(u32, header[4..8], 0xffff_fff0, .Big);
    } else {
        std.mem.writeInt(u16, header[4..6], @intCast(ip_payload), .Big);
    }
    builder.put(header[0..transport_bytes]);
    random.bytes(builder.bytes[builder.len..][0..payload_bytes]);
    builder.len += payload_bytes;
    const layout = frames.parse(builder.frame()).?;
    var seed = pseudoSum(builder.frame(), layout);
    seed.addNumber(@intCast(ip_payload));
    const how = Segmentation{
        .layout = layout,
        .header_bytes = @intCast(transport + transport_bytes),
        .segment_bytes = 0,
    };
    std.mem.writeInt(u16, builder.frame()[transport + checksumOffset(how) ..][0..2], seed.value(), .Little);
    return how;
}

test "segments carry the payload in order, with right lengths, flags, numbers and checksums" {
    var prng = std.rand.DefaultPrng.init(0x5e9);
    const random = prng.random();
    const flavours = [_]Flavour{
        .{ .tcp = true, .six = false },
        .{ .tcp = true, .six = false, .options = 12, .tags = 1 },
        .{ .tcp = true, .six = true, .options = 40, .tags = 2 },
        .{ .tcp = true, .six = true, .extension = true },
        .{ .tcp = false, .six = false },
        .{ .tcp = false, .six = true },
        .{ .tcp = false, .six = true, .extension = true, .tags = 1 },
    };
    var joined: [70_000]u8 = undefined;
    for (flavours) |flavour| {
        for ([_]u16{ 8, 9, 536, 1447, 1448, 8948 }) |mss| {
            for ([_]usize{ 1, mss - 1, mss, mss + 1, @as(usize, mss) * 2, 7777, 65_535 - 120 }) |payload_bytes| {
                var builder = frames.Builder.init();
                var how = largeFrame(&builder, flavour, payload_bytes, random);
                how.segment_bytes = mss;
                const whole = builder.frame();
                var segmenter = Segmenter.init(whole, how);
                var position: usize = 0;
                var count: usize = 0;
                while (segmenter.next()) |segment| : (count += 1) {
                    const segment_bytes = segment.header.len + segment.payload.len;
                    @memcpy(joined[0..segment.header.len], segment.header);
                    @memcpy(joined[segment.header.len..segment_bytes], segment.payload);
                    const frame = joined[0..segment_bytes];
                    const last = position + segment.payload.len == payload_bytes;
                    try std.testing.expectEqual(if (last) payload_bytes - position else mss, segment.payload.len);
                    try std.testing.expectEqualSlices(
                        u8,
                        whole[how.header_bytes + position ..][0..segment.payload.len],
                        segment.payload,
                    );
                    // Ethernet header and tags are those of the large frame.
                    try std.testing.expectEqualSlices(u8, whole[0..how.layout.network], frame[0..how.layout.network]);
                    try std.testing.expectEqual(how.layout, frames.parse(frame).?);
                    const network = frame[how.layout.network..];
                    if (flavour.six) {
                        try std.testing.expectEqual(network.len - 40, read(network, 4));
                    } else {
                        try std.testing.expectEqual(network.len, read(network, 2));
                        const identification = read(whole, how.layout.network + 4);
                        try std.testing.expectEqual(identification +% @as(u16, @truncate(count)), read(network, 4));
                        const ip_header = network[0 .. how.layout.transport - how.layout.network];
                        try std.testing.expectEqual(@as(u16, 0xffff), checksum.sum(ip_header));
                    }
                    const transport = frame[how.layout.transport..];
                    if (flavour.tcp) {
                        const sequence = @as(u32, 0xffff_fff0) +% @as(u32, @intCast(position));
                        try std.testing.expectEqual(sequence, std.mem.readInt(u32, transport[4..8], .Big));
                        var flags: u8 = 0x10;
                        if (count == 0) flags |= tcp_cwr;
                        if (last) flags |= tcp_fin | tcp_psh;
                        try std.testing.expectEqual(flags, transport[tcp_flags_at]);
                    } else {
                        try std.testing.expectEqual(transport.len, read(transport, 4));
                        try std.testing.expect(read(transport, udp_checksum_at) != 0);
                    }
                    var total = pseudoSum(frame, how.layout);
                    total.addNumber(@intCast(transport.len));
                    total.add(transport);
                    try std.testing.expectEqual(@as(u16, 0xffff), total.value());
                    position += segment.payload.len;
                }
                try std.testing.expectEqual(payload_bytes, position);
                try std.testing.expectEqual((payload_bytes + mss - 1) / mss, count);
            }
        }
    }
}

test "a whole without FIN and PSH has no segment with them" {
    var prng = std.rand.DefaultPrng.init(0xf1a);
    var builder = frames.Builder.init();
    var how = largeFrame(&builder, .{ .tcp = true, .six = false }, 100, prng.random());
    how.segment_bytes = 40;
    builder.frame()[how.layout.transport + tcp_flags_at] = 0x10;
    var segmenter = Segmenter.init(builder.frame(), how);
    var count: usize = 0;
    while (segmenter.next()) |segment| : (count += 1) {
        try std.testing.expectEqual(@as(u8, 0x10), segment.header[how.layout.transport + tcp_flags_at]);
    }
    try std.testing.expectEqual(@as(usize, 3), count);
}
