//! The receive filter: rules that the device thread writes and every queue worker reads, without a lock.

const std = @import("std");

/// struct vn_receive_filter of src/abi/receive-filter.ts, which documents the fields.
pub const Filter = extern struct {
    generation: u32,
    reserved: u32,
    even: Rules,
    odd: Rules,
};

const list_max = 64;
const vlan_count = 4096;

const Rules = extern struct {
    filtering: u32,
    any_unicast: u32,
    any_multicast: u32,
    broadcast: u32,
    by_vlan: u32,
    reserved: u32,
    unicast: List,
    multicast: List,
    vlans: [vlan_count / 32]u32,

    fn wants(self: *align(4) const Rules, frame: []const u8) bool {
        if (self.filtering == 0) return true;
        const destination = std.mem.readIntLittle(u48, frame[0..6]);
        const wanted = if (destination == broadcast_address)
            self.broadcast != 0
        else if (destination & group_bit != 0)
            self.any_multicast != 0 or contains(&self.multicast, destination)
        else
            self.any_unicast != 0 or contains(&self.unicast, destination);
        return wanted and (self.by_vlan == 0 or self.wantsVlan(frame));
    }

    fn wantsVlan(self: *align(4) const Rules, frame: []const u8) bool {
        if (frame.len < vlan_header_bytes) return true;
        if (std.mem.readIntBig(u16, frame[12..14]) != ethertype_vlan) return true;
        const vlan: u12 = @truncate(std.mem.readIntBig(u16, frame[14..16]));
        // VLAN 0 is no VLAN: the tag has a priority only.
        if (vlan == 0) return true;
        return self.vlans[vlan / 32] >> @intCast(vlan % 32) & 1 != 0;
    }
};

const List = [list_max]u64;

const destination_and_type_bytes = 14;
const vlan_header_bytes = destination_and_type_bytes + 4;
const broadcast_address = 0xffff_ffff_ffff;
/// The lowest bit of the first octet, which comes first.
const group_bit = 1;
/// linux/if_ether.h, ETH_P_8021Q.
const ethertype_vlan = 0x8100;

/// Compares with all places at once: an empty place equals no address.
fn contains(list: *align(4) const List, address: u48) bool {
    const all: @Vector(list_max, u64) = list.*;
    return @reduce(.Or, all == @as(@Vector(list_max, u64), @splat(address)));
}

/// Only a driver that changes its filter this often during one check exceeds it.
const attempts_max = 4;

/// True if the frame passes the filter. A frame too short for an Ethernet header passes: later checks drop it. While
/// the rules change, the old or the new ones apply, never a mixture.
pub fn accepts(filter: ?*align(4) const Filter, frame: []const u8) bool {
    const shared = filter orelse return true;
    if (frame.len < destination_and_type_bytes) return true;
    for (0..attempts_max) |_| {
        // ORDERING: acquires the rules that were written before.
        const generation = @atomicLoad(u32, &shared.generation, .Acquire);
        const rules = if (generation % 2 == 0) &shared.even else &shared.odd;
        const wanted = rules.wants(frame);
        // ORDERING: the generation is loaded again after the rules: if it is unchanged, no write to them has begun.
        @fence(.Acquire);
        if (@atomicLoad(u32, &shared.generation, .Monotonic) == generation) return wanted;
    }
    // A filter is best effort (VIRTIO 1.2 §5.1.6.5.1): an extra frame is allowed, a lost one is not.
    return true;
}

fn testFilter() Filter {
    const rules = Rules{
        .filtering = 1,
        .any_unicast = 0,
        .any_multicast = 0,
        .broadcast = 0,
        .by_vlan = 0,
        .reserved = 0,
        .unicast = [_]u64{std.math.maxInt(u64)} ** list_max,
        .multicast = [_]u64{std.math.maxInt(u64)} ** list_max,
        .vlans = [_]u32{0} ** (vlan_count / 32),
    };
    return .{ .generation = 0, .reserved = 0, .even = rules, .odd = rules };
}

/// The start of a frame: destination, source, then whatever `rest` says.
fn testFrame(destination: [6]u8, comptime rest: []const u8) [18]u8 {
    var frame = [_]u8{0} ** 18;
    frame[0..6].* = destination;
    @memcpy(frame[12..][0..rest.len], rest);
    return frame;
}

const expect = std.testing.expect;

test "without a filter every frame is wanted, and with one every frame that is too short to judge" {
    const frame = testFrame(.{ 2, 0, 0, 0, 0, 1 }, "\x08\x00");
    try expect(accepts(null, &frame));
    var filter = testFilter();
    try expect(!accepts(&filter, &frame));
    try expect(accepts(&filter, frame[0..13]));
    try expect(accepts(&filter, ""));
    filter.even.filtering = 0;
    try expect(accepts(&filter, &frame));
}

test "each kind of destination has its own rule" {
    const unicast = testFrame(.{ 2, 0, 0, 0, 0, 1 }, "\x08\x00");
    const multicast = testFrame(.{ 3, 0, 0, 0, 0, 1 }, "\x08\x00");
    const broadcast = testFrame(.{0xff} ** 6, "\x08\x00");
    const kinds = .{ .{ "any_unicast", unicast }, .{ "any_multicast", multicast }, .{ "broadcast", broadcast } };
    inline for (kinds) |allowed| {
        var filter = testFilter();
        @field(filter.even, allowed[0]) = 1;
        inline for (kinds) |other| {
            try std.testing.expectEqual(std.mem.eql(u8, allowed[0], other[0]), accepts(&filter, &other[1]));
        }
    }
}

test "an address is found wherever it stands, in the list of its kind, and an empty place is none" {
    for (0..list_max) |place| {
        var filter = testFilter();
        filter.even.unicast[place] = 0x0605_0403_0202;
        filter.even.multicast[place] = 0x0605_0403_0203;
        try expect(accepts(&filter, &testFrame(.{ 2, 2, 3, 4, 5, 6 }, "")));
        try expect(accepts(&filter, &testFrame(.{ 3, 2, 3, 4, 5, 6 }, "")));
        try expect(!accepts(&filter, &testFrame(.{ 2, 2, 3, 4, 5, 7 }, "")));
        try expect(!accepts(&filter, &testFrame(.{ 1, 2, 3, 4, 5, 6 }, "")));
        try expect(!accepts(&filter, &testFrame(.{0} ** 6, "")));
        try expect(!accepts(&filter, &testFrame(.{0xff} ** 6, "")));
    }
}

test "VLANs are asked about only with a tag, and only of a wanted address" {
    var filter = testFilter();
    filter.even.any_unicast = 1;
    filter.even.by_vlan = 1;
    filter.even.vlans[0] = 1 << 5;
    filter.even.vlans[127] = 1 << 31;
    const card = .{ 2, 0, 0, 0, 0, 1 };
    try expect(accepts(&filter, &testFrame(card, "\x81\x00\x00\x05")));
    // The upper four bits are no part of the number.
    try expect(accepts(&filter, &testFrame(card, "\x81\x00\xf0\x05")));
    try expect(accepts(&filter, &testFrame(card, "\x81\x00\x0f\xff")));
    try expect(!accepts(&filter, &testFrame(card, "\x81\x00\x00\x06")));
    try expect(!accepts(&filter, &testFrame(card, "\x81\x00\x0f\xfe")));
    try expect(accepts(&filter, &testFrame(card, "\x81\x00\xe0\x00")));
    try expect(accepts(&filter, &testFrame(card, "\x08\x00\x00\x06")));
    const cut = testFrame(card, "\x81\x00\x00\x06");
    try expect(accepts(&filter, cut[0..17]));
    try expect(!accepts(&filter, &testFrame(.{ 3, 0, 0, 0, 0, 1 }, "\x81\x00\x00\x05")));
    filter.even.by_vlan = 0;
    try expect(accepts(&filter, &testFrame(card, "\x81\x00\x00\x06")));
}

test "the generation says which rules hold" {
    var filter = testFilter();
    const frame = testFrame(.{ 2, 0, 0, 0, 0, 1 }, "");
    filter.odd.any_unicast = 1;
    try expect(!accepts(&filter, &frame));
    filter.generation = 1;
    try expect(accepts(&filter, &frame));
    filter.generation = 0xffff_ffff;
    try expect(accepts(&filter, &frame));
    filter.generation +%= 1;
    try expect(!accepts(&filter, &frame));
}

test "a frame is judged by rules that held together, while they change all the time" {
    const card = .{ 2, 0, 0, 0, 0, 1 };
    // Half of the rules want the frame because it is unicast, the others because of its address: only a mixture would
    // not.
    const Writer = struct {
        fn run(filter: *Filter, stop: *std.atomic.Atomic(bool)) void {
            var generation: u32 = 0;
            while (!stop.load(.Monotonic)) {
                generation +%= 1;
                const rules = if (generation % 2 == 0) &filter.even else &filter.odd;
                const listed = generation / 2 % 2 == 0;
                // ORDERING: no store moves before an earlier one, as with TypeScript's Atomics.
                @atomicStore(u64, &rules.unicast[0], if (listed) 0x0100_0000_0002 else std.math.maxInt(u64), .SeqCst);
                @atomicStore(u32, &rules.any_unicast, @intFromBool(!listed), .SeqCst);
                @atomicStore(u32, &filter.generation, generation, .SeqCst);
            }
        }
    };
    var filter = testFilter();
    filter.even.any_unicast = 1;
    filter.odd.any_unicast = 1;
    var stop = std.atomic.Atomic(bool).init(false);
    const thread = try std.Thread.spawn(.{}, Writer.run, .{ &filter, &stop });
    defer {
        stop.store(true, .Monotonic);
        thread.join();
    }
    for (0..500_000) |_| try expect(accepts(&filter, &testFrame(card, "")));
}

comptime {
    std.debug.assert(@sizeOf(Rules) == 24 + 2 * 8 * list_max + vlan_count / 8);
    std.debug.assert(@sizeOf(Filter) == 8 + 2 * @sizeOf(Rules));
    std.debug.assert(@offsetOf(Rules, "unicast") == 24);
}
