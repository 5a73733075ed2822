import { EXIT, UserError } from '../base/errors.ts'
import { type ListenAddress, OWN_FOLDER, SOCKET_PATH_MAX_BYTES } from '../base/listen-address.ts'
import { deriveMac, deriveTapMac, type Mac } from '../base/mac.ts'
import type { Bind } from '../card/card.ts'
import type { Tuning } from '../card/card-workers.ts'
import type { VhostUserSocket } from '../card/vhost-user-card.ts'
import { isAbstract } from '../sys/unix-socket.ts'
import type { FeatureChoice } from './feature-list.ts'
import type { Host } from './host.ts'
import { type Layer, resolveLayers, textOf, unknownVariables } from './layers.ts'
import { type logFormats, type logLevels, QUEUE_SIZE_MAX, type SettingKey, type SettingValues } from './settings.ts'
import { shown } from './shown.ts'
import { deviceName } from './value-schemas.ts'

export type LogLevel = (typeof logLevels)[number]
export type LogFormat = (typeof logFormats)[number]

/** The configuration of `run`, validated and frozen. */
export interface Config {
  /** Name of the VDUSE device and of the vDPA device. */
  readonly name: string
  readonly tap: {
    readonly name: string
    /** An inherited descriptor of the TAP; null to open it by name. */
    readonly fd: number | null
    /** MAC for a created interface; null with {@link fd}. */
    readonly mac: Mac | null
    /** Keep a created interface when the process ends. */
    readonly persist: boolean
    readonly vnetHdr: boolean
    readonly bridge: string | null
    /** A name below /run/netns, or an absolute path. */
    readonly netns: string | null
  }
  readonly mac: Mac
  /** Bytes, or null for the TAP's own. */
  readonly mtu: number | null
  readonly bind: Bind
  readonly attach: boolean
  readonly queueSize: number
  readonly queuePairs: number
  readonly tuning: Tuning
  readonly transport:
    | { readonly kind: 'vduse' }
    /** `inBand`: offer VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS. */
    | { readonly kind: 'vhost-user'; readonly socket: VhostUserSocket; readonly inBand: boolean }
  readonly features: FeatureChoice
  readonly admin: { readonly listen: ListenAddress; readonly tokenFile: string | null }
  readonly log: { readonly level: LogLevel; readonly format: LogFormat }
  readonly pidFile: string | null
}

/** VIRTIO 1.2 §5.1.4.1 and RFC 8200 §5: IPv6 needs links of 1280 bytes. */
const IPV6_MTU_MIN = 1280

/**
 * Linux stops a transmit queue with fewer free descriptors than MAX_SKB_FRAGS + 2, the most that a frame needs:
 * drivers/net/virtio_net.c.
 */
const LINUX_QUEUE_SIZE_MIN = 32

const usage = (message: string, hint: string): UserError => new UserError(message, hint, EXIT.usage)

/** The interface of a TUN descriptor: `iff:` of its fdinfo, drivers/net/tun.c. */
const nameOfTapFd = (fd: number, host: Host): string => {
  const info = host.readText(`/proc/self/fdinfo/${fd}`)
  if (info === null)
    throw usage(`--tap-fd ${fd}: not an open descriptor`, 'open it in the parent, without close-on-exec, or use --tap')
  const name = /^iff:\s*(\S+)$/m.exec(info)?.[1]
  if (name === undefined)
    throw usage(`--tap-fd ${fd}: not a TAP`, 'open /dev/net/tun and do TUNSETIFF with IFF_TAP before, or use --tap')
  return name
}

/** A seed unique to this host and the same at every start: machine-id(5), or the host name if there is none yet. */
const hostSeed = (host: Host): string => {
  const id = host.readText('/etc/machine-id')?.trim() ?? ''
  return id === '' || id === 'uninitialized' ? host.hostname() : id
}

/** Ranges of ascending numbers: `0-3,6`. */
const rangesOf = (numbers: readonly number[]): string =>
  numbers
    .filter((number, index) => number !== numbers[index - 1]! + 1)
    .map((first) => {
      let last = first
      while (numbers.includes(last + 1)) last++
      return last === first ? `${first}` : `${first}-${last}`
    })
    .join(',')

/** Requested processors that the process may not run on, and those that it may; null if all requested are allowed. */
const absentCpus = (requested: readonly number[], host: Host): { cpus: string; allowed: string } | null => {
  const allowed = requested.length === 0 ? null : host.allowedCpus()
  if (allowed === null) return null
  const absent = requested.filter((cpu) => !allowed.includes(cpu)).sort((a, b) => a - b)
  return absent.length === 0 ? null : { cpus: rangesOf([...new Set(absent)]), allowed: rangesOf(allowed) }
}

const freeze = <T>(value: T): T => {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value)
    for (const part of Object.values(value)) freeze(part)
  }
  return value
}

/** Keys of settings that only mean something for VDUSE. */
const vduseOnly = ['bind', 'attach'] as const
/** Keys of settings that only mean something with --socket-path. */
const socketOnly = ['client', 'oneOff', 'socketMode', 'socketGroup'] as const
/** Mode of a socket whose group was given, but not its mode. */
const GROUP_SOCKET_MODE = 0o660
/** Keys of settings that only mean something for a socket that the card creates in the file system. */
const socketFileOnly = ['socketMode', 'socketGroup'] as const

/** A setting as the user has written it: `--mtu 5` or `VDUSE_NET_MTU=5`. */
type Spelled = (key: SettingKey) => string

/** The id of a group, from /etc/group. */
const gidOf = (group: string, spelled: string, host: Host): number => {
  if (/^[0-9]{1,9}$/.test(group)) return Number(group)
  for (const line of (host.readText('/etc/group') ?? '').split('\n')) {
    const [name, , gid] = line.split(':')
    if (name === group && gid !== undefined) return Number(gid)
  }
  throw usage(`${spelled}: not in /etc/group`, 'give a group of `getent group`; one from elsewhere by its number')
}

/** Who may connect to the socket at `path`. */
const socketAccessOf = (values: SettingValues, path: string, spelled: Spelled, host: Host) => {
  const { client = false, socketMode, socketGroup } = values
  for (const key of socketFileOnly) {
    if (values[key] === undefined) continue
    if (client) throw usage(`${spelled(key)}: with --client the socket is the front-end's`, 'leave one of them out')
    if (isAbstract(path))
      throw usage(
        `${spelled(key)}: the abstract socket ${shown(path)} has neither mode nor group`,
        'give --socket-path a path, or leave it out',
      )
  }
  const gid = socketGroup === undefined ? null : gidOf(socketGroup, spelled('socketGroup'), host)
  // A group that may not write to the socket could not connect, which is what it was named for.
  return { mode: socketMode ?? (gid === null ? null : GROUP_SOCKET_MODE), gid }
}

const transportOf = (values: SettingValues, spelled: Spelled, host: Host): Config['transport'] => {
  const { socketPath, fd, client = false, oneOff = false, inBand = false } = values
  if (socketPath !== undefined && fd !== undefined)
    throw usage(`${spelled('fd')}: not together with ${spelled('socketPath')}`, 'keep one of them')
  if (socketPath === undefined) {
    for (const key of socketOnly)
      if (values[key] !== undefined && values[key] !== false)
        throw usage(`${spelled(key)}: needs --socket-path`, 'give --socket-path, or leave it out')
  }
  if (socketPath === undefined && fd === undefined) {
    if (inBand) throw usage(`${spelled('inBand')}: only for vhost-user`, 'give --socket-path, or leave it out')
    return { kind: 'vduse' }
  }
  for (const key of vduseOnly)
    if (values[key] !== undefined)
      throw usage(`${spelled(key)}: only for VDUSE, not with a vhost-user socket`, 'leave one of them out')
  if (fd !== undefined) return { kind: 'vhost-user', socket: { kind: 'fd', fd }, inBand }
  if (socketPath === '@')
    throw usage(`${spelled('socketPath')}: an abstract socket without a name`, 'give it one, like @vn')
  if (Buffer.byteLength(socketPath!) > SOCKET_PATH_MAX_BYTES)
    throw usage(`${spelled('socketPath')}: too long for a socket`, 'give a shorter path')
  const access = socketAccessOf(values, socketPath!, spelled, host)
  return { kind: 'vhost-user', socket: { kind: 'path', path: socketPath!, client, oneOff, ...access }, inBand }
}

/** The configuration, and warnings about it. */
export interface Resolved {
  readonly config: Config
  readonly warnings: readonly string[]
}

/** The TAP's name, from --tap or from the descriptor of --tap-fd. */
const tapNameOf = (values: SettingValues, spelled: Spelled, host: Host): string => {
  if (values.tap !== undefined && values.tapFd !== undefined)
    throw usage(`${spelled('tap')}: not together with ${spelled('tapFd')}`, 'keep one of them')
  if (values.tapFd !== undefined && values.netns !== undefined)
    throw usage(
      `${spelled('netns')}: not together with ${spelled('tapFd')}`,
      'an open TAP stays in its namespace: leave --netns out',
    )
  if (values.tapFd !== undefined && values.tapPersist === true)
    throw usage(
      `${spelled('tapPersist')}: not together with ${spelled('tapFd')}`,
      'whoever opened the TAP decides whether it stays (TUNSETPERSIST)',
    )
  const tapName = values.tap ?? (values.tapFd === undefined ? undefined : nameOfTapFd(values.tapFd, host))
  if (tapName === undefined)
    throw usage('--tap: missing', 'name the TAP interface, like --tap tap0; it is created if there is none')
  return tapName
}

/** Where the admin API listens. */
const adminOf = (values: SettingValues, spelled: Spelled, name: string): ListenAddress => {
  const listen: ListenAddress = values.admin ?? { kind: 'unix', path: `${OWN_FOLDER}/${name}.sock` }
  if (listen.kind === 'unix' && Buffer.byteLength(listen.path) > SOCKET_PATH_MAX_BYTES)
    throw usage(`--admin: ${listen.path} is too long for a socket`, 'give a shorter path: --admin unix:/PATH')
  if (listen.kind === 'tcp' && values.adminTokenFile === undefined)
    throw usage(
      `${spelled('admin')}: TCP needs a token: any user of this host can connect`,
      '(umask 077; openssl rand -hex 32 > admin.token), then --admin-token-file admin.token; or use unix:PATH',
    )
  if (listen.kind !== 'tcp' && values.adminTokenFile !== undefined)
    throw usage(
      `${spelled('adminTokenFile')}: has no effect on a unix socket`,
      'leave it out: the mode of the socket decides who may connect; or give --admin 127.0.0.1:PORT',
    )
  return listen
}

/**
 * Makes the configuration from its sources, in order of precedence.
 * @throws {UserError} (exit code 2) for a value that is invalid, missing, or in conflict with another.
 */
export const resolveConfig = (layers: readonly Layer[], host: Host): Resolved => {
  const values = resolveLayers(layers)
  const warnings = unknownVariables(host.env)
  const spelled: Spelled = (key) => textOf(layers, key)?.spelling ?? key

  const tapName = tapNameOf(values, spelled, host)
  const name = values.name ?? tapName
  if (!deviceName.safeParse(name).success)
    throw usage(
      `--name: ${tapName} cannot be the name of a device`,
      'give the device a name of its own, like --name net0',
    )

  const transport = transportOf(values, spelled, host)
  if (transport.kind === 'vduse' && (values.queuePairs ?? 1) > 1)
    throw usage(
      `${spelled('queuePairs')}: over VDUSE a card has one queue pair, because kernels refuse a control queue`,
      'leave it out, or serve over vhost-user with --socket-path; `vduse-net doctor` says what this kernel does',
    )
  if (values.tapFd !== undefined && (values.queuePairs ?? 1) > 1)
    throw usage(`${spelled('queuePairs')}: one descriptor is one queue`, 'name the TAP with --tap')

  const absent = absentCpus(values.cpus ?? [], host)
  if (absent !== null)
    throw usage(
      `${spelled('cpus')}: this process cannot run on ${absent.cpus}`,
      `give processors of ${absent.allowed}: those that are online, and in the cpuset and affinity of this process`,
    )

  const attach = values.attach ?? true
  if (!attach && values.bind !== undefined)
    throw usage(`${spelled('bind')}: no driver is bound without --attach`, 'leave --bind or --no-attach out')

  const listen = adminOf(values, spelled, name)
  if (values.mtu !== undefined && values.mtu < IPV6_MTU_MIN)
    warnings.push(`${spelled('mtu')}: IPv6 does not work below ${IPV6_MTU_MIN} bytes`)
  if (values.queueSize !== undefined && values.queueSize < LINUX_QUEUE_SIZE_MIN)
    warnings.push(`${spelled('queueSize')}: the Linux driver stops sending on rings below ${LINUX_QUEUE_SIZE_MIN}`)

  const seed = hostSeed(host)
  const config: Config = {
    name,
    tap: {
      name: tapName,
      fd: values.tapFd ?? null,
      mac: values.tapFd === undefined ? deriveTapMac(seed, tapName) : null,
      persist: values.tapPersist ?? false,
      vnetHdr: values.vnetHdr ?? true,
      bridge: values.bridge ?? null,
      netns: values.netns ?? null,
    },
    mac: values.mac ?? deriveMac(seed, name),
    mtu: values.mtu ?? null,
    bind: attach ? (values.bind ?? 'virtio') : 'none',
    attach,
    queueSize: values.queueSize ?? (transport.kind === 'vduse' ? 256 : QUEUE_SIZE_MAX),
    queuePairs: values.queuePairs ?? 1,
    transport,
    tuning: { busyPollUs: values.busyPoll ?? null, cpus: values.cpus ?? [] },
    features: values.features ?? { on: [], off: [] },
    admin: { listen, tokenFile: values.adminTokenFile ?? null },
    log: { level: values.logLevel ?? 'info', format: values.logFormat ?? 'auto' },
    pidFile: values.pid ?? null,
  }
  return { config: freeze(config), warnings }
}
