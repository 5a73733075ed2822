#!/bin/sh
# Process 1 of the guest: makes an initramfs look enough like a Debian machine, then becomes the agent.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t devtmpfs -o mode=0755 dev /dev
# What the kernel says before this line is no fault of what the lab tests.
echo 'lab: init' > /dev/console
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=0620,ptmxmode=0666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o mode=0755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs trace /sys/kernel/tracing
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
hostname lab
ip link set lo up
# A task stuck for a minute is a defect of the device under test, not a slow disk: there is no disk.
echo 60 > /proc/sys/kernel/hung_task_timeout_secs

# The command line is `lab.modules=a,b,c`, and where the agent has no virtio port, `lab.agent=TTY`.
for word in $(cat /proc/cmdline); do
  case $word in
    lab.modules=*) modules=$(echo "${word#*=}" | tr , ' ') ;;
    lab.agent=*) terminal=${word#*=} ;;
  esac
done
for module in $modules; do
  modprobe "$module" || echo "lab: modprobe $module failed" > /dev/console
done

if [ -n "$terminal" ]; then
  stty -F "$terminal" raw -echo
  exec /usr/lib/lab/agent "$terminal"
fi
for port in /sys/class/virtio-ports/*; do
  [ "$(cat "$port/name")" = lab.agent ] && exec /usr/lib/lab/agent "/dev/${port##*/}"
done
echo 'lab: the agent port is missing' > /dev/console
poweroff -f
