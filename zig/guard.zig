//! Guest memory can vanish at any time: a front-end truncates its memfd, or a bounce page loses its backing. An access
//! then raises SIGBUS. If the address lies in guest memory, the handler maps a page of zeroes there and counts, so that
//! the thread continues and its caller can quarantine the queue. The page has the mapping's page size (hugetlbfs: 2 MiB
//! or 1 GiB), since a part of a huge page cannot be replaced. Every other SIGBUS goes to the previous handler. The
//! table is a global of the library, hence one for the process: any thread may fault on any mapping.

const std = @import("std");
const linux = std.os.linux;
const Atomic = std.atomic.Atomic;

/// Most guarded ranges. A VDUSE device may have 2048 IOTLB entries, and has a handful in practice.
pub const slot_max = 1024;

const Slot = extern struct {
    state: Atomic(u32),
    hits: Atomic(u32),
    /// First address and the one after the last. Written while `state` is `claimed`, read by the handler while it is
    /// `live`.
    start: Atomic(usize),
    end: Atomic(usize),
    /// A power of two.
    page_bytes: Atomic(usize),

    const free = 0;
    const claimed = 1;
    const live = 2;
};

var slots = [_]Slot{.{
    .state = Atomic(u32).init(Slot.free),
    .hits = Atomic(u32).init(0),
    .start = Atomic(usize).init(0),
    .end = Atomic(usize).init(0),
    .page_bytes = Atomic(usize).init(0),
}} ** slot_max;

var installed = Atomic(u32).init(0);
var previous: linux.Sigaction = undefined;
/// Thread that is inside the previous handler, or 0. If that handler calls back into ours, chaining again would recurse
/// for ever.
var chaining_tid = Atomic(i32).init(0);

extern "c" fn sigaction(sig: c_int, noalias act: ?*const linux.Sigaction, noalias oact: ?*linux.Sigaction) c_int;

/// SYSCALLS: rt_sigaction.
pub export fn vn_guard_install() i32 {
    if (installed.compareAndSwap(0, 1, .AcqRel, .Acquire) != null) return 0;
    const action = linux.Sigaction{
        .handler = .{ .sigaction = onBusError },
        .mask = linux.empty_sigset,
        // ONSTACK: a fault must not need much of the normal stack; without an alternate stack the flag has no effect.
        .flags = linux.SA.SIGINFO | linux.SA.RESTART | linux.SA.ONSTACK,
    };
    // The previous action is read first: a fault during the installing call would use it before that call has stored
    // it.
    _ = sigaction(linux.SIG.BUS, null, &previous);
    if (sigaction(linux.SIG.BUS, &action, null) != 0) {
        installed.store(0, .Release);
        return -@as(i32, @intFromEnum(linux.E.INVAL));
    }
    return 0;
}

/// Guards `[address, address + length)`, a mapping of the caller with pages of `page_bytes`. Returns a slot number, or
/// -ENOSPC if the table is full.
pub export fn vn_guard_add(address: u64, length: u64, page_bytes: u64) i32 {
    if (page_bytes == 0 or !std.math.isPowerOfTwo(page_bytes)) return -@as(i32, @intFromEnum(linux.E.INVAL));
    const end = std.math.add(u64, address, length) catch return -@as(i32, @intFromEnum(linux.E.INVAL));
    if (length == 0) return -@as(i32, @intFromEnum(linux.E.INVAL));
    for (&slots, 0..) |*slot, index| {
        if (slot.state.compareAndSwap(Slot.free, Slot.claimed, .AcqRel, .Monotonic) != null) continue;
        slot.hits.store(0, .Monotonic);
        slot.start.store(address, .Monotonic);
        slot.end.store(end, .Monotonic);
        slot.page_bytes.store(page_bytes, .Monotonic);
        // ORDERING: the range is complete before the handler can see the slot.
        slot.state.store(Slot.live, .Release);
        return @intCast(index);
    }
    return -@as(i32, @intFromEnum(linux.E.NOSPC));
}

fn slotAt(index: i32) ?*Slot {
    if (index < 0 or index >= slot_max) return null;
    const slot = &slots[@intCast(index)];
    return if (slot.state.load(.Acquire) == Slot.live) slot else null;
}

/// Faults seen in the slot; -EINVAL for a slot that is not in use.
pub export fn vn_guard_hits(index: i32) i32 {
    const slot = slotAt(index) orelse return -@as(i32, @intFromEnum(linux.E.INVAL));
    return @intCast(@min(slot.hits.load(.Acquire), std.math.maxInt(i32)));
}

/// Frees the slot. No thread may access the range any more; the caller unmaps it afterwards.
pub export fn vn_guard_remove(index: i32) i32 {
    const slot = slotAt(index) orelse return -@as(i32, @intFromEnum(linux.E.INVAL));
    slot.state.store(Slot.free, .Release);
    return 0;
}

/// Maps zeroes over the page of `address` if a slot covers it.
/// SYSCALLS: mmap. Async-signal-safe: loads, stores and one system call.
fn repair(address: usize) bool {
    for (&slots) |*slot| {
        if (slot.state.load(.Acquire) != Slot.live) continue;
        const start = slot.start.load(.Monotonic);
        if (address < start or address >= slot.end.load(.Monotonic)) continue;
        const page_bytes = slot.page_bytes.load(.Monotonic);
        const page = address & ~(page_bytes - 1);
        // Writable even if the mapping was read-only: a store there would have been SIGSEGV instead. Two threads that
        // fault on one page map it twice: harmless, its contents are lost anyway.
        const rc = linux.mmap(
            @ptrFromInt(page),
            page_bytes,
            linux.PROT.READ | linux.PROT.WRITE,
            // NORESERVE: little of a 1 GiB page is ever accessed.
            linux.MAP.FIXED | linux.MAP.ANONYMOUS | linux.MAP.PRIVATE | linux.MAP.NORESERVE,
            -1,
            0,
        );
        if (linux.getErrno(rc) != .SUCCESS) return false;
        _ = slot.hits.fetchAdd(1, .AcqRel);
        return true;
    }
    return false;
}

/// BUS_ADRERR of asm-generic/siginfo.h: the page has no backing. Hardware memory errors must not be hidden.
const BUS_ADRERR = 2;

fn onBusError(sig: c_int, info: *const linux.siginfo_t, context: ?*const anyopaque) callconv(.C) void {
    if (info.code == BUS_ADRERR and repair(@intFromPtr(info.fields.sigfault.addr))) return;
    chain(sig, info, context);
}

fn chain(sig: c_int, info: *const linux.siginfo_t, context: ?*const anyopaque) void {
    const tid = linux.gettid();
    const handler = previous.handler.handler;
    // SIG_DFL is 0, SIG_IGN 1; the kernel ignores no synchronous SIGBUS either.
    const plain = @intFromPtr(handler) <= 1;
    if (plain or chaining_tid.load(.Monotonic) == tid) {
        const default = linux.Sigaction{ .handler = .{ .handler = null }, .mask = linux.empty_sigset, .flags = 0 };
        _ = sigaction(sig, &default, null);
        // The signal is blocked inside its handler and arrives on return, also if it was sent and no access faults
        // again.
        _ = linux.tgkill(linux.getpid(), tid, sig);
        return;
    }
    chaining_tid.store(tid, .Monotonic);
    defer chaining_tid.store(0, .Monotonic);
    if (previous.flags & linux.SA.SIGINFO != 0) {
        previous.handler.sigaction.?(sig, info, context);
    } else {
        handler.?(sig);
    }
}

const testing = std.testing;

/// A previous handler: maps a page at the fault, as the guard does, and counts.
const earlier = struct {
    var faults: u32 = 0;

    fn onFault(_: c_int, info: *const linux.siginfo_t, _: ?*const anyopaque) callconv(.C) void {
        const page = @intFromPtr(info.fields.sigfault.addr) & ~@as(usize, std.mem.page_size - 1);
        _ = linux.mmap(
            @ptrFromInt(page),
            std.mem.page_size,
            linux.PROT.READ,
            linux.MAP.FIXED | linux.MAP.ANONYMOUS | linux.MAP.PRIVATE,
            -1,
            0,
        );
        faults += 1;
    }

    /// A handler that wrongly calls back: it takes ours for its previous one.
    fn callBack(sig: c_int, info: *const linux.siginfo_t, context: ?*const anyopaque) callconv(.C) void {
        onBusError(sig, info, context);
    }

    fn install(handler: linux.Sigaction.sigaction_fn) void {
        const action = linux.Sigaction{
            .handler = .{ .sigaction = handler },
            .mask = linux.empty_sigset,
            .flags = linux.SA.SIGINFO,
        };
        std.debug.assert(sigaction(linux.SIG.BUS, &action, null) == 0);
    }
};

/// Pages of a file that is then cut to nothing: the first access to each is a SIGBUS.
fn vanished(pages: usize) ![]align(std.mem.page_size) u8 {
    const fd = try std.os.memfd_create("guard", 0);
    defer std.os.close(fd);
    const length = pages * std.mem.page_size;
    try std.os.ftruncate(fd, length);
    const memory = try std.os.mmap(null, length, linux.PROT.READ | linux.PROT.WRITE, linux.MAP.SHARED, fd, 0);
    @memset(memory, 7);
    try std.os.ftruncate(fd, 0);
    return memory;
}

fn access(memory: []u8, index: usize) *volatile u8 {
    return &memory[index];
}

test "vanished pages in a slot read as zeroes and count, others go to the handler before ours" {
    earlier.install(earlier.onFault);
    try testing.expectEqual(@as(i32, 0), vn_guard_install());
    try testing.expectEqual(@as(i32, 0), vn_guard_install());
    const memory = try vanished(3);
    defer std.os.munmap(memory);
    const slot = vn_guard_add(@intFromPtr(memory.ptr), 2 * std.mem.page_size, std.mem.page_size);
    try testing.expectEqual(@as(i32, 0), vn_guard_hits(slot));

    try testing.expectEqual(@as(u8, 0), access(memory, 0).*);
    try testing.expectEqual(@as(i32, 1), vn_guard_hits(slot));
    // A store faults too, and goes to the page of zeroes.
    const last = 2 * std.mem.page_size - 1;
    access(memory, last).* = 3;
    try testing.expectEqual(@as(u8, 3), access(memory, last).*);
    try testing.expectEqual(@as(i32, 2), vn_guard_hits(slot));
    try testing.expectEqual(@as(u32, 0), earlier.faults);

    try testing.expectEqual(@as(u8, 0), access(memory, last + 1).*);
    try testing.expectEqual(@as(i32, 2), vn_guard_hits(slot));
    try testing.expectEqual(@as(u32, 1), earlier.faults);

    try testing.expectEqual(@as(i32, 0), vn_guard_remove(slot));
    try testing.expect(vn_guard_hits(slot) < 0);
    try testing.expect(vn_guard_remove(slot) < 0);
}

test "a handler before ours that calls back ends in the default action" {
    const memory = try vanished(1);
    defer std.os.munmap(memory);
    const child = try std.os.fork();
    if (child == 0) {
        previous.handler.sigaction = earlier.callBack;
        access(memory, 0).* = 1;
        std.os.exit(0);
    }
    const status = std.os.waitpid(child, 0).status;
    try testing.expect(std.os.W.IFSIGNALED(status));
    try testing.expectEqual(@as(u32, linux.SIG.BUS), std.os.W.TERMSIG(status));
}

test "faults of several threads at once are all repaired" {
    const pages = 256;
    const memory = try vanished(pages);
    defer std.os.munmap(memory);
    const slot = vn_guard_add(@intFromPtr(memory.ptr), memory.len, std.mem.page_size);
    defer _ = vn_guard_remove(slot);
    var threads: [4]std.Thread = undefined;
    for (&threads) |*thread| thread.* = try std.Thread.spawn(.{}, struct {
        fn run(bytes: []u8) void {
            for (0..pages) |page| std.debug.assert(access(bytes, page * std.mem.page_size + 9).* == 0);
        }
    }.run, .{memory});
    for (threads) |thread| thread.join();
    // Two threads that fault on one page count it twice.
    try testing.expect(vn_guard_hits(slot) >= pages);
}

test "the table refuses empty and wrapping ranges, and the slot after the last" {
    try testing.expect(vn_guard_add(4096, 0, 4096) < 0);
    try testing.expect(vn_guard_add(std.math.maxInt(u64) - 4095, 8192, 4096) < 0);
    for ([_]u64{ 0, 3, 4095 }) |pages| try testing.expect(vn_guard_add(4096, 4096, pages) < 0);
    var index: i32 = 0;
    while (index < slot_max) : (index += 1) try testing.expectEqual(index, vn_guard_add(4096, 1, 4096));
    try testing.expectEqual(-@as(i32, @intFromEnum(linux.E.NOSPC)), vn_guard_add(4096, 1, 4096));
    while (index > 0) : (index -= 1) try testing.expectEqual(@as(i32, 0), vn_guard_remove(index - 1));
}
