//! Checks the virtio-net header (VIRTIO 1.2 §5.1.6) in both directions and builds the clean header that replaces it.
//! Pure functions over private copies. Names and numbers are those of include/uapi/linux/virtio_net.h.

const std = @import("std");
const checksum = @import("checksum.zig");
const frames = @import("frame.zig");
const segment = @import("segment.zig");
const DropReason = @import("drop_reason.zig").DropReason;
const Report = @import("hash.zig").Report;
const Segmentation = segment.Segmentation;

pub const VIRTIO_NET_HDR_F_NEEDS_CSUM = 1;
pub const VIRTIO_NET_HDR_F_DATA_VALID = 2;

pub const VIRTIO_NET_HDR_GSO_NONE = 0;
pub const VIRTIO_NET_HDR_GSO_TCPV4 = 1;
pub const VIRTIO_NET_HDR_GSO_UDP = 3;
pub const VIRTIO_NET_HDR_GSO_TCPV6 = 4;
pub const VIRTIO_NET_HDR_GSO_UDP_L4 = 5;
pub const VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4 = 0x20;
pub const VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6 = 0x40;
pub const VIRTIO_NET_HDR_GSO_ECN = 0x80;

/// Feature bits that decide which values a header may have.
pub const Feature = enum(u6) {
    VIRTIO_NET_F_CSUM = 0,
    VIRTIO_NET_F_GUEST_CSUM = 1,
    VIRTIO_NET_F_GUEST_TSO4 = 7,
    VIRTIO_NET_F_GUEST_TSO6 = 8,
    VIRTIO_NET_F_GUEST_ECN = 9,
    VIRTIO_NET_F_HOST_TSO4 = 11,
    VIRTIO_NET_F_HOST_TSO6 = 12,
    VIRTIO_NET_F_HOST_ECN = 13,
    VIRTIO_NET_F_MRG_RXBUF = 15,
    VIRTIO_NET_F_GUEST_USO4 = 54,
    VIRTIO_NET_F_GUEST_USO6 = 55,
    VIRTIO_NET_F_HOST_USO = 56,
    VIRTIO_NET_F_HASH_REPORT = 57,
};

/// The negotiated features.
pub const Features = struct {
    bits: u64,

    pub fn has(self: Features, feature: Feature) bool {
        return self.bits >> @intFromEnum(feature) & 1 == 1;
    }

    pub fn of(list: []const Feature) Features {
        var bits: u64 = 0;
        for (list) |feature| bits |= @as(u64, 1) << @intFromEnum(feature);
        return .{ .bits = bits };
    }
};

/// struct virtio_net_hdr_v1. Little-endian, like both supported architectures.
pub const Header = extern struct {
    flags: u8 = 0,
    gso_type: u8 = VIRTIO_NET_HDR_GSO_NONE,
    hdr_len: u16 = 0,
    gso_size: u16 = 0,
    csum_start: u16 = 0,
    csum_offset: u16 = 0,
    num_buffers: u16 = 0,

    comptime {
        std.debug.assert(@sizeOf(Header) == header_bytes);
        std.debug.assert(@import("builtin").cpu.arch.endian() == .Little);
    }
};

/// Length of the header on a TAP (TUNSETVNETHDRSZ), and of a driver with VERSION_1 or MRG_RXBUF. VIRTIO 1.2 §5.1.6.
pub const header_bytes = 12;

/// Length of the header of any other driver: struct virtio_net_hdr, which ends before num_buffers. VIRTIO 1.2 §5.1.6.1.
pub const legacy_header_bytes = @offsetOf(Header, "num_buffers");

/// struct virtio_net_hdr_v1_hash: the longest header. The shorter ones are prefixes of it.
pub const HashHeader = extern struct {
    hdr: Header = .{},
    hash: Report = .{},

    comptime {
        std.debug.assert(@sizeOf(HashHeader) == 20);
    }
};

/// Longest frame with GSO and no VLAN tag: 65,535 bytes of IPv6 payload, IPv6 and Ethernet header.
const max_untagged_gso_frame_bytes = 65_535 + 40 + frames.ethernet_bytes;
/// Longest frame with GSO.
pub const max_gso_frame_bytes = max_untagged_gso_frame_bytes + frames.max_vlan_tags * frames.vlan_tag_bytes;
/// As TCP_MIN_GSO_SIZE of net/tcp.h: a smaller value would cut one frame into thousands.
const min_segment_bytes = 8;
/// GSO_BY_FRAGS of linux/skbuff.h: the kernel refuses this value.
const gso_by_frags = 0xffff;
/// As UDP_MAX_SEGMENTS of linux/udp.h: the kernel refuses more.
const udp_max_segments = 128;
/// The kernel's __virtio_net_hdr_to_skb() refuses a csum_start below the length of an IPv4 header.
const min_csum_start = 20;
/// The kernel adds its headroom and stores the sum in 16 bits; it refuses what does not fit.
const max_csum_start = 65_535 - 1024;

/// The verdict on a frame from the driver.
pub const TxVerdict = union(enum) {
    drop: DropReason,
    send: TxPlan,
};

pub const TxPlan = struct {
    /// The header for the TAP.
    header: Header,
    /// Set if the frame has more than one segment.
    segmentation: ?Segmentation = null,
};

/// All headers of nearly every frame with GSO fit into this many bytes. IPv6 extension headers can make them longer.
pub const usual_header_bytes = 244;

/// Bytes of the frame that `checkTx` needs at first.
pub fn txPrefixWanted(raw: Header) usize {
    return if (raw.gso_type == VIRTIO_NET_HDR_GSO_NONE) 0 else usual_header_bytes;
}

/// Checks the driver's header. `raw` is a private copy. `prefix` is a private copy of the frame's first bytes:
/// `txPrefixWanted` many, or the whole frame if it is shorter. `max_frame_bytes` bounds each frame on the wire. A
/// verdict `gso_protocol_mismatch` may change with a longer prefix, of at most segment.max_header_bytes.
///
/// All headers of a frame with GSO must lie in the first segment.max_header_bytes: at most two VLAN tags, IPv4 with
/// options, or IPv6 with at most seven extension headers (hop-by-hop options, destination options or routing). What the
/// kernel does not segment is dropped: fragments, authentication headers (they cover bytes that segmentation changes),
/// and any other header in front of TCP or UDP.
///
/// Used after the checks: gso_type, gso_size, csum_start, csum_offset and NEEDS_CSUM. Ignored: hdr_len (VIRTIO 1.2
/// §5.1.6.2.2: not to be relied on), num_buffers and all other flags.
pub fn checkTx(
    raw: Header,
    frame_bytes: usize,
    prefix: []const u8,
    features: Features,
    max_frame_bytes: usize,
) TxVerdict {
    if (frame_bytes < frames.ethernet_bytes) return .{ .drop = .frame_too_short };
    const needs_csum = raw.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
    const is_gso = raw.gso_type != VIRTIO_NET_HDR_GSO_NONE;
    if (is_gso) {
        if (gsoRefusal(raw.gso_type, features)) |reason| return .{ .drop = reason };
        if (!needs_csum) return .{ .drop = .gso_without_csum };
        if (raw.gso_size < min_segment_bytes or raw.gso_size == gso_by_frags) return .{ .drop = .gso_size_invalid };
        const ethernet_bytes = frames.networkOffset(prefix) orelse frames.ethernet_bytes;
        const tags_bytes = ethernet_bytes - frames.ethernet_bytes;
        if (frame_bytes > max_untagged_gso_frame_bytes + tags_bytes) return .{ .drop = .frame_too_long };
    } else if (frame_bytes > max_frame_bytes) return .{ .drop = .frame_too_long };

    if (!needs_csum) return .{ .send = .{ .header = .{} } };
    if (!features.has(.VIRTIO_NET_F_CSUM)) return .{ .drop = .csum_not_negotiated };
    const csum_end = @as(usize, raw.csum_start) + raw.csum_offset + 2;
    if (raw.csum_start < min_csum_start or raw.csum_start > max_csum_start or csum_end > frame_bytes) {
        return .{ .drop = .csum_out_of_range };
    }
    const header = Header{
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
        .csum_start = raw.csum_start,
        .csum_offset = raw.csum_offset,
    };
    if (!is_gso) return .{ .send = .{ .header = header } };
    return planGso(raw, header, frame_bytes, prefix, max_frame_bytes);
}

/// Why the driver may not use this gso_type; null if it may.
fn gsoRefusal(gso_type: u8, features: Features) ?DropReason {
    const ecn = gso_type & VIRTIO_NET_HDR_GSO_ECN != 0;
    switch (gso_type & ~@as(u8, VIRTIO_NET_HDR_GSO_ECN)) {
        VIRTIO_NET_HDR_GSO_TCPV4 => if (!features.has(.VIRTIO_NET_F_HOST_TSO4)) return .gso_not_negotiated,
        VIRTIO_NET_HDR_GSO_TCPV6 => if (!features.has(.VIRTIO_NET_F_HOST_TSO6)) return .gso_not_negotiated,
        VIRTIO_NET_HDR_GSO_UDP_L4 => {
            if (ecn) return .gso_type_unknown;
            if (!features.has(.VIRTIO_NET_F_HOST_USO)) return .gso_not_negotiated;
        },
        // UDP fragmentation offload is never offered.
        VIRTIO_NET_HDR_GSO_UDP => return .gso_not_negotiated,
        else => |other| {
            // Tunnels are never offered; both bits at once are invalid (VIRTIO 1.3 §5.1.6.2.2).
            const tunnel = other & (VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4 | VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6);
            const one_tunnel = tunnel == VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4 or
                tunnel == VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6;
            return if (one_tunnel) .gso_not_negotiated else .gso_type_unknown;
        },
    }
    return if (ecn and !features.has(.VIRTIO_NET_F_HOST_ECN)) .gso_not_negotiated else null;
}

/// The part of `checkTx` that parses the frame.
fn planGso(raw: Header, clean: Header, frame_bytes: usize, prefix: []const u8, max_frame_bytes: usize) TxVerdict {
    const mismatch = TxVerdict{ .drop = .gso_protocol_mismatch };
    const layout = frames.parse(prefix) orelse return mismatch;
    if (layout.fragment) return mismatch;
    const fits = switch (raw.gso_type & ~@as(u8, VIRTIO_NET_HDR_GSO_ECN)) {
        VIRTIO_NET_HDR_GSO_TCPV4 => layout.protocol == frames.IPPROTO_TCP and layout.version == .ipv4,
        VIRTIO_NET_HDR_GSO_TCPV6 => layout.protocol == frames.IPPROTO_TCP and layout.version == .ipv6,
        else => layout.protocol == frames.IPPROTO_UDP,
    };
    if (!fits) return mismatch;
    const transport_bytes = transportHeaderBytes(prefix, layout) orelse return mismatch;
    const headers: u16 = @intCast(layout.transport + transport_bytes);
    const how = Segmentation{ .layout = layout, .header_bytes = headers, .segment_bytes = raw.gso_size };
    if (raw.csum_start != layout.transport or raw.csum_offset != segment.checksumOffset(how)) {
        return .{ .drop = .csum_out_of_range };
    }
    // IPv4 has a 16-bit total length that includes its header: the GSO bound, which is IPv6's, is too long for it.
    const ip_bytes = frame_bytes - if (layout.version == .ipv4) @as(
        usize,
        layout.network,
    ) else @as(usize, layout.network) + 40;
    if (ip_bytes > 65_535) return .{ .drop = .frame_too_long };
    const payload_bytes = frame_bytes - headers;
    if (layout.protocol == frames.IPPROTO_UDP and payload_bytes > @as(usize, raw.gso_size) * udp_max_segments) {
        return .{ .drop = .gso_size_invalid };
    }
    // One segment is not a GSO frame: the kernel would send it as it is, past the MTU.
    if (payload_bytes <= raw.gso_size) {
        return if (frame_bytes > max_frame_bytes) .{ .drop = .frame_too_long } else .{ .send = .{ .header = clean } };
    }
    if (@as(usize, headers) + raw.gso_size > max_frame_bytes) return .{ .drop = .frame_too_long };
    var header = clean;
    header.gso_type = raw.gso_type;
    header.gso_size = raw.gso_size;
    header.hdr_len = headers;
    return .{ .send = .{ .header = header, .segmentation = how } };
}

/// Length of the TCP or UDP header at `layout.transport`, or null if it is not all in `prefix`.
fn transportHeaderBytes(prefix: []const u8, layout: frames.Layout) ?usize {
    const transport = prefix[layout.transport..];
    const bytes = if (layout.protocol == frames.IPPROTO_TCP) bytes: {
        if (transport.len < 20) return null;
        const data_offset = @as(usize, transport[12] >> 4) * 4;
        if (data_offset < 20) return null;
        break :bytes data_offset;
    } else 8;
    return if (transport.len < bytes) null else bytes;
}

/// The verdict on a frame from the TAP.
pub const RxVerdict = union(enum) {
    drop: DropReason,
    /// The header for the driver; num_buffers is set once the buffers are known.
    deliver: Header,
};

/// Checks a frame from a TAP with vnet headers and builds the header that the driver's features allow. `raw` and
/// `start` are private. `start` is the whole frame of `frame_bytes`; for a driver with GUEST_CSUM its headers are
/// enough. For a driver without GUEST_CSUM a partial checksum is completed in `start`, and NEEDS_CSUM cleared in `raw`.
pub fn checkRx(raw: *Header, start: []u8, frame_bytes: usize, features: Features, max_frame_bytes: usize) RxVerdict {
    if (frame_bytes < frames.ethernet_bytes) return .{ .drop = .rx_malformed };
    const needs_csum = raw.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
    const is_gso = raw.gso_type != VIRTIO_NET_HDR_GSO_NONE;
    if (is_gso) {
        if (!guestTakesGso(raw.gso_type, start, features)) return .{ .drop = .rx_gso_not_negotiated };
        // VIRTIO 1.2 §5.1.6.4.1: a GSO packet has a partial checksum and a gso_size.
        if (!needs_csum or raw.gso_size == 0) return .{ .drop = .rx_malformed };
    } else if (frame_bytes > max_frame_bytes) return .{ .drop = .frame_too_long };

    var header = Header{};
    if (needs_csum) {
        if (@as(usize, raw.csum_start) + raw.csum_offset + 2 > frame_bytes) return .{ .drop = .rx_malformed };
        if (!features.has(.VIRTIO_NET_F_GUEST_CSUM)) {
            // The TAP's offload is off, but frames queued before still have partial checksums.
            std.debug.assert(start.len == frame_bytes);
            checksum.complete(start, raw.csum_start, raw.csum_offset);
            raw.* = .{};
            return .{ .deliver = header };
        }
        header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        header.csum_start = raw.csum_start;
        header.csum_offset = raw.csum_offset;
    } else if (raw.flags & VIRTIO_NET_HDR_F_DATA_VALID != 0 and features.has(.VIRTIO_NET_F_GUEST_CSUM)) {
        header.flags = VIRTIO_NET_HDR_F_DATA_VALID;
    }
    if (is_gso) {
        header.gso_type = raw.gso_type;
        header.gso_size = raw.gso_size;
        // Linux does not count VLAN tags; VIRTIO 1.2 §5.1.6.4.1 requires at least the length of all headers.
        header.hdr_len = headersOf(start) orelse raw.hdr_len;
    }
    return .{ .deliver = header };
}

/// Length of all headers of a TCP or UDP frame; null for any other frame.
fn headersOf(frame: []const u8) ?u16 {
    const layout = frames.parse(frame) orelse return null;
    if (layout.protocol != frames.IPPROTO_TCP and layout.protocol != frames.IPPROTO_UDP) return null;
    const transport_bytes = transportHeaderBytes(frame, layout) orelse return null;
    return @intCast(layout.transport + transport_bytes);
}

fn guestTakesGso(gso_type: u8, frame: []const u8, features: Features) bool {
    // Every GUEST_TSO and GUEST_USO bit requires GUEST_CSUM (VIRTIO 1.2 §5.1.3.1).
    if (!features.has(.VIRTIO_NET_F_GUEST_CSUM)) return false;
    const ecn = gso_type & VIRTIO_NET_HDR_GSO_ECN != 0;
    if (ecn and !features.has(.VIRTIO_NET_F_GUEST_ECN)) return false;
    return switch (gso_type & ~@as(u8, VIRTIO_NET_HDR_GSO_ECN)) {
        VIRTIO_NET_HDR_GSO_TCPV4 => features.has(.VIRTIO_NET_F_GUEST_TSO4),
        VIRTIO_NET_HDR_GSO_TCPV6 => features.has(.VIRTIO_NET_F_GUEST_TSO6),
        VIRTIO_NET_HDR_GSO_UDP_L4 => switch (frames.version(frame) orelse return false) {
            .ipv4 => features.has(.VIRTIO_NET_F_GUEST_USO4),
            .ipv6 => features.has(.VIRTIO_NET_F_GUEST_USO6),
        },
        else => false,
    };
}

/// The same for a TAP without vnet headers: the checksum is verified for a driver with GUEST_CSUM.
pub fn checkBareRx(frame: []const u8, features: Features, max_frame_bytes: usize) RxVerdict {
    if (frame.len < frames.ethernet_bytes) return .{ .drop = .rx_malformed };
    if (frame.len > max_frame_bytes) return .{ .drop = .frame_too_long };
    const valid = features.has(.VIRTIO_NET_F_GUEST_CSUM) and checksumIsRight(frame);
    return .{ .deliver = .{ .flags = if (valid) VIRTIO_NET_HDR_F_DATA_VALID else 0 } };
}

/// True if `frame` is a whole TCP or UDP packet with a correct checksum. False if that cannot be verified.
fn checksumIsRight(frame: []const u8) bool {
    const layout = frames.parse(frame) orelse return false;
    if (layout.fragment or layout.source_routed) return false;
    const checksum_at: usize = switch (layout.protocol) {
        frames.IPPROTO_TCP => 16,
        frames.IPPROTO_UDP => 6,
        else => return false,
    };
    // Ethernet pads short frames: the length in the IP header counts.
    const network: usize = layout.network;
    const packet_bytes: usize = switch (layout.version) {
        .ipv4 => std.mem.readInt(u16, frame[network + 2 ..][0..2], .Big),
        .ipv6 => @as(usize, 40) + std.mem.readInt(u16, frame[network + 4 ..][0..2], .Big),
    };
    if (frame.len < network + packet_bytes) return false;
    const packet = frame[0 .. network + packet_bytes];
    if (packet.len < @as(usize, layout.transport) + checksum_at + 2) return false;
    const transport = packet[layout.transport..];
    if (layout.protocol == frames.IPPROTO_UDP) {
        // A UDP packet may have no checksum, and a length that differs from IP's.
        if (std.mem.readInt(u16, transport[6..8], .Little) == 0) return false;
        if (std.mem.readInt(u16, transport[4..6], .Big) != transport.len) return false;
    }
    var total = segment.pseudoSum(packet, layout);
    total.addNumber(@intCast(transport.len));
    total.add(transport);
    return total.value() == 0xffff;
}

const csum_only = Features.of(&.{.VIRTIO_NET_F_CSUM});
const host_offloads = Features.of(&.{
    .VIRTIO_NET_F_CSUM,
    .VIRTIO_NET_F_HOST_TSO4,
    .VIRTIO_NET_F_HOST_TSO6,
    .VIRTIO_NET_F_HOST_ECN,
    .VIRTIO_NET_F_HOST_USO,
});
const guest_offloads = Features.of(&.{
    .VIRTIO_NET_F_GUEST_CSUM,
    .VIRTIO_NET_F_GUEST_TSO4,
    .VIRTIO_NET_F_GUEST_TSO6,
    .VIRTIO_NET_F_GUEST_ECN,
    .VIRTIO_NET_F_GUEST_USO4,
    .VIRTIO_NET_F_GUEST_USO6,
});

/// An IPv4 TCP frame with `payload_bytes` behind 54 bytes of headers, and the header that asks for `gso_size`.
fn tcpFrame(builder: *frames.Builder, payload_bytes: usize) []u8 {
    builder.ipv4(frames.IPPROTO_TCP, 0, 20 + payload_bytes);
    var tcp = [_]u8{0} ** 20;
    tcp[12] = 0x50;
    builder.put(&tcp);
    builder.len += payload_bytes;
    return builder.frame();
}

test "a good GSO header is rebuilt, with the length of the headers" {
    var builder = frames.Builder.init();
    const frame = tcpFrame(&builder, 4000);
    const raw = Header{
        .flags = 0xff,
        .gso_type = VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN,
        .hdr_len = 7,
        .gso_size = 1000,
        .csum_start = 34,
        .csum_offset = 16,
        .num_buffers = 9,
    };
    const plan = checkTx(raw, frame.len, frame[0..usual_header_bytes], host_offloads, 1518).send;
    try std.testing.expectEqual(Header{
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
        .gso_type = raw.gso_type,
        .hdr_len = 54,
        .gso_size = 1000,
        .csum_start = 34,
        .csum_offset = 16,
    }, plan.header);
    try std.testing.expectEqual(@as(u16, 54), plan.segmentation.?.header_bytes);
    try std.testing.expectEqual(DropReason.gso_not_negotiated, checkTx(raw, frame.len, frame, csum_only, 1518).drop);
}

test "whatever a driver says, what is sent keeps the promises of the software path" {
    var prng = std.rand.DefaultPrng.init(0x7a5);
    const random = prng.random();
    var sent: usize = 0;
    var segmented: usize = 0;
    var builder = frames.Builder.init();
    const whole = tcpFrame(&builder, 5000);
    var prefix: [usual_header_bytes]u8 = undefined;
    for (0..300_000) |_| {
        @memcpy(&prefix, whole[0..prefix.len]);
        for (0..random.uintLessThan(usize, 3)) |_| prefix[12 + random.uintLessThan(usize, 60)] = random.int(u8);
        var raw = Header{
            .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
            .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
            .gso_size = 1000,
            .csum_start = 34,
            .csum_offset = 16,
        };
        for (
            0..random.uintLessThan(usize, 3),
        ) |_| std.mem.asBytes(&raw)[random.uintLessThan(usize, header_bytes)] = random.int(u8);
        const frame_bytes = if (random.boolean()) whole.len else random.uintAtMost(usize, 70_000);
        const features = Features{ .bits = if (random.boolean()) host_offloads.bits else random.int(u64) };
        const known = prefix[0..@min(prefix.len, frame_bytes)];
        const plan = switch (checkTx(raw, frame_bytes, known, features, 1518)) {
            .drop => continue,
            .send => |plan| plan,
        };
        sent += 1;
        const header = plan.header;
        try std.testing.expect(header.flags & ~@as(u8, VIRTIO_NET_HDR_F_NEEDS_CSUM) == 0);
        try std.testing.expectEqual(@as(u16, 0), header.num_buffers);
        if (header.flags != 0) {
            try std.testing.expect(features.has(.VIRTIO_NET_F_CSUM));
            try std.testing.expect(@as(usize, header.csum_start) + header.csum_offset + 2 <= frame_bytes);
        } else {
            try std.testing.expectEqual(Header{}, header);
        }
        if (plan.segmentation) |how| {
            segmented += 1;
            try std.testing.expect(how.header_bytes <= segment.max_header_bytes and how.header_bytes < frame_bytes);
            try std.testing.expect(how.segment_bytes >= min_segment_bytes);
            try std.testing.expect(@as(usize, how.header_bytes) + how.segment_bytes <= 1518);
            try std.testing.expect(frame_bytes - how.layout.transport <= 0xffff);
            try std.testing.expectEqual(header.hdr_len, how.header_bytes);
        } else {
            try std.testing.expect(frame_bytes <= 1518);
            try std.testing.expectEqual(@as(u8, 0), header.gso_type);
        }
    }
    try std.testing.expect(sent > 10_000 and segmented > 5_000);
}

test "received: DATA_VALID only for those who asked, and never beside NEEDS_CSUM" {
    var builder = frames.Builder.init();
    const frame = tcpFrame(&builder, 100);
    var valid = Header{ .flags = VIRTIO_NET_HDR_F_DATA_VALID | 0xf0, .csum_start = 1, .gso_size = 5, .hdr_len = 6 };
    try std.testing.expectEqual(
        Header{ .flags = VIRTIO_NET_HDR_F_DATA_VALID },
        checkRx(&valid, frame, frame.len, guest_offloads, 1518).deliver,
    );
    try std.testing.expectEqual(Header{}, checkRx(&valid, frame, frame.len, .{ .bits = 0 }, 1518).deliver);
    var both = valid;
    both.flags |= VIRTIO_NET_HDR_F_NEEDS_CSUM;
    const told = checkRx(&both, frame, frame.len, guest_offloads, 1518).deliver;
    try std.testing.expectEqual(@as(u8, VIRTIO_NET_HDR_F_NEEDS_CSUM), told.flags);
}

test "received: a header that makes no sense is not passed on" {
    var builder = frames.Builder.init();
    const frame = tcpFrame(&builder, 100);
    var gso = Header{
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
        .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
        .gso_size = 50,
        .csum_start = 34,
        .csum_offset = 16,
    };
    try std.testing.expectEqual(@as(u16, 54), checkRx(&gso, frame, frame.len, guest_offloads, 1518).deliver.hdr_len);
    var wrong = gso;
    wrong.gso_size = 0;
    try std.testing.expectEqual(DropReason.rx_malformed, checkRx(&wrong, frame, frame.len, guest_offloads, 1518).drop);
    wrong = gso;
    wrong.flags = 0;
    try std.testing.expectEqual(DropReason.rx_malformed, checkRx(&wrong, frame, frame.len, guest_offloads, 1518).drop);
    wrong = gso;
    wrong.csum_start = 0xffff;
    try std.testing.expectEqual(DropReason.rx_malformed, checkRx(&wrong, frame, frame.len, guest_offloads, 1518).drop);
    try std.testing.expectEqual(DropReason.rx_malformed, checkRx(&wrong, frame[0..13], 13, guest_offloads, 1518).drop);
    try std.testing.expectEqual(DropReason.rx_malformed, checkBareRx(frame[0..13], guest_offloads, 1518).drop);
}

test "a frame without vnet header is valid only if all of its packet is there and right" {
    var builder = frames.Builder.init();
    const frame = tcpFrame(&builder, 101);
    const layout = frames.parse(frame).?;
    var total = segment.pseudoSum(frame, layout);
    total.addNumber(121);
    total.add(frame[34..]);
    checksum.store(frame, 34 + 16, total);
    const valid = RxVerdict{ .deliver = .{ .flags = VIRTIO_NET_HDR_F_DATA_VALID } };
    const unknown = RxVerdict{ .deliver = .{} };
    try std.testing.expectEqual(valid, checkBareRx(frame, guest_offloads, 1518));
    try std.testing.expectEqual(unknown, checkBareRx(frame, csum_only, 1518));
    // Ethernet's padding is not part of it.
    builder.put(&.{ 1, 2, 3 });
    try std.testing.expectEqual(valid, checkBareRx(builder.frame(), guest_offloads, 1518));
    for (14..frame.len) |length| try std.testing.expectEqual(
        unknown,
        checkBareRx(frame[0..length], guest_offloads, 1518),
    );
    for (34..frame.len) |index| {
        frame[index] ^= 0x20;
        try std.testing.expectEqual(unknown, checkBareRx(frame, guest_offloads, 1518));
        frame[index] ^= 0x20;
    }
    // Lengths that lie.
    for ([_]u16{ 0, 19, 20, 39, 40, 140, 142, 0xffff }) |length| {
        std.mem.writeInt(u16, frame[16..18], length, .Big);
        try std.testing.expectEqual(unknown, checkBareRx(frame, guest_offloads, 1518));
    }
}

test "received: checked a second time, for a driver with other features, a frame is still right" {
    var builder = frames.Builder.init();
    const frame = tcpFrame(&builder, 101);
    const layout = frames.parse(frame).?;
    var seed = segment.pseudoSum(frame, layout);
    seed.addNumber(121);
    std.mem.writeInt(u16, frame[34 + 16 ..][0..2], seed.value(), .Little);
    var open = Header{ .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16 };
    const asked = open;
    try std.testing.expectEqual(RxVerdict{ .deliver = asked }, checkRx(&open, frame, frame.len, guest_offloads, 1518));
    for ([_]Features{ .{ .bits = 0 }, guest_offloads, .{ .bits = 0 } }) |features| {
        try std.testing.expectEqual(RxVerdict{ .deliver = .{} }, checkRx(&open, frame, frame.len, features, 1518));
        try std.testing.expect(checksumIsRight(frame));
    }
}
