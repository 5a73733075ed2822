//! What a TAP can do at best, and packets for one: the other ends of the benchmark.
//!
//!   tap-load write IFNAME BYTES METHOD BATCH    makes a TAP and writes frames to it, from BATCH buffers in turn
//!   tap-load read IFNAME METHOD BATCH           makes a TAP and reads what its host sends, into BATCH buffers in turn
//!   tap-load generate IFNAME BYTES              sends frames out of an interface
//!   tap-load gso IFNAME BYTES                   the same with TCP frames that are still to be segmented
//!   tap-load ping IFNAME BYTES COUNT            sends one frame, waits for it to come back, COUNT times
//!   tap-load spin IFNAME                        only uses up a processor
//!
//! METHOD is `uring`, one submission a batch, or `calls`, one system call a packet on a descriptor that does not block.
//! BYTES is the length of a frame without its virtio-net header; above 1514 `write` makes GSO frames. All but `ping` go
//! on until they are killed and say `ready` when they have begun: what they do is counted from outside, by the
//! interface's counters. `ping` prints how many were lost and, in nanoseconds, the median, p99 and p99.9 of the round
//! trips.

const std = @import("std");
const linux = std.os.linux;
const c = @cImport({
    @cInclude("sys/ioctl.h");
    @cInclude("linux/if.h");
    @cInclude("linux/if_tun.h");
    @cInclude("linux/if_packet.h");
    @cInclude("linux/if_ether.h");
    @cInclude("linux/virtio_net.h");
});

const header_bytes = @sizeOf(c.struct_virtio_net_hdr_v1);
const max_frame = 65_550;
const max_batch = 1024;

/// linux/io_uring.h: only one task submits, and completions run when it asks for them.
const IORING_SETUP_SINGLE_ISSUER = 1 << 12;
const IORING_SETUP_DEFER_TASKRUN = 1 << 13;

/// TCP payload of one segment of a GSO frame at an MTU of 1500.
const segment_bytes = 1448;
const tcp_headers = 14 + 20 + 20;

const Method = enum { uring, calls };

fn fail(comptime what: []const u8, rc: usize) noreturn {
    std.debug.print("tap-load: " ++ what ++ ": {s}\n", .{@tagName(linux.getErrno(rc))});
    linux.exit(1);
}

fn usage() noreturn {
    std.debug.print("tap-load: wrong usage\n", .{});
    linux.exit(2);
}

fn call(comptime what: []const u8, rc: usize) usize {
    if (linux.getErrno(rc) != .SUCCESS) fail(what, rc);
    return rc;
}

fn ready() void {
    _ = linux.write(1, "ready\n", 6);
}

/// What a frame is filled with: what testpmd's txonly sends (UDP 198.18.0.1 to 198.18.0.2), or a TCP segment of the
/// same addresses. To a MAC address that nobody has: the host looks at it and drops it.
fn buildFrame(frame: []u8, protocol: u8) void {
    @memset(frame, 0);
    @memcpy(frame[0..6], &[6]u8{ 0x02, 0, 0, 0, 0, 0 });
    @memcpy(frame[6..12], &[6]u8{ 0x02, 0, 0, 0, 0, 0x01 });
    std.mem.writeInt(u16, frame[12..14], c.ETH_P_IP, .Big);
    const ip = frame[14..34];
    ip[0] = 0x45;
    std.mem.writeInt(u16, ip[2..4], @intCast(frame.len - 14), .Big);
    ip[8] = 64;
    ip[9] = protocol;
    @memcpy(ip[12..16], &[4]u8{ 198, 18, 0, 1 });
    @memcpy(ip[16..20], &[4]u8{ 198, 18, 0, 2 });
    var sum: u32 = 0;
    var at: usize = 0;
    while (at < 20) : (at += 2) sum += std.mem.readInt(u16, ip[at..][0..2], .Big);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    std.mem.writeInt(u16, ip[10..12], ~@as(u16, @truncate(sum)), .Big);
    const l4 = frame[34..];
    std.mem.writeInt(u16, l4[0..2], 9, .Big);
    std.mem.writeInt(u16, l4[2..4], 9, .Big);
    if (protocol == 17) {
        std.mem.writeInt(u16, l4[4..6], @intCast(frame.len - 34), .Big);
    } else {
        l4[12] = 5 << 4;
        l4[13] = 0x10;
        // The sum over the pseudo header, as a sender leaves it who lets others finish the checksum.
        const words = [_]u32{ 198 << 8 | 18, 1, 198 << 8 | 18, 2, 6, @intCast(frame.len - 34) };
        var pseudo: u32 = 0;
        for (words) |word| pseudo += word;
        pseudo = (pseudo & 0xffff) + (pseudo >> 16);
        std.mem.writeInt(u16, l4[16..18], @truncate(pseudo), .Big);
    }
}

fn gsoHeader() c.struct_virtio_net_hdr_v1 {
    var header = std.mem.zeroes(c.struct_virtio_net_hdr_v1);
    header.flags = c.VIRTIO_NET_HDR_F_NEEDS_CSUM;
    header.gso_type = c.VIRTIO_NET_HDR_GSO_TCPV4;
    header.hdr_len = tcp_headers;
    header.gso_size = segment_bytes;
    header.unnamed_0.unnamed_0.csum_start = 34;
    header.unnamed_0.unnamed_0.csum_offset = 16;
    return header;
}

/// Makes a TAP that takes and gives GSO frames, and brings it up.
fn openTap(name: []const u8, method: Method) i32 {
    // Of a descriptor that may block the kernel copies even small frames the long way. A ring never blocks, and waits
    // for packets only with one that may.
    const nonblock: u32 = if (method == .calls) linux.O.NONBLOCK else 0;
    const fd: i32 = @intCast(
        call("/dev/net/tun", linux.open("/dev/net/tun", linux.O.RDWR | linux.O.CLOEXEC | nonblock, 0)),
    );
    var request = interfaceRequest(name);
    request.ifr_ifru.ifru_flags = c.IFF_TAP | c.IFF_NO_PI | c.IFF_VNET_HDR;
    _ = call("TUNSETIFF", linux.ioctl(fd, c.TUNSETIFF, @intFromPtr(&request)));
    var size: c_int = header_bytes;
    _ = call("TUNSETVNETHDRSZ", linux.ioctl(fd, c.TUNSETVNETHDRSZ, @intFromPtr(&size)));
    _ = call("TUNSETOFFLOAD", linux.ioctl(fd, c.TUNSETOFFLOAD, c.TUN_F_CSUM | c.TUN_F_TSO4 | c.TUN_F_TSO6));
    const socket: i32 = @intCast(call("socket", linux.socket(linux.AF.INET, linux.SOCK.DGRAM, 0)));
    request = interfaceRequest(name);
    request.ifr_ifru.ifru_flags = c.IFF_UP;
    _ = call("SIOCSIFFLAGS", linux.ioctl(socket, 0x8914, @intFromPtr(&request)));
    _ = linux.close(socket);
    return fd;
}

fn interfaceRequest(name: []const u8) c.struct_ifreq {
    var request = std.mem.zeroes(c.struct_ifreq);
    if (name.len >= request.ifr_ifrn.ifrn_name.len) usage();
    for (name, 0..) |character, i| request.ifr_ifrn.ifrn_name[i] = @intCast(character);
    return request;
}

const Packet = [header_bytes + max_frame]u8;

/// Shared memory, as a guest's is: pages of another size would be another race.
fn sharedPackets(count: usize) ![]Packet {
    const fd = try std.os.memfd_create("packets", 0);
    const bytes = count * @sizeOf(Packet);
    try std.os.ftruncate(fd, bytes);
    const memory = try std.os.mmap(null, bytes, linux.PROT.READ | linux.PROT.WRITE, linux.MAP.SHARED, fd, 0);
    return std.mem.bytesAsSlice(Packet, memory);
}

fn newRing(fd: i32) !linux.IO_Uring {
    var ring = try linux.IO_Uring.init(max_batch, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
    try ring.register_files(&[_]i32{fd});
    return ring;
}

fn writeTap(name: []const u8, bytes: usize, method: Method, batch: u32) !void {
    const fd = openTap(name, method);
    const all = try sharedPackets(batch);
    for (all) |*each| {
        const packet = each[0 .. header_bytes + bytes];
        @memset(packet[0..header_bytes], 0);
        if (bytes > 1514) {
            const header = gsoHeader();
            @memcpy(packet[0..header_bytes], std.mem.asBytes(&header));
            buildFrame(packet[header_bytes..], 6);
        } else buildFrame(packet[header_bytes..], 17);
    }
    ready();
    switch (method) {
        .calls => while (true) {
            for (all) |*packet| _ = call("write", linux.write(fd, packet, header_bytes + bytes));
        },
        .uring => {
            var ring = try newRing(fd);
            var done: [max_batch]linux.io_uring_cqe = undefined;
            while (true) {
                for (all) |*packet| {
                    const entry = try ring.write(0, 0, packet[0 .. header_bytes + bytes], 0);
                    entry.flags |= linux.IOSQE_FIXED_FILE;
                }
                _ = try ring.submit_and_wait(batch);
                const count = try ring.copy_cqes(&done, batch);
                for (done[0..count]) |entry| if (entry.res < 0) fail("write", @bitCast(@as(isize, entry.res)));
            }
        },
    }
}

fn readTap(name: []const u8, method: Method, batch: u32) !void {
    const fd = openTap(name, method);
    const in = try sharedPackets(batch);
    var next: usize = 0;
    ready();
    switch (method) {
        .calls => while (true) {
            const rc = linux.read(fd, &in[next], in[next].len);
            next = (next + 1) % batch;
            switch (linux.getErrno(rc)) {
                .SUCCESS => {},
                .AGAIN => {
                    var polled = [1]linux.pollfd{.{ .fd = fd, .events = linux.POLL.IN, .revents = 0 }};
                    _ = call("poll", linux.poll(&polled, 1, -1));
                },
                else => fail("read", rc),
            }
        },
        .uring => {
            var ring = try newRing(fd);
            var done: [max_batch]linux.io_uring_cqe = undefined;
            var waiting: u32 = 0;
            // Slots whose read has completed. All reads are posted, so that what waits in the TAP is taken in one go.
            for (0..batch) |slot| {
                const entry = try ring.read(slot, 0, .{ .buffer = &in[slot] }, 0);
                entry.flags |= linux.IOSQE_FIXED_FILE;
                waiting += 1;
            }
            while (true) {
                _ = try ring.submit_and_wait(1);
                const count = try ring.copy_cqes(&done, 1);
                for (done[0..count]) |completion| {
                    if (completion.res < 0) fail("read", @bitCast(@as(isize, completion.res)));
                    const slot: usize = @intCast(completion.user_data);
                    const entry = try ring.read(slot, 0, .{ .buffer = &in[slot] }, 0);
                    entry.flags |= linux.IOSQE_FIXED_FILE;
                }
            }
        },
    }
}

var out: Packet = undefined;

/// A packet socket on the interface that takes its queue's discipline out of the way.
fn packetSocket(name: []const u8, protocol: u16) i32 {
    const fd: i32 = @intCast(call("socket", linux.socket(linux.AF.PACKET, linux.SOCK.RAW, 0)));
    var request = interfaceRequest(name);
    _ = call("SIOCGIFINDEX", linux.ioctl(fd, 0x8933, @intFromPtr(&request)));
    var address = std.mem.zeroes(linux.sockaddr.ll);
    address.family = linux.AF.PACKET;
    address.ifindex = request.ifr_ifru.ifru_ivalue;
    address.protocol = std.mem.nativeToBig(u16, protocol);
    _ = call("bind", linux.bind(fd, @ptrCast(&address), @sizeOf(@TypeOf(address))));
    return fd;
}

fn option(fd: i32, name: u32, value: c_int) void {
    const bytes = std.mem.asBytes(&value);
    _ = call("setsockopt", linux.setsockopt(fd, linux.SOL.PACKET, name, bytes, bytes.len));
}

/// struct mmsghdr of sys/socket.h.
const Message = extern struct { header: linux.msghdr_const, length: u32 };

fn generate(name: []const u8, bytes: usize, gso: bool) void {
    const fd = packetSocket(name, 0);
    const first: usize = if (gso) 0 else header_bytes;
    if (gso) {
        option(fd, c.PACKET_VNET_HDR, 1);
        // Without PACKET_VNET_HDR_SZ the header has no num_buffers: ten bytes.
        const header = gsoHeader();
        @memcpy(out[2..header_bytes], std.mem.asBytes(&header)[0..10]);
        buildFrame(out[header_bytes..][0..bytes], 6);
    } else {
        option(fd, c.PACKET_QDISC_BYPASS, 1);
        buildFrame(out[header_bytes..][0..bytes], 17);
    }
    const start = if (gso) first + 2 else first;
    const packet = out[start .. header_bytes + bytes];
    // One flow a message: a TAP with several queues spreads flows over them.
    var sources: [64][2]u8 = undefined;
    var vectors: [64][3]std.os.iovec_const = undefined;
    var messages: [64]Message = undefined;
    const source_at = header_bytes - start + 34;
    for (&messages, &vectors, &sources, 0..) |*message, *vector, *source, i| {
        std.mem.writeInt(u16, source, @intCast(1024 + i), .Big);
        vector.* = .{
            .{ .iov_base = packet.ptr, .iov_len = source_at },
            .{ .iov_base = source, .iov_len = source.len },
            .{ .iov_base = packet.ptr + source_at + 2, .iov_len = packet.len - source_at - 2 },
        };
        message.* = .{
            .header = .{
                .name = null,
                .namelen = 0,
                .iov = vector,
                .iovlen = vector.len,
                .control = null,
                .controllen = 0,
                .flags = 0,
            },
            .length = 0,
        };
    }
    ready();
    while (true) {
        const rc = linux.syscall4(.sendmmsg, @intCast(fd), @intFromPtr(&messages), messages.len, 0);
        switch (linux.getErrno(rc)) {
            // A full queue drops what it is given; the interface counts it.
            .SUCCESS, .NOBUFS, .AGAIN => {},
            else => fail("sendmmsg", rc),
        }
    }
}

fn ping(name: []const u8, bytes: usize, count: usize) !void {
    const protocol = 0x88b5; // ETH_P_802_EX1: for local experiments, no stack answers it.
    const fd = packetSocket(name, protocol);
    option(fd, c.PACKET_QDISC_BYPASS, 1);
    option(fd, c.PACKET_IGNORE_OUTGOING, 1);
    const frame = out[0..bytes];
    buildFrame(frame, 17);
    std.mem.writeInt(u16, frame[12..14], protocol, .Big);
    var answer: [2048]u8 = undefined;
    const times = try std.heap.page_allocator.alloc(u64, count);
    var lost: usize = 0;
    var sequence: u32 = 0;
    var measured: usize = 0;
    while (measured < count and lost < 1000) {
        sequence += 1;
        std.mem.writeInt(u32, frame[20..24], sequence, .Big);
        const began = now();
        _ = call("send", linux.sendto(fd, frame.ptr, frame.len, 0, null, 0));
        var polled = [1]linux.pollfd{.{ .fd = fd, .events = linux.POLL.IN, .revents = 0 }};
        const answered = while (true) {
            // An answer takes microseconds; what takes a second is lost.
            if (call("poll", linux.poll(&polled, 1, 1000)) == 0) break false;
            const length = call("recv", linux.recvfrom(fd, &answer, answer.len, 0, null, null));
            // A late answer to a ping that was given up.
            if (length >= 24 and std.mem.readInt(u32, answer[20..24], .Big) == sequence) break true;
        };
        if (!answered) {
            lost += 1;
            continue;
        }
        times[measured] = now() - began;
        measured += 1;
    }
    if (measured == 0) fail("ping: no answers", 0);
    const sorted = times[0..measured];
    std.sort.pdq(u64, sorted, {}, std.sort.asc(u64));
    try std.io.getStdOut().writer().print("lost {d} p50 {d} p99 {d} p999 {d}\n", .{
        lost,
        sorted[measured / 2],
        sorted[measured * 99 / 100],
        sorted[measured * 999 / 1000],
    });
}

fn now() u64 {
    var time: linux.timespec = undefined;
    _ = linux.clock_gettime(linux.CLOCK.MONOTONIC, &time);
    return @as(u64, @intCast(time.tv_sec)) * std.time.ns_per_s + @as(u64, @intCast(time.tv_nsec));
}

fn number(text: []const u8, max: usize) usize {
    const value = std.fmt.parseInt(usize, text, 10) catch usage();
    if (value == 0 or value > max) usage();
    return value;
}

pub fn main() !void {
    var words: [6][]const u8 = undefined;
    const argv = std.os.argv;
    if (argv.len < 3 or argv.len > words.len) usage();
    for (argv, 0..) |word, i| words[i] = std.mem.span(word);
    const what = words[1];
    const name = words[2];
    const method = struct {
        fn of(text: []const u8) Method {
            return std.meta.stringToEnum(Method, text) orelse usage();
        }
    }.of;
    if (std.mem.eql(u8, what, "write") and argv.len == 6) {
        try writeTap(name, number(words[3], max_frame), method(words[4]), @intCast(number(words[5], max_batch)));
    } else if (std.mem.eql(u8, what, "read") and argv.len == 5) {
        try readTap(name, method(words[3]), @intCast(number(words[4], max_batch)));
    } else if (std.mem.eql(u8, what, "generate") and argv.len == 4) {
        generate(name, number(words[3], 1514), false);
    } else if (std.mem.eql(u8, what, "gso") and argv.len == 4) {
        generate(name, number(words[3], max_frame), true);
    } else if (std.mem.eql(u8, what, "spin")) {
        ready();
        while (true) std.atomic.spinLoopHint();
    } else if (std.mem.eql(u8, what, "ping") and argv.len == 5) {
        try ping(name, number(words[3], 1514), number(words[4], 10_000_000));
    } else usage();
}
