//! Transmit: chains of the driver become packets of the TAP. A batch is prepared packet by packet (read the header once, judge it, put
//! a clean one in its place) and sent in runs; the counters follow the order of the chains.

const std = @import("std");
const os = std.os;
const checksum = @import("checksum.zig");
const guest = @import("guest.zig");
const headers = @import("header.zig");
const io = @import("io.zig");
const segment = @import("segment.zig");
const tap = @import("tap.zig");
const DropReason = @import("drop_reason.zig").DropReason;

/// The private start of a packet: the clean header, then what was copied of the frame. What is inspected is also what is sent.
const Head = extern struct {
    header: headers.Header align(64),
    prefix: [segment.max_header_bytes]u8,

    fn bytes(self: *Head) *[@sizeOf(Head)]u8 {
        return @ptrCast(self);
    }
};

/// Frames up to this size are copied into the head: one piece is cheaper for the kernel than two.
const inline_bytes = segment.max_header_bytes;

/// A prepared chain.
const Packet = struct {
    fate: union(enum) {
        drop: DropReason,
        /// Goes to the TAP as it is: the next of `writes`.
        direct,
        /// Has to be put together, completed or cut first.
        software,
    },
    frame_bytes: u32 = 0,
    plan: headers.TxPlan = .{ .header = .{} },
    iovecs: []const os.iovec_const = &.{},
};

pub const Tx = struct {
    heads: []Head,
    packets: []Packet,
    writes: []tap.Write,
    iovecs: []os.iovec_const,
    /// One frame in one piece, for a TAP that cannot complete or cut it.
    gather: []u8,

    const allocator = std.heap.c_allocator;

    /// Capacities are those of the shared block, in records.
    pub fn init(chain_capacity: u32, iovec_capacity: u32) !Tx {
        const heads = try allocator.alloc(Head, chain_capacity);
        errdefer allocator.free(heads);
        const packets = try allocator.alloc(Packet, chain_capacity);
        errdefer allocator.free(packets);
        const writes = try allocator.alloc(tap.Write, chain_capacity);
        errdefer allocator.free(writes);
        // Each packet has one piece that the chain has not: its head.
        const iovecs = try allocator.alloc(os.iovec_const, @as(usize, chain_capacity) + iovec_capacity);
        errdefer allocator.free(iovecs);
        const gather = try allocator.alloc(u8, headers.header_bytes + headers.max_gso_frame_bytes);
        return .{ .heads = heads, .packets = packets, .writes = writes, .iovecs = iovecs, .gather = gather };
    }

    pub fn deinit(self: *Tx) void {
        allocator.free(self.heads);
        allocator.free(self.packets);
        allocator.free(self.writes);
        allocator.free(self.iovecs);
        allocator.free(self.gather);
    }

    /// Sends `chains` in order; returns how many are done. Stops early only where the TAP would block.
    pub fn run(self: *Tx, block: *align(4) io.VnIo, chains: []align(4) const io.Chain) usize {
        block.tx_errno = 0;
        var done: usize = 0;
        while (done < chains.len) {
            const prepared = self.prepareRun(block, chains[done..]);
            const accounted = self.sendRun(block, prepared);
            done += accounted;
            if (accounted < prepared.packets) break;
        }
        return done;
    }

    const Run = struct { packets: usize, writes: usize };

    /// Prepares packets that can go to the TAP together: until the pieces run out, or up to one that needs software, which must
    /// neither overtake the others nor be overtaken.
    fn prepareRun(self: *Tx, block: *align(4) io.VnIo, chains: []align(4) const io.Chain) Run {
        var result = Run{ .packets = 0, .writes = 0 };
        var iovecs = self.iovecs;
        for (chains) |chain| {
            if (chain.count + 1 > iovecs.len) break;
            const packet = &self.packets[result.packets];
            packet.* = prepare(block, chain, &self.heads[result.packets], iovecs);
            iovecs = iovecs[packet.iovecs.len..];
            result.packets += 1;
            switch (packet.fate) {
                .drop => {},
                .direct => {
                    self.writes[result.writes] = .{ .iovecs = packet.iovecs };
                    result.writes += 1;
                },
                .software => break,
            }
        }
        return result;
    }

    /// Sends a prepared run and counts it, in order. Returns how many of its packets are done.
    fn sendRun(self: *Tx, block: *align(4) io.VnIo, prepared: Run) usize {
        tap.writeAll(block.tap_fd, self.writes[0..prepared.writes]);
        var written: usize = 0;
        for (self.packets[0..prepared.packets], 0..) |packet, index| {
            const errno: tap.E = switch (packet.fate) {
                .drop => |reason| {
                    block.countDrop(reason);
                    continue;
                },
                .direct => errno: {
                    defer written += 1;
                    break :errno self.writes[written].errno;
                },
                .software => self.sendSoftware(block, packet),
            };
            if (errno != .SUCCESS) block.tx_errno = @intFromEnum(errno);
            switch (tap.answerTo(errno)) {
                .sent => countSent(block, packet),
                .would_block => return index,
                .drop => |reason| block.countDrop(reason),
            }
        }
        return prepared.packets;
    }

    /// Puts the frame together in private memory, then does what the TAP cannot.
    fn sendSoftware(self: *Tx, block: *align(4) io.VnIo, packet: Packet) tap.E {
        const bytes = self.gatherPieces(packet.iovecs);
        if (block.tap_has_vnet_hdr == 0) {
            if (packet.plan.segmentation) |how| return sendSegments(block, bytes, how);
            const header = packet.plan.header;
            if (header.flags & headers.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0) {
                checksum.complete(bytes, header.csum_start, header.csum_offset);
            }
        }
        return tap.writePacket(block.tap_fd, &.{.{ .iov_base = bytes.ptr, .iov_len = bytes.len }});
    }

    fn gatherPieces(self: *Tx, iovecs: []const os.iovec_const) []u8 {
        var bytes: usize = 0;
        for (iovecs) |piece| {
            // SAFETY: the head is ours, the rest is guest memory that TypeScript bounded; `checkTx` bounded the sum.
            @memcpy(self.gather[bytes..][0..piece.iov_len], piece.iov_base[0..piece.iov_len]);
            bytes += piece.iov_len;
        }
        // SAFETY: what follows must see this copy, not the guest's memory again.
        asm volatile ("" ::: "memory");
        return self.gather[0..bytes];
    }
};

/// Sends a frame segment by segment. If the TAP refuses one, the rest is dropped with it, and the packet counts as dropped.
fn sendSegments(block: *align(4) io.VnIo, frame: []const u8, how: segment.Segmentation) tap.E {
    var segmenter = segment.Segmenter.init(frame, how);
    var first = true;
    while (segmenter.next()) |piece| : (first = false) {
        const errno = tap.writePacket(block.tap_fd, &.{
            .{ .iov_base = piece.header.ptr, .iov_len = piece.header.len },
            .{ .iov_base = piece.payload.ptr, .iov_len = piece.payload.len },
        });
        if (errno == .SUCCESS) continue;
        // Trying again would send the first segments twice.
        return if (tap.answerTo(errno) == .would_block and !first) .NOBUFS else errno;
    }
    return .SUCCESS;
}

/// Reads and judges one chain, and lists the pieces to send in `iovecs` (room for one more than the chain has).
fn prepare(block: *align(4) io.VnIo, chain: io.Chain, head: *Head, iovecs: []os.iovec_const) Packet {
    const pieces = block.tx_iovecs[chain.first..][0..chain.count];
    const total = guest.totalBytes(pieces);
    if (total <= headers.header_bytes) return .{ .fate = .{ .drop = .header_short } };
    if (total - headers.header_bytes > headers.max_gso_frame_bytes) return .{ .fate = .{ .drop = .frame_too_long } };
    const frame_bytes: u32 = @intCast(total - headers.header_bytes);

    var cursor = guest.Cursor{ .pieces = pieces };
    _ = cursor.read(head.bytes()[0..headers.header_bytes]);
    const wanted = if (frame_bytes <= inline_bytes) inline_bytes else headers.txPrefixWanted(head.header);
    const prefix = head.prefix[0..@min(wanted, frame_bytes)];
    _ = cursor.read(prefix);
    const plan = switch (headers.checkTx(head.header, frame_bytes, prefix, block.features(), block.max_frame_bytes)) {
        .drop => |reason| return .{ .fate = .{ .drop = reason } },
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
        // SAFETY: the kernel copies from it; if the guest's memory has vanished it answers EFAULT.
        iovecs[count] = .{ .iov_base = @ptrFromInt(piece.address), .iov_len = piece.length };
    }
    const open = plan.header.flags != 0 and !has_header;
    return .{
        .fate = if (open or count > tap.max_iovecs) .software else .direct,
        .frame_bytes = frame_bytes,
        .plan = plan,
        .iovecs = iovecs[0..count],
    };
}

fn countSent(block: *align(4) io.VnIo, packet: Packet) void {
    block.tx_packets +%= 1;
    block.tx_bytes +%= packet.frame_bytes;
    if (packet.plan.segmentation != null) block.tx_gso_packets +%= 1;
    if (packet.plan.header.flags & headers.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0) block.tx_csum_packets +%= 1;
}
