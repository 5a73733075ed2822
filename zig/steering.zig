//! Steering: an eBPF program for TUNSETSTEERINGEBPF that chooses a TAP's queue for a packet as `queueOf` of
//! zig/hash.zig chooses the queue pair, so that what the kernel puts into TAP queue n belongs to receiveq n.
//!
//! The kernel runs it for each packet that it sends to the TAP (tun_ebpf_select_queue() in drivers/net/tun.c) and takes
//! the result modulo the TAP's number of queues. The packet is as the driver will receive it, Ethernet header first,
//! except a VLAN tag that the kernel keeps beside the packet and inserts when the packet is read.
//!
//! A small assembler below builds the program at compile time: the host needs no compiler and no library. It has no
//! loop, so that any verifier since Linux 5.10 can follow it, and reads the packet only by bpf_skb_load_bytes(), which
//! programs under any license may call.

const std = @import("std");
const linux = std.os.linux;
const BPF = linux.BPF;
const Insn = BPF.Insn;
const Reg = Insn.Reg;
const frames = @import("frame.zig");
const hash = @import("hash.zig");
const Scaling = hash.Scaling;

const license = "Apache-2.0";

/// Name of the program and its map in `bpftool prog`.
const name = "vduse_net_rss";

fn failure(errno: linux.E) i32 {
    return -@as(i32, @intFromEnum(errno));
}

/// A new map with one entry, a Scaling of zeroes: all packets to queue 0. Its descriptor is closed on exec. -EPERM
/// without CAP_BPF (or, before Linux 5.11, beyond RLIMIT_MEMLOCK), -ENOSYS from a kernel or a container without bpf(),
/// or another errno.
/// SYSCALLS: bpf.
export fn vn_steering_map() i32 {
    var attr = BPF.Attr{ .map_create = std.mem.zeroes(BPF.MapCreateAttr) };
    attr.map_create.map_type = @intFromEnum(BPF.MapType.array);
    attr.map_create.key_size = @sizeOf(u32);
    attr.map_create.value_size = @sizeOf(Scaling);
    attr.map_create.max_entries = 1;
    @memcpy(attr.map_create.map_name[0..name.len], name);
    const rc = linux.bpf(.map_create, &attr, @sizeOf(BPF.MapCreateAttr));
    return switch (linux.getErrno(rc)) {
        .SUCCESS => @intCast(rc),
        .FAULT => unreachable, // Our bug: the attributes are on the stack.
        else => |errno| failure(errno),
    };
}

/// A new program that steers by the map `map_fd` of vn_steering_map, and keeps it alive. Its descriptor is closed on
/// exec. -EPERM without CAP_BPF; -EBADF; -EACCES, -EINVAL or -E2BIG from a verifier that refuses it; or another errno.
/// SYSCALLS: bpf.
export fn vn_steering_program(map_fd: i32) i32 {
    return load(.socket_filter, program, map_fd, &.{});
}

/// Makes the map's entry a copy of `scaling`. The kernel copies while programs run: a packet may meanwhile be steered
/// by a mixture, which still selects a valid queue. -EBADF, or another errno.
/// SYSCALLS: bpf.
export fn vn_steering_update(map_fd: i32, scaling: *align(4) const Scaling) i32 {
    const key: u32 = 0;
    var attr = BPF.Attr{ .map_elem = std.mem.zeroes(BPF.MapElemAttr) };
    attr.map_elem.map_fd = map_fd;
    attr.map_elem.key = @intFromPtr(&key);
    attr.map_elem.result = .{ .value = @intFromPtr(scaling) };
    const rc = linux.bpf(.map_update_elem, &attr, @sizeOf(BPF.MapElemAttr));
    return switch (linux.getErrno(rc)) {
        .SUCCESS => 0,
        .FAULT => unreachable, // Our bug: key and attributes are on the stack, and the scaling is the caller's.
        else => |errno| failure(errno),
    };
}

/// The verifier returns EAGAIN when a signal arrives; so many signals do not come.
const load_attempts_max = 5;

/// SYSCALLS: bpf. The verifier's log goes to `log`, if it is not empty.
fn load(kind: BPF.ProgType, comptime insns: []const Insn, map_fd: i32, log: []u8) i32 {
    var code: [insns.len]Insn = insns[0..].*;
    for (&code) |*insn| {
        if (insn.code == load_map_code and insn.src == BPF.PSEUDO_MAP_VALUE) insn.imm = map_fd;
    }
    var attr = BPF.Attr{ .prog_load = std.mem.zeroes(BPF.ProgLoadAttr) };
    attr.prog_load.prog_type = @intFromEnum(kind);
    attr.prog_load.insns = @intFromPtr(&code);
    attr.prog_load.insn_cnt = code.len;
    attr.prog_load.license = @intFromPtr(license);
    @memcpy(attr.prog_load.prog_name[0..name.len], name);
    if (log.len > 0) {
        attr.prog_load.log_buf = @intFromPtr(log.ptr);
        attr.prog_load.log_size = @intCast(log.len);
        attr.prog_load.log_level = 1;
    }
    for (0..load_attempts_max) |_| {
        const rc = linux.bpf(.prog_load, &attr, @sizeOf(BPF.ProgLoadAttr));
        switch (linux.getErrno(rc)) {
            .SUCCESS => return @intCast(rc),
            .AGAIN => {},
            // EFAULT too: a verifier returns it for an internal inconsistency.
            else => |errno| return failure(errno),
        }
    }
    return failure(.AGAIN);
}

/// A program under construction: instructions, and jumps to labels without a place yet. A jump's offset is an i16; a
/// longer one is a compile error.
const Assembler = struct {
    insns: [1024]Insn = undefined,
    len: usize = 0,
    places: [64]?usize = undefined,
    labels: usize = 0,
    jumps: [256]Jump = undefined,
    jumps_len: usize = 0,

    const Label = enum(usize) { _ };
    const Jump = struct { at: usize, to: Label };

    fn put(self: *Assembler, insn: Insn) void {
        self.insns[self.len] = insn;
        self.len += 1;
    }

    fn newLabel(self: *Assembler) Label {
        self.places[self.labels] = null;
        self.labels += 1;
        return @enumFromInt(self.labels - 1);
    }

    /// Places the label at the next instruction.
    fn place(self: *Assembler, label: Label) void {
        const entry = &self.places[@intFromEnum(label)];
        std.debug.assert(entry.* == null);
        entry.* = self.len;
    }

    fn jump(self: *Assembler, to: Label) void {
        self.jumpIf(.ja, .r0, 0, to);
    }

    fn jumpIf(self: *Assembler, op: Insn.JmpOp, left: Reg, right: anytype, to: Label) void {
        self.jumps[self.jumps_len] = .{ .at = self.len, .to = to };
        self.jumps_len += 1;
        self.put(Insn.jmp(op, left, right, 0));
    }

    /// A load from any offset: one that does not fit the instruction is added to `base`.
    fn loadAt(self: *Assembler, size: Insn.Size, to: Reg, base: Reg, bytes: usize) void {
        const fits = bytes <= std.math.maxInt(i16);
        if (!fits) self.put(Insn.add(base, @as(i32, @intCast(bytes))));
        self.put(Insn.ldx(size, to, base, if (fits) @intCast(bytes) else 0));
    }

    fn resolve(self: *Assembler) void {
        for (self.jumps[0..self.jumps_len]) |made| {
            const target = self.places[@intFromEnum(made.to)].?;
            // Only forward: there is no loop.
            std.debug.assert(target > made.at);
            self.insns[made.at].off = @intCast(target - made.at - 1);
        }
    }
};

/// Registers that keep their values over calls.
const context: Reg = .r6;
const map: Reg = .r7;
/// Current offset in the frame.
const offset: Reg = .r8;
/// The enabled hash types that this packet can have.
const types: Reg = .r9;
/// After that decision: whether the ports are part of the hash.
const has_ports: Reg = .r9;
const stack: Reg = .r10;

/// The stack, from its end at 0 down. IP headers end where the ports begin, so that a hash's input is contiguous.
const stack_ports = -hash.ports_bytes;
const stack_ipv4 = stack_ports - frames.ipv4_min_bytes;
const stack_ipv6 = stack_ports - frames.ipv6_bytes;
/// An ethertype, or the two bytes that an extension header begins with.
const stack_short = stack_ipv6 - 4;

/// Before the ports, as both addresses end their header.
const ipv4_addresses_bytes = 8;
const ipv6_addresses_bytes = 32;

/// struct __sk_buff of linux/bpf.h.
const skb_len = 0;
const skb_vlan_present = 5 * @sizeOf(u32);

const load_map_code = Insn.ld_map_fd1(.r0, 0).code;

/// A number in network order as a load on this machine reads it.
fn networkOrder(number: u16) i32 {
    return std.mem.nativeToBig(u16, number);
}

const assembled = assemble(&.{});
const program = assembled.insns[0..assembled.len];

/// The program, after a prologue that leaves the context in r1. It makes the same checks in the same order as hash.zig
/// and frame.zig.
fn assemble(comptime prologue: []const Insn) Assembler {
    @setEvalBranchQuota(100_000);
    var code = Assembler{};
    const unclassified = code.newLabel();
    const ipv4 = code.newLabel();
    const ipv6 = code.newLabel();
    const reduce = code.newLabel();
    for (prologue) |insn| code.put(insn);

    code.put(Insn.mov(context, .r1));
    // Since Linux 5.2 the kernel puts the address of an array's only entry here. `load` fills in the map.
    var load_map = Insn.ld_map_fd1(map, 0);
    load_map.src = BPF.PSEUDO_MAP_VALUE;
    code.put(load_map);
    code.put(Insn.ld_map_fd2(0));
    loadScaling(&code, types, "hash_types");
    // For the verifier: read before they are loaded only in wrong speculation.
    code.put(Insn.st(.word, stack, stack_ports, 0));

    writeEthernet(&code, ipv4, ipv6, unclassified);
    code.place(ipv4);
    writeIpv4(&code, reduce, unclassified);
    code.place(ipv6);
    writeIpv6(&code, reduce, unclassified);

    code.place(reduce);
    loadScaling(&code, .r1, "indirection_mask");
    code.put(Insn.alu_and(.r0, .r1));
    // The mask has no more bits; this is for the verifier.
    code.put(Insn.alu_and(.r0, hash.indirection_max - 1));
    code.put(Insn.lsh(.r0, 2));
    code.put(Insn.add(.r0, map));
    code.loadAt(.word, .r0, .r0, @offsetOf(Scaling, "indirection"));
    code.put(Insn.exit());

    code.place(unclassified);
    loadScaling(&code, .r0, "unclassified_queue");
    code.put(Insn.exit());
    code.resolve();
    return code;
}

fn loadScaling(code: *Assembler, to: Reg, comptime field: []const u8) void {
    code.put(Insn.mov(to, map));
    code.loadAt(.word, to, to, @offsetOf(Scaling, field));
}

/// Loads `count` bytes of the packet, from `offset` plus `ahead` on, to the stack. r0 to r5 are lost.
fn loadPacket(code: *Assembler, ahead: i32, to: i32, count: i32, missing: Assembler.Label) void {
    code.put(Insn.mov(.r1, context));
    code.put(Insn.mov(.r2, offset));
    code.put(Insn.add(.r2, ahead));
    code.put(Insn.mov(.r3, stack));
    code.put(Insn.add(.r3, to));
    code.put(Insn.mov(.r4, count));
    code.put(Insn.call(.skb_load_bytes));
    code.jumpIf(.jne, .r0, 0, missing);
}

/// Goes to `missing` if the packet ends before `offset`. r2 is lost.
fn checkLength(code: *Assembler, missing: Assembler.Label) void {
    code.put(Insn.ldx(.word, .r2, context, skb_len));
    code.jumpIf(.jgt, offset, .r2, missing);
}

/// Leaves `offset` at the IP header.
fn writeEthernet(code: *Assembler, ipv4: Assembler.Label, ipv6: Assembler.Label, unclassified: Assembler.Label) void {
    const ethertype = code.newLabel();
    code.put(Insn.mov(offset, frames.ethernet_bytes));
    for (0..frames.max_vlan_tags) |tags| {
        const tag = code.newLabel();
        loadPacket(code, -2, stack_short, 2, unclassified);
        code.put(Insn.ldx(.half_word, .r0, stack, stack_short));
        code.jumpIf(.jeq, .r0, networkOrder(frames.ETH_P_8021Q), tag);
        code.jumpIf(.jne, .r0, networkOrder(frames.ETH_P_8021AD), ethertype);
        code.place(tag);
        if (tags == frames.max_vlan_tags - 1) {
            // Together with the tag beside the packet there is one too many.
            code.put(Insn.ldx(.word, .r0, context, skb_vlan_present));
            code.jumpIf(.jne, .r0, 0, unclassified);
        }
        code.put(Insn.add(offset, 4));
    }
    loadPacket(code, -2, stack_short, 2, unclassified);
    code.put(Insn.ldx(.half_word, .r0, stack, stack_short));
    code.place(ethertype);
    code.jumpIf(.jeq, .r0, networkOrder(frames.ETH_P_IP), ipv4);
    code.jumpIf(.jeq, .r0, networkOrder(frames.ETH_P_IPV6), ipv6);
    code.jump(unclassified);
}

fn writeIpv4(code: *Assembler, reduce: Assembler.Label, unclassified: Assembler.Label) void {
    const addresses = code.newLabel();
    loadPacket(code, 0, stack_ipv4, frames.ipv4_min_bytes, unclassified);
    code.put(Insn.ldx(.byte, .r0, stack, stack_ipv4));
    code.put(Insn.mov(.r1, .r0));
    code.put(Insn.rsh(.r1, 4));
    code.jumpIf(.jne, .r1, 4, unclassified);
    code.put(Insn.alu_and(.r0, 0xf));
    code.put(Insn.lsh(.r0, 2));
    code.jumpIf(.jlt, .r0, frames.ipv4_min_bytes, unclassified);
    code.put(Insn.add(offset, .r0));
    checkLength(code, unclassified);
    // More fragments, or an offset.
    code.put(Insn.ldx(.half_word, .r0, stack, stack_ipv4 + 6));
    code.jumpIf(.jset, .r0, networkOrder(0x3fff), addresses);
    code.put(Insn.ldx(.byte, .r0, stack, stack_ipv4 + 9));
    writeTransport(code, hash.VIRTIO_NET_RSS_HASH_TYPE_TCPv4, hash.VIRTIO_NET_RSS_HASH_TYPE_UDPv4, addresses);
    writeHash(code, ipv4_addresses_bytes, hash.VIRTIO_NET_RSS_HASH_TYPE_IPv4, addresses, reduce, unclassified);
}

fn writeIpv6(code: *Assembler, reduce: Assembler.Label, unclassified: Assembler.Label) void {
    const addresses = code.newLabel();
    const transport = code.newLabel();
    const with_ports = hash.VIRTIO_NET_RSS_HASH_TYPE_TCPv6 | hash.VIRTIO_NET_RSS_HASH_TYPE_UDPv6;
    loadPacket(code, 0, stack_ipv6, frames.ipv6_bytes, unclassified);
    code.put(Insn.ldx(.byte, .r0, stack, stack_ipv6));
    code.put(Insn.rsh(.r0, 4));
    code.jumpIf(.jne, .r0, 6, unclassified);
    code.put(Insn.add(offset, frames.ipv6_bytes));
    code.put(Insn.ldx(.byte, .r0, stack, stack_ipv6 + 6));
    for (0..frames.max_extension_headers) |_| {
        const fragment = code.newLabel();
        const extension = code.newLabel();
        const next = code.newLabel();
        code.jumpIf(.jeq, .r0, frames.IPPROTO_FRAGMENT, fragment);
        code.jumpIf(.jeq, .r0, frames.IPPROTO_HOPOPTS, extension);
        code.jumpIf(.jeq, .r0, frames.IPPROTO_DSTOPTS, extension);
        code.jumpIf(.jne, .r0, frames.IPPROTO_ROUTING, transport);
        code.place(extension);
        loadPacket(code, 0, stack_short, 2, unclassified);
        code.put(Insn.ldx(.byte, .r1, stack, stack_short + 1));
        code.put(Insn.add(.r1, 1));
        code.put(Insn.lsh(.r1, 3));
        code.jump(next);
        code.place(fragment);
        code.put(Insn.alu_and(types, ~@as(i32, with_ports)));
        loadPacket(code, 0, stack_short, 2, unclassified);
        code.put(Insn.mov(.r1, 8));
        code.place(next);
        code.put(Insn.add(offset, .r1));
        checkLength(code, unclassified);
        code.put(Insn.ldx(.byte, .r0, stack, stack_short));
    }
    // Another header after the last one allowed: too many.
    for (
        [_]i32{ frames.IPPROTO_FRAGMENT, frames.IPPROTO_HOPOPTS, frames.IPPROTO_DSTOPTS, frames.IPPROTO_ROUTING },
    ) |protocol| {
        code.jumpIf(.jeq, .r0, protocol, unclassified);
    }
    code.place(transport);
    writeTransport(code, hash.VIRTIO_NET_RSS_HASH_TYPE_TCPv6, hash.VIRTIO_NET_RSS_HASH_TYPE_UDPv6, addresses);
    writeHash(code, ipv6_addresses_bytes, hash.VIRTIO_NET_RSS_HASH_TYPE_IPv6, addresses, reduce, unclassified);
}

/// Loads the ports at `offset` if a hash type of the protocol in r0 is enabled and the packet has ports; else jumps to
/// `addresses`.
fn writeTransport(code: *Assembler, tcp_type: i32, udp_type: i32, addresses: Assembler.Label) void {
    const tcp = code.newLabel();
    const ports = code.newLabel();
    code.jumpIf(.jeq, .r0, frames.IPPROTO_TCP, tcp);
    code.jumpIf(.jne, .r0, frames.IPPROTO_UDP, addresses);
    code.jumpIf(.jset, types, udp_type, ports);
    code.jump(addresses);
    code.place(tcp);
    code.jumpIf(.jset, types, tcp_type, ports);
    code.jump(addresses);
    code.place(ports);
    loadPacket(code, 0, stack_ports, hash.ports_bytes, addresses);
}

/// A jump to the next instruction, which the kernel removes. It makes the verifier compare its state with earlier
/// states here. For a process without CAP_PERFMON the verifier also follows speculation (Spectre) at each map access:
/// without this it would follow all combinations and fail with E2BIG.
const compare_here = Insn.ja(0);

/// Leaves the hash in r0: of addresses and ports here, of addresses only at the label for those.
fn writeHash(
    code: *Assembler,
    addresses_bytes: usize,
    addresses_type: i32,
    addresses: Assembler.Label,
    reduce: Assembler.Label,
    unclassified: Assembler.Label,
) void {
    const wanted = code.newLabel();
    const both = code.newLabel();
    code.put(Insn.mov(has_ports, 1));
    code.jump(both);
    code.place(addresses);
    code.jumpIf(.jset, types, addresses_type, wanted);
    code.jump(unclassified);
    code.place(wanted);
    code.put(Insn.mov(has_ports, 0));
    code.place(both);
    code.put(Insn.mov(.r0, 0));
    for (0..addresses_bytes + hash.ports_bytes) |index| {
        if (index == addresses_bytes) code.jumpIf(.jeq, has_ports, 0, reduce);
        const at = @as(i16, @intCast(index)) + stack_ports - @as(i16, @intCast(addresses_bytes));
        code.put(Insn.ldx(.byte, .r1, stack, at));
        code.put(Insn.lsh(.r1, 2));
        code.put(Insn.add(.r1, map));
        code.loadAt(.word, .r1, .r1, index * 256 * @sizeOf(u32));
        code.put(Insn.xor(.r0, .r1));
        if (index % 2 == 1) code.put(compare_here);
    }
    code.jump(reduce);
}

comptime {
    std.debug.assert(@offsetOf(Scaling, "toeplitz") == 0);
    std.debug.assert(@sizeOf(Insn) == 8);
    std.debug.assert(name.len < 16);
}

const expect = std.testing.expect;
const expectEqual = std.testing.expectEqual;
const examples = hash.examples;
const os = std.os;

/// A program and its map, with the scaling that the map holds.
const Steering = struct {
    map_fd: i32,
    program_fd: i32,
    scaling: Scaling = undefined,

    /// Prints the verifier's log if it refuses the program. Skips the test where bpf() is not permitted.
    fn init(kind: BPF.ProgType, comptime insns: []const Insn) !Steering {
        const map_fd = try descriptorOf(vn_steering_map());
        errdefer os.close(map_fd);
        const program_fd = load(kind, insns, map_fd, &.{});
        if (program_fd == failure(.ACCES) or program_fd == failure(.INVAL)) {
            var log = [_]u8{0} ** (1 << 20);
            _ = load(kind, insns, map_fd, &log);
            std.debug.print("{s}\n", .{std.mem.sliceTo(&log, 0)});
        }
        return .{ .map_fd = map_fd, .program_fd = try descriptorOf(program_fd) };
    }

    fn deinit(self: Steering) void {
        os.close(self.program_fd);
        os.close(self.map_fd);
    }

    fn update(self: *Steering, scaling: Scaling) !void {
        self.scaling = scaling;
        try expectEqual(@as(i32, 0), vn_steering_update(self.map_fd, &self.scaling));
    }

    /// SYSCALLS: bpf(BPF_PROG_TEST_RUN). The kernel has the Ethernet header before the data that a socket filter sees
    /// here, unlike a TAP, but at the data's start for a traffic classifier: the same instructions run as one.
    fn run(self: Steering, frame: []const u8, repeat: u32) !BPF.TestRunAttr {
        while (true) {
            var attr = BPF.Attr{ .test_run = std.mem.zeroes(BPF.TestRunAttr) };
            attr.test_run.prog_fd = self.program_fd;
            attr.test_run.data_in = @intFromPtr(frame.ptr);
            attr.test_run.data_size_in = @intCast(frame.len);
            attr.test_run.repeat = repeat;
            const rc = linux.bpf(.prog_test_run, &attr, @sizeOf(BPF.TestRunAttr));
            switch (linux.getErrno(rc)) {
                .SUCCESS => return attr.test_run,
                .INTR, .AGAIN => {},
                else => |errno| return os.unexpectedErrno(errno),
            }
        }
    }

    fn queueOf(self: Steering, frame: []const u8) !u32 {
        return (try self.run(frame, 1)).retval;
    }
};

fn descriptorOf(answer: i32) !i32 {
    if (answer == failure(.PERM) or answer == failure(.NOSYS)) return error.SkipZigTest;
    try expect(answer >= 0);
    return answer;
}

/// The shortest such frame that BPF_PROG_TEST_RUN accepts: an Ethernet header and a byte, or for newer kernels a whole
/// IP header.
fn runBytesMin(frame: []const u8) usize {
    return switch (std.mem.readInt(u16, frame[12..14], .Big)) {
        frames.ETH_P_IP => frames.ethernet_bytes + frames.ipv4_min_bytes,
        frames.ETH_P_IPV6 => frames.ethernet_bytes + frames.ipv6_bytes,
        else => frames.ethernet_bytes + 1,
    };
}

/// A random frame, sometimes malformed, short enough for BPF_PROG_TEST_RUN.
fn randomFrame(random: std.rand.Random, builder: *frames.Builder) []u8 {
    builder.len = 12;
    for (
        0..random.weightedIndex(u32, &.{ 8, 3, 2, 1 }),
    ) |_| builder.vlan(if (random.boolean()) frames.ETH_P_8021Q else frames.ETH_P_8021AD);
    const network = builder.len + 2;
    const protocols = [_]u8{
        frames.IPPROTO_TCP,
        frames.IPPROTO_TCP,
        frames.IPPROTO_UDP,
        frames.IPPROTO_UDP,
        1,
        58,
        random.int(u8),
    };
    const protocol = protocols[random.uintLessThan(usize, protocols.len)];
    switch (random.uintLessThan(u32, 16)) {
        0 => builder.putNumber(random.int(u16)),
        1...8 => {
            builder.ipv4(protocol, if (random.boolean()) 0 else random.uintAtMost(usize, 10) * 4, 20);
            random.bytes(builder.bytes[network + 12 ..][0..8]);
            const fragments = [_]u16{ 0, 0, 0, 0x4000, 0x8000, 0x2000, random.int(u16) };
            std.mem.writeInt(
                u16,
                builder.bytes[network + 6 ..][0..2],
                fragments[random.uintLessThan(usize, fragments.len)],
                .Big,
            );
        },
        else => {
            const extensions = [_]u8{
                frames.IPPROTO_HOPOPTS,
                frames.IPPROTO_DSTOPTS,
                frames.IPPROTO_ROUTING,
                frames.IPPROTO_FRAGMENT,
            };
            const count = random.weightedIndex(u32, &.{ 20, 8, 4, 2, 1, 1, 1, 2, 2, 2 });
            var next: [10]u8 = undefined;
            for (next[0..count]) |*extension| extension.* = extensions[random.uintLessThan(usize, extensions.len)];
            next[count] = protocol;
            builder.ipv6(next[0], 20);
            random.bytes(builder.bytes[network + 8 ..][0..32]);
            for (next[0..count], next[1 .. count + 1]) |extension, following| {
                const at = builder.len;
                builder.extension(
                    following,
                    if (extension == frames.IPPROTO_FRAGMENT) 1 else random.intRangeAtMost(usize, 1, 5),
                );
                if (extension == frames.IPPROTO_FRAGMENT) random.bytes(builder.bytes[at + 1 ..][0..7]);
            }
        },
    }
    var payload: [40]u8 = undefined;
    random.bytes(&payload);
    builder.put(&payload);
    // One wrong byte in the first of an IP header: its version or its length.
    if (random.uintLessThan(u32, 20) == 0) builder.bytes[network] = random.int(u8);
    if (random.uintLessThan(u32, 4) == 0) builder.len = random.intRangeAtMost(
        usize,
        runBytesMin(builder.frame()),
        builder.len,
    );
    return builder.frame();
}

fn randomScaling(random: std.rand.Random) Scaling {
    var key: examples.Key = undefined;
    random.bytes(&key);
    var scaling = examples.scalingOf(key);
    if (random.boolean()) scaling.hash_types = random.uintAtMost(u32, examples.all_types);
    for (&scaling.indirection) |*queue| queue.* = random.int(u16);
    scaling.indirection_mask = (@as(u32, 1) << random.uintAtMost(u5, 7)) - 1;
    scaling.unclassified_queue = random.int(u16);
    return scaling;
}

test "the program has no loop, and offsets that fit" {
    // Linux 5.10 takes a million, but 4,096 from a process without CAP_BPF where such may load programs at all.
    try expect(program.len < 4096);
    for (program) |insn| {
        if (insn.code & 0x07 == BPF.JMP) try expect(insn.off >= 0);
    }
    try expectEqual(Insn.exit(), program[program.len - 1]);
}

test "the kernel takes the program for a TAP" {
    const steering = try Steering.init(.socket_filter, program);
    steering.deinit();
    const map_fd = try descriptorOf(vn_steering_map());
    defer os.close(map_fd);
    const program_fd = try descriptorOf(vn_steering_program(map_fd));
    defer os.close(program_fd);
    for ([_]i32{ map_fd, program_fd }) |fd| try expectEqual(
        @as(usize, linux.FD_CLOEXEC),
        linux.fcntl(fd, linux.F.GETFD, 0),
    );
}

test "what is no map is refused" {
    os.close(try descriptorOf(vn_steering_map()));
    const file = try os.open("/dev/null", os.O.RDONLY, 0);
    defer os.close(file);
    const scaling = examples.scalingOf(examples.key);
    try expectEqual(failure(.BADF), vn_steering_program(-1));
    try expectEqual(failure(.BADF), vn_steering_update(-1, &scaling));
    try expectEqual(failure(.INVAL), vn_steering_program(file));
    try expectEqual(failure(.INVAL), vn_steering_update(file, &scaling));
}

test "a new map sends all to queue 0" {
    const steering = try Steering.init(.sched_cls, program);
    defer steering.deinit();
    var builder = frames.Builder.init();
    examples.flows[0].put(&builder, frames.IPPROTO_TCP, 0);
    try expectEqual(@as(u32, 0), try steering.queueOf(builder.frame()));
}

test "the kernel calculates the hashes of Microsoft's verification suite" {
    var steering = try Steering.init(.sched_cls, program);
    defer steering.deinit();
    var scaling = examples.scalingOf(examples.key);
    for (
        [_]u32{ examples.all_types, hash.VIRTIO_NET_RSS_HASH_TYPE_IPv4 | hash.VIRTIO_NET_RSS_HASH_TYPE_IPv6, 0 },
    ) |wanted| {
        scaling.hash_types = wanted;
        try steering.update(scaling);
        for (examples.flows) |flow| {
            for ([_]u8{ frames.IPPROTO_TCP, frames.IPPROTO_UDP }) |protocol| {
                var builder = frames.Builder.init();
                flow.put(&builder, protocol, 0);
                const expected = switch (wanted) {
                    0 => 777,
                    examples.all_types => 1000 + flow.ports_hash % 128,
                    else => 1000 + flow.addresses_hash % 128,
                };
                try expectEqual(expected, try steering.queueOf(builder.frame()));
            }
        }
    }
}

test "the kernel steers any frame as queueOf says, and not as it says of another key" {
    const seed = 0x57ee;
    errdefer std.debug.print("seed {}\n", .{seed});
    var prng = std.rand.DefaultPrng.init(seed);
    const random = prng.random();
    var steering = try Steering.init(.sched_cls, program);
    defer steering.deinit();
    var builder = frames.Builder.init();
    var classified: usize = 0;
    var different: usize = 0;
    for (0..40) |_| {
        try steering.update(randomScaling(random));
        const other = randomScaling(random);
        for (0..500) |_| {
            const frame = randomFrame(random, &builder);
            const queue = hash.queueOf(&steering.scaling, frame);
            errdefer std.debug.print("{}\n", .{std.fmt.fmtSliceHexLower(frame)});
            try expectEqual(queue, try steering.queueOf(frame));
            if (hash.hash(&steering.scaling, frame).kind != hash.VIRTIO_NET_HASH_REPORT_NONE) classified += 1;
            if (hash.queueOf(&other, frame) != queue) different += 1;
        }
    }
    try expect(classified > 5_000);
    try expect(different > 15_000);
}

test "the kernel cuts a frame short where queueOf does" {
    var steering = try Steering.init(.sched_cls, program);
    defer steering.deinit();
    try steering.update(examples.scalingOf(examples.key));
    for ([_]examples.Flow{ examples.flows[0], examples.flows[5] }) |flow| {
        for ([_]usize{ 0, 8 }) |options| {
            var builder = frames.Builder.init();
            builder.vlan(frames.ETH_P_8021AD);
            builder.vlan(frames.ETH_P_8021Q);
            flow.put(&builder, frames.IPPROTO_TCP, options);
            for (runBytesMin(builder.frame())..builder.len + 1) |length| {
                const cut = builder.bytes[0..length];
                try expectEqual(hash.queueOf(&steering.scaling, cut), try steering.queueOf(cut));
            }
        }
    }
}

test "a VLAN tag that the kernel keeps beside the packet counts as one" {
    const tagged = comptime assemble(&.{
        Insn.mov(.r6, .r1),
        Insn.mov(.r2, networkOrder(frames.ETH_P_8021Q)),
        Insn.mov(.r3, 0x2007),
        Insn.call(.skb_vlan_push),
        Insn.mov(.r1, .r6),
    });
    var steering = try Steering.init(.sched_cls, tagged.insns[0..tagged.len]);
    defer steering.deinit();
    try steering.update(examples.scalingOf(examples.key));
    for (examples.flows) |flow| {
        for (0..4) |tags| {
            var without = frames.Builder.init();
            var with = frames.Builder.init();
            with.vlan(frames.ETH_P_8021Q);
            for (0..tags) |_| for ([_]*frames.Builder{ &without, &with }) |builder| builder.vlan(frames.ETH_P_8021AD);
            for ([_]*frames.Builder{ &without, &with }) |builder| flow.put(builder, frames.IPPROTO_TCP, 0);
            const queue = hash.queueOf(&steering.scaling, with.frame());
            try expectEqual(tags < 2, queue != 777);
            try expectEqual(queue, try steering.queueOf(without.frame()));
        }
    }
}

/// Runs `function` in a thread of its own, whose namespaces and capabilities are its own too.
fn inThread(comptime function: fn () anyerror!void) !void {
    var result: anyerror!void = {};
    const thread = try std.Thread.spawn(.{}, struct {
        fn run(out: *anyerror!void) void {
            out.* = function();
        }
    }.run, .{&result});
    thread.join();
    return result;
}

test "CAP_BPF is all that it takes" {
    os.close(try descriptorOf(vn_steering_map()));
    try inThread(struct {
        fn run() anyerror!void {
            // linux/capability.h: version 3 has two sets of 32 bits. CAP_BPF is bit 39.
            const header = [2]u32{ 0x20080522, 0 };
            const Sets = extern struct { effective: u32 = 0, permitted: u32 = 0, inheritable: u32 = 0 };
            const sets = [2]Sets{ .{}, .{ .effective = 1 << 7, .permitted = 1 << 7 } };
            const rc = linux.syscall2(.capset, @intFromPtr(&header), @intFromPtr(&sets));
            // A user that may call bpf() without the capability.
            if (linux.getErrno(rc) == .PERM) return error.SkipZigTest;
            try expectEqual(linux.E.SUCCESS, linux.getErrno(rc));
            const steering = try Steering.init(.socket_filter, program);
            steering.deinit();
        }
    }.run);
}

/// linux/if_tun.h, for a TAP of this file's tests only.
const TUNSETIFF = linux.IOCTL.IOW('T', 202, i32);
const TUNSETSTEERINGEBPF = linux.IOCTL.IOR('T', 224, i32);
const IFF_TAP = 0x0002;
const IFF_MULTI_QUEUE = 0x0100;
const IFF_NO_PI = 0x1000;
const IFF_UP = 1;
const SIOCSIFFLAGS = 0x8914;

fn ioctl(fd: i32, request: u32, argument: usize) !void {
    switch (linux.getErrno(linux.ioctl(fd, request, argument))) {
        .SUCCESS => {},
        .PERM, .OPNOTSUPP => return error.SkipZigTest,
        else => |errno| return os.unexpectedErrno(errno),
    }
}

test "a TAP's queues get the packets that queueOf says" {
    try inThread(struct {
        fn run() anyerror!void {
            // A network namespace without other traffic.
            if (linux.getErrno(linux.unshare(linux.CLONE.NEWNET)) != .SUCCESS) return error.SkipZigTest;
            var steering = try Steering.init(.socket_filter, program);
            defer steering.deinit();

            var request = std.mem.zeroes(linux.ifreq);
            @memcpy(request.ifrn.name[0..4], "tap0");
            var queues = [_]os.pollfd{.{ .fd = -1, .events = os.POLL.IN, .revents = 0 }} ** 4;
            defer for (queues) |queue| if (queue.fd >= 0) os.close(queue.fd);
            for (&queues) |*queue| {
                queue.fd = os.open(
                    "/dev/net/tun",
                    os.O.RDWR | os.O.NONBLOCK | os.O.CLOEXEC,
                    0,
                ) catch return error.SkipZigTest;
                request.ifru.flags = IFF_TAP | IFF_MULTI_QUEUE | IFF_NO_PI;
                try ioctl(queue.fd, TUNSETIFF, @intFromPtr(&request));
            }
            try ioctl(queues[0].fd, TUNSETSTEERINGEBPF, @intFromPtr(&steering.program_fd));

            const socket = try os.socket(os.AF.PACKET, os.SOCK.RAW | os.SOCK.CLOEXEC, 0);
            defer os.close(socket);
            request.ifru.flags = IFF_UP;
            try ioctl(socket, SIOCSIFFLAGS, @intFromPtr(&request));
            try ioctl(socket, linux.SIOCGIFINDEX, @intFromPtr(&request));
            const address = std.mem.zeroInit(os.sockaddr.ll, .{ .ifindex = request.ifru.ivalue });

            var prng = std.rand.DefaultPrng.init(0x7a9);
            const random = prng.random();
            var builder = frames.Builder.init();
            for (0..10) |_| {
                try steering.update(randomScaling(random));
                for (0..100) |number| {
                    const frame = randomFrame(random, &builder);
                    // Distinguishes it from the other frames and from IPv6's own on a new interface.
                    std.mem.writeInt(u32, builder.bytes[6..10], @intCast(number), .Big);
                    _ = try os.sendto(socket, frame, 0, @ptrCast(&address), @sizeOf(os.sockaddr.ll));
                    const queue = hash.queueOf(&steering.scaling, frame) % queues.len;
                    try expectEqual(queue, try arrival(&queues, frame));
                }
            }
        }

        /// The queue where `frame` comes out.
        fn arrival(queues: []os.pollfd, frame: []const u8) !usize {
            var bytes: [2048]u8 = undefined;
            while (true) {
                if (try os.poll(queues, 5_000) == 0) return error.TestNothingArrived;
                for (queues, 0..) |queue, index| {
                    if (queue.revents & os.POLL.IN == 0) continue;
                    const length = try os.read(queue.fd, &bytes);
                    if (std.mem.eql(u8, bytes[0..length], frame)) return index;
                }
            }
        }
    }.run);
}
