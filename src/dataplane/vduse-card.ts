import { VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_NET_F_STATUS } from '../abi/virtio.ts'
import { buildInfo } from '../base/build-info.ts'
import { EXIT, UserError } from '../base/errors.ts'
import { logger } from '../base/log.ts'
import { type Mac, parseMac } from '../base/mac.ts'
import { ConfigSpace } from '../device/config-space.ts'
import {
  type Features,
  featureNames,
  featuresByName,
  hasFeature,
  implementedFeatures,
  withoutUnmet,
} from '../device/features.ts'
import { statusNames } from '../device/status-names.ts'
import { EventFd } from '../sys/eventfd.ts'
import { OwnedFd } from '../sys/fd.ts'
import { workerUrl } from '../sys/worker.ts'
import type { TapOptions } from '../tap/tap.ts'
import { VdpaBus } from '../transport/vduse/bind.ts'
import { VduseControl, vduseFeatureNames } from '../transport/vduse/control.ts'
import { openVduseDevice, VduseDevice } from '../transport/vduse/device-fd.ts'
import { VdpaNetlink } from '../transport/vduse/vdpa-netlink.ts'
import type { Bind, Card, DeviceView, QueueView, ReadyView, StatsView } from './card.ts'
import { queueViews, statsView } from './card-views.ts'
import { DeviceBlock } from './device-block.ts'
import { QueuePairBlock } from './queue-pair-block.ts'
import type {
  CloseTap,
  DeviceWorkerMessage,
  OpenedTap,
  OpenTap,
  ServeDevice,
  ServeQueuePair,
} from './worker-messages.ts'

const log = logger('main')
const deviceLog = logger('device')

/** The device worker opens a TAP, or ends, long before; past it something is stuck. */
const WORKER_TIMEOUT_MS = 10_000
/** VDUSE refuses the control queue, so there is one queue pair: VIRTIO 1.2 §5.1.5. */
const QUEUE_PAIRS = 1

/** What a card is made of. */
export type VduseCardOptions = {
  readonly name: string
  readonly tap: TapOptions
  readonly mac: Mac
  readonly bind: Bind
  readonly attach: boolean
  /** Entries of a ring at most. */
  readonly queueSize: number
  /** Names of features that must be offered, and of those that must not. */
  readonly features: { readonly on: readonly string[]; readonly off: readonly string[] }
  /** Called once when the card cannot go on by itself: it is to be stopped and made anew. */
  readonly onFailure: (why: string) => void
}

/** What a device is created with, or was by the process before. */
type Identity = {
  readonly mac: Mac
  readonly mtu: number
  readonly offered: Features
  readonly queueSize: number
}

/** Throws UserError if the TAP cannot do what was asked for by name. */
const chooseFeatures = (tap: OpenedTap, { on, off }: VduseCardOptions['features']): Features => {
  const set = (names: readonly string[]): Features =>
    names.reduce((features, name) => features | (featuresByName.get(name) ?? 0n), 0n)
  const offered = withoutUnmet(implementedFeatures & ~tap.uselessFeatures & ~set(off))
  const missing = set(on) & ~offered
  if (missing !== 0n) {
    throw new UserError(
      `--features: ${tap.name} cannot do ${featureNames(missing).join(', ')}`,
      'leave them out, or use a TAP with a vnet header on Linux 6.2 or newer',
    )
  }
  return offered
}

/**
 * A card over VDUSE on main's side: it creates the device, starts the workers, attaches the device to the vdpa bus, and undoes all
 * of that in the opposite order. Netlink and binding run the driver's probe, which sends control messages: main may wait for
 * that, because the device worker answers them.
 */
export class VduseCard implements Card {
  readonly #options: VduseCardOptions
  /** Undoes what has been done so far, the newest first. */
  readonly #undo = new AsyncDisposableStack()
  readonly #bus = new VdpaBus()
  readonly #block = new DeviceBlock()
  readonly #pairBlocks = Array.from({ length: QUEUE_PAIRS }, () => new QueuePairBlock())
  readonly #startedMs = performance.now()
  readonly #waiters: { readonly kinds: readonly string[]; readonly resolve: (message: DeviceWorkerMessage) => void }[] =
    []
  readonly #pairWakes: EventFd[] = []
  /** One for each virtqueue. */
  readonly #kicks: EventFd[] = []
  #control!: VduseControl
  #worker!: Worker
  #wake!: EventFd
  #tap!: OpenedTap
  #identity!: Identity
  #attached = false
  #serving = false
  #stopped = false
  #failed = false

  private constructor(options: VduseCardOptions) {
    this.#options = options
  }

  /** Serves a card from when it resolves until {@link stop}. Throws UserError, and leaves nothing behind then. */
  static async start(options: VduseCardOptions): Promise<VduseCard> {
    const card = new VduseCard(options)
    try {
      await card.#start()
      return card
    } catch (error) {
      await card.#undo.disposeAsync()
      throw error
    }
  }

  /** Detaches the device and takes everything down. */
  async stop(): Promise<void> {
    this.#failed = true
    await this.#undo.disposeAsync()
  }

  device(): DeviceView {
    const { name, bind } = this.#options
    const block = this.#block
    const { mac, mtu, offered } = this.#identity
    return {
      name,
      transport: 'vduse',
      attached: this.#attached,
      bind,
      mac,
      mtu,
      linkUp: block.linkUp,
      tap: {
        name: this.#tap.name,
        index: block.tapPresent ? block.tapIndex : null,
        vnetHdr: this.#tap.hasVnetHdr,
        carrier: block.tapPresent && block.tapUp,
      },
      status: { bits: block.status, names: statusNames(block.status) },
      features: { offered: featureNames(offered), negotiated: featureNames(block.features) },
      driver: this.#bus.currentDriver(name),
      queuePairs: QUEUE_PAIRS,
      uptimeSeconds: Math.floor((performance.now() - this.#startedMs) / 1000),
      pid: process.pid,
      version: buildInfo.version,
      resets: block.resets,
      vduse: {
        apiVersion: this.#control.version.apiVersion,
        features: vduseFeatureNames(this.#control.version.features),
      },
    }
  }

  queues(): readonly QueueView[] {
    return queueViews(this.#pairBlocks, this.#identity.queueSize)
  }

  stats(): StatsView {
    return statsView(this.#pairBlocks)
  }

  ready(): ReadyView {
    const not = (reason: string): ReadyView => ({ ready: false, reason })
    const block = this.#block
    if (this.#failed) return not('the card is being taken down')
    if (!this.#attached) return not('the device is not attached to the vdpa bus')
    if ((block.status & VIRTIO_CONFIG_S_DRIVER_OK) === 0) return not('no driver has set the device up')
    if (!block.tapPresent) return not(`${this.#tap.name} is gone`)
    if (!block.linkUp) return not('the link is down')
    if (this.queues().some((queue) => !queue.running)) return not('a queue is not running')
    return { ready: true, reason: 'ready' }
  }

  async setLinkUp(up: boolean): Promise<void> {
    if (!hasFeature(this.#identity.offered, VIRTIO_NET_F_STATUS)) {
      throw new UserError(
        'the link cannot be switched: the device does not offer VIRTIO_NET_F_STATUS',
        'start without -status',
      )
    }
    const sequence = this.#block.wishLinkUp(up)
    this.#wake.signal()
    while (this.#block.wishDone < sequence) await this.#message('wish-done')
  }

  /** The network interface or the character device that the driver has made of the card, or null. */
  userInterface(): string | null {
    return this.#bus.netdevOf(this.#options.name) ?? this.#bus.vhostPathOf(this.#options.name)
  }

  async #start(): Promise<void> {
    const { name } = this.#options
    this.#control = this.#undo.use(new VduseControl())
    const netlink = this.#undo.use(new VdpaNetlink())
    this.#wake = this.#undo.use(new EventFd())
    this.#worker = this.#startWorker('dataplane/device-worker.ts')
    this.#worker.onmessage = ({ data }: MessageEvent<DeviceWorkerMessage>) => this.#take(data)
    this.#tap = await this.#openTap()

    this.#undo.defer(() => this.#stopDeviceWorker())
    const { fd, adopted } = this.#openDevice(netlink)
    this.#startQueueWorkers(fd)
    this.#undo.defer(() => this.#stopDeviceWorker())
    await this.#serve(fd, adopted)

    // Whoever has put the device on the bus: without us nobody would answer its driver.
    this.#undo.defer(() => {
      this.#attached = false
      if (netlink.devDel(name)) log.info(`detached ${name}`)
    })
    if (adopted || this.#options.attach) this.#attach(netlink, adopted)
  }

  #startWorker(module: `${string}-worker.ts`): Worker {
    const worker = new Worker(workerUrl(module))
    worker.onerror = (event) => this.#fail(`${module}: ${event.message}`)
    this.#undo.defer(() => {
      worker.onerror = null
      worker.terminate()
    })
    return worker
  }

  async #openTap(): Promise<OpenedTap> {
    this.#worker.postMessage({ kind: 'open', tap: this.#options.tap } satisfies OpenTap)
    const answer = await this.#message('opened', 'refused')
    if (answer.kind === 'opened') return answer.tap
    if (answer.kind === 'refused') throw new UserError(answer.message, answer.hint, answer.exitCode)
    throw new Error(`the device worker said ${answer.kind}`)
  }

  /** The device's descriptor: a new device's, or that of one which a process that died has left. */
  #openDevice(netlink: VdpaNetlink): { fd: OwnedFd; adopted: boolean } {
    const { name, mac, queueSize } = this.#options
    const left = openVduseDevice(name)
    const attached = left !== null && netlink.devGet(name) !== null
    if (left !== null && attached) {
      const config = netlink.devConfigGet(name)
      this.#identity = {
        mac: config?.mac ?? mac,
        mtu: config?.mtu ?? this.#tap.mtu,
        offered: config?.deviceFeatures ?? chooseFeatures(this.#tap, this.#options.features),
        queueSize: netlink.devGet(name)?.maxVqSize ?? queueSize,
      }
      if (this.#identity.mac !== mac) log.warning(`${name} keeps the MAC ${this.#identity.mac} until it is made anew`)
      this.#undo.defer(() => this.#destroy())
      return { fd: this.#undo.use(new OwnedFd(left)), adopted: true }
    }
    if (left !== null) {
      // Never attached: nothing of it is worth keeping.
      new OwnedFd(left)[Symbol.dispose]()
      this.#control.destroy(name)
    }
    this.#identity = {
      mac,
      mtu: this.#tap.mtu,
      offered: chooseFeatures(this.#tap, this.#options.features),
      queueSize,
    }
    const { bytes } = new ConfigSpace({
      mac: parseMac(mac)!,
      mtu: this.#identity.mtu,
      maxVirtqueuePairs: QUEUE_PAIRS,
      linkUp: true,
    })
    const queueCount = QUEUE_PAIRS * 2
    if (!this.#control.create({ name, features: this.#identity.offered, queueCount, config: bytes })) {
      throw new UserError(
        `${name}: a VDUSE device of this name appeared just now`,
        'start one card of a name at a time',
      )
    }
    this.#undo.defer(() => this.#destroy())
    const fd = openVduseDevice(name)
    if (fd === null) {
      throw new UserError(
        `/dev/vduse/${name} does not appear`,
        'mount devtmpfs on /dev, or let udev run; in a container, share the host /dev/vduse',
        EXIT.deviceMissing,
      )
    }
    const owned = this.#undo.use(new OwnedFd(fd))
    const device = new VduseDevice(fd)
    for (let index = 0; index < queueCount; index++) device.setUpVq(index, queueSize)
    return { fd: owned, adopted: false }
  }

  #startQueueWorkers(fd: OwnedFd): void {
    for (const [pairIndex, block] of this.#pairBlocks.entries()) {
      const wake = this.#undo.use(new EventFd())
      this.#pairWakes.push(wake)
      this.#kicks.push(this.#undo.use(new EventFd()), this.#undo.use(new EventFd()))
      this.#startWorker('dataplane/queue-worker.ts').postMessage({
        transport: { kind: 'vduse', fd: fd.fd },
        wakeFd: wake.fd,
        deviceWakeFd: this.#wake.fd,
        block: block.buffer,
        pairIndex,
        tapFd: this.#tap.fds[pairIndex]!,
        tapHasVnetHdr: this.#tap.hasVnetHdr,
        mtu: this.#identity.mtu,
      } satisfies ServeQueuePair)
    }
  }

  async #serve(fd: OwnedFd, adopt: boolean): Promise<void> {
    this.#serving = true
    this.#worker.postMessage({
      kind: 'serve',
      transport: { kind: 'vduse', fd: fd.fd, kickFds: this.#kicks.map((kick) => kick.fd) },
      wakeFd: this.#wake.fd,
      block: this.#block.buffer,
      pairs: this.#pairBlocks.map((block, index) => ({ block: block.buffer, wakeFd: this.#pairWakes[index]!.fd })),
      offeredFeatures: this.#identity.offered,
      queueSizeMax: this.#identity.queueSize,
      mac: parseMac(this.#identity.mac)!,
      mtu: this.#identity.mtu,
      adopt,
    } satisfies ServeDevice)
    await this.#message('serving')
  }

  #attach(netlink: VdpaNetlink, attached: boolean): void {
    const { name, bind } = this.#options
    if (!attached) {
      if (bind !== 'none' && !this.#bus.hasDriver(bind)) {
        throw new UserError(
          `${name}: the driver ${bind}_vdpa is not loaded`,
          `modprobe ${bind}_vdpa, or pass --bind none`,
          EXIT.deviceMissing,
        )
      }
      netlink.devAdd({ name, mgmtdev: 'vduse' })
    }
    this.#attached = true
    if (bind !== 'none') this.#bus.bindDriver(name, bind)
    log.info(`attached ${name}: MAC ${this.#identity.mac}, driver ${this.#bus.currentDriver(name) ?? 'none'}`)
  }

  /** Ends the device worker, whether it serves already or not: it lets go of the TAP. */
  async #stopDeviceWorker(): Promise<void> {
    if (this.#stopped) return
    if (this.#serving) {
      this.#block.wishStop()
      this.#wake.signal()
    } else this.#worker.postMessage({ kind: 'close' } satisfies CloseTap)
    await this.#message('stopped')
  }

  #destroy(): void {
    const { name } = this.#options
    if (!this.#control.destroy(name)) log.warning(`/dev/vduse/${name} stays: it is still on the vdpa bus or open`)
  }

  #take(message: DeviceWorkerMessage): void {
    if (message.kind === 'log') {
      deviceLog[message.level](message.text)
      return
    }
    if (message.kind === 'broken') this.#fail(message.why)
    if (message.kind === 'stopped') this.#stopped = true
    for (const waiter of this.#waiters.splice(0)) {
      if (waiter.kinds.includes(message.kind)) waiter.resolve(message)
      else this.#waiters.push(waiter)
    }
  }

  /** The next message of one of these kinds. Throws if the worker is silent for long, or dead. */
  #message(...kinds: DeviceWorkerMessage['kind'][]): Promise<DeviceWorkerMessage> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => reject(new Error(`no ${kinds.join(' or ')} of the device worker`)),
        WORKER_TIMEOUT_MS,
      )
      this.#waiters.push({
        kinds,
        resolve: (message) => {
          clearTimeout(timer)
          resolve(message)
        },
      })
    })
  }

  #fail(why: string): void {
    if (this.#failed) return
    this.#failed = true
    this.#options.onFailure(why)
  }
}
