import { EXIT, type ExitCode, errnoName } from '../base/errors.ts'
import type { Bind } from '../card/card.ts'
import { type ControlQueueVerdict, controlQueueMeaning } from '../transport/vduse/control-queue-verdict.ts'
import { shown } from './shown.ts'
import { wrapped } from './wrapped.ts'

/** Queries of the host that the checks need. A probe returns a value and never throws. */
export interface Probes {
  readText(path: string): string | null
  exists(path: string): boolean
  /** Opens for reading and writing and closes again: 0, or a positive errno. */
  tryOpen(path: string): number
  kernelRelease(): string
  /** Loads the steering program and closes it again: 0 or a positive errno; null where that cannot be tried. */
  trySteering(): number | null
  /** Whether the kernel accepts a VDUSE network device with a control queue; null if unknown. Creates no device. */
  vduseControlQueue(): ControlQueueVerdict | null
}

/** The card to check for. Null where the user has not specified it. */
export interface Wanted {
  readonly tap: string | null
  readonly netns: string | null
  /** Requirements on VDUSE; null to skip its checks. */
  readonly vduse: { readonly bind: Bind | null; readonly attach: boolean } | null
  /** Check vhost-user. */
  readonly vhostUser: boolean
  readonly queuePairs: number
}

export type Verdict = 'ok' | 'warn' | 'fail'

/** The transport between driver and card. */
export type TransportKind = 'vduse' | 'vhost-user'

/** The result of one check. `exitCode` applies when the verdict is `fail`. */
export interface Check {
  readonly name: string
  readonly verdict: Verdict
  readonly found: string
  readonly fix: string | null
  readonly exitCode: ExitCode
  /** The transport that needs it; null for any card. */
  readonly transport: TransportKind | null
}

/** A check that found what a card needs. */
export const ok = (name: string, found: string): Check => ({
  name,
  verdict: 'ok',
  found,
  fix: null,
  exitCode: EXIT.ok,
  transport: null,
})
const warn = (name: string, found: string, fix: string): Check => ({
  name,
  verdict: 'warn',
  found,
  fix,
  exitCode: EXIT.ok,
  transport: null,
})
/** A check that found why a card cannot run, and `fix`, what to do. */
export const fail = (name: string, found: string, fix: string, exitCode: ExitCode): Check => ({
  name,
  verdict: 'fail',
  found,
  fix,
  exitCode,
  transport: null,
})

/** The fix for a kernel module that is not loaded. */
const moduleFix = (module: string, option: string, probes: Probes): string => {
  const release = probes.kernelRelease()
  const files = probes.readText(`/lib/modules/${release}/modules.dep`)
  if (files === null) return `modprobe ${module} on the host: /lib/modules/${release} is not visible here`
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

/** Checks that a device node can be opened. */
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

/** Checks the number of queue pairs against the kernel's support of a control queue. Null if that is unknown. */
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

/** Checks the vDPA bus driver for the card. Only a warning if the user has not chosen it. */
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

/** `withoutIt`: what works without the capability, or null. */
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
 * VDUSE requires the capability in the initial user namespace: vduse_validate_config(),
 * drivers/vdpa/vdpa_user/vduse_dev.c.
 */
const userNamespace = (probes: Probes): Check => {
  const name = 'user namespace'
  const map = (probes.readText('/proc/self/uid_map') ?? '').trim().split(/\s+/).join(' ')
  if (map === '0 0 4294967295') return ok(name, 'initial')
  return fail(
    name,
    'not the initial one',
    'run outside rootless containers and `unshare --user`: VDUSE requires CAP_NET_ADMIN in the initial one',
    EXIT.permission,
  )
}

/**
 * The vDPA netlink family exists only in the initial network namespace (netnsok=false, drivers/vdpa/vdpa.c), as this
 * sysctl does (net/core/sysctl_net_core.c).
 */
const networkNamespace = (attach: boolean, probes: Probes): Check => {
  const name = 'network namespace'
  if (probes.exists('/proc/sys/net/core/netdev_budget')) return ok(name, 'initial')
  const fix = 'start in the host network (--network host) and move the TAP with --netns; or pass --no-attach'
  return attach
    ? fail(name, 'not the initial one: the vDPA netlink family cannot be seen', fix, EXIT.permission)
    : warn(name, 'not the initial one', 'run `vdpa dev add` and `vdpa dev del` in the initial one')
}

/** Receive-side scaling runs in the kernel as an eBPF program, and only with several queue pairs. */
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
 * Checks an existing interface. Packet information and vnet header are not checked: the next attach decides about them,
 * however the interface was created (drivers/net/tun.c, tun_set_iff).
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

/** Checks for VDUSE. */
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

/** Runs every check that applies, in the order in which to fix them. */
export const examine = (wanted: Wanted, probes: Probes): Check[] => {
  const { vduse, vhostUser, tap: ifname } = wanted
  const checks: Check[] = []
  const add = (transport: TransportKind | null, ...more: Check[]): void =>
    void checks.push(...more.map((check) => ({ ...check, transport })))
  if (vduse !== null) add('vduse', ...vduseChecks(wanted, vduse, probes))
  if (vhostUser) {
    add('vhost-user', capability('a TAP of this user', probes))
    const bpf = wanted.queuePairs > 1 ? steering(probes) : null
    if (bpf !== null) add('vhost-user', bpf)
  }
  add(null, tunNode(probes), ...(ifname === null ? [] : [tap(ifname, wanted, probes)]))
  return checks
}

const transportsOf = (checks: readonly Check[]): readonly TransportKind[] =>
  (['vduse', 'vhost-user'] as const).filter((transport) => checks.some((check) => check.transport === transport))

/** The first failed check for the transport, or null. */
const firstFailure = (checks: readonly Check[], transport: TransportKind): Check | null =>
  checks.find((check) => check.verdict === 'fail' && (check.transport === transport || check.transport === null)) ??
  null

/** 0 if a card could run over at least one transport, else the code of the first failed check. */
export const examinedExitCode = (checks: readonly Check[]): ExitCode => {
  if (transportsOf(checks).some((transport) => firstFailure(checks, transport) === null)) return EXIT.ok
  return checks.find((check) => check.verdict === 'fail')?.exitCode ?? EXIT.ok
}

const formatTable = (checks: readonly Check[], width: number): string =>
  checks
    .map((check) => {
      const line = wrapped(`${check.verdict.padEnd(4)}  ${check.name.padEnd(width)}  `, check.found)
      return check.fix === null ? line : line + wrapped('      fix: ', check.fix)
    })
    .join('')

const transportNames: Readonly<Record<TransportKind, string>> = {
  vduse: 'over VDUSE, for this kernel or a VM (vDPA)',
  'vhost-user': 'over vhost-user, for QEMU, DPDK or UML (--socket-path PATH)',
}

/** The checks as a table, each fix below its check. With two transports, a verdict for each follows. */
export const formatChecks = (checks: readonly Check[]): string => {
  const width = Math.max(...checks.map((check) => check.name.length))
  const transports = transportsOf(checks)
  if (transports.length < 2) return formatTable(checks, width)
  const parts = [null, ...transports].map((transport) => {
    const title = transport === null ? 'for any card' : transportNames[transport]
    return `${title}\n${formatTable(
      checks.filter((check) => check.transport === transport),
      width,
    )}`
  })
  const verdicts = transports.map((transport) => {
    const failed = firstFailure(checks, transport)
    const verdict = failed === null ? 'works  ' : 'no     '
    return wrapped(verdict, `${transportNames[transport]}${failed === null ? '' : `: ${failed.name}: ${failed.found}`}`)
  })
  return `${parts.join('\n')}\n${verdicts.join('')}`
}

/** The checks as JSON. `for` is null for a check that applies to any card. */
export const checksToJson = (checks: readonly Check[]): string =>
  `${JSON.stringify(
    {
      ok: examinedExitCode(checks) === EXIT.ok,
      works: Object.fromEntries(
        transportsOf(checks).map((transport) => [transport, firstFailure(checks, transport) === null]),
      ),
      checks: checks.map(({ name, verdict, found, fix, transport }) => ({ name, verdict, found, fix, for: transport })),
    },
    null,
    2,
  )}\n`
