import type { z } from 'zod'
import { featureList, knownFeatures } from './feature-list.ts'
import {
  cpuList,
  deviceName,
  fileMode,
  filePath,
  groupName,
  interfaceName,
  listenAddress,
  macAddress,
  networkNamespace,
  oneOf,
  powerOfTwo,
  wholeNumber,
  yesOrNo,
} from './value-schemas.ts'

/** A setting: from a flag, an environment variable, or its default. */
export interface Setting<T> {
  /** In commander's notation, `--mtu <bytes>`; a `--no-` flag turns a boolean off. --help shows the first. */
  readonly flags: readonly string[]
  readonly env: string
  readonly group: string
  readonly help: string
  readonly schema: z.ZodType<T, string>
  /** What the user should do if the value is invalid. */
  readonly hint: string
  /** The default, as --help describes it. */
  readonly fallback?: string
}

const setting = <T>(value: Setting<T>): Setting<T> => value

/** VIRTIO 1.2 §5.1.4.1: an MTU below 68 cannot carry IPv4; the field has 16 bits. */
export const MTU_MIN = 68
export const MTU_MAX = 65535

/**
 * VIRTQUEUE_MAX_SIZE of QEMU, which uses vhost-vdpa. A larger ring of 64 KiB receive buffers would also exceed VDUSE's
 * bounce buffer.
 */
export const QUEUE_SIZE_MAX = 1024

/** A longer time would have no further effect. */
const BUSY_POLL_MAX_US = 1_000_000

/** Each pair has a worker thread and a TAP queue. */
const QUEUE_PAIRS_MAX = 8

export const logLevels = ['trace', 'debug', 'info', 'warning', 'error', 'fatal'] as const
export const logFormats = ['auto', 'json', 'pretty'] as const
export const binds = ['virtio', 'vhost', 'none'] as const

/** All settings of `run`, in the order of --help. Keys are those that commander derives from the flags. */
export const settings = {
  tap: setting({
    flags: ['--tap <ifname>'],
    env: 'VDUSE_NET_TAP',
    group: 'Network:',
    help: 'TAP interface to bridge to; created if there is none',
    schema: interfaceName,
    hint: 'give an interface name of 1 to 15 characters, like --tap tap0',
  }),
  tapFd: setting({
    flags: ['--tap-fd <n>'],
    env: 'VDUSE_NET_TAP_FD',
    group: 'Network:',
    help: 'use an inherited descriptor of a TAP, instead of --tap',
    schema: wholeNumber(3, 2 ** 20),
    hint: 'give the number of an inherited descriptor that TUNSETIFF has made a TAP, like --tap-fd 3; or use --tap',
  }),
  tapPersist: setting({
    flags: ['--tap-persist'],
    env: 'VDUSE_NET_TAP_PERSIST',
    group: 'Network:',
    help: 'keep the TAP, its addresses and its place in a bridge when the process ends or dies',
    schema: yesOrNo,
    hint: 'set true or false',
  }),
  mac: setting({
    flags: ['--mac <address>'],
    env: 'VDUSE_NET_MAC',
    group: 'Network:',
    help: "the card's MAC address",
    fallback: 'derived from machine-id and name, the same at every start',
    schema: macAddress,
    hint: 'give a unicast address, like --mac 02:00:5e:10:00:01, or leave it out for a stable one',
  }),
  mtu: setting({
    flags: ['--mtu <bytes>'],
    env: 'VDUSE_NET_MTU',
    group: 'Network:',
    help: `MTU of the card and the TAP, ${MTU_MIN} to ${MTU_MAX}`,
    fallback: "the TAP's; for one that joins a bridge the bridge's; else 1500",
    schema: wholeNumber(MTU_MIN, MTU_MAX),
    hint: `give ${MTU_MIN} to ${MTU_MAX} bytes; 1500 is usual, 9000 for jumbo frames`,
  }),
  bridge: setting({
    flags: ['--bridge <ifname>'],
    env: 'VDUSE_NET_BRIDGE',
    group: 'Network:',
    help: 'put the TAP into this bridge',
    schema: interfaceName,
    hint: 'give the name of an existing bridge, like --bridge br0',
  }),
  netns: setting({
    flags: ['--netns <name>'],
    env: 'VDUSE_NET_NETNS',
    group: 'Network:',
    help: 'network namespace of the TAP: a name of `ip netns`, or a path',
    schema: networkNamespace,
    hint: 'give a name that `ip netns list` shows, or a path like /proc/1234/ns/net',
  }),
  vnetHdr: setting({
    flags: ['--no-vnet-hdr'],
    env: 'VDUSE_NET_VNET_HDR',
    group: 'Network:',
    help: 'use a TAP without vnet header: the card does checksums and segmentation itself, slower',
    schema: yesOrNo,
    hint: 'set true or false',
  }),

  name: setting({
    flags: ['--name <name>'],
    env: 'VDUSE_NET_NAME',
    group: 'Device:',
    help: 'name of the device in /dev/vduse and on the vDPA bus',
    fallback: "the TAP's",
    schema: deviceName,
    hint: 'give 1 to 64 letters, digits or . _ + @ -, like --name net0',
  }),
  bind: setting({
    flags: ['--bind <driver>'],
    env: 'VDUSE_NET_BIND',
    group: 'Device:',
    help: 'vDPA bus driver: virtio (for this kernel), vhost (/dev/vhost-vdpa-N, for a VM), none',
    fallback: 'virtio',
    schema: oneOf(binds),
    hint: 'give virtio, vhost or none',
  }),
  attach: setting({
    flags: ['--no-attach', '--attach'],
    env: 'VDUSE_NET_ATTACH',
    group: 'Device:',
    help: 'do not add the device to the vDPA bus: `vdpa dev add` does it',
    schema: yesOrNo,
    hint: 'set true or false',
  }),
  queueSize: setting({
    flags: ['--queue-size <n>'],
    env: 'VDUSE_NET_QUEUE_SIZE',
    group: 'Device:',
    help: `largest ring, a power of two up to ${QUEUE_SIZE_MAX}`,
    fallback: `256 over VDUSE, ${QUEUE_SIZE_MAX} over vhost-user`,
    schema: powerOfTwo(2, QUEUE_SIZE_MAX),
    hint: `give a power of two up to ${QUEUE_SIZE_MAX}, like 256`,
  }),
  features: setting({
    flags: ['--features <list>'],
    env: 'VDUSE_NET_FEATURES',
    group: 'Device:',
    help: 'virtio features to offer (+name) or not (-name), like -host_tso4,+mrg_rxbuf',
    fallback: 'all that the TAP can do',
    schema: featureList,
    hint: `give +name or -name of ${knownFeatures.join(' ')}`,
  }),

  queuePairs: setting({
    flags: ['--queue-pairs <n>'],
    env: 'VDUSE_NET_QUEUE_PAIRS',
    group: 'Device:',
    help: `pairs of a receive and a transmit queue, 1 to ${QUEUE_PAIRS_MAX}; over VDUSE 1`,
    fallback: '1',
    schema: wholeNumber(1, QUEUE_PAIRS_MAX),
    hint: `give 1 to ${QUEUE_PAIRS_MAX}; more than the CPUs of this host only cost`,
  }),

  busyPoll: setting({
    flags: ['--busy-poll <us>'],
    env: 'VDUSE_NET_BUSY_POLL',
    group: 'Device:',
    help: 'microseconds to poll before sleeping: shorter round trips for CPU time; 0 disables it',
    fallback: 'up to 50 while packets arrive in quick succession',
    schema: wholeNumber(0, BUSY_POLL_MAX_US),
    hint: `give 0 to ${BUSY_POLL_MAX_US} microseconds, like 50`,
  }),
  cpus: setting({
    flags: ['--cpus <list>'],
    env: 'VDUSE_NET_CPUS',
    group: 'Device:',
    help: 'processors for the queue workers, like 2,4-6: one each, in turn',
    fallback: "the kernel's choice",
    schema: cpuList,
    hint: 'give processor numbers and ranges, like 0 or 2,4-6',
  }),

  socketPath: setting({
    flags: ['-s, --socket-path <path>'],
    env: 'VDUSE_NET_SOCKET_PATH',
    group: 'vhost-user:',
    help: 'serve a VM, DPDK or UML on this socket instead of VDUSE; @NAME is an abstract one',
    schema: filePath,
    hint: 'give a path, like --socket-path /run/vn.sock',
  }),
  client: setting({
    flags: ['--client'],
    env: 'VDUSE_NET_CLIENT',
    group: 'vhost-user:',
    help: 'connect to the socket, on which the front-end listens; reconnect whenever it is lost',
    schema: yesOrNo,
    hint: 'set true or false',
  }),
  socketMode: setting({
    flags: ['--socket-mode <mode>'],
    env: 'VDUSE_NET_SOCKET_MODE',
    group: 'vhost-user:',
    help: 'mode of that socket: a front-end must be able to write to it',
    fallback: 'by umask; 660 with --socket-group',
    schema: fileMode,
    hint: 'give a mode in octal, like --socket-mode 660',
  }),
  socketGroup: setting({
    flags: ['--socket-group <group>'],
    env: 'VDUSE_NET_SOCKET_GROUP',
    group: 'vhost-user:',
    help: 'group of that socket, by name or number, like kvm',
    fallback: "the process's",
    schema: groupName,
    hint: 'give a group that `getent group` shows, or its number',
  }),
  fd: setting({
    flags: ['--fd <n>'],
    env: 'VDUSE_NET_FD',
    group: 'vhost-user:',
    help: 'use an inherited connected socket, instead of --socket-path; the card ends with it',
    schema: wholeNumber(3, 2 ** 20),
    hint: 'give the number of an inherited descriptor, like --fd 3',
  }),
  inBand: setting({
    flags: ['--in-band'],
    env: 'VDUSE_NET_IN_BAND',
    group: 'vhost-user:',
    help: 'offer kicks and calls as messages, for simulations; User Mode Linux uses them then, and is slower',
    schema: yesOrNo,
    hint: 'set true or false',
  }),
  oneOff: setting({
    flags: ['-1, --one-off'],
    env: 'VDUSE_NET_ONE_OFF',
    group: 'vhost-user:',
    help: 'end when the first front-end disconnects',
    schema: yesOrNo,
    hint: 'set true or false',
  }),

  admin: setting({
    flags: ['--admin <address>'],
    env: 'VDUSE_NET_ADMIN',
    group: 'Observe:',
    help: 'where the admin API listens: unix:PATH, a loopback HOST:PORT, or off',
    fallback: 'unix:/run/vduse-net/NAME.sock',
    schema: listenAddress,
    hint: 'give unix:/PATH, 127.0.0.1:PORT with --admin-token-file, or off; reach it from elsewhere through ssh -L',
  }),
  adminTokenFile: setting({
    flags: ['--admin-token-file <file>'],
    env: 'VDUSE_NET_ADMIN_TOKEN_FILE',
    group: 'Observe:',
    help: 'file (mode 0600) with the bearer token of an admin API on TCP',
    schema: filePath,
    hint: 'make one: (umask 077; openssl rand -hex 32 > admin.token)',
  }),
  logLevel: setting({
    flags: ['--log-level <level>'],
    env: 'VDUSE_NET_LOG_LEVEL',
    group: 'Observe:',
    help: `lowest level logged: ${logLevels.join(', ')}`,
    fallback: 'info',
    schema: oneOf(logLevels),
    hint: `give one of ${logLevels.join(', ')}`,
  }),
  logFormat: setting({
    flags: ['--log-format <format>'],
    env: 'VDUSE_NET_LOG_FORMAT',
    group: 'Observe:',
    help: 'auto, json or pretty; auto is pretty on a terminal',
    fallback: 'auto',
    schema: oneOf(logFormats),
    hint: `give one of ${logFormats.join(', ')}`,
  }),

  pid: setting({
    flags: ['-P, --pid <file>'],
    env: 'VDUSE_NET_PID',
    group: 'Lifecycle:',
    help: 'write the process id to this file, and remove it at the end',
    schema: filePath,
    hint: 'give a path, like --pid /run/vduse-net/tap0.pid',
  }),
} as const

export type SettingKey = keyof typeof settings

/** The values of a complete command line; absent where nothing was set. */
export type SettingValues = { readonly [K in SettingKey]?: z.output<(typeof settings)[K]['schema']> }

export const settingKeys = Object.keys(settings) as SettingKey[]
