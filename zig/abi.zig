//! Sizes, offsets and constants of what TypeScript and C share, as a JSON text made at compile time from the kernel's
//! headers. src/sys/abi-check.ts compares it with src/abi when the program starts.

const std = @import("std");
const builtin = @import("builtin");
const filter = @import("filter.zig");
const hash = @import("hash.zig");
const io = @import("io.zig");
const DropReason = @import("drop_reason.zig").DropReason;
const c = @cImport(@cInclude("abi.h"));

/// The structs that src/abi lays out.
const structs = .{
    .{ "vduse_dev_config", newer.vduse_dev_config },
    .{ "vduse_iotlb_entry", c.struct_vduse_iotlb_entry },
    .{ "vduse_iotlb_entry_v2", c.struct_vduse_iotlb_entry_v2 },
    .{ "vduse_config_data", newer.vduse_config_data },
    .{ "vduse_vq_config", newer.vduse_vq_config },
    .{ "vduse_vq_info", c.struct_vduse_vq_info },
    .{ "vduse_vq_eventfd", c.struct_vduse_vq_eventfd },
    .{ "vduse_dev_request", newer.vduse_dev_request },
    .{ "vduse_dev_response", c.struct_vduse_dev_response },
    .{ "virtio_net_config", c.struct_virtio_net_config },
    .{ "virtio_net_hdr", c.struct_virtio_net_hdr },
    .{ "virtio_net_hdr_v1", c.struct_virtio_net_hdr_v1 },
    .{ "virtio_net_hdr_v1_hash", c.struct_virtio_net_hdr_v1_hash },
    .{ "pollfd", std.os.linux.pollfd },
    .{ "ifinfomsg", c.struct_ifinfomsg },
    .{ "sockaddr_nl", c.struct_sockaddr_nl },
    .{ "nlmsghdr", c.struct_nlmsghdr },
    .{ "nlmsgerr", c.struct_nlmsgerr },
    .{ "nlattr", c.struct_nlattr },
    .{ "genlmsghdr", c.struct_genlmsghdr },
    .{ "vn_io", io.VnIo },
    .{ "vn_receive_filter", filter.Filter },
    .{ "vn_scaling", hash.Scaling },
};

/// Structs that later kernels gave a meaning to reserved bytes: linux/vduse.h of Linux 7.3.
const newer = struct {
    const vduse_dev_config = extern struct {
        name: [c.VDUSE_NAME_MAX]u8,
        vendor_id: u32,
        device_id: u32,
        features: u64,
        vq_num: u32,
        vq_align: u32,
        ngroups: u32,
        nas: u32,
        reserved: [11]u32,
        config_size: u32,
        config: [0]u8,
    };
    /// Not newer, but the array without a length does not reach Zig.
    const vduse_config_data = extern struct { offset: u32, length: u32, buffer: [0]u8 };
    const vduse_vq_config = extern struct {
        index: u32,
        max_size: u16,
        reserved1: u16,
        group: u32,
        reserved2: [10]u16,
    };
    const vduse_iova_range_v2 = extern struct { start: u64, last: u64, asid: u32, padding: u32 };
    const vduse_vq_group_asid = extern struct { group: u32, asid: u32 };
    const vduse_vq_ready = extern struct { num: u32, ready: u32 };
    const vduse_dev_request = extern struct {
        type: u32,
        request_id: u32,
        reserved: [4]u32,
        unnamed_0: extern union {
            vq_state: c.struct_vduse_vq_state,
            s: c.struct_vduse_dev_status,
            iova: c.struct_vduse_iova_range,
            iova_v2: vduse_iova_range_v2,
            vq_group_asid: vduse_vq_group_asid,
            vq_ready: vduse_vq_ready,
            padding: [32]u32,
        },
    };

    // The same size as before, or the ioctl numbers would have changed with them.
    comptime {
        std.debug.assert(@sizeOf(vduse_dev_config) == @sizeOf(c.struct_vduse_dev_config));
        std.debug.assert(@sizeOf(vduse_config_data) == @sizeOf(c.struct_vduse_config_data));
        std.debug.assert(@sizeOf(vduse_vq_config) == @sizeOf(c.struct_vduse_vq_config));
        std.debug.assert(@sizeOf(vduse_dev_request) == @sizeOf(c.struct_vduse_dev_request));
    }
};

/// `"a.b":12,` for each field that is no struct itself. The fields of an anonymous union or struct keep their plain
/// names.
fn fieldsOf(comptime T: type, comptime prefix: []const u8, comptime base: usize) []const u8 {
    var text: []const u8 = "";
    const fields = switch (@typeInfo(T)) {
        .Struct => |info| info.fields,
        .Union => |info| info.fields,
        else => unreachable,
    };
    for (fields) |field| {
        const offset = base + if (@typeInfo(T) == .Union) 0 else @offsetOf(T, field.name);
        const isNested = switch (@typeInfo(field.type)) {
            .Struct, .Union => true,
            else => false,
        };
        if (isNested) {
            const isAnonymous = std.mem.startsWith(u8, field.name, "unnamed_");
            text = text ++ fieldsOf(field.type, if (isAnonymous) prefix else prefix ++ field.name ++ ".", offset);
        } else {
            text = text ++ std.fmt.comptimePrint("\"{s}{s}\":{d},", .{ prefix, field.name, offset });
        }
    }
    return text;
}

fn structText(comptime name: []const u8, comptime size: usize, comptime fields: []const u8) []const u8 {
    return std.fmt.comptimePrint(
        "\"{s}\":{{\"size\":{d},\"fields\":{{",
        .{ name, size },
    ) ++ fields[0 .. fields.len - 1] ++ "}},";
}

fn allStructs() []const u8 {
    var text: []const u8 = "";
    for (structs) |entry| text = text ++ structText(entry[0], @sizeOf(entry[1]), fieldsOf(entry[1], "", 0));
    // Its fields are macros for members of members.
    const name = @offsetOf(c.struct_ifreq, "ifr_ifrn");
    const flags = @offsetOf(c.struct_ifreq, "ifr_ifru");
    const ifreq = std.fmt.comptimePrint(
        "\"ifr_name\":{d},\"ifr_flags\":{d},\"padding\":{d},",
        .{ name, flags, flags + @sizeOf(c_short) },
    );
    text = text ++ structText("ifreq", @sizeOf(c.struct_ifreq), ifreq);
    return text[0 .. text.len - 1];
}

fn allConstants() []const u8 {
    var text: []const u8 = "";
    for (@typeInfo(c).Struct.decls) |declaration| {
        if (!std.mem.startsWith(u8, declaration.name, "VN_")) continue;
        text = text ++ std.fmt.comptimePrint("\"{s}\":{d},", .{ declaration.name[3..], @field(c, declaration.name) });
    }
    return text[0 .. text.len - 1];
}

fn namesOf(comptime Enum: type) []const u8 {
    var text: []const u8 = "";
    for (@typeInfo(Enum).Enum.fields, 0..) |field, index| {
        std.debug.assert(field.value == index);
        text = text ++ "\"" ++ field.name ++ "\",";
    }
    return text[0 .. text.len - 1];
}

const table = blk: {
    @setEvalBranchQuota(2_000_000);
    break :blk "{\"mode\":\"" ++ @tagName(builtin.mode) ++
        "\",\"structs\":{" ++ allStructs() ++
        "},\"constants\":{" ++ allConstants() ++
        "},\"dropReasons\":[" ++ namesOf(DropReason) ++
        "],\"rxStops\":[" ++ namesOf(io.RxStop) ++ "]}";
};

/// The table: NUL-terminated, valid for ever.
export fn vn_abi() [*:0]const u8 {
    return table ++ "\x00";
}

test "the table is JSON and knows a constant that everybody knows" {
    const parsed = try std.json.parseFromSlice(std.json.Value, std.testing.allocator, std.mem.span(vn_abi()), .{});
    defer parsed.deinit();
    const constants = parsed.value.object.get("constants").?.object;
    try std.testing.expectEqual(@as(i64, @intCast(c.TUNSETIFF)), constants.get("TUNSETIFF").?.integer);
    const request = parsed.value.object.get("structs").?.object.get("vduse_dev_request").?.object;
    try std.testing.expectEqual(@as(i64, 152), request.get("size").?.integer);
}
