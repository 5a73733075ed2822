import { constants as fsConstants } from 'node:fs'
import { constants } from 'node:os'
import {
  VDUSE_API_VERSION,
  VDUSE_API_VERSION_1,
  VDUSE_CREATE_DEV,
  VDUSE_DESTROY_DEV,
  VDUSE_DEV_CONFIG,
  VDUSE_F_QUEUE_READY,
  VDUSE_F_SUSPEND,
  VDUSE_GET_FEATURES,
  VDUSE_NAME_MAX,
  VDUSE_SET_API_VERSION,
  VDUSE_SET_FEATURES,
} from '../../abi/vduse.ts'
import { VIRTIO_ID_NET, VIRTIO_NET_F_CTRL_VQ } from '../../abi/virtio.ts'
import { EXIT, SysError, UserError } from '../../base/errors.ts'
import { featureBit, mandatoryFeatures } from '../../device/features.ts'
import { OwnedFd, openRaw } from '../../sys/fd.ts'
import { OwnedMapping } from '../../sys/mapping.ts'
import { addressOf, check, cString, native } from '../../sys/native.ts'
import type { ControlQueueVerdict } from './control-queue-verdict.ts'

const { EACCES, EBUSY, EEXIST, EFAULT, EINVAL, ENODEV, ENOENT, ENOTTY, EPERM } = constants.errno

const CONTROL_PATH = '/dev/vduse/control'
/** Alignment of ring areas, bytes: a page, as Linux allocates them. At most PAGE_SIZE. */
const VQ_ALIGN = 4096
/** The vendor that the driver shows: 0 is no PCI vendor. */
const VENDOR_ID = 0
/** A multiple of every page size. */
const PROBE_BYTES = 65536

/** API version and features that both this kernel and this program support. */
export type VduseVersion = {
  readonly apiVersion: number
  /** VDUSE_F_* bits in use. */
  readonly features: number
}

/** Names of the VDUSE features in the set. */
export const vduseFeatureNames = (features: number): string[] => {
  const names: string[] = []
  if ((features & (1 << VDUSE_F_QUEUE_READY)) !== 0) names.push('queue_ready')
  if ((features & (1 << VDUSE_F_SUSPEND)) !== 0) names.push('suspend')
  return names
}

/** A device to create. */
export type VduseDeviceSpec = {
  readonly name: string
  readonly features: bigint
  readonly queueCount: number
  /** The initial configuration space. */
  readonly config: Uint8Array
}

/**
 * `/dev/vduse/control`: creates and destroys VDUSE devices. API version and features belong to this descriptor, and are
 * set before anything else, because a kernel's defaults depend on its version.
 */
export class VduseControl {
  readonly version: VduseVersion
  readonly #fd: OwnedFd

  /** Throws UserError if the kernel has no VDUSE or this process may not use it. */
  constructor() {
    const fd = openRaw(CONTROL_PATH, fsConstants.O_RDWR)
    if (fd === -ENOENT || fd === -ENODEV) {
      throw new UserError(
        `${CONTROL_PATH} does not exist: the kernel module vduse is not loaded`,
        'run: modprobe vduse (Linux 6.10 or newer; see `vduse-net doctor`); a VM, DPDK or UML ' +
          'does not need it: -s PATH',
        EXIT.deviceMissing,
      )
    }
    if (fd === -EACCES || fd === -EPERM) {
      throw new UserError(`${CONTROL_PATH}: permission denied`, 'run as root', EXIT.permission)
    }
    if (fd < 0) throw new SysError(`open ${CONTROL_PATH}`, -fd)
    this.#fd = new OwnedFd(fd)
    try {
      this.version = this.#negotiate()
    } catch (error) {
      this.#fd[Symbol.dispose]()
      throw error
    }
  }

  /** Creates `/dev/vduse/NAME`. False if it exists already. Throws UserError. */
  create(spec: VduseDeviceSpec): boolean {
    const result = native.vn_ioctl(this.#fd.fd, VDUSE_CREATE_DEV, addressOf(this.#encode(spec)))
    if (result === -EEXIST) return false
    if (result === -EPERM) {
      throw new UserError(
        `${spec.name}: the kernel refuses to create a VDUSE network device: EPERM`,
        'run with CAP_NET_ADMIN in the initial user namespace (not inside an unprivileged container)',
        EXIT.permission,
      )
    }
    if (result === -EINVAL) {
      throw new UserError(
        `${spec.name}: the kernel refuses this VDUSE network device: EINVAL`,
        'VDUSE accepts network devices since Linux 6.10; `vduse-net doctor` says what this kernel can do',
        EXIT.deviceMissing,
      )
    }
    if (result < 0) throw new SysError('VDUSE_CREATE_DEV', -result)
    return true
  }

  /**
   * Whether the kernel accepts a control queue. Creates no device and needs no rights: vduse_ioctl()
   * (drivers/vdpa/vdpa_user/vduse_dev.c) checks the description (EINVAL) before it copies the configuration space,
   * which here is an unmapped address (EFAULT), and looks at the name only after that. Null for any other errno.
   */
  controlQueueVerdict(): ControlQueueVerdict | null {
    const [without, having] = [0n, featureBit(VIRTIO_NET_F_CTRL_VQ)].map((more) =>
      this.#judge(mandatoryFeatures | more),
    )
    if (without === -EINVAL) return 'no network devices'
    if (without !== -EFAULT) return null
    return having === -EFAULT ? 'accepted' : having === -EINVAL ? 'refused' : null
  }

  /** Destroys `/dev/vduse/NAME`. False while it is on the vdpa bus or open in a process. True also if there is none. */
  destroy(name: string): boolean {
    // The kernel copies VDUSE_NAME_MAX bytes, independent of the name's length.
    const bytes = new Uint8Array(VDUSE_NAME_MAX)
    new TextEncoder().encodeInto(name, bytes.subarray(0, VDUSE_NAME_MAX - 1))
    const result = native.vn_ioctl(this.#fd.fd, VDUSE_DESTROY_DEV, addressOf(bytes))
    if (result === -EBUSY) return false
    if (result < 0 && result !== -EINVAL) throw new SysError('VDUSE_DESTROY_DEV', -result)
    return true
  }

  [Symbol.dispose](): void {
    this.#fd[Symbol.dispose]()
  }

  /** `struct vduse_dev_config` and the configuration space. */
  #encode({ name, features, queueCount, config }: VduseDeviceSpec): Uint8Array {
    const bytes = new Uint8Array(VDUSE_DEV_CONFIG.config + config.length)
    const view = new DataView(bytes.buffer)
    new TextEncoder().encodeInto(name, bytes.subarray(0, VDUSE_NAME_MAX - 1))
    view.setUint32(VDUSE_DEV_CONFIG.vendor_id, VENDOR_ID, true)
    view.setUint32(VDUSE_DEV_CONFIG.device_id, VIRTIO_ID_NET, true)
    view.setBigUint64(VDUSE_DEV_CONFIG.features, features, true)
    view.setUint32(VDUSE_DEV_CONFIG.vq_num, queueCount, true)
    view.setUint32(VDUSE_DEV_CONFIG.vq_align, VQ_ALIGN, true)
    if (this.version.apiVersion >= VDUSE_API_VERSION_1) {
      view.setUint32(VDUSE_DEV_CONFIG.ngroups, 1, true)
      view.setUint32(VDUSE_DEV_CONFIG.nas, 1, true)
    }
    view.setUint32(VDUSE_DEV_CONFIG.config_size, config.length, true)
    bytes.set(config, VDUSE_DEV_CONFIG.config)
    return bytes
  }

  /** The result (-errno) of creating a network device with these features and an unreadable configuration space. */
  #judge(features: bigint): number {
    const description = this.#encode({ name: 'probe', features, queueCount: 3, config: new Uint8Array(1) })
    using file = new OwnedFd(check('memfd_create', native.vn_memfd(cString('vduse-net-probe'), PROBE_BYTES)))
    // The description ends at the end of the file. The page behind it is mapped, but has no memory: the copy fails.
    using mapping = new OwnedMapping(file.fd, 2 * PROBE_BYTES)
    const start = PROBE_BYTES - VDUSE_DEV_CONFIG.config
    new Uint8Array(mapping.buffer(start, VDUSE_DEV_CONFIG.config)).set(description.subarray(0, VDUSE_DEV_CONFIG.config))
    return native.vn_ioctl(this.#fd.fd, VDUSE_CREATE_DEV, mapping.address + start)
  }

  #negotiate(): VduseVersion {
    const apiVersion = this.#setU64(VDUSE_SET_API_VERSION, VDUSE_API_VERSION_1)
      ? VDUSE_API_VERSION_1
      : VDUSE_API_VERSION
    if (apiVersion === VDUSE_API_VERSION && !this.#setU64(VDUSE_SET_API_VERSION, VDUSE_API_VERSION)) {
      throw new UserError(
        'the kernel supports no VDUSE API version that this program does',
        'use Linux 6.10 or newer',
        EXIT.deviceMissing,
      )
    }
    const offered = new BigUint64Array(1)
    const asked = native.vn_ioctl(this.#fd.fd, VDUSE_GET_FEATURES, addressOf(offered))
    if (asked === -EINVAL || asked === -ENOTTY) return { apiVersion, features: 0 }
    if (asked < 0) throw new SysError('VDUSE_GET_FEATURES', -asked)
    const features = Number(offered[0]! & BigInt((1 << VDUSE_F_QUEUE_READY) | (1 << VDUSE_F_SUSPEND)))
    return { apiVersion, features: features !== 0 && this.#setU64(VDUSE_SET_FEATURES, features) ? features : 0 }
  }

  /** False if the kernel does not know the request or the value. */
  #setU64(request: number, value: number): boolean {
    const result = native.vn_ioctl(this.#fd.fd, request, addressOf(new BigUint64Array([BigInt(value)])))
    if (result === -EINVAL || result === -ENOTTY) return false
    if (result < 0) throw new SysError('ioctl(/dev/vduse/control)', -result)
    return true
  }
}
