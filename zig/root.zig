//! The exports of the native library, one file each: system calls, descriptors over sockets, the SIGBUS guard, the ABI
//! table and packet input/output. src/sys/symbols.ts types them for TypeScript.

comptime {
    _ = @import("sys.zig");
    _ = @import("signals.zig");
    _ = @import("fd_passing.zig");
    _ = @import("peer_signal.zig");
    _ = @import("guard.zig");
    _ = @import("abi.zig");
    _ = @import("io.zig");
    _ = @import("guest.zig");
    _ = @import("steering.zig");
}
