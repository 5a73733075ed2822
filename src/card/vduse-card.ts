import { VIRTIO_CONFIG_S_DRIVER_OK } from '../abi/virtio.ts'
import { EXIT, UserError } from '../base/errors.ts'
import { logger } from '../base/log.ts'
import { parseMac } from '../base/mac.ts'
import { ConfigSpace } from '../device/config-space.ts'
import { implementedFeatures } from '../device/features.ts'
import { EventFd } from '../sys/eventfd.ts'
import { OwnedFd } from '../sys/fd.ts'
import { VdpaBus } from '../transport/vduse/bind.ts'
import { VduseControl, vduseFeatureNames } from '../transport/vduse/control.ts'
import { controlQueueMeaning } from '../transport/vduse/control-queue-verdict.ts'
import { openVduseDevice, VduseDevice } from '../transport/vduse/device-fd.ts'
import { VdpaError, VdpaNetlink } from '../transport/vduse/vdpa-netlink.ts'
import type { Bind } from './card.ts'
import { chooseFeatures } from './card-identity.ts'
import { CardWorkers } from './card-workers.ts'
import { type CardOptions, ServedCard } from './served-card.ts'

const log = logger('main')

/** Kernels refuse the control queue, without which a driver uses one queue pair: VIRTIO 1.2 §5.1.5. */
const QUEUE_PAIRS = 1
const QUEUES = QUEUE_PAIRS * 2

/** Error text for a requested feature that VDUSE cannot carry. */
const UNCARRIED = {
  why: 'VDUSE carries split rings only, and no control queue',
  hint: 'leave it out, or serve a VM, DPDK or UML over vhost-user with --socket-path',
} as const

export type VduseCardOptions = CardOptions & {
  readonly bind: Bind
  readonly attach: boolean
}

/**
 * A card over VDUSE, on main: creates the device, starts the workers, attaches the device to the vdpa bus, and undoes
 * this in reverse order. Netlink and binding block while the driver's probe sends control messages. Main may block,
 * because the device worker answers them.
 */
export class VduseCard extends ServedCard {
  readonly #options: VduseCardOptions
  readonly #bus = new VdpaBus()
  #control!: VduseControl
  #netlink: VdpaNetlink | null = null
  /** The device was left by a process that died, and is attached. */
  #adopted = false
  /** The device stays on the bus because a VM has it open. */
  #kept = false

  private constructor(options: VduseCardOptions) {
    super()
    this.#options = options
  }

  /** Makes the card; {@link attach} puts it on the bus. Throws UserError after undoing everything. */
  static start(options: VduseCardOptions): Promise<VduseCard> {
    return new VduseCard(options).begin()
  }

  protected override missing(): string | null {
    return this.#bus.hasDevice(this.#options.name) ? null : 'the device is not attached to the vdpa bus'
  }

  protected override ownView() {
    const { name, bind } = this.#options
    const { apiVersion, features } = this.#control.version
    return {
      name,
      transport: 'vduse',
      attached: this.#bus.hasDevice(name),
      bind,
      driver: this.#bus.currentDriver(name),
      vduse: { apiVersion, features: vduseFeatureNames(features) },
      vhostUser: null,
    } as const
  }

  protected override async setUp(): Promise<void> {
    this.#control = this.undo.use(new VduseControl())
    const controlQueue = this.#control.controlQueueVerdict()
    if (controlQueue !== null) log.info(`VDUSE control queue: ${controlQueueMeaning[controlQueue]}`)
    this.#netlink = this.#openNetlink()
    this.workers = new CardWorkers(QUEUE_PAIRS, this.#options.tuning, this.#options.onEnd)
    const stopWorkers = (): Promise<void> => this.workers.stop()
    this.undo.defer(stopWorkers)
    this.tap = await this.workers.openTap(this.#options.tap)

    const { fd, adopted } = this.#openDevice(this.#netlink)
    this.#adopted = adopted
    const kicks = Array.from({ length: QUEUES }, () => this.undo.use(new EventFd()))
    // Registered again: the workers stop before their descriptors are closed.
    this.undo.defer(stopWorkers)
    await this.workers.serve(
      this.tap,
      this.identity,
      {
        device: { kind: 'vduse', fd: fd.fd, kickFds: kicks.map((kick) => kick.fd) },
        queues: { kind: 'vduse', fd: fd.fd },
      },
      adopted,
    )

    // Also if another process attached the device: without this one nobody answers its driver.
    this.undo.defer(() => this.#detach(this.#netlink))
  }

  override attach(): void {
    if (this.#adopted) {
      if (this.#options.bind === 'virtio' && (this.workers.block.status & VIRTIO_CONFIG_S_DRIVER_OK) === 0) {
        // The death of the old process may have interrupted the driver's set-up. The driver cannot notice: a status
        // that the device did not take is not reported to it (include/linux/virtio_config.h, virtio_device_ready).
        this.#bus.unbindDriver(this.#options.name)
      }
      this.#bind()
    } else if (this.#netlink !== null && this.#options.attach) this.#attach(this.#netlink)
  }

  /**
   * The manager of the vdpa bus. Null if another process attaches (--no-attach) and the bus is not visible here: in a
   * container with its own network namespace.
   */
  #openNetlink(): VdpaNetlink | null {
    try {
      return this.undo.use(new VdpaNetlink())
    } catch (error) {
      if (this.#options.attach || !(error instanceof VdpaError)) throw error
      return null
    }
  }

  /** Opens the device: a new one, or one left by a process that died. */
  #openDevice(netlink: VdpaNetlink | null): { fd: OwnedFd; adopted: boolean } {
    const { name, mac, queueSize, features } = this.#options
    const left = openVduseDevice(name)
    let attached = left !== null && (netlink === null ? this.#bus.hasDevice(name) : netlink.devGet(name) !== null)
    if (left !== null && attached && new VduseDevice(left).isBroken()) {
      const inUse = this.#bus.vhostInUse(name)
      if (inUse !== null) {
        new OwnedFd(left)[Symbol.dispose]()
        throw new UserError(
          `${name}: the kernel has marked the device broken, and ${inUse} is open`,
          `end its user: fuser ${inUse}; then start again`,
        )
      }
      if (netlink === null) {
        new OwnedFd(left)[Symbol.dispose]()
        throw new UserError(
          `${name}: the kernel has marked the device broken: no process answered it in time`,
          `run on the host: vdpa dev del ${name}; then start again`,
        )
      }
      log.warning(`${name}: the kernel has marked the device broken: no process answered it in time; it is made anew`)
      netlink.devDel(name)
      attached = false
    }
    if (left !== null && attached) {
      // Without netlink its configuration cannot be read: assume the same options as now.
      const config = netlink?.devConfigGet(name)
      this.identity = {
        mac: config?.mac ?? mac,
        mtu: config?.mtu ?? this.tap.mtu,
        offered: config?.deviceFeatures ?? chooseFeatures(implementedFeatures, this.tap, features, UNCARRIED),
        queueSize: netlink?.devGet(name)?.maxVqSize ?? queueSize,
      }
      if (this.identity.mac !== mac) log.warning(`${name} keeps the MAC ${this.identity.mac} until it is made anew`)
      this.undo.defer(() => this.#destroy())
      return { fd: this.undo.use(new OwnedFd(left)), adopted: true }
    }
    if (left !== null) {
      // It was never attached, so it has no driver state to keep.
      new OwnedFd(left)[Symbol.dispose]()
      this.#control.destroy(name)
    }
    const offered = chooseFeatures(implementedFeatures, this.tap, features, UNCARRIED)
    this.identity = { mac, mtu: this.tap.mtu, offered, queueSize }
    return { fd: this.#createDevice(), adopted: false }
  }

  #createDevice(): OwnedFd {
    const { name } = this.#options
    const { mac, mtu, offered, queueSize } = this.identity
    const config = new ConfigSpace({ mac: parseMac(mac)!, mtu, maxVirtqueuePairs: QUEUE_PAIRS, linkUp: true })
    if (!this.#control.create({ name, features: offered, queueCount: QUEUES, config: config.bytes })) {
      throw new UserError(
        `${name}: a VDUSE device of this name appeared just now`,
        'start one card of a name at a time',
      )
    }
    this.undo.defer(() => this.#destroy())
    const fd = openVduseDevice(name)
    if (fd === null) {
      throw new UserError(
        `/dev/vduse/${name} does not appear`,
        'mount devtmpfs on /dev, or let udev run; in a container, share the host /dev/vduse',
        EXIT.deviceMissing,
      )
    }
    const owned = this.undo.use(new OwnedFd(fd))
    const device = new VduseDevice(fd)
    for (let index = 0; index < QUEUES; index++) device.setUpVq(index, queueSize)
    return owned
  }

  #attach(netlink: VdpaNetlink): void {
    const { name, bind } = this.#options
    if (bind !== 'none' && !this.#bus.hasDriver(bind)) {
      throw new UserError(
        `${name}: the driver ${bind}_vdpa is not loaded`,
        `modprobe ${bind}_vdpa, or pass --bind none`,
        EXIT.deviceMissing,
      )
    }
    netlink.devAdd({ name, mgmtdev: 'vduse' })
    this.#bind()
  }

  #bind(): void {
    const { name, bind } = this.#options
    if (bind !== 'none') this.#bus.bindDriver(name, bind)
    log.info(`attached ${name}: MAC ${this.identity.mac}, driver ${this.#bus.currentDriver(name) ?? 'none'}`)
  }

  /**
   * Removes the device from the bus, unless a VM has it open: then it stays, as after a crash, for the next process.
   */
  #detach(netlink: VdpaNetlink | null): void {
    const { name } = this.#options
    const inUse = this.#bus.vhostInUse(name)
    if (inUse !== null) {
      this.#kept = true
      log.warning(`${inUse} is open: ${name} stays on the vdpa bus; start vduse-net again to serve it`)
    } else if (netlink?.devDel(name)) log.info(`detached ${name}`)
  }

  #destroy(): void {
    const { name } = this.#options
    if (this.#kept) return
    if (!this.#control.destroy(name)) log.warning(`/dev/vduse/${name} stays: it is still on the vdpa bus or open`)
  }
}
