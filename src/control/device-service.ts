import {
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_NOTF_COAL,
} from '../abi/virtio.ts'
import { VIRTIO_NET_CONFIG } from '../abi/virtio-net.ts'
import type { DriverFault } from '../base/errors.ts'
import { kindOfText, LogLimit, leftOutNote } from '../base/log-limit.ts'
import { DeviceBlock } from '../channel/device-block.ts'
import { DIRECTION } from '../channel/queue-block.ts'
import { QueuePairBlock } from '../channel/queue-pair-block.ts'
import type { DeviceWorkerMessage, LogLevel, ServeDevice } from '../channel/worker-messages.ts'
import { ConfigSpace } from '../device/config-space.ts'
import { type ControlEffects, controlQueueIndex } from '../device/control-queue.ts'
import type { ControlTransport } from '../device/control-transport.ts'
import { type Features, featureNames, hasFeature } from '../device/features.ts'
import { ReceiveFilter } from '../device/receive-filter.ts'
import { ReceiveScaling } from '../device/receive-scaling.ts'
import { type DriverListener, VirtioNetDevice } from '../device/virtio-net-device.ts'
import type { RegionSource } from '../memory/region.ts'
import { native } from '../sys/native.ts'
import { POLLIN, Poller } from '../sys/poller.ts'
import type { Tap } from '../tap/tap.ts'
import { ControlQueueRunner } from './control-queue-runner.ts'
import { DeviceQueues } from './device-queues.ts'
import { FrameLimit } from './frame-limit.ts'
import { QueueWatch } from './queue-watch.ts'
import { type QueuePairHandle, QueueWorkers } from './queue-workers.ts'
import { TapKeeper, type TapSettings } from './tap-keeper.ts'

/** Slots for this thread's descriptors and the transport's. */
const POLL_SLOTS = 32
/** A queue worker starts much sooner; this only bounds a hang. */
const WORKER_START_TIMEOUT_MS = 60_000

/** What depends on the transport. */
export type TransportParts = {
  /** The driver's memory, for the control queue. */
  readonly memory: RegionSource
  /** Features that every driver must accept. */
  readonly requiredFeatures: Features
  /** Makes the transport for a device with these queues. */
  readonly make: (
    device: VirtioNetDevice,
    queues: DeviceQueues,
    log: (level: LogLevel, text: string) => void,
  ) => ControlTransport
}

/**
 * The device worker's loop: answers the driver's control messages, follows the TAP's link, carries out main's requests.
 * It waits in one place only, and does nothing that could delay a control message: the kernel marks a device broken for
 * good when an answer is late.
 *
 * That includes the kernel's RTNL lock, which every ioctl of the TAP and every request to route netlink takes: Linux's
 * driver holds it while it waits for the answer to DRIVER_OK (drivers/net/virtio_net.c, virtnet_probe). Between
 * FEATURES_OK and that answer this thread therefore does not touch the TAP; it does so afterwards.
 */
export class DeviceService implements DriverListener {
  readonly #tap: TapKeeper
  readonly #frameLimit: FrameLimit
  readonly #post: (message: DeviceWorkerMessage) => void
  readonly #logLimit = new LogLimit<{ readonly level: LogLevel; readonly text: string }>(
    ({ level, text }) => `${level} ${kindOfText(text)}`,
    ({ level, text }, leftOut) => this.#post({ kind: 'log', level, text: text + leftOutNote(leftOut) }),
  )
  readonly #block: DeviceBlock
  readonly #pairs: readonly QueuePairHandle[]
  readonly #watch: QueueWatch
  readonly #workers: QueueWorkers
  readonly #queues: DeviceQueues
  readonly #controlQueue: ControlQueueRunner
  readonly #filter: ReceiveFilter
  readonly #scaling: ReceiveScaling
  /** The queue workers hash what they receive. */
  #scalingInUse = false
  readonly #config: ConfigSpace
  readonly #device: VirtioNetDevice
  readonly #transport: ControlTransport
  readonly #poller = new Poller(POLL_SLOTS)
  readonly #wakeSlot: number
  readonly #wakeFd: number
  readonly #adopt: boolean
  #operatorUp = true
  /** True if packets received so far are not for the next driver. */
  #startsEmpty = true
  /** `struct vn_scaling` by which the TAP steers packets; null: the host's own choice. */
  #steeredBy: Uint32Array | null = null
  /** The negotiated features, without the receive offloads that the driver has switched off. */
  #packetFeatures = 0n
  /** The last log text about features whose requirement is missing. */
  #unmetFeatures = ''

  constructor(tap: Tap, serve: ServeDevice, transport: TransportParts, post: (message: DeviceWorkerMessage) => void) {
    this.#post = post
    this.#tap = new TapKeeper(tap, this.#poller, {
      useTap: (fds) => this.#workers.setTap(fds),
      tapChanged: () => this.#followTap(),
      log: (level, text) => this.#log(level, text),
    })
    this.#block = new DeviceBlock(serve.block)
    this.#pairs = serve.pairs.map(({ block, wakeFd }) => ({ block: new QueuePairBlock(block), wakeFd }))
    this.#watch = new QueueWatch(this.#pairs.map(({ block }) => block))
    this.#workers = new QueueWorkers(this.#pairs)
    this.#frameLimit = new FrameLimit(serve.mtu, (level, text) => this.#log(level, text))
    this.#filter = new ReceiveFilter(serve.receiveFilter)
    this.#scaling = new ReceiveScaling(serve.receiveScaling)
    this.#controlQueue = new ControlQueueRunner({
      memory: transport.memory,
      pairsMax: serve.pairs.length,
      filter: this.#filter,
      effects: this.#controlEffects(),
      poller: this.#poller,
      failed: (fault) => this.#failControlQueue(fault),
    })
    this.#queues = new DeviceQueues(this.#workers, this.#controlQueue, serve.pairs.length, (pair, attached) =>
      tap.setQueueAttached(pair, attached),
    )
    this.#config = new ConfigSpace({
      mac: serve.mac,
      mtu: serve.mtu,
      maxVirtqueuePairs: serve.pairs.length,
      linkUp: this.#tap.up,
    })
    this.#device = new VirtioNetDevice({
      offeredFeatures: serve.offeredFeatures,
      requiredFeatures: transport.requiredFeatures,
      queueCount: serve.pairs.length * 2 + (hasFeature(serve.offeredFeatures, VIRTIO_NET_F_CTRL_VQ) ? 1 : 0),
      queueSizeMax: serve.queueSizeMax,
      config: this.#config,
      engine: this.#queues,
      listener: this,
    })
    this.#transport = transport.make(this.#device, this.#queues, (level, text) => this.#log(level, text))
    this.#wakeFd = serve.wakeFd
    this.#adopt = serve.adopt
    this.#transport.watch(this.#poller)
    this.#wakeSlot = this.#poller.add(serve.wakeFd, POLLIN)
  }

  /** Serves until main requests a stop or the transport has ended. */
  run(): void {
    this.begin()
    while (this.round(this.#timeoutMs()));
    this.end()
  }

  /** Takes the device over from a process that died, if there was one, and sets TAP and link to match. */
  begin(): void {
    for (const pair of this.#pairs) {
      if (!pair.block.awaitAlive(WORKER_START_TIMEOUT_MS)) throw new Error('a queue worker did not start')
    }
    // Packets that arrived meanwhile are for the driver that runs on.
    this.#startsEmpty = !this.#adopt
    const adopted = this.#adopt && this.#transport.adopt()
    this.#startsEmpty = !adopted
    if (adopted) {
      this.#log('info', `took over a running driver from a process that died${this.#tap.lostAddressesNote}`)
      // The link state that the old process reported last is unknown.
      this.#reportLink()
    }
    this.#tap.configure(this.#tapSettings)
    this.#updateLink()
    this.#showState()
    this.#post({ kind: 'serving' })
  }

  /** Waits up to `timeoutMs` (-1: for ever) and handles what is ready. False at the end of the service. */
  round(timeoutMs: number): boolean {
    if (this.#block.request.stop) return false
    this.#poller.wait(timeoutMs)
    this.#serveMessages()
    if (this.#transport.ended !== null) {
      this.#post({ kind: 'ended', end: this.#transport.ended })
      return false
    }
    this.#controlQueue.serve()
    this.#tap.checkDeletion()
    if (this.#poller.ready(this.#wakeSlot) !== 0) {
      native.vn_eventfd_drain(this.#wakeFd)
      this.#takeRequest()
      this.#inspectQueues()
      for (const line of this.#watch.takeTapErrors()) this.#log('warning', line)
    }
    if (this.#mayWaitForRtnl) this.#tap.serve(this.#tapSettings)
    this.#tap.pollLink(this.#mayWaitForRtnl)
    return true
  }

  /** Stops the queues and their workers, and closes the TAP. */
  end(): void {
    this.#transport[Symbol.dispose]()
    this.#workers.exit()
    this.#tap[Symbol.dispose]()
    this.#logLimit.flush()
    this.#post({ kind: 'stopped' })
  }

  driverUp(features: Features): void {
    this.#packetFeatures = features
    this.#frameLimit.update(this.#tap.mtu, features)
    this.#workers.setPolicy(features, this.#frameLimit.mtu)
    if (this.#startsEmpty) this.#workers.discardReceived()
    this.#startsEmpty = false
    this.#queues.expectDriver()
    this.#filter.start(features, this.#config.mac)
    this.#log('info', `driver is up: ${featureNames(features).join(' ')}`)
  }

  featuresUnmet(which: readonly string[]): void {
    const text = which.join(', ')
    if (text === this.#unmetFeatures) return
    this.#unmetFeatures = text
    this.#log(
      'warning',
      `the driver's features are not complete: ${text}; a feature without its requirement is not used`,
    )
  }

  mtuSet(mtu: number | null): void {
    this.#frameLimit.set(mtu)
    this.#updateFrameLimit()
    const tapMtu = this.#tap.mtu
    if (mtu === null || tapMtu <= mtu) return
    this.#log(
      'info',
      `the front-end has set an MTU of ${mtu}, and the TAP has ${tapMtu}: longer frames are dropped (frame_too_long)`,
    )
  }

  driverReset(sameGuest: boolean): void {
    if (!sameGuest) this.#startsEmpty = true
    if (hasFeature(this.#packetFeatures, VIRTIO_NET_F_NOTF_COAL)) {
      for (const direction of [DIRECTION.rx, DIRECTION.tx]) this.#workers.setCoalescing(direction, 0, 0)
    }
    if (this.#scalingInUse) {
      this.#scalingInUse = false
      this.#workers.setScaling(-1)
    }
    this.#steeredBy = null
    this.#packetFeatures = 0n
    this.#frameLimit.update(this.#tap.mtu, 0n)
    this.#filter.reset()
    this.#log('info', 'driver has reset the device')
  }

  /** False while the driver may hold the lock and wait for our answer. */
  get #mayWaitForRtnl(): boolean {
    const settling = this.#device.getStatus() & (VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK)
    return settling !== VIRTIO_CONFIG_S_FEATURES_OK
  }

  get #tapSettings(): TapSettings {
    return { features: this.#packetFeatures, carrier: this.#operatorUp, scaling: this.#steeredBy }
  }

  #timeoutMs(): number {
    const tick = this.#transport.tick()
    const now = performance.now()
    const tap = this.#mayWaitForRtnl ? this.#tap.timeoutMs(now) : -1
    const times = [tick, this.#controlQueue.timeoutMs(now), tap, this.#logLimit.tick()].filter((ms) => ms >= 0)
    return times.length === 0 ? -1 : Math.min(...times)
  }

  #serveMessages(): void {
    const messages = this.#transport.messages
    this.#transport.serve()
    if (this.#transport.messages === messages) return
    this.#inspectQueues()
    this.#showState()
  }

  #controlEffects(): ControlEffects {
    return {
      setQueuePairs: (pairs) => {
        this.#queues.setActivePairs(pairs)
        // VIRTIO 1.2 §5.1.6.5.5: after this command the device chooses the queue of a packet.
        this.#steerBy(null)
        return true
      },
      setMac: (mac) => {
        this.#config.mac = mac
        this.#showState()
      },
      announceAcked: () => {
        this.#config.announce = false
      },
      setGuestOffloads: (features) => {
        // Frames that the TAP queued before the change must still pass.
        this.#workers.setPolicy(features | this.#packetFeatures, this.#frameLimit.mtu)
        this.#packetFeatures = features
        this.#tap.configure(this.#tapSettings)
        this.#workers.setPolicy(features, this.#frameLimit.mtu)
        return true
      },
      setCoalescing: (direction, packets, usecs) => this.#workers.setCoalescing(DIRECTION[direction], packets, usecs),
      setScaling: (config) => {
        const place = this.#scaling.write(config)
        this.#workers.setScaling(place)
        this.#scalingInUse = true
        if (config.steering !== null) this.#queues.setActivePairs(config.steering.pairs)
        this.#steerBy(config.steering === null ? null : this.#scaling.words(place))
        return true
      },
    }
  }

  #steerBy(scaling: Uint32Array | null): void {
    this.#steeredBy = scaling
    this.#tap.configure(this.#tapSettings)
  }

  #takeRequest(): void {
    const request = this.#block.request
    if (request.sequence === this.#block.requestDone) return
    this.#operatorUp = request.linkUp
    if (this.#mayWaitForRtnl) this.#tap.configure(this.#tapSettings)
    this.#workers.setLink(this.#operatorUp)
    this.#updateLink()
    this.#block.requestDone = request.sequence
    this.#post({ kind: 'request-done' })
  }

  #failControlQueue(fault: DriverFault): void {
    this.#log('warning', `control queue quarantined until the driver resets the device: ${fault.message}`)
    const index = controlQueueIndex(this.#device.getFeatures(), this.#pairs.length)
    this.#transport.queueFailed(index, fault.number, fault.message)
    this.#showState()
  }

  /** A quarantined queue shows as link down: VDUSE cannot express DEVICE_NEEDS_RESET. */
  #inspectQueues(): void {
    const failed = this.#watch.takeFailed()
    this.#updateLink()
    for (const { index, fault } of failed) {
      this.#log('warning', `queue ${index} quarantined until the driver resets the device: ${fault.text}`)
      this.#transport.queueFailed(index, fault.number, fault.text)
    }
    if (failed.length === 0) return
    // The transport may have ended the session because of it.
    this.#inspectQueues()
    this.#showState()
  }

  #followTap(): void {
    this.#updateFrameLimit()
    this.#updateLink()
    this.#showState()
  }

  #updateFrameLimit(): void {
    const { mtu } = this.#frameLimit
    this.#frameLimit.update(this.#tap.mtu, this.#packetFeatures)
    if (this.#frameLimit.mtu !== mtu) this.#workers.setPolicy(this.#packetFeatures, this.#frameLimit.mtu)
  }

  /** Reports the link state to the driver if it has changed. */
  #updateLink(): void {
    const linkUp = this.#operatorUp && this.#tap.linkUp && !this.#watch.anyQuarantined
    this.#block.linkUp = linkUp
    if (linkUp === this.#config.linkUp) return
    this.#config.linkUp = linkUp
    this.#reportLink()
    this.#log('info', `link is ${linkUp ? 'up' : 'down'}`)
  }

  #reportLink(): void {
    const offset = VIRTIO_NET_CONFIG.status
    this.#transport.configChanged(offset, this.#config.bytes.subarray(offset, offset + 2))
  }

  #showState(): void {
    const block = this.#block
    block.status = this.#device.getStatus()
    block.features = this.#device.getFeatures()
    block.resets = this.#device.resets
    block.messages = this.#transport.messages
    block.connected = this.#transport.connected
    block.mac = this.#config.mac
    block.tapPresent = this.#tap.present
    block.tapIndex = this.#tap.index
    block.tapUp = this.#tap.up
  }

  /**
   * Limited before the line crosses to main: otherwise the messages that a stuck main thread has not read have no
   * bound.
   */
  #log(level: LogLevel, text: string): void {
    this.#logLimit.log({ level, text })
    this.#block.logLinesLeftOut = this.#logLimit.leftOut
  }
}
