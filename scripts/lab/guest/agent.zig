//! The guest's process 1 once /init has set the machine up. It runs shell commands for the host over one virtio-serial
//! port and carries their output back, many at a time. No libc and no allocator beyond mmap: it starts in milliseconds
//! under emulation, and nothing in the guest has to work for it to work.
//!
//! A frame, both ways, is { length: u32, id: u32, kind: u32 } little-endian, then `length` bytes. Ids are the host's.
//! The mirror of this protocol is scripts/lab/agent.ts.

const std = @import("std");
const linux = std.os.linux;

const Header = extern struct { length: u32, id: u32, kind: u32 };

/// Host to guest.
const spawn_command = 1; // u32 script length, script, NUL, then everything the command is to read from stdin
const signal_command = 2; // i32 signal number

/// Guest to host.
const hello = 10;
const stdout_data = 11;
const stderr_data = 12;
const exited = 13; // u32 exit code, or 128 + signal as a shell would say
const refused = 14; // text: why a command was not started

const max_commands = 128;
const max_frame_bytes = 32 << 20;

const Command = struct {
    id: u32 = 0,
    pid: i32 = 0,
    running: bool = false,
    /// Read ends of the command's stdout and stderr, or -1 once they have ended.
    pipes: [2]i32 = .{ -1, -1 },

    fn isFree(self: *const Command) bool {
        return !self.running and self.pipes[0] < 0 and self.pipes[1] < 0;
    }
};

var commands = [_]Command{.{}} ** max_commands;
var port: i32 = -1;
var chunk: [32 << 10]u8 = undefined;

const environment = [_:null]?[*:0]const u8{
    "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LANG=C.UTF-8",
    "TERM=linux",
};

pub fn main() u8 {
    const argv = std.os.argv;
    if (argv.len != 2) return die("usage: agent PORT");
    port = signed(linux.open(argv[1], linux.O.RDWR | linux.O.CLOEXEC, 0));
    if (port < 0) return die("agent: cannot open its port");

    // SIGCHLD is read from a descriptor, so that one poll waits for everything.
    var child_signals = linux.empty_sigset;
    linux.sigaddset(&child_signals, linux.SIG.CHLD);
    _ = linux.sigprocmask(linux.SIG.BLOCK, &child_signals, null);
    const children = signed(linux.signalfd(-1, &child_signals, linux.SFD.CLOEXEC | linux.SFD.NONBLOCK));
    if (children < 0) return die("agent: signalfd failed");

    send(0, hello, "");
    while (true) {
        var polled: [2 + 2 * max_commands]linux.pollfd = undefined;
        polled[0] = .{ .fd = port, .events = linux.POLL.IN, .revents = 0 };
        polled[1] = .{ .fd = children, .events = linux.POLL.IN, .revents = 0 };
        for (&commands, 0..) |*command, i| {
            for (command.pipes, 0..) |fd, side| {
                // A negative fd is skipped by poll, which is what an ended pipe needs.
                polled[2 + 2 * i + side] = .{ .fd = fd, .events = linux.POLL.IN, .revents = 0 };
            }
        }
        _ = linux.poll(&polled, polled.len, -1);

        for (&commands, 0..) |*command, i| {
            for (0..2) |side| {
                if (polled[2 + 2 * i + side].revents != 0) _ = forward(command, side);
            }
        }
        if (polled[1].revents != 0) reap(children);
        if (polled[0].revents != 0) receive();
    }
}

/// Takes one frame from the host. The host writes frames whole, so waiting for the rest of one is short.
fn receive() void {
    var header: Header = undefined;
    readPort(std.mem.asBytes(&header));
    if (header.length > max_frame_bytes) powerOff();
    const size = std.mem.alignForward(usize, @max(header.length, 1), std.mem.page_size);
    const mapped = linux.mmap(
        null,
        size,
        linux.PROT.READ | linux.PROT.WRITE,
        linux.MAP.PRIVATE | linux.MAP.ANONYMOUS,
        -1,
        0,
    );
    if (signed(mapped) < 0 and linux.getErrno(mapped) != .SUCCESS) powerOff();
    defer _ = linux.munmap(@ptrFromInt(mapped), size);
    const payload = @as([*]u8, @ptrFromInt(mapped))[0..header.length];
    readPort(payload);

    switch (header.kind) {
        spawn_command => spawn(header.id, payload),
        signal_command => if (payload.len == 4) {
            const number = std.mem.readInt(i32, payload[0..4], .Little);
            for (&commands) |*command| {
                // The command leads its own session: the whole group gets the signal, as from a terminal.
                if (command.running and command.id == header.id) _ = linux.kill(-command.pid, number);
            }
        },
        else => powerOff(),
    }
}

fn spawn(id: u32, payload: []u8) void {
    if (payload.len < 4) return send(id, refused, "malformed request");
    const script_length = std.mem.readInt(u32, payload[0..4], .Little);
    if (script_length + 1 > payload.len - 4 or payload[4 + script_length] != 0) {
        return send(id, refused, "malformed request");
    }
    const script = payload[4 .. 4 + script_length :0];
    const input = payload[4 + script_length + 1 ..];

    const command = for (&commands) |*candidate| {
        if (candidate.isFree()) break candidate;
    } else return send(id, refused, "too many commands at once");

    // stdin is a file with the whole input in it: a command that never reads cannot block anybody.
    const stdin = signed(linux.memfd_create("stdin", linux.MFD.CLOEXEC));
    if (stdin < 0) return send(id, refused, "memfd_create failed");
    defer _ = linux.close(stdin);
    var written: usize = 0;
    while (written < input.len) {
        const n = signed(linux.write(stdin, input.ptr + written, input.len - written));
        if (n <= 0) return send(id, refused, "no memory for stdin");
        written += @intCast(n);
    }
    _ = linux.lseek(stdin, 0, linux.SEEK.SET);

    var out: [2]i32 = undefined;
    var err: [2]i32 = undefined;
    if (signed(linux.pipe2(&out, linux.O.CLOEXEC)) < 0) return send(id, refused, "pipe2 failed");
    if (signed(linux.pipe2(&err, linux.O.CLOEXEC)) < 0) {
        _ = linux.close(out[0]);
        _ = linux.close(out[1]);
        return send(id, refused, "pipe2 failed");
    }
    const pid = signed(linux.fork());
    if (pid == 0) becomeShell(script, stdin, out[1], err[1]);
    _ = linux.close(out[1]);
    _ = linux.close(err[1]);
    if (pid < 0) {
        _ = linux.close(out[0]);
        _ = linux.close(err[0]);
        return send(id, refused, "fork failed");
    }
    for ([_]i32{ out[0], err[0] }) |fd| {
        _ = linux.fcntl(fd, linux.F.SETFL, linux.O.NONBLOCK);
    }
    command.* = .{ .id = id, .pid = pid, .running = true, .pipes = .{ out[0], err[0] } };
}

/// In the child: never returns.
fn becomeShell(script: [:0]const u8, stdin: i32, stdout: i32, stderr: i32) noreturn {
    _ = linux.syscall0(.setsid);
    _ = linux.dup2(stdin, 0);
    _ = linux.dup2(stdout, 1);
    _ = linux.dup2(stderr, 2);
    _ = linux.sigprocmask(linux.SIG.SETMASK, &linux.empty_sigset, null);
    const argv = [_:null]?[*:0]const u8{ "sh", "-c", script.ptr };
    _ = linux.execve("/bin/sh", &argv, &environment);
    linux.exit(127);
}

/// Moves one chunk of output to the host. False when there is nothing to read for now, or ever again.
fn forward(command: *Command, side: usize) bool {
    const n = signed(linux.read(command.pipes[side], &chunk, chunk.len));
    if (n > 0) {
        send(command.id, if (side == 0) stdout_data else stderr_data, chunk[0..@intCast(n)]);
        return true;
    }
    const again = -@as(i32, @intFromEnum(linux.E.AGAIN));
    const interrupted = -@as(i32, @intFromEnum(linux.E.INTR));
    if (n == again or n == interrupted) return false;
    _ = linux.close(command.pipes[side]);
    command.pipes[side] = -1;
    return false;
}

/// Collects every dead child, orphans included: this is process 1.
fn reap(children: i32) void {
    _ = linux.read(children, &chunk, chunk.len);
    while (true) {
        var status: u32 = 0;
        const pid = signed(linux.wait4(-1, &status, linux.W.NOHANG, null));
        if (pid <= 0) return;
        for (&commands) |*command| {
            if (!command.running or command.pid != pid) continue;
            // What it wrote comes before the news of its end. A daemon it left behind may hold the pipes: they stay
            // open, and drained, so that the daemon does not die of SIGPIPE.
            for (0..2) |side| {
                while (command.pipes[side] >= 0 and forward(command, side)) {}
            }
            const signal = status & 0x7f;
            const code: u32 = if (signal == 0) (status >> 8) & 0xff else 128 + signal;
            command.running = false;
            send(command.id, exited, std.mem.asBytes(&code));
        }
    }
}

fn send(id: u32, kind: u32, payload: []const u8) void {
    const header = Header{ .length = @intCast(payload.len), .id = id, .kind = kind };
    writePort(std.mem.asBytes(&header));
    writePort(payload);
}

fn writePort(bytes: []const u8) void {
    var done: usize = 0;
    while (done < bytes.len) {
        const n = signed(linux.write(port, bytes.ptr + done, bytes.len - done));
        if (n == -@as(i32, @intFromEnum(linux.E.INTR))) continue;
        if (n <= 0) powerOff();
        done += @intCast(n);
    }
}

fn readPort(bytes: []u8) void {
    var done: usize = 0;
    while (done < bytes.len) {
        const n = signed(linux.read(port, bytes.ptr + done, bytes.len - done));
        if (n == -@as(i32, @intFromEnum(linux.E.INTR))) continue;
        if (n <= 0) powerOff();
        done += @intCast(n);
    }
}

/// The host has gone, or spoke nonsense: without it the guest serves nobody.
fn powerOff() noreturn {
    _ = linux.reboot(.MAGIC1, .MAGIC2, .POWER_OFF, null);
    linux.exit(1);
}

fn die(text: []const u8) u8 {
    _ = linux.write(2, text.ptr, text.len);
    _ = linux.write(2, "\n", 1);
    return 1;
}

/// A raw system call's result: a count or descriptor, or -errno.
fn signed(result: usize) i32 {
    return @truncate(@as(isize, @bitCast(result)));
}
