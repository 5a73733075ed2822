//! Packet input and output of one queue pair: the block shared with TypeScript, the table of handles, and the exports.

const std = @import("std");
const os = std.os;
const DropReason = @import("drop_reason.zig").DropReason;
const headers = @import("header.zig");
const Features = headers.Features;
const Tx = @import("tx.zig").Tx;
const Rx = @import("rx.zig").Rx;
const Filter = @import("filter.zig").Filter;
const Scaling = @import("hash.zig").Scaling;

/// struct vn_io of src/abi/vn-io.ts, which documents the fields. TypeScript aligns it to 4 bytes only.
pub const VnIo = extern struct {
    tap_fd: i32,
    tap_has_vnet_hdr: u32,
    features_low: u32,
    features_high: u32,
    max_frame_bytes: u32,
    header_bytes: u32,
    tx_chains: [*]align(4) const Chain align(4),
    tx_iovecs: [*]align(4) const Iovec align(4),
    rx_chains: [*]align(4) const Chain align(4),
    rx_iovecs: [*]align(4) const Iovec align(4),
    rx_written: [*]align(4) u32 align(4),
    chain_capacity: u32,
    iovec_capacity: u32,
    tx_packets: u32,
    tx_bytes: u32,
    tx_gso_packets: u32,
    tx_csum_packets: u32,
    rx_packets: u32,
    rx_bytes: u32,
    rx_gso_packets: u32,
    rx_csum_packets: u32,
    rx_chains_used: u32,
    rx_stop: RxStop,
    rx_errno: u32,
    tx_errno: u32,
    rx_filter: ?*align(4) const Filter align(4),
    rx_scaling: ?*align(4) const Scaling align(4),
    drops: [64]u32,

    pub fn features(self: *align(4) const VnIo) Features {
        return .{ .bits = @as(u64, self.features_high) << 32 | self.features_low };
    }

    pub fn countDrop(self: *align(4) VnIo, reason: DropReason) void {
        self.drops[@intFromEnum(reason)] +%= 1;
    }

    /// Length of the driver's header, in both directions; null if no VIRTIO header has it.
    fn driverHeaderBytes(self: *align(4) const VnIo) ?usize {
        return switch (self.header_bytes) {
            headers.legacy_header_bytes, headers.header_bytes, @sizeOf(headers.HashHeader) => |bytes| bytes,
            else => null,
        };
    }

    /// The chains [first, first + count); null if they exceed the block.
    fn range(
        self: *align(4) const VnIo,
        chains: [*]align(4) const Chain,
        first: u32,
        count: u32,
    ) ?[]align(4) const Chain {
        const end = std.math.add(u32, first, count) catch return null;
        if (end > self.chain_capacity) return null;
        const list = chains[first..end];
        for (list) |chain| {
            const last = std.math.add(u32, chain.first, chain.count) catch return null;
            if (last > self.iovec_capacity) return null;
        }
        return list;
    }
};

/// A chain: `count` iovecs from `first` on.
pub const Chain = extern struct { first: u32, count: u32 };

/// struct iovec as TypeScript writes it. The address is in guest memory, which can change at any time and may be a zero
/// page of the SIGBUS guard.
pub const Iovec = extern struct { address: u64 align(4), length: u32, zero: u32 };

/// Why vn_tap_rx stopped: RX_STOP of src/abi/vn-io.ts.
pub const RxStop = enum(u32) { empty, budget, need_chains, failed };

const Queue = struct {
    io: *align(4) VnIo,
    tx: Tx,
    rx: Rx,
};

/// A handle is an index into the table plus one. One thread uses a handle; several threads create and destroy theirs.
const max_queues = 256;
var queues = [_]?*Queue{null} ** max_queues;
var queues_lock = std.Thread.Mutex{};

fn lookup(handle: i32) ?*Queue {
    if (handle < 1 or handle > max_queues) return null;
    // ORDERING: acquires the entry that vn_io_create stored before it returned the handle.
    return @atomicLoad(?*Queue, &queues[@intCast(handle - 1)], .Acquire);
}

fn failure(errno: os.E) i32 {
    return -@as(i32, @intFromEnum(errno));
}

/// Allocates the buffers of a queue pair; no later call allocates. Returns a handle, -EINVAL for an invalid block,
/// -ENOMEM, or -EMFILE if all handles are taken.
export fn vn_io_create(io: ?*align(4) VnIo) i32 {
    const block = io orelse return failure(.INVAL);
    if (block.chain_capacity == 0 or block.chain_capacity > 0xffff) return failure(.INVAL);
    if (block.iovec_capacity == 0 or block.iovec_capacity > 1 << 24) return failure(.INVAL);
    const queue = std.heap.c_allocator.create(Queue) catch return failure(.NOMEM);
    queue.* = .{
        .io = block,
        .tx = Tx.init(block.iovec_capacity) catch {
            std.heap.c_allocator.destroy(queue);
            return failure(.NOMEM);
        },
        .rx = Rx.init() catch {
            queue.tx.deinit();
            std.heap.c_allocator.destroy(queue);
            return failure(.NOMEM);
        },
    };
    queues_lock.lock();
    defer queues_lock.unlock();
    for (&queues, 1..) |*entry, handle| {
        if (entry.* != null) continue;
        @atomicStore(?*Queue, entry, queue, .Release);
        return @intCast(handle);
    }
    destroy(queue);
    return failure(.MFILE);
}

/// Frees the handle. No call with it may be running. -EBADF if there is no such handle.
export fn vn_io_destroy(handle: i32) i32 {
    queues_lock.lock();
    defer queues_lock.unlock();
    const queue = lookup(handle) orelse return failure(.BADF);
    @atomicStore(?*Queue, &queues[@intCast(handle - 1)], null, .Release);
    destroy(queue);
    return 0;
}

fn destroy(queue: *Queue) void {
    queue.tx.deinit();
    queue.rx.deinit();
    std.heap.c_allocator.destroy(queue);
}

/// Sends chains in order. Returns how many are done (sent or dropped); fewer than `count` if the TAP is full. -EBADF,
/// or -EINVAL for chains beyond the block or an invalid header length.
export fn vn_tap_tx(handle: i32, first: u32, count: u32) i32 {
    const queue = lookup(handle) orelse return failure(.BADF);
    const chains = queue.io.range(queue.io.tx_chains, first, count) orelse return failure(.INVAL);
    const header_bytes = queue.io.driverHeaderBytes() orelse return failure(.INVAL);
    return @intCast(queue.tx.run(queue.io, header_bytes, chains));
}

/// Receives at most `packets_max` packets into the chains, in order. Returns the packets delivered; vn_io has the
/// chains used and why it stopped. -EBADF, or -EINVAL for chains beyond the block or an invalid header length.
export fn vn_tap_rx(handle: i32, first: u32, count: u32, packets_max: u32) i32 {
    const queue = lookup(handle) orelse return failure(.BADF);
    const chains = queue.io.range(queue.io.rx_chains, first, count) orelse return failure(.INVAL);
    const written = queue.io.rx_written[first..][0..count];
    const header_bytes = queue.io.driverHeaderBytes() orelse return failure(.INVAL);
    return @intCast(queue.rx.run(queue.io, header_bytes, chains, written, packets_max));
}

/// Drops the packet that waits for chains: 1 if there was one, else 0. -EBADF.
export fn vn_tap_rx_drop_pending(handle: i32) i32 {
    const queue = lookup(handle) orelse return failure(.BADF);
    return @intFromBool(queue.rx.dropPending(queue.io));
}

/// Drops the waiting packet and the packets in the TAP, at most `packets_max`. Returns how many. -EBADF.
export fn vn_tap_rx_discard(handle: i32, packets_max: u32) i32 {
    const queue = lookup(handle) orelse return failure(.BADF);
    return @intCast(queue.rx.discard(queue.io, packets_max));
}

comptime {
    std.debug.assert(@sizeOf(VnIo) == 98 * 4);
    std.debug.assert(@offsetOf(VnIo, "header_bytes") == 5 * 4);
    std.debug.assert(@offsetOf(VnIo, "tx_chains") == 6 * 4);
    std.debug.assert(@offsetOf(VnIo, "chain_capacity") == 16 * 4);
    std.debug.assert(@offsetOf(VnIo, "drops") == 34 * 4);
    std.debug.assert(@sizeOf(Iovec) == 16 and @sizeOf(Chain) == 8);
}

test {
    _ = @import("checksum.zig");
    _ = @import("frame.zig");
    _ = @import("header.zig");
    _ = @import("segment.zig");
    _ = @import("guest.zig");
    _ = @import("tx.zig");
    _ = @import("rx.zig");
    _ = @import("filter.zig");
}
