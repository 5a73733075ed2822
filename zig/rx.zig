//! Receive: packets of the TAP go to buffers of the driver. A packet is read into a private slot, so that it is checked
//! before the driver sees a byte, and can wait there until the driver has enough buffers. Of a large packet only the
//! start goes there, and the rest directly to the driver's buffers (docs/decisions/0007).

const std = @import("std");
const os = std.os;
const DropReason = @import("drop_reason.zig").DropReason;
const filter = @import("filter.zig");
const frames = @import("frame.zig");
const guest = @import("guest.zig");
const hash = @import("hash.zig");
const headers = @import("header.zig");
const io = @import("io.zig");
const tap = @import("tap.zig");

/// Longer than any frame of a TAP (65,535 bytes of payload, headers and tags), so that a full slot means a truncated
/// frame.
const frame_capacity = 65_664 - front_bytes;
const slot_bytes = front_bytes + frame_capacity;
/// Room in front of the frame for the longest driver's header. The TAP's header is at its end.
const front_bytes = @sizeOf(headers.HashHeader);
const tap_header_at = front_bytes - headers.header_bytes;

/// After a frame of at least this many bytes the next one is expected to be large too.
const large_bytes = 4096;
/// Bytes of a large frame that are read into the slot: enough for its checks.
const start_bytes = headers.usual_header_bytes;
/// Most pieces of guest memory for a large packet; with more the packet goes through the slot.
const landing_pieces = 128;

/// The current packet: room for headers, then the frame or its start.
const Slot = struct {
    bytes: []align(64) u8,
    header: headers.HashHeader = .{},
    frame_bytes: usize = 0,
    /// Bytes of the frame in the slot; the rest is in the driver's buffers already.
    held_bytes: usize = 0,

    fn held(self: Slot) []u8 {
        return self.bytes[front_bytes..][0..self.held_bytes];
    }

    /// The TAP's header.
    fn raw(self: Slot) *headers.Header {
        return @ptrCast(@alignCast(self.bytes[tap_header_at..front_bytes]));
    }
};

pub const Rx = struct {
    memory: []align(std.mem.page_size) u8,
    slot: Slot,
    landing: [1 + landing_pieces]os.iovec = undefined,
    expect_large: bool = false,
    /// The slot holds a packet that was checked and not delivered.
    pending: bool = false,

    /// Maps the slot; its pages take no memory before their first use.
    pub fn init() !Rx {
        const bytes = std.mem.alignForward(usize, slot_bytes, std.mem.page_size);
        const memory = try os.mmap(null, bytes, os.PROT.READ | os.PROT.WRITE, os.MAP.PRIVATE | os.MAP.ANONYMOUS, -1, 0);
        return .{ .memory = memory, .slot = .{ .bytes = memory[0..slot_bytes] } };
    }

    pub fn deinit(self: *Rx) void {
        os.munmap(self.memory);
    }

    /// Delivers at most `packets_max` packets into `chains`. Dropped packets count too, so that the work of a call is
    /// bounded. `header_bytes`: length of the driver's header. Returns the packets delivered.
    pub fn run(
        self: *Rx,
        block: *align(4) io.VnIo,
        header_bytes: usize,
        chains: []align(4) const io.Chain,
        written: []align(4) u32,
        packets_max: u32,
    ) usize {
        var delivery = Delivery{
            .block = block,
            .chains = chains,
            .written = written,
            .header_bytes = header_bytes,
        };
        var delivered: usize = 0;
        block.rx_errno = 0;
        block.rx_stop = .budget;
        // The driver may have been reset meanwhile, and have negotiated other features.
        if (self.pending) self.pending = self.judge(block);
        for (0..packets_max) |_| {
            if (!self.pending) {
                switch (self.fetch(block, &delivery)) {
                    .packet => self.pending = true,
                    .dropped => continue,
                    .stop => |why| {
                        block.rx_stop = why;
                        break;
                    },
                }
            }
            switch (delivery.place(self.slot)) {
                .delivered => {
                    delivered += 1;
                    self.pending = false;
                },
                .dropped => self.pending = false,
                .need_chains => {
                    block.rx_stop = .need_chains;
                    break;
                },
            }
        }
        block.rx_chains_used = @intCast(delivery.used);
        return delivered;
    }

    /// Drops the packet that waits. True if there was one.
    pub fn dropPending(self: *Rx, block: *align(4) io.VnIo) bool {
        if (!self.pending) return false;
        self.pending = false;
        block.countDrop(.rx_too_long_for_ring);
        return true;
    }

    /// Drops the waiting packet and the packets in the TAP, up to `packets_max`: they were for another driver than the
    /// next one. Returns how many.
    pub fn discard(self: *Rx, block: *align(4) io.VnIo, packets_max: u32) u32 {
        var count: u32 = @intFromBool(self.pending);
        self.pending = false;
        while (count < packets_max) : (count += 1) {
            switch (tap.readPacket(block.tap_fd, self.slot.bytes)) {
                .bytes => {},
                // EINVAL: the kernel could not express the packet and has freed it.
                .errno => |errno| if (errno != .INVAL) break,
            }
        }
        block.drops[@intFromEnum(DropReason.rx_no_driver)] +%= count;
        return count;
    }

    const Fetched = union(enum) { packet, dropped, stop: io.RxStop };

    /// Reads one packet and checks it.
    fn fetch(self: *Rx, block: *align(4) io.VnIo, delivery: *Delivery) Fetched {
        const slot = &self.slot;
        const has_header = block.tap_has_vnet_hdr != 0;
        const landing = if (self.expect_large) delivery.landingOf(slot.*, &self.landing) else null;
        const out = slot.bytes[if (has_header) tap_header_at else front_bytes..];
        const read = if (landing) |pieces| tap.readPieces(block.tap_fd, pieces) else tap.readPacket(block.tap_fd, out);
        const bytes = switch (read) {
            .bytes => |bytes| bytes,
            .errno => |errno| switch (errno) {
                .AGAIN => return .{ .stop = .empty },
                // The kernel could not express this packet in a vnet header, and has freed it.
                .INVAL => {
                    block.countDrop(.rx_malformed);
                    return .dropped;
                },
                else => {
                    block.rx_errno = @intFromEnum(errno);
                    return .{ .stop = .failed };
                },
            },
        };
        if (bytes >= out.len or (has_header and bytes < headers.header_bytes)) {
            block.countDrop(.rx_malformed);
            return .dropped;
        }
        slot.frame_bytes = if (has_header) bytes - headers.header_bytes else bytes;
        slot.held_bytes = if (landing == null) slot.frame_bytes else @min(slot.frame_bytes, start_bytes);
        self.expect_large = slot.frame_bytes >= large_bytes;
        return if (self.judge(block)) .packet else .dropped;
    }

    /// Checks the packet in the slot and builds the driver's header; false if it is dropped. May be repeated.
    fn judge(self: *Rx, block: *align(4) io.VnIo) bool {
        const slot = &self.slot;
        switch (self.verdictOn(block)) {
            .drop => |reason| {
                block.countDrop(reason);
                return false;
            },
            .deliver => |header| {
                slot.header = .{ .hdr = header, .hash = hashOf(block, slot.held()) };
                return true;
            },
        }
    }

    fn verdictOn(self: *Rx, block: *align(4) io.VnIo) headers.RxVerdict {
        const frame = self.slot.held();
        if (!filter.accepts(block.rx_filter, frame)) return .{ .drop = .rx_filtered };
        const features = block.features();
        if (block.tap_has_vnet_hdr == 0) return headers.checkBareRx(frame, features, block.max_frame_bytes);
        return headers.checkRx(self.slot.raw(), frame, self.slot.frame_bytes, features, block.max_frame_bytes);
    }
};

/// The hash report of a frame, if hashes are configured.
fn hashOf(block: *align(4) io.VnIo, frame: []const u8) hash.Report {
    if (!block.features().has(.VIRTIO_NET_F_HASH_REPORT)) return .{};
    return hash.hash(block.rx_scaling orelse return .{}, frame);
}

/// Puts packets into chains, in order.
const Delivery = struct {
    block: *align(4) io.VnIo,
    chains: []align(4) const io.Chain,
    written: []align(4) u32,
    /// Length of the driver's header.
    header_bytes: usize,
    used: usize = 0,

    fn place(self: *Delivery, slot: Slot) enum { delivered, dropped, need_chains } {
        self.giveBackUseless();
        if (self.used == self.chains.len) return .need_chains;
        const needed = self.header_bytes + slot.frame_bytes;
        var room: u64 = 0;
        var count: usize = 0;
        if (self.block.features().has(.VIRTIO_NET_F_MRG_RXBUF)) {
            while (room < needed) : (count += 1) {
                if (self.used + count == self.chains.len) return .need_chains;
                room += self.capacity(self.used + count);
            }
        } else {
            // The chain stays for a frame that fits: to firmware a used buffer without a frame has an impossible
            // length.
            if (self.capacity(self.used) < needed) {
                self.block.countDrop(.rx_buffer_too_small);
                return .dropped;
            }
            count = 1;
        }
        self.fill(slot, count);
        return .delivered;
    }

    /// Where to read a packet of any length: its start into the slot, the rest to its place in the next chains. Null if
    /// these have no room for it, or if the driver's features need the whole frame in the slot.
    fn landingOf(self: *Delivery, slot: Slot, list: *[1 + landing_pieces]os.iovec) ?[]const os.iovec {
        const features = self.block.features();
        // A partial checksum for a driver without GUEST_CSUM is completed in the slot.
        if (!features.has(.VIRTIO_NET_F_GUEST_CSUM) or self.block.tap_has_vnet_hdr == 0) return null;
        self.giveBackUseless();
        const left = self.chains.len - self.used;
        const usable = if (features.has(.VIRTIO_NET_F_MRG_RXBUF)) left else @min(left, 1);
        list[0] = .{ .iov_base = slot.bytes.ptr + tap_header_at, .iov_len = headers.header_bytes + start_bytes };
        var count: usize = 1;
        var room: usize = 0;
        for (self.used..self.used + usable) |index| {
            var cursor = guest.Cursor{ .pieces = self.pieces(index) };
            cursor.skip(self.header_bytes + start_bytes -| room);
            while (cursor.take(slot_bytes)) |piece| : (count += 1) {
                if (count == list.len) return null;
                // SAFETY: the kernel copies to it. A TAP does not report where guest memory has vanished; the guard
                // does, when the packet's start is copied there.
                list[count] = .{ .iov_base = @ptrFromInt(piece.address), .iov_len = piece.length };
            }
            room += self.capacity(index);
            if (room >= slot_bytes) return list[0..count];
        }
        return null;
    }

    /// Puts a packet, or its missing part, into the next `count` chains. All but the last are full (VIRTIO 1.2
    /// §5.1.6.4). The header is written last, with num_buffers.
    fn fill(self: *Delivery, slot: Slot, count: usize) void {
        var header = slot.header;
        header.hdr.num_buffers = @intCast(count);
        const header_at = front_bytes - self.header_bytes;
        @memcpy(slot.bytes[header_at..front_bytes], std.mem.asBytes(&header)[0..self.header_bytes]);
        var start: []const u8 = slot.bytes[header_at .. front_bytes + slot.held_bytes];
        var left = self.header_bytes + slot.frame_bytes;
        for (self.used..self.used + count) |index| {
            var cursor = guest.Cursor{ .pieces = self.pieces(index) };
            start = start[cursor.write(start)..];
            const bytes = @min(left, self.capacity(index));
            self.written[index] = @intCast(bytes);
            left -= bytes;
        }
        std.debug.assert(start.len == 0 and left == 0);
        self.used += count;
        countDelivered(self.block, slot);
    }

    /// Uses the next chains that are too small for any frame, without writing to them: otherwise they block the queue.
    /// A driver must not offer such chains (VIRTIO 1.2 §5.1.6.3.1). With merging the header has to fit, without it also
    /// the shortest frame.
    fn giveBackUseless(self: *Delivery) void {
        const merges = self.block.features().has(.VIRTIO_NET_F_MRG_RXBUF);
        const least = self.header_bytes + if (merges) 0 else @as(usize, frames.ethernet_bytes);
        while (self.used < self.chains.len and self.capacity(self.used) < least) : (self.used += 1) {
            self.block.countDrop(.rx_buffer_too_small);
            self.written[self.used] = 0;
        }
    }

    fn pieces(self: Delivery, index: usize) []align(4) const io.Iovec {
        const chain = self.chains[index];
        return self.block.rx_iovecs[chain.first..][0..chain.count];
    }

    fn capacity(self: Delivery, index: usize) u64 {
        return guest.totalBytes(self.pieces(index));
    }
};

fn countDelivered(block: *align(4) io.VnIo, slot: Slot) void {
    block.rx_packets +%= 1;
    block.rx_bytes +%= @intCast(slot.frame_bytes);
    if (slot.header.hdr.gso_type != headers.VIRTIO_NET_HDR_GSO_NONE) block.rx_gso_packets +%= 1;
    if (slot.header.hdr.flags != 0) block.rx_csum_packets +%= 1;
}
