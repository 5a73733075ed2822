import { constants as fsConstants } from 'node:fs'
import { constants } from 'node:os'
import {
  VDUSE_CONFIG_DATA,
  VDUSE_DEV_GET_FEATURES,
  VDUSE_DEV_INJECT_CONFIG_IRQ,
  VDUSE_DEV_SET_CONFIG,
  VDUSE_IOTLB_ENTRY,
  VDUSE_IOTLB_GET_FD,
  VDUSE_VQ_CONFIG,
  VDUSE_VQ_EVENTFD,
  VDUSE_VQ_GET_INFO,
  VDUSE_VQ_INFO,
  VDUSE_VQ_SETUP,
  VDUSE_VQ_SETUP_KICKFD,
} from '../../abi/vduse.ts'
import { EXIT, SysError, UserError } from '../../base/errors.ts'
import { openRaw } from '../../sys/fd.ts'
import { addressOf, native } from '../../sys/native.ts'

const { EACCES, EBUSY, EINVAL, ENODEV, ENOENT, EPERM } = constants.errno

/**
 * Opens `/dev/vduse/NAME`, non-blocking: a blocking read of a broken device never returns. Null if there is none.
 * Throws UserError.
 */
export const openVduseDevice = (name: string): number | null => {
  const path = `/dev/vduse/${name}`
  const fd = openRaw(path, fsConstants.O_RDWR | fsConstants.O_NONBLOCK)
  if (fd >= 0) return fd
  if (fd === -ENOENT || fd === -ENODEV) return null
  if (fd === -EBUSY) {
    throw new UserError(
      `${path} is busy: another process serves this device`,
      `stop that process (fuser ${path}), or choose another --name`,
    )
  }
  if (fd === -EACCES || fd === -EPERM) throw new UserError(`${path}: permission denied`, 'run as root', EXIT.permission)
  throw new SysError(`open ${path}`, -fd)
}

/**
 * A virtqueue as the driver has set it up: `struct vduse_vq_info`. `availIndex` is where it started, not where it is.
 */
export type VqInfo = {
  readonly size: number
  readonly descAddr: number
  readonly availAddr: number
  readonly usedAddr: number
  readonly availIndex: number
  readonly ready: boolean
}

/** An IOTLB entry and the descriptor to map it with, which the caller closes. Addresses are inclusive. */
export type IotlbEntry = {
  readonly fd: number
  readonly offset: number
  readonly start: number
  readonly last: number
  readonly perm: number
}

const U64_AS_NUMBER_MAX = BigInt(Number.MAX_SAFE_INTEGER)
/** The nearest number: an address beyond 2^53 becomes one that every check refuses. */
const asNumber = (value: bigint): number => (value > U64_AS_NUMBER_MAX ? Number.POSITIVE_INFINITY : Number(value))

/**
 * The ioctls of an open `/dev/vduse/NAME` (linux/vduse.h). The descriptor is the caller's. Control path: it allocates.
 */
export class VduseDevice {
  readonly fd: number

  constructor(fd: number) {
    this.fd = fd
  }

  /**
   * Required for every queue before the device is added to the vdpa bus. `size` is the largest the driver may choose.
   */
  setUpVq(index: number, size: number): void {
    const bytes = new Uint8Array(VDUSE_VQ_CONFIG.sizeBytes)
    const view = new DataView(bytes.buffer)
    view.setUint32(VDUSE_VQ_CONFIG.index, index, true)
    view.setUint16(VDUSE_VQ_CONFIG.max_size, size, true)
    this.#ioctl('VDUSE_VQ_SETUP', VDUSE_VQ_SETUP, bytes)
  }

  vqInfo(index: number): VqInfo {
    const bytes = new Uint8Array(VDUSE_VQ_INFO.sizeBytes)
    const view = new DataView(bytes.buffer)
    view.setUint32(VDUSE_VQ_INFO.index, index, true)
    this.#ioctl('VDUSE_VQ_GET_INFO', VDUSE_VQ_GET_INFO, bytes)
    return {
      size: view.getUint32(VDUSE_VQ_INFO.num, true),
      descAddr: asNumber(view.getBigUint64(VDUSE_VQ_INFO.desc_addr, true)),
      availAddr: asNumber(view.getBigUint64(VDUSE_VQ_INFO.driver_addr, true)),
      usedAddr: asNumber(view.getBigUint64(VDUSE_VQ_INFO.device_addr, true)),
      availIndex: view.getUint16(VDUSE_VQ_INFO.state.split.avail_index, true),
      ready: view.getUint8(VDUSE_VQ_INFO.ready) !== 0,
    }
  }

  /** The kernel signals `eventFd` at each kick from now on, until the next reset. */
  setKickFd(index: number, eventFd: number): void {
    const bytes = new Uint8Array(VDUSE_VQ_EVENTFD.sizeBytes)
    const view = new DataView(bytes.buffer)
    view.setUint32(VDUSE_VQ_EVENTFD.index, index, true)
    view.setInt32(VDUSE_VQ_EVENTFD.fd, eventFd, true)
    this.#ioctl('VDUSE_VQ_SETUP_KICKFD', VDUSE_VQ_SETUP_KICKFD, bytes)
  }

  /**
   * True if the kernel has marked the device broken, because a message was not answered in time. It must be created
   * again.
   */
  isBroken(): boolean {
    return native.vn_ioctl(this.fd, VDUSE_DEV_GET_FEATURES, addressOf(new BigUint64Array(1))) === -EPERM
  }

  /** The features that the driver has written, unmasked. */
  driverFeatures(): bigint {
    const value = new BigUint64Array(1)
    this.#ioctl('VDUSE_DEV_GET_FEATURES', VDUSE_DEV_GET_FEATURES, value)
    return value[0]!
  }

  setConfig(offset: number, bytes: Uint8Array): void {
    const data = new Uint8Array(VDUSE_CONFIG_DATA.buffer + bytes.length)
    const view = new DataView(data.buffer)
    view.setUint32(VDUSE_CONFIG_DATA.offset, offset, true)
    view.setUint32(VDUSE_CONFIG_DATA.length, bytes.length, true)
    data.set(bytes, VDUSE_CONFIG_DATA.buffer)
    this.#ioctl('VDUSE_DEV_SET_CONFIG', VDUSE_DEV_SET_CONFIG, data)
  }

  /**
   * Injects a configuration interrupt. False without DRIVER_OK: the driver reads the configuration space later anyway.
   */
  injectConfigIrq(): boolean {
    const result = native.vn_ioctl(this.fd, VDUSE_DEV_INJECT_CONFIG_IRQ, 0)
    if (result < 0 && result !== -EINVAL) throw new SysError('VDUSE_DEV_INJECT_CONFIG_IRQ', -result)
    return result >= 0
  }

  /** The first entry that overlaps [start, last], or null. It may begin after `start`. */
  iotlbEntry(start: number, last: number): IotlbEntry | null {
    const bytes = new Uint8Array(VDUSE_IOTLB_ENTRY.sizeBytes)
    const view = new DataView(bytes.buffer)
    view.setBigUint64(VDUSE_IOTLB_ENTRY.start, BigInt(start), true)
    view.setBigUint64(VDUSE_IOTLB_ENTRY.last, BigInt(last), true)
    const fd = native.vn_ioctl(this.fd, VDUSE_IOTLB_GET_FD, addressOf(bytes))
    if (fd < 0) return null
    return {
      fd,
      offset: asNumber(view.getBigUint64(VDUSE_IOTLB_ENTRY.offset, true)),
      start: asNumber(view.getBigUint64(VDUSE_IOTLB_ENTRY.start, true)),
      last: asNumber(view.getBigUint64(VDUSE_IOTLB_ENTRY.last, true)),
      perm: view.getUint8(VDUSE_IOTLB_ENTRY.perm),
    }
  }

  #ioctl(name: string, request: number, argument: Uint8Array | BigUint64Array): void {
    const result = native.vn_ioctl(this.fd, request, addressOf(argument))
    if (result < 0) throw new SysError(name, -result)
  }
}
