//! Signals without a handler of the program. By default most of them end the process at once, which would leave device,
//! sockets and files behind.

const std = @import("std");
const linux = std.os.linux;
const SIG = linux.SIG;

extern "c" fn sigaction(sig: c_int, noalias act: ?*const linux.Sigaction, noalias oact: ?*linux.Sigaction) c_int;

/// Signals of timers, terminals and limits, and signals for users. Not SIGPWR: the JavaScript engine uses it.
const ignored = [_]c_int{
    SIG.PIPE, SIG.ALRM, SIG.VTALRM, SIG.PROF, SIG.IO,   SIG.STKFLT,
    SIG.USR1, SIG.USR2, SIG.TTIN,   SIG.TTOU, SIG.TSTP, SIG.XFSZ,
};

/// The first real-time signal that is free: glibc keeps 32 and 33 for itself.
const first_real_time = 34;
const last_real_time = 64;

/// Signals of a crash. Raised by a fault, they go to the previous handler; sent by another process, they end the
/// program like SIGTERM.
const crashes = [_]c_int{ SIG.ILL, SIG.TRAP, SIG.ABRT, SIG.BUS, SIG.FPE, SIG.SEGV, SIG.SYS };

var previous: [32]linux.Sigaction = undefined;
var installed = false;

/// Called once, before the card is made.
/// SYSCALLS: rt_sigaction.
export fn vn_signals_install() i32 {
    if (installed) return 0;
    installed = true;
    const ignore = linux.Sigaction{ .handler = .{ .handler = SIG.IGN }, .mask = linux.empty_sigset, .flags = 0 };
    for (ignored) |sig| _ = sigaction(sig, &ignore, null);
    var sig: c_int = first_real_time;
    while (sig <= last_real_time) : (sig += 1) _ = sigaction(sig, &ignore, null);
    const action = linux.Sigaction{
        .handler = .{ .sigaction = onCrash },
        .mask = linux.empty_sigset,
        .flags = linux.SA.SIGINFO | linux.SA.RESTART | linux.SA.ONSTACK,
    };
    for (crashes) |crash| {
        // The previous action is read first: the signal may come between the two calls.
        if (sigaction(crash, null, &previous[@intCast(crash)]) != 0) continue;
        _ = sigaction(crash, &action, null);
    }
    return 0;
}

/// 1 if the signal is ignored, as nohup(1) leaves SIGHUP for the program that it starts.
/// SYSCALLS: rt_sigaction.
export fn vn_signal_is_ignored(sig: i32) i32 {
    var action: linux.Sigaction = undefined;
    if (sigaction(sig, null, &action) != 0) return 0;
    return @intFromBool(action.handler.handler == SIG.IGN);
}

/// Async-signal-safe: system calls only.
fn onCrash(sig: c_int, info: *const linux.siginfo_t, context: ?*const anyopaque) callconv(.C) void {
    // SI_USER, SI_QUEUE and SI_TKILL are not positive; abort() sends to its own process.
    const is_sent = info.code <= 0 and info.fields.common.first.piduid.pid != linux.getpid();
    if (is_sent) {
        _ = linux.kill(linux.getpid(), SIG.TERM);
        return;
    }
    const before = &previous[@intCast(sig)];
    if (@intFromPtr(before.handler.handler) <= 1) { // SIG_DFL is 0, SIG_IGN 1.
        const default = linux.Sigaction{ .handler = .{ .handler = null }, .mask = linux.empty_sigset, .flags = 0 };
        _ = sigaction(sig, &default, null);
        // The signal is blocked inside its handler and arrives on return.
        _ = linux.tgkill(linux.getpid(), linux.gettid(), sig);
    } else if (before.flags & linux.SA.SIGINFO != 0) {
        before.handler.sigaction.?(sig, info, context);
    } else {
        before.handler.handler.?(sig);
    }
}
