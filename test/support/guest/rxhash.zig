//! For a guest of User Mode Linux: prints what a network driver says of the hash of received frames. A packet ring of
//! version 3 shows it (linux/if_packet.h). Usage: rxhash IFNAME FRAMES; "ready", then a line "HASH FRAME" in
//! hexadecimal for each IP frame.

const std = @import("std");
const c = @cImport({
    @cInclude("arpa/inet.h");
    @cInclude("linux/if_ether.h");
    @cInclude("linux/if_packet.h");
    @cInclude("net/if.h");
    @cInclude("poll.h");
    @cInclude("sys/mman.h");
    @cInclude("sys/socket.h");
});

const block_bytes = 1 << 18;
const blocks = 4;
/// Enough of a frame to know it by.
const shown_bytes = 96;

fn must(rc: anytype) !@TypeOf(rc) {
    return if (rc < 0) error.SystemCallFailed else rc;
}

pub fn main() !void {
    var args = std.process.args();
    _ = args.next();
    const ifname = args.next() orelse return error.Usage;
    var left = try std.fmt.parseInt(usize, args.next() orelse return error.Usage, 10);
    const out = std.io.getStdOut().writer();

    const protocol = c.htons(c.ETH_P_ALL);
    const fd = try must(c.socket(c.AF_PACKET, c.SOCK_RAW, protocol));
    var version: c_int = c.TPACKET_V3;
    _ = try must(c.setsockopt(fd, c.SOL_PACKET, c.PACKET_VERSION, &version, @sizeOf(c_int)));
    var request = std.mem.zeroes(c.struct_tpacket_req3);
    request.tp_block_size = block_bytes;
    request.tp_block_nr = blocks;
    request.tp_frame_size = 2048;
    request.tp_frame_nr = block_bytes / 2048 * blocks;
    request.tp_retire_blk_tov = 50;
    request.tp_feature_req_word = c.TP_FT_REQ_FILL_RXHASH;
    _ = try must(c.setsockopt(fd, c.SOL_PACKET, c.PACKET_RX_RING, &request, @sizeOf(@TypeOf(request))));
    const mapped = c.mmap(null, block_bytes * blocks, c.PROT_READ | c.PROT_WRITE, c.MAP_SHARED, fd, 0);
    if (mapped == c.MAP_FAILED) return error.SystemCallFailed;
    const ring: [*]align(4096) u8 = @ptrCast(@alignCast(mapped));
    var address = std.mem.zeroes(c.struct_sockaddr_ll);
    address.sll_family = c.AF_PACKET;
    address.sll_protocol = protocol;
    address.sll_ifindex = @intCast(c.if_nametoindex(ifname.ptr));
    _ = try must(c.bind(fd, @ptrCast(&address), @sizeOf(@TypeOf(address))));
    try out.writeAll("ready\n");

    var block: usize = 0;
    while (left > 0) : (block = (block + 1) % blocks) {
        const at = block * block_bytes;
        const description: *c.struct_tpacket_block_desc = @ptrCast(@alignCast(ring + at));
        const head = &description.hdr.bh1;
        while (@atomicLoad(u32, &head.block_status, .Acquire) & c.TP_STATUS_USER == 0) {
            var wait = c.struct_pollfd{ .fd = fd, .events = c.POLLIN, .revents = 0 };
            _ = try must(c.poll(&wait, 1, -1));
        }
        var frame = at + head.offset_to_first_pkt;
        for (0..head.num_pkts) |_| {
            const packet: *c.struct_tpacket3_hdr = @ptrCast(@alignCast(ring + frame));
            const bytes = ring[frame + packet.tp_mac ..][0..@min(packet.tp_snaplen, shown_bytes)];
            frame += packet.tp_next_offset;
            const ethertype = std.mem.readInt(u16, bytes[12..14], .Big);
            if (ethertype != c.ETH_P_IP and ethertype != c.ETH_P_IPV6) continue;
            try out.print("{x:0>8} {}\n", .{ packet.unnamed_0.hv1.tp_rxhash, std.fmt.fmtSliceHexLower(bytes) });
            left -|= 1;
        }
        @atomicStore(u32, &head.block_status, c.TP_STATUS_KERNEL, .Release);
    }
}
