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

/** Writes a sysfs file: only for writing (bind and unbind cannot be read), never made, and in one write. */
const writeValue = (path: string, value: string): void => {
  const fd = openSync(path, fs.O_WRONLY)
  try {
    writeSync(fd, value)
  } finally {
    closeSync(fd)
  }
}

/**
 * The vdpa bus in sysfs: which driver a device has, and what that driver has made of it. Synchronous; binding and
 * unbinding last as long as the driver's probe and removal, which send messages to the device: never call them on the
 * thread that answers those.
 */
export class VdpaBus {
  readonly #root: string
  readonly #devRoot: string

  /** Where sysfs and devtmpfs are mounted. */
  constructor(sysRoot = '/sys', devRoot = '/dev') {
    this.#root = join(sysRoot, 'bus/vdpa')
    this.#devRoot = devRoot
  }

  /** Is there a device of this name on the bus, whoever has put it there? */
  hasDevice(name: string): boolean {
    return existsSync(this.#ofDevice(name, ''))
  }

  /** Name of the driver that has the device, or null for none (or no such device). */
  currentDriver(name: string): string | null {
    try {
      return basename(readlinkSync(this.#ofDevice(name, 'driver')))
    } catch (error) {
      if (errnoOf(error) === ENOENT) return null
      throw error
    }
  }

  /** Is the module of this user's driver loaded? */
  hasDriver(user: VdpaUser): boolean {
    return existsSync(this.#ofDriver(user, ''))
  }

  /**
   * Gives the device to the driver. The kernel has given it to the first one that was loaded, since every vdpa driver
   * takes every device (drivers/vdpa/vdpa.c, vdpa_dev_match): that one lets go of it first. The override stays, so that
   * no driver that is loaded later takes it. Throws UserError.
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

  /** Takes the device from the driver that has it, if any. Throws UserError. */
  unbindDriver(name: string): void {
    const current = this.currentDriver(name)
    if (current !== null) this.#unbind(name, current)
  }

  /** Name of the network interface that virtio_vdpa and virtio_net have made, or null if there is none. */
  netdevOf(name: string): string | null {
    for (const virtio of this.#children(this.#ofDevice(name, ''), /^virtio\d+$/)) {
      const [netdev] = this.#children(this.#ofDevice(name, `${virtio}/net`), /./)
      if (netdev !== undefined) return netdev
    }
    return null
  }

  /** Path of the character device that vhost_vdpa has made, or null if there is none. */
  vhostPathOf(name: string): string | null {
    const [node] = this.#children(this.#ofDevice(name, ''), /^vhost-vdpa-\d+$/)
    return node === undefined ? null : join(this.#devRoot, node)
  }

  /**
   * Path of the device's /dev/vhost-vdpa-N if somebody has it open. While somebody has, the driver lets go of the
   * device for nobody: whoever takes it off the bus sleeps until that user closes it (drivers/vhost/vdpa.c,
   * vhost_vdpa_remove). To look is to open it, which resets the device: only for those who want to take it away.
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
      throw new UserError(`${name}: ${driver} does not let go of it: ${inUse} is open`, `end its user: fuser ${inUse}`)
    }
    try {
      writeValue(join(this.#root, 'drivers', driver, 'unbind'), name)
    } catch (error) {
      // The driver has let go of it in between.
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
