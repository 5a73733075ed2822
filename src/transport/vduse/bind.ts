import { closeSync, existsSync, constants as fs, openSync, readdirSync, readlinkSync, writeSync } from 'node:fs'
import { constants } from 'node:os'
import { basename, join } from 'node:path'
import { EXIT, UserError } from '../../base/errors.ts'

const { EACCES, EBUSY, ENODEV, ENOENT, EPERM } = constants.errno

/** Who uses the device: `virtio` makes a network interface of this kernel, `vhost` a /dev/vhost-vdpa-N for a VM. */
export type VdpaUser = 'virtio' | 'vhost'

const driverNames: Record<VdpaUser, string> = { virtio: 'virtio_vdpa', vhost: 'vhost_vdpa' }

const errnoOf = (error: unknown): number => {
  const errno = (error as NodeJS.ErrnoException).errno
  return errno === undefined ? 0 : Math.abs(errno)
}

/** Writes a sysfs file in one write. Opened for writing only (bind and unbind cannot be read) and never created. */
const writeValue = (path: string, value: string): void => {
  const fd = openSync(path, fs.O_WRONLY)
  try {
    writeSync(fd, value)
  } finally {
    closeSync(fd)
  }
}

/**
 * The vdpa bus in sysfs: which driver a device has, and what that driver has created. Synchronous. Binding and
 * unbinding run the driver's probe and removal, which send messages to the device: never call them on the thread that
 * answers those.
 */
export class VdpaBus {
  readonly #root: string
  readonly #devRoot: string

  /** Where sysfs and devtmpfs are mounted. */
  constructor(sysRoot = '/sys', devRoot = '/dev') {
    this.#root = join(sysRoot, 'bus/vdpa')
    this.#devRoot = devRoot
  }

  /** True if a device of this name is on the bus, whoever has added it. */
  hasDevice(name: string): boolean {
    return existsSync(this.#ofDevice(name, ''))
  }

  /** Name of the driver that the device is bound to; null if none, or if there is no such device. */
  currentDriver(name: string): string | null {
    try {
      return basename(readlinkSync(this.#ofDevice(name, 'driver')))
    } catch (error) {
      if (errnoOf(error) === ENOENT) return null
      throw error
    }
  }

  /** True if the module of this user's driver is loaded. */
  hasDriver(user: VdpaUser): boolean {
    return existsSync(this.#ofDriver(user, ''))
  }

  /**
   * Binds the device to the driver. Every vdpa driver matches every device (drivers/vdpa/vdpa.c, vdpa_dev_match), so
   * the kernel has bound it to the driver that was loaded first: it is unbound from that one. driver_override stays
   * set, so that no driver loaded later takes the device. Throws UserError.
   */
  bindDriver(name: string, user: VdpaUser): void {
    const driver = driverNames[user]
    if (!this.hasDevice(name)) {
      throw new UserError(`${name}: no such vdpa device`, `vdpa dev add name ${name} mgmtdev vduse`, EXIT.deviceMissing)
    }
    if (!this.hasDriver(user)) {
      throw new UserError(`${name}: the driver ${driver} is not loaded`, `modprobe ${driver}`, EXIT.deviceMissing)
    }
    this.#write(name, this.#ofDevice(name, 'driver_override'), driver)
    const current = this.currentDriver(name)
    if (current === driver) return
    if (current !== null) this.#unbind(name, current)
    this.#write(name, this.#ofDriver(user, 'bind'), name)
  }

  /** Unbinds the device from its driver, if it has one. Throws UserError. */
  unbindDriver(name: string): void {
    const current = this.currentDriver(name)
    if (current !== null) this.#unbind(name, current)
  }

  /** Name of the network interface that virtio_vdpa and virtio_net have created, or null. */
  netdevOf(name: string): string | null {
    for (const virtio of this.#children(this.#ofDevice(name, ''), /^virtio\d+$/)) {
      const [netdev] = this.#children(this.#ofDevice(name, `${virtio}/net`), /./)
      if (netdev !== undefined) return netdev
    }
    return null
  }

  /** Path of the character device that vhost_vdpa has created, or null. */
  vhostPathOf(name: string): string | null {
    const [node] = this.#children(this.#ofDevice(name, ''), /^vhost-vdpa-\d+$/)
    return node === undefined ? null : join(this.#devRoot, node)
  }

  /**
   * Path of the device's /dev/vhost-vdpa-N if a process has it open, else null. While it is open, removing the device
   * from the bus sleeps until that process closes it (drivers/vhost/vdpa.c, vhost_vdpa_remove). The check opens the
   * file, which resets the device: call it only before removing the device.
   */
  vhostInUse(name: string): string | null {
    const path = this.vhostPathOf(name)
    if (path === null) return null
    try {
      closeSync(openSync(path, fs.O_RDWR))
      return null
    } catch (error) {
      return errnoOf(error) === EBUSY ? path : null
    }
  }

  #ofDevice(name: string, file: string): string {
    return join(this.#root, 'devices', name, file)
  }

  #ofDriver(user: VdpaUser, file: string): string {
    return join(this.#root, 'drivers', driverNames[user], file)
  }

  #children(folder: string, pattern: RegExp): string[] {
    try {
      return readdirSync(folder)
        .filter((entry) => pattern.test(entry))
        .sort()
    } catch (error) {
      if (errnoOf(error) === ENOENT) return []
      throw error
    }
  }

  #unbind(name: string, driver: string): void {
    const inUse = this.vhostInUse(name)
    if (inUse !== null) {
      throw new UserError(
        `${name}: cannot take it from ${driver}: a process has ${inUse} open`,
        `end its user: fuser ${inUse}`,
      )
    }
    try {
      writeValue(join(this.#root, 'drivers', driver, 'unbind'), name)
    } catch (error) {
      // The driver has been unbound meanwhile.
      if (errnoOf(error) === ENODEV && this.currentDriver(name) === null) return
      throw this.#explain(name, `cannot take it from ${driver}`, error)
    }
  }

  #write(name: string, path: string, value: string): void {
    try {
      writeValue(path, value)
    } catch (error) {
      throw this.#explain(name, `cannot write ${value} to ${path}`, error)
    }
  }

  #explain(name: string, what: string, error: unknown): UserError {
    const errno = errnoOf(error)
    const code = (error as NodeJS.ErrnoException).code ?? String(error)
    if (errno === EACCES || errno === EPERM) {
      return new UserError(`${name}: ${what}: ${code}`, 'run as root', EXIT.permission)
    }
    const hint = errno === EBUSY ? `another driver has it: ls -l ${this.#ofDevice(name, 'driver')}` : 'see: dmesg'
    return new UserError(`${name}: ${what}: ${code}`, hint)
  }
}
