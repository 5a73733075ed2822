import { existsSync } from 'node:fs'
import { constants } from 'node:os'
import {
  CTRL_ATTR_FAMILY_ID,
  CTRL_ATTR_FAMILY_NAME,
  CTRL_CMD_GETFAMILY,
  GENL_ID_CTRL,
  GENLMSGHDR,
  NETLINK_GENERIC,
} from '../../abi/netlink.ts'
import {
  VDPA_ATTR_DEV_FEATURES,
  VDPA_ATTR_DEV_ID,
  VDPA_ATTR_DEV_MAX_VQ_SIZE,
  VDPA_ATTR_DEV_MAX_VQS,
  VDPA_ATTR_DEV_MGMTDEV_MAX_VQS,
  VDPA_ATTR_DEV_NAME,
  VDPA_ATTR_DEV_NEGOTIATED_FEATURES,
  VDPA_ATTR_DEV_NET_CFG_MACADDR,
  VDPA_ATTR_DEV_NET_CFG_MAX_VQP,
  VDPA_ATTR_DEV_NET_CFG_MTU,
  VDPA_ATTR_DEV_NET_STATUS,
  VDPA_ATTR_DEV_SUPPORTED_FEATURES,
  VDPA_ATTR_DEV_VENDOR_ID,
  VDPA_ATTR_MGMTDEV_BUS_NAME,
  VDPA_ATTR_MGMTDEV_DEV_NAME,
  VDPA_ATTR_MGMTDEV_SUPPORTED_CLASSES,
  VDPA_CMD_DEV_CONFIG_GET,
  VDPA_CMD_DEV_DEL,
  VDPA_CMD_DEV_GET,
  VDPA_CMD_DEV_NEW,
  VDPA_CMD_MGMTDEV_GET,
  VDPA_GENL_NAME,
  VDPA_GENL_VERSION,
} from '../../abi/vdpa.ts'
import { EXIT, type ExitCode, UserError } from '../../base/errors.ts'
import { formatMac } from '../../base/mac.ts'
import {
  type Attribute,
  asText,
  asU16,
  asU32,
  asU64,
  decodeAttributes,
  encodeAttributes,
  text,
} from '../../sys/netlink-message.ts'
import { NetlinkError, type NetlinkRequester, NetlinkSocket } from '../../sys/netlink-socket.ts'

const { EEXIST, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EPERM } = constants.errno

/** linux/virtio_ids.h. */
const VIRTIO_ID_NET = 1
/** The bit of the configuration space's status. VIRTIO 1.2 §5.1.4. */
const VIRTIO_NET_S_LINK_UP = 1

/** A management device, which creates vdpa devices: here `vduse`. Undefined: the kernel does not report the field. */
export type VdpaMgmtdev = {
  readonly bus: string | undefined
  readonly name: string
  readonly supportsNet: boolean
  readonly maxVqs: number | undefined
  readonly supportedFeatures: bigint | undefined
}

/** A device on the vdpa bus. */
export type VdpaDevice = {
  readonly name: string
  readonly mgmtdev: string
  /** Virtio device type: 1 for net. */
  readonly deviceId: number | undefined
  readonly vendorId: number | undefined
  readonly maxVqs: number | undefined
  readonly maxVqSize: number | undefined
}

/** The configuration space as the kernel reads it. Undefined: the device does not offer the field's feature. */
export type VdpaConfig = {
  readonly name: string
  readonly deviceId: number | undefined
  /** `52:54:00:12:34:56`. */
  readonly mac: string | undefined
  readonly mtu: number | undefined
  readonly linkUp: boolean | undefined
  readonly maxVqPairs: number | undefined
  readonly deviceFeatures: bigint | undefined
  /** Undefined before the driver has set FEATURES_OK. */
  readonly negotiatedFeatures: bigint | undefined
}

type Attributes = ReadonlyMap<number, Uint8Array>

/** A vdpa management request failed. `errno` is positive, for callers that handle a certain one. */
export class VdpaError extends UserError {
  override name = 'VdpaError'
  readonly errno: number
  constructor(errno: number, message: string, hint: string, exitCode: ExitCode = EXIT.runtime) {
    super(message, hint, exitCode)
    this.errno = errno
  }
}

/** The error of a vdpa request for a user. `what` is the request as a vdpa(8) command. */
const explain = (what: string, error: NetlinkError): VdpaError => {
  const { errno, reason: why } = error
  switch (errno) {
    case EPERM:
      return new VdpaError(
        errno,
        `${what}: EPERM (no permission to manage vdpa devices)`,
        'run as root, or with CAP_NET_ADMIN in the initial user namespace',
        EXIT.permission,
      )
    case EOPNOTSUPP:
      return new VdpaError(errno, `${what}: ${why}`, 'this kernel, or this management device, cannot do it')
    default:
      return new VdpaError(errno, `${what}: ${why}`, 'see the kernel log: dmesg | grep -i vd')
  }
}

const parseMgmtdev = (attributes: Attributes): VdpaMgmtdev => ({
  bus: asText(attributes.get(VDPA_ATTR_MGMTDEV_BUS_NAME)),
  name: asText(attributes.get(VDPA_ATTR_MGMTDEV_DEV_NAME)) ?? '',
  supportsNet:
    (((asU64(attributes.get(VDPA_ATTR_MGMTDEV_SUPPORTED_CLASSES)) ?? 0n) >> BigInt(VIRTIO_ID_NET)) & 1n) === 1n,
  maxVqs: asU32(attributes.get(VDPA_ATTR_DEV_MGMTDEV_MAX_VQS)),
  supportedFeatures: asU64(attributes.get(VDPA_ATTR_DEV_SUPPORTED_FEATURES)),
})

const parseDevice = (attributes: Attributes): VdpaDevice => ({
  name: asText(attributes.get(VDPA_ATTR_DEV_NAME)) ?? '',
  mgmtdev: asText(attributes.get(VDPA_ATTR_MGMTDEV_DEV_NAME)) ?? '',
  deviceId: asU32(attributes.get(VDPA_ATTR_DEV_ID)),
  vendorId: asU32(attributes.get(VDPA_ATTR_DEV_VENDOR_ID)),
  maxVqs: asU32(attributes.get(VDPA_ATTR_DEV_MAX_VQS)),
  maxVqSize: asU16(attributes.get(VDPA_ATTR_DEV_MAX_VQ_SIZE)),
})

const parseConfig = (attributes: Attributes): VdpaConfig => {
  const mac = attributes.get(VDPA_ATTR_DEV_NET_CFG_MACADDR)
  const status = asU16(attributes.get(VDPA_ATTR_DEV_NET_STATUS))
  return {
    name: asText(attributes.get(VDPA_ATTR_DEV_NAME)) ?? '',
    deviceId: asU32(attributes.get(VDPA_ATTR_DEV_ID)),
    mac: mac === undefined ? undefined : formatMac(mac),
    mtu: asU16(attributes.get(VDPA_ATTR_DEV_NET_CFG_MTU)),
    linkUp: status === undefined ? undefined : (status & VIRTIO_NET_S_LINK_UP) !== 0,
    maxVqPairs: asU16(attributes.get(VDPA_ATTR_DEV_NET_CFG_MAX_VQP)),
    deviceFeatures: asU64(attributes.get(VDPA_ATTR_DEV_FEATURES)),
    negotiatedFeatures: asU64(attributes.get(VDPA_ATTR_DEV_NEGOTIATED_FEATURES)),
  }
}

const genlHeader = (cmd: number, version: number): Uint8Array => Uint8Array.of(cmd, version, 0, 0)

const ofDevice = (name: string): Attribute[] => [[VDPA_ATTR_DEV_NAME, text(name)]]

/**
 * vdpa(8) as functions: the kernel's vdpa management family over generic netlink. Every call is synchronous. {@link
 * devAdd} and {@link devDel} run the driver's probe or removal, which send messages to the device: never call them on
 * the thread that answers those.
 */
export class VdpaNetlink {
  readonly #netlink: NetlinkRequester
  readonly #family: number
  readonly #owned: NetlinkSocket | null

  /**
   * Opens a socket of its own unless `netlink` is given. `sysRoot` is where sysfs is mounted. Throws VdpaError if the
   * kernel has no vdpa (66), or hides it from this network namespace (77).
   */
  constructor(netlink?: NetlinkRequester, sysRoot = '/sys') {
    this.#owned = netlink === undefined ? new NetlinkSocket(NETLINK_GENERIC) : null
    this.#netlink = netlink ?? this.#owned!
    try {
      this.#family = this.#resolve(sysRoot)
    } catch (error) {
      this.#owned?.[Symbol.dispose]()
      throw error
    }
  }

  [Symbol.dispose](): void {
    this.#owned?.[Symbol.dispose]()
  }

  /** All management devices. */
  mgmtdevs(): VdpaMgmtdev[] {
    return this.#ask('vdpa mgmtdev show', VDPA_CMD_MGMTDEV_GET, [], 'dump').map(parseMgmtdev)
  }

  /** The management device of that name without a bus, or null. */
  mgmtdevGet(name: string): VdpaMgmtdev | null {
    return this.mgmtdevs().find((mgmtdev) => mgmtdev.name === name && mgmtdev.bus === undefined) ?? null
  }

  /**
   * Creates the vdpa device; the kernel probes a driver for it before this returns. Throws VdpaError: EEXIST if the
   * name is taken, ENODEV if there is no such management device, EINVAL if VDUSE has no device `name` with all queues
   * set up.
   */
  devAdd({ name, mgmtdev }: { name: string; mgmtdev: string }): void {
    const what = `vdpa dev add name ${name} mgmtdev ${mgmtdev}`
    try {
      this.#send(VDPA_CMD_DEV_NEW, [[VDPA_ATTR_MGMTDEV_DEV_NAME, text(mgmtdev)], ...ofDevice(name)])
    } catch (error) {
      if (!(error instanceof NetlinkError)) throw error
      if (error.errno === EEXIST) {
        const hint = `vdpa dev del ${name}, or choose another name with --name`
        throw new VdpaError(error.errno, `${what}: a vdpa device of this name exists already`, hint)
      }
      if (error.errno === ENODEV) {
        const hint = mgmtdev === 'vduse' ? 'modprobe vduse' : 'see: vdpa mgmtdev show'
        throw new VdpaError(error.errno, `${what}: there is no such management device`, hint, EXIT.deviceMissing)
      }
      if (error.errno === EINVAL && mgmtdev === 'vduse' && error.extack === '') {
        const message = `${what}: EINVAL (no VDUSE device of this name is set up)`
        throw new VdpaError(error.errno, message, `see: ls /dev/vduse/${name}`)
      }
      throw explain(what, error)
    }
  }

  /** Removes the driver and deletes the device. False if there was none. Throws VdpaError. */
  devDel(name: string): boolean {
    return this.#unlessMissing(
      `vdpa dev del ${name}`,
      () => {
        this.#send(VDPA_CMD_DEV_DEL, ofDevice(name))
        return true
      },
      false,
    )
  }

  /** All devices that management devices have created. Throws VdpaError. */
  devices(): VdpaDevice[] {
    return this.#ask('vdpa dev show', VDPA_CMD_DEV_GET, [], 'dump').map(parseDevice)
  }

  /** The device of that name, or null. Throws VdpaError. */
  devGet(name: string): VdpaDevice | null {
    const what = `vdpa dev show ${name}`
    const [attributes] = this.#unlessMissing(what, () => this.#send(VDPA_CMD_DEV_GET, ofDevice(name)), [])
    return attributes === undefined ? null : parseDevice(attributes)
  }

  /** The configuration space of the device of that name, or null if there is no such device. Throws VdpaError. */
  devConfigGet(name: string): VdpaConfig | null {
    const what = `vdpa dev config show ${name}`
    const [attributes] = this.#unlessMissing(what, () => this.#send(VDPA_CMD_DEV_CONFIG_GET, ofDevice(name)), [])
    return attributes === undefined ? null : parseConfig(attributes)
  }

  #unlessMissing<T>(what: string, ask: () => T, missing: T): T {
    try {
      return ask()
    } catch (error) {
      if (!(error instanceof NetlinkError)) throw error
      if (error.errno === ENODEV) return missing
      throw explain(what, error)
    }
  }

  #ask(what: string, command: number, attributes: Attribute[], kind: 'do' | 'dump'): Attributes[] {
    try {
      return this.#send(command, attributes, kind)
    } catch (error) {
      if (error instanceof NetlinkError) throw explain(what, error)
      throw error
    }
  }

  #send(command: number, attributes: Attribute[], kind: 'do' | 'dump' = 'do'): Attributes[] {
    const header = genlHeader(command, VDPA_GENL_VERSION)
    return this.#netlink
      .request(this.#family, [header, encodeAttributes(attributes)], kind)
      .map((message) => decodeAttributes(message.body.subarray(GENLMSGHDR.sizeBytes)))
  }

  #resolve(sysRoot: string): number {
    const header = genlHeader(CTRL_CMD_GETFAMILY, 1)
    const name = encodeAttributes([[CTRL_ATTR_FAMILY_NAME, text(VDPA_GENL_NAME)]])
    try {
      const [answer] = this.#netlink.request(GENL_ID_CTRL, [header, name])
      const id = asU16(decodeAttributes(answer?.body.subarray(GENLMSGHDR.sizeBytes)).get(CTRL_ATTR_FAMILY_ID))
      if (id !== undefined) return id
    } catch (error) {
      if (!(error instanceof NetlinkError) || error.errno !== ENOENT) throw error
    }
    // sysfs shows the bus everywhere; the netlink family exists only in the initial network namespace (netnsok is
    // false).
    if (existsSync(`${sysRoot}/bus/vdpa`)) {
      throw new VdpaError(
        ENOENT,
        'vdpa: the kernel manages vdpa devices from the initial network namespace only',
        'start in the host network namespace and move the TAP with --netns; or pass --no-attach',
        EXIT.permission,
      )
    }
    throw new VdpaError(ENOENT, 'vdpa: the kernel module is not loaded', 'modprobe vduse', EXIT.deviceMissing)
  }
}
