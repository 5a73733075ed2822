#!/bin/sh
# enter.sh ROOT COMMAND...: runs a command with the folder ROOT as its root, with /proc, /sys and the devices that a
# Debian machine has. To be run by root in a mount and a PID namespace of its own, which take all of it away again.
# Not chroot: who is in one may not have user namespaces.
set -eu
root=$1
shift

mount --make-rprivate /
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount -t sysfs -o nosuid,nodev,noexec sysfs sys
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev

# Modes as udev sets them on Debian. Whether KVM and TAPs are there is up to the machine around.
device() {
  mknod -m "$1" "dev/$2" c "$3" "$4"
}
device 666 null 1 3
device 666 zero 1 5
device 666 full 1 7
device 666 random 1 8
device 666 urandom 1 9
device 666 tty 5 0
if [ -c /dev/kvm ]; then device 660 kvm 10 232; fi
mkdir dev/net dev/pts dev/shm
if [ -c /dev/net/tun ]; then device 666 net/tun 10 200; fi
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr

mkdir -p .outside
pivot_root . .outside
cd /
umount -l .outside
exec "$@"
