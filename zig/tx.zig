//! Transmit: chains of the driver become packets of the TAP, in order: read the header once, check it, replace it by a
//! clean one, write.

const std = @import("std");
const os = std.os;
const checksum = @import("checksum.zig");
const guest = @import("guest.zig");
const headers = @import("header.zig");
const io = @import("io.zig");
const segment = @import("segment.zig");
const tap = @import("tap.zig");
const DropReason = @import("drop_reason.zig").DropReason;

/// The private start of a packet: the clean header, then the copied part of the frame. The inspected bytes are the sent
/// ones.
const Head = extern struct {
    header: headers.Header align(64),
    prefix: [inline_bytes]u8,

    fn bytes(self: *Head) *[@sizeOf(Head)]u8 {
        return @ptrCast(self);
    }
};

/// Frames up to this size are copied into the head: the kernel takes one piece faster than two, by more than the copy
/// costs.
const inline_bytes = 1536;
comptime {
    std.debug.assert(segment.max_header_bytes <= inline_bytes);
}

/// A chain that was read and checked.
const Packet = struct {
    /// The TAP cannot take it as it is: it must be gathered, its checksum completed, or segmented first.
    software: bool,
    frame_bytes: u32,
    plan: headers.TxPlan,
    iovecs: []const os.iovec_const,
};

const Prepared = union(enum) { drop: DropReason, packet: Packet };

pub const Tx = struct {
    /// The head of the current packet. One for all packets stays in the L1 cache.
    head: *Head,
    iovecs: []os.iovec_const,
    /// One frame in one piece, for completion or segmentation in software.
    gather: []u8,

    const allocator = std.heap.c_allocator;

    /// A chain has at most `iovec_capacity` pieces.
    pub fn init(iovec_capacity: u32) !Tx {
        const head = try allocator.create(Head);
        errdefer allocator.destroy(head);
        // A packet has one piece more than its chain: its head.
        const iovecs = try allocator.alloc(os.iovec_const, @as(usize, iovec_capacity) + 1);
        errdefer allocator.free(iovecs);
        const gather = try allocator.alloc(u8, headers.header_bytes + headers.max_gso_frame_bytes);
        return .{ .head = head, .iovecs = iovecs, .gather = gather };
    }

    pub fn deinit(self: *Tx) void {
        allocator.destroy(self.head);
        allocator.free(self.iovecs);
        allocator.free(self.gather);
    }

    /// Sends `chains` in order. Returns how many are done: fewer only if the TAP is full. `header_bytes`: length of the
    /// driver's header.
    pub fn run(self: *Tx, block: *align(4) io.VnIo, header_bytes: usize, chains: []align(4) const io.Chain) usize {
        block.tx_errno = 0;
        for (chains, 0..) |chain, done| {
            if (done + 1 < chains.len) fetchAhead(block, chains[done + 1]);
            const packet = switch (prepare(block, header_bytes, chain, self.head, self.iovecs)) {
                .packet => |packet| packet,
                .drop => |reason| {
                    block.countDrop(reason);
                    continue;
                },
            };
            const errno = self.send(block, packet);
            if (errno != .SUCCESS) block.tx_errno = @intFromEnum(errno);
            switch (tap.answerTo(errno)) {
                .sent => countSent(block, packet),
                .would_block => return done,
                .drop => |reason| block.countDrop(reason),
            }
        }
        return chains.len;
    }

    fn send(self: *Tx, block: *align(4) io.VnIo, packet: Packet) tap.E {
        if (packet.software) return self.sendGathered(block, packet);
        const errno = tap.writePacket(block.tap_fd, packet.iovecs);
        // Kernels differ in which offloaded packets they take: before 6.2 none with USO, before 6.9 none of more than
        // 64 UDP segments, 6.1.103 and 6.6.44 only some with TSO. A refused packet is finished in software.
        if (errno == .INVAL and packet.plan.header.flags != 0) return self.sendFinished(block, packet);
        return errno;
    }

    /// Gathers the frame in private memory, then sends it.
    fn sendGathered(self: *Tx, block: *align(4) io.VnIo, packet: Packet) tap.E {
        if (block.tap_has_vnet_hdr == 0) return self.sendFinished(block, packet);
        const bytes = self.gatherPieces(packet.iovecs);
        const errno = tap.writePacket(block.tap_fd, &.{.{ .iov_base = bytes.ptr, .iov_len = bytes.len }});
        if (errno == .INVAL and packet.plan.header.flags != 0) return self.sendFinished(block, packet);
        return errno;
    }

    /// Does the offload in software: completes the checksum, or segments the frame.
    fn sendFinished(self: *Tx, block: *align(4) io.VnIo, packet: Packet) tap.E {
        const bytes = self.gatherPieces(packet.iovecs);
        const frame = if (block.tap_has_vnet_hdr == 0) bytes else bytes[headers.header_bytes..];
        if (packet.plan.segmentation) |how| return sendSegments(block, frame, how);
        const header = packet.plan.header;
        if (header.flags != 0) checksum.complete(frame, header.csum_start, header.csum_offset);
        return writeFinished(block, frame, &.{});
    }

    fn gatherPieces(self: *Tx, iovecs: []const os.iovec_const) []u8 {
        var bytes: usize = 0;
        for (iovecs) |piece| {
            // SAFETY: the head is private, the rest is guest memory that TypeScript has bounded; `checkTx` has bounded
            // the sum.
            @memcpy(self.gather[bytes..][0..piece.iov_len], piece.iov_base[0..piece.iov_len]);
            bytes += piece.iov_len;
        }
        // SAFETY: later code must read this copy, not guest memory again.
        asm volatile ("" ::: "memory");
        return self.gather[0..bytes];
    }
};

/// Sends a frame segment by segment. If the TAP refuses a segment, the rest is dropped too, and the packet counts as
/// dropped.
fn sendSegments(block: *align(4) io.VnIo, frame: []const u8, how: segment.Segmentation) tap.E {
    var segmenter = segment.Segmenter.init(frame, how);
    var first = true;
    while (segmenter.next()) |piece| : (first = false) {
        const errno = writeFinished(block, piece.header, piece.payload);
        if (errno == .SUCCESS) continue;
        // A retry would send the first segments twice.
        return if (tap.answerTo(errno) == .would_block and !first) .NOBUFS else errno;
    }
    return .SUCCESS;
}

/// Writes a finished frame in two parts; the second may be empty.
fn writeFinished(block: *align(4) io.VnIo, start: []const u8, rest: []const u8) tap.E {
    const nothing = std.mem.asBytes(&headers.Header{});
    const pieces = [_]os.iovec_const{
        .{ .iov_base = nothing.ptr, .iov_len = nothing.len },
        .{ .iov_base = start.ptr, .iov_len = start.len },
        .{ .iov_base = rest.ptr, .iov_len = rest.len },
    };
    const first: usize = if (block.tap_has_vnet_hdr != 0) 0 else 1;
    const end: usize = if (rest.len > 0) 3 else 2;
    return tap.writePacket(block.tap_fd, pieces[first..end]);
}

/// Reads and checks one chain, and lists the pieces to send in `iovecs` (room for one more than the chain has).
fn prepare(
    block: *align(4) io.VnIo,
    driver_header_bytes: usize,
    chain: io.Chain,
    head: *Head,
    iovecs: []os.iovec_const,
) Prepared {
    const pieces = block.tx_iovecs[chain.first..][0..chain.count];
    const total = guest.totalBytes(pieces);
    if (total <= driver_header_bytes) return .{ .drop = .header_short };
    if (total - driver_header_bytes > headers.max_gso_frame_bytes) return .{ .drop = .frame_too_long };
    const frame_bytes: u32 = @intCast(total - driver_header_bytes);

    var cursor = guest.Cursor{ .pieces = pieces };
    const is_short = frame_bytes <= inline_bytes;
    // A header of the TAP's length is read together with the frame. A longer one ends with a hash, which is unused on
    // transmit (VIRTIO 1.2 §5.1.6.2). A shorter one lacks num_buffers: that field keeps a stale value, which is
    // ignored.
    const at_once = if (is_short and driver_header_bytes == headers.header_bytes) frame_bytes else 0;
    _ = cursor.read(head.bytes()[0 .. @min(driver_header_bytes, headers.header_bytes) + at_once]);
    cursor.skip(driver_header_bytes -| headers.header_bytes);
    var held = if (is_short) frame_bytes else @min(headers.txPrefixWanted(head.header), frame_bytes);
    if (at_once == 0) _ = cursor.read(head.prefix[0..held]);
    var verdict = headers.checkTx(
        head.header,
        frame_bytes,
        head.prefix[0..held],
        block.features(),
        block.max_frame_bytes,
    );
    const further = @min(frame_bytes, segment.max_header_bytes);
    if (held < further and verdict == .drop and verdict.drop == .gso_protocol_mismatch) {
        _ = cursor.read(head.prefix[held..further]);
        held = further;
        verdict = headers.checkTx(
            head.header,
            frame_bytes,
            head.prefix[0..held],
            block.features(),
            block.max_frame_bytes,
        );
    }
    const prefix = head.prefix[0..held];
    const plan = switch (verdict) {
        .drop => |reason| return .{ .drop = reason },
        .send => |plan| plan,
    };

    head.header = plan.header;
    const has_header = block.tap_has_vnet_hdr != 0;
    const start: usize = if (has_header) 0 else headers.header_bytes;
    const own = head.bytes()[start .. headers.header_bytes + prefix.len];
    var count: usize = 0;
    if (own.len > 0) {
        iovecs[0] = .{ .iov_base = own.ptr, .iov_len = own.len };
        count = 1;
    }
    while (cursor.take(frame_bytes)) |piece| : (count += 1) {
        // SAFETY: the kernel copies from it, and returns EFAULT if guest memory has vanished.
        iovecs[count] = .{ .iov_base = @ptrFromInt(piece.address), .iov_len = piece.length };
    }
    const open = plan.header.flags != 0 and !has_header;
    return .{ .packet = .{
        .software = open or count > tap.max_iovecs,
        .frame_bytes = frame_bytes,
        .plan = plan,
        .iovecs = iovecs[0..count],
    } };
}

/// Prefetches the start of a packet, which another processor has written, while the previous packet is sent.
fn fetchAhead(block: *align(4) io.VnIo, chain: io.Chain) void {
    if (chain.count == 0) return;
    // SAFETY: only a hint: a vanished address is ignored.
    const start: [*]allowzero const u8 = @ptrFromInt(block.tx_iovecs[chain.first].address);
    @prefetch(start, .{});
    @prefetch(start + 64, .{});
}

fn countSent(block: *align(4) io.VnIo, packet: Packet) void {
    block.tx_packets +%= 1;
    block.tx_bytes +%= packet.frame_bytes;
    if (packet.plan.segmentation != null) block.tx_gso_packets +%= 1;
    if (packet.plan.header.flags & headers.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0) block.tx_csum_packets +%= 1;
}
