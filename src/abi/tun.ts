/** The TUN/TAP driver's interface: linux/if_tun.h. Names are the header's. */
import { array, struct, u8, u16 } from './layout.ts'

/** _IOW('T', 202, int), though it takes a `struct ifreq` and writes the name back. */
export const TUNSETIFF = 0x400454ca
/** _IOW('T', 203, int). The argument is the value itself: 1 keeps the interface when its last descriptor is closed. */
export const TUNSETPERSIST = 0x400454cb
/** _IOW('T', 208, unsigned int). The argument is the value itself. */
export const TUNSETOFFLOAD = 0x400454d0
/** _IOW('T', 209, unsigned int), though it reads a `struct tun_filter`; count 0: every address passes. */
export const TUNSETTXFILTER = 0x400454d1
/** _IOR('T', 210, unsigned int), though it fills a `struct ifreq`. */
export const TUNGETIFF = 0x800454d2
/** _IOW('T', 216, int). */
export const TUNSETVNETHDRSZ = 0x400454d8
/** _IOW('T', 217, int), though it takes a `struct ifreq`. */
export const TUNSETQUEUE = 0x400454d9
/** _IOW('T', 220, int). */
export const TUNSETVNETLE = 0x400454dc
/** _IOR('T', 224, int), though it reads an eBPF program's descriptor, or -1 for none. Since Linux 4.16. */
export const TUNSETSTEERINGEBPF = 0x800454e0
/** _IOR('T', 225, int), though it reads an eBPF program's descriptor, or -1 for none. Since Linux 4.16. */
export const TUNSETFILTEREBPF = 0x800454e1
/** _IOW('T', 226, int). Since Linux 5.0. */
export const TUNSETCARRIER = 0x400454e2
/** _IO('T', 227): an fd of the interface's network namespace. Since Linux 5.2; needs CAP_NET_ADMIN there. */
export const TUNGETDEVNETNS = 0x54e3

/** `ifr_flags` of TUNSETIFF and TUNGETIFF. */
export const IFF_TUN = 0x0001
export const IFF_TAP = 0x0002
export const IFF_MULTI_QUEUE = 0x0100
/** `ifr_flags` of TUNSETQUEUE. */
export const IFF_ATTACH_QUEUE = 0x0200
export const IFF_DETACH_QUEUE = 0x0400
export const IFF_NO_PI = 0x1000
export const IFF_VNET_HDR = 0x4000
/** Create only: EBUSY if the name is taken. */
export const IFF_TUN_EXCL = 0x8000

/** TUNSETOFFLOAD: which offloaded frames the reader of the descriptor accepts. */
export const TUN_F_CSUM = 0x01
export const TUN_F_TSO4 = 0x02
export const TUN_F_TSO6 = 0x04
export const TUN_F_TSO_ECN = 0x08
/** Since Linux 6.2, and only together with TUN_F_USO6. */
export const TUN_F_USO4 = 0x20
export const TUN_F_USO6 = 0x40

/** The part that TUN uses: of each union the member named here, and padding up to the largest. linux/if.h. */
export const IFREQ = struct('ifreq', { ifr_name: array(u8, 16), ifr_flags: u16, padding: array(u8, 22) })

/** Bytes of `struct tun_filter` (flags and count, u16 each); the addresses follow. */
export const TUN_FILTER_BYTES = 4

/** Length of an interface name with its NUL (linux/if.h). */
export const IFNAMSIZ = 16
