/** Which end is where, over VDUSE: all of it in one kernel. */
export const VDUSE_DRAWING = [
  '+-- Debian kernel, in QEMU ---------------------------------------------+',
  '|                                                                       |',
  '|   eth0 10.0.0.2                vduse-net                10.0.0.1 tap0 |',
  '|   virtio_net driver <--VDUSE--> the card <--/dev/net/tun--> host side |',
  '|                                                                       |',
  '+-----------------------------------------------------------------------+',
] as const

/** The same over vhost-user: the driver is in another process. */
export const VHOST_USER_DRAWING = [
  '+-- User Mode Linux ---+            +-- this machine, in a namespace ---+',
  '|  eth0 10.0.0.2       |  vhost-    |  vduse-net         10.0.0.1 tap0  |',
  '|  virtio_net driver   | <--user--> |  the card <--/dev/net/tun--> host |',
  '+-- then DPDK ---------+            +-----------------------------------+',
] as const
