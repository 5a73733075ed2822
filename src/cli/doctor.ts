import { EXIT, type ExitCode, errnoName } from '../base/errors.ts'
import type { Bind } from '../card/card.ts'
import { type ControlQueueVerdict, controlQueueMeaning } from '../transport/vduse/control-queue-verdict.ts'
import { shown } from './shown.ts'

/** What the checks ask the host. Each answer is a value: a probe never throws. */
export interface Probes {
  readText(path: string): string | null
  exists(path: string): boolean
  /** Opens for reading and writing and closes again: 0, or a positive errno. */
  tryOpen(path: string): number
  kernelRelease(): string
  /**
   * Loads the program that steers a TAP and drops it again: 0, or a positive errno; null where that cannot be tried.
   */
  trySteering(): number | null
  /**
   * What the kernel would say to a VDUSE network device with a control queue; null where it cannot be asked. Makes no
   * device.
   */
  vduseControlQueue(): ControlQueueVerdict | null
}

/** What a card would need. Null where the user has not said. */
export interface Wanted {
  readonly tap: string | null
  readonly netns: string | null
  /** What is asked of VDUSE; null if the card is not to come about that way. */
  readonly vduse: { readonly bind: Bind | null; readonly attach: boolean } | null
  /** The card may come about over vhost-user. */
  readonly vhostUser: boolean
  readonly queuePairs: number
}

export type Verdict = 'ok' | 'warn' | 'fail'

/** How a driver comes to the card. */
export type Way = 'vduse' | 'vhost-user'

/** The answer of one check. `exitCode` counts when the verdict is `fail`. */
export interface Check {
  readonly name: string
  readonly verdict: Verdict
  readonly found: string
  readonly fix: string | null
  readonly exitCode: ExitCode
  /** What needs it; null: any card. */
  readonly way: Way | null
}

const ok = (name: string, found: string): Check => ({
  name,
  verdict: 'ok',
  found,
  fix: null,
  exitCode: EXIT.ok,
  way: null,
})
const warn = (name: string, found: string, fix: string): Check => ({
  name,
  verdict: 'warn',
  found,
  fix,
  exitCode: EXIT.ok,
  way: null,
})
const fail = (name: string, found: string, fix: string, exitCode: ExitCode): Check => ({
  name,
  verdict: 'fail',
  found,
  fix,
  exitCode,
  way: null,
})

/** How to get a kernel module that is not loaded. */
const moduleFix = (module: string, option: string, probes: Probes): string => {
  const release = probes.kernelRelease()
  const files = probes.readText(`/lib/modules/${release}/modules.dep`)
  if (files === null) return `modprobe ${module} on the host: the modules of ${release} are not to be seen from here`
  if (new RegExp(`/${module.replaceAll('_', '[-_]')}\\.ko`).test(files)) return `modprobe ${module}`
  return (
    `this kernel (${release}) has no ${module}: use one with ${option}, on Debian ` +
    'linux-image-amd64 of bookworm-backports or newer'
  )
}

const vduseModule = (probes: Probes): Check => {
  const name = 'vduse module'
  if (probes.exists('/sys/module/vduse') || probes.exists('/dev/vduse/control')) return ok(name, 'loaded')
  return fail(name, 'not loaded', moduleFix('vduse', 'CONFIG_VDPA_USER', probes), EXIT.deviceMissing)
}

/** Can a device node be opened? */
const node = (path: string, absentFix: string, deniedFix: string, probes: Probes): Check => {
  const errno = probes.tryOpen(path)
  if (errno === 0) return ok(path, 'opens')
  const found = `open: ${errnoName(errno)}`
  return ['EACCES', 'EPERM'].includes(errnoName(errno))
    ? fail(path, found, deniedFix, EXIT.permission)
    : fail(path, found, absentFix, EXIT.deviceMissing)
}

const vduseNode = (probes: Probes): Check =>
  node(
    '/dev/vduse/control',
    'modprobe vduse; in a container pass the device: --device /dev/vduse/control',
    'run as root, or give this user access to /dev/vduse/control by a udev rule',
    probes,
  )

/** What the control queue, or its absence, means for queue pairs. Null where the kernel cannot be asked. */
const controlQueue = (queuePairs: number, probes: Probes): Check | null => {
  const verdict = probes.vduseControlQueue()
  if (verdict === null) return null
  const name = 'VDUSE control queue'
  const found = controlQueueMeaning[verdict]
  if (verdict === 'no network devices') return fail(name, found, 'use Linux 6.10 or newer', EXIT.deviceMissing)
  return queuePairs === 1
    ? ok(name, found)
    : fail(name, found, 'leave --queue-pairs out, or serve over vhost-user with --socket-path', EXIT.usage)
}

const tunNode = (probes: Probes): Check =>
  node(
    '/dev/net/tun',
    'modprobe tun; in a container pass the device: --device /dev/net/tun',
    'chmod 0666 /dev/net/tun, its usual mode; in a container allow the device: --device /dev/net/tun',
    probes,
  )

/** Is the vDPA bus driver there that is to take the card? Only a warning where the user has not chosen it. */
const busDriver = (bind: 'virtio' | 'vhost', chosen: Bind | null, probes: Probes): Check => {
  const module = bind === 'virtio' ? 'virtio_vdpa' : 'vhost_vdpa'
  const name = `${module} module`
  // sysfs names the driver of vhost_vdpa with the same underscore: drivers/vhost/vdpa.c.
  if (probes.exists(`/sys/module/${module}`) || probes.exists(`/sys/bus/vdpa/drivers/${module}`))
    return ok(name, 'loaded')
  const fix = moduleFix(module, bind === 'virtio' ? 'CONFIG_VIRTIO_VDPA' : 'CONFIG_VHOST_VDPA', probes)
  return chosen === bind ? fail(name, 'not loaded', fix, EXIT.deviceMissing) : warn(name, 'not loaded', fix)
}

const netDriver = (probes: Probes): Check => {
  const name = 'virtio_net driver'
  if (probes.exists('/sys/bus/virtio/drivers/virtio_net')) return ok(name, 'loaded')
  return warn(name, 'not loaded', moduleFix('virtio_net', 'CONFIG_VIRTIO_NET', probes))
}

/** CAP_NET_ADMIN of linux/capability.h. */
const CAP_NET_ADMIN = 12n

/** `withoutIt`: what can be done all the same, or null. */
const capability = (withoutIt: string | null, probes: Probes): Check => {
  const name = 'CAP_NET_ADMIN'
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(probes.readText('/proc/self/status') ?? '')?.[1]
  if (effective === undefined) return warn(name, 'unknown: /proc/self/status has no CapEff', 'mount /proc')
  if (((BigInt(`0x${effective}`) >> CAP_NET_ADMIN) & 1n) === 1n) return ok(name, 'effective')
  const found = 'not in the effective set'
  const fix =
    'run as root, with AmbientCapabilities=CAP_NET_ADMIN in the unit, or with --cap-add NET_ADMIN in a container'
  return withoutIt === null
    ? fail(name, found, fix, EXIT.permission)
    : warn(name, found, `${fix}; without it only ${withoutIt} will do`)
}

/**
 * The kernel wants the capability in the initial user namespace: vduse_validate_config(),
 * drivers/vdpa/vdpa_user/vduse_dev.c.
 */
const userNamespace = (probes: Probes): Check => {
  const name = 'user namespace'
  const map = (probes.readText('/proc/self/uid_map') ?? '').trim().split(/\s+/).join(' ')
  if (map === '0 0 4294967295') return ok(name, 'initial')
  return fail(
    name,
    'not the initial one',
    'run outside rootless containers and `unshare --user`: VDUSE asks for rights in the initial one',
    EXIT.permission,
  )
}

/**
 * The netlink family of vDPA exists in the initial network namespace only (netnsok=false, drivers/vdpa/vdpa.c), and so
 * does this sysctl (net/core/sysctl_net_core.c).
 */
const networkNamespace = (attach: boolean, probes: Probes): Check => {
  const name = 'network namespace'
  if (probes.exists('/proc/sys/net/core/netdev_budget')) return ok(name, 'initial')
  const fix = 'start in the host network (--network host) and put only the TAP elsewhere with --netns; or --no-attach'
  return attach
    ? fail(name, 'not the initial one: the vDPA netlink family cannot be seen', fix, EXIT.permission)
    : warn(name, 'not the initial one', fix)
}

/** Receive-side scaling is done in the kernel, and is of use to several queue pairs only. */
const steering = (probes: Probes): Check | null => {
  const errno = probes.trySteering()
  if (errno === null) return null
  const name = 'eBPF'
  if (errno === 0) return ok(name, 'works: receive-side scaling can be offered')
  const fix =
    errnoName(errno) === 'ENOSYS'
      ? 'use a kernel with CONFIG_BPF_SYSCALL'
      : 'grant CAP_BPF: --cap-add BPF for a container, AmbientCapabilities=CAP_NET_ADMIN CAP_BPF in the unit'
  return warn(name, `bpf: ${errnoName(errno)}`, `${fix}; without it receive-side scaling is not offered`)
}

/** Flags of linux/if_tun.h as /sys/class/net/NAME/tun_flags shows them. */
const IFF_TUN = 0x0001
const IFF_MULTI_QUEUE = 0x0100

/**
 * Does the interface fit? Packet information and vnet header do not count: whoever attaches next decides about them,
 * whatever the interface was made with (drivers/net/tun.c, tun_set_iff).
 */
const tap = (ifname: string, wanted: Wanted, probes: Probes): Check => {
  const name = `TAP ${shown(ifname)}`
  if (wanted.netns !== null) return ok(name, `not looked at: it is in network namespace ${shown(wanted.netns)}`)
  const folder = `/sys/class/net/${ifname}`
  if (!probes.exists(folder)) return ok(name, 'does not exist: it will be created')
  const remove = `ip link del ${ifname}, so that it is created as needed; or choose another name`
  const text = probes.readText(`${folder}/tun_flags`)
  if (text === null) return fail(name, 'exists and is no TAP', 'choose another name', EXIT.runtime)
  const flags = Number(text)
  if ((flags & IFF_TUN) !== 0) return fail(name, 'a TUN interface: it has no Ethernet header', remove, EXIT.runtime)
  const hasMany = (flags & IFF_MULTI_QUEUE) !== 0
  if (hasMany !== wanted.queuePairs > 1)
    return fail(name, `created ${hasMany ? 'with' : 'without'} IFF_MULTI_QUEUE`, remove, EXIT.runtime)
  return ok(name, 'a TAP that fits')
}

/** What must be there for VDUSE. */
const vduseChecks = (wanted: Wanted, { bind, attach }: NonNullable<Wanted['vduse']>, probes: Probes): Check[] => {
  const queues = controlQueue(wanted.queuePairs, probes)
  return [
    vduseModule(probes),
    vduseNode(probes),
    ...(queues === null ? [] : [queues]),
    ...(bind !== 'vhost' && bind !== 'none' ? [busDriver('virtio', bind, probes), netDriver(probes)] : []),
    ...(bind !== 'virtio' && bind !== 'none' ? [busDriver('vhost', bind, probes)] : []),
    capability(null, probes),
    userNamespace(probes),
    networkNamespace(attach, probes),
  ]
}

/** Runs every check that applies, in the order in which one would repair. */
export const examine = (wanted: Wanted, probes: Probes): Check[] => {
  const { vduse, vhostUser, tap: ifname } = wanted
  const checks: Check[] = []
  const add = (way: Way | null, ...more: Check[]): void => void checks.push(...more.map((check) => ({ ...check, way })))
  if (vduse !== null) add('vduse', ...vduseChecks(wanted, vduse, probes))
  if (vhostUser) {
    add('vhost-user', capability('a TAP of this user', probes))
    const bpf = wanted.queuePairs > 1 ? steering(probes) : null
    if (bpf !== null) add('vhost-user', bpf)
  }
  add(null, tunNode(probes), ...(ifname === null ? [] : [tap(ifname, wanted, probes)]))
  return checks
}

const waysOf = (checks: readonly Check[]): readonly Way[] =>
  (['vduse', 'vhost-user'] as const).filter((way) => checks.some((check) => check.way === way))

/** The first check that keeps a card from running that way, or null. */
const obstacle = (checks: readonly Check[], way: Way): Check | null =>
  checks.find((check) => check.verdict === 'fail' && (check.way === way || check.way === null)) ?? null

/** 0 if a card could run one way or the other, else the code of the first check that failed. */
export const examinedExitCode = (checks: readonly Check[]): ExitCode => {
  if (waysOf(checks).some((way) => obstacle(checks, way) === null)) return EXIT.ok
  return checks.find((check) => check.verdict === 'fail')?.exitCode ?? EXIT.ok
}

const formatTable = (checks: readonly Check[], width: number): string =>
  checks
    .map((check) => {
      const line = `${check.verdict.padEnd(4)}  ${check.name.padEnd(width)}  ${check.found}\n`
      return check.fix === null ? line : `${line}      fix: ${check.fix}\n`
    })
    .join('')

const wayNames: Readonly<Record<Way, string>> = {
  vduse: 'over VDUSE, for this kernel or a VM (vDPA)',
  'vhost-user': 'over vhost-user, for QEMU, DPDK or UML (--socket-path PATH)',
}

/**
 * The checks as a table for a person: a fix stands below what it repairs. Where a card can come about in two ways, each
 * is judged.
 */
export const formatChecks = (checks: readonly Check[]): string => {
  const width = Math.max(...checks.map((check) => check.name.length))
  const ways = waysOf(checks)
  if (ways.length < 2) return formatTable(checks, width)
  const parts = [null, ...ways].map((way) => {
    const title = way === null ? 'for any card' : wayNames[way]
    return `${title}\n${formatTable(
      checks.filter((check) => check.way === way),
      width,
    )}`
  })
  const verdicts = ways.map((way) => {
    const failed = obstacle(checks, way)
    return (
      `${failed === null ? 'works' : 'no'.padEnd(5)}  ` +
      `${wayNames[way]}${failed === null ? '' : `: ${failed.name}: ${failed.found}`}\n`
    )
  })
  return `${parts.join('\n')}\n${verdicts.join('')}`
}

/** The checks as JSON for a program. `for` is null for what any card needs. */
export const checksToJson = (checks: readonly Check[]): string =>
  `${JSON.stringify(
    {
      ok: examinedExitCode(checks) === EXIT.ok,
      works: Object.fromEntries(waysOf(checks).map((way) => [way, obstacle(checks, way) === null])),
      checks: checks.map(({ name, verdict, found, fix, way }) => ({ name, verdict, found, fix, for: way })),
    },
    null,
    2,
  )}\n`
