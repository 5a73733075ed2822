import {
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FAILED,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_CONFIG_S_NEEDS_RESET,
  VIRTIO_F_RING_PACKED,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
} from '../abi/virtio.ts'
import { assert } from '../base/assert.ts'
import type { VirtqueueConfig, VqBase } from '../virtqueue/virtqueue-config.ts'
import type { ConfigSpace } from './config-space.ts'
import { agree, type Features, hasFeature, refuseFeatures } from './features.ts'
import type { QueueEngine } from './queue-engine.ts'

/** Receives the driver's actions as they happen. */
export interface DriverListener {
  /** The driver has set DRIVER_OK, with these features. No queue runs yet. */
  driverUp(features: Features): void
  /**
   * The driver has chosen features whose requirement is missing; they are not used. `which`: texts like `guest_tso4
   * without guest_csum`.
   */
  featuresUnmet(which: readonly string[]): void
  /** The transport has set an MTU for drivers; null: the card's own applies again. */
  mtuSet(mtu: number | null): void
  /**
   * The device was reset after its set-up had begun. No queue runs any more. `sameGuest`: the next driver belongs to
   * the same guest, so packets received for this one are for the next one too.
   */
  driverReset(sameGuest: boolean): void
}

/** Why an operation was refused, for the log; null if it was done. The transport refuses in its own way. */
export type Refusal = string | null

/** The minimum of IPv4. VIRTIO 1.2 §5.1.4.1. */
const MTU_MIN = 68

/** A queue's set-up so far: its configuration without the features, which are the device's. */
class QueueSetup {
  config: Omit<VirtqueueConfig, 'features'> = { size: 0, descAddr: 0, availAddr: 0, usedAddr: 0, base: 0 }
  ready = false
  running = false
}

/**
 * A virtio-net device as its driver sees it, over any transport. The operations are those of Linux's `vdpa_config_ops`
 * (include/linux/vdpa.h), to which both VDUSE and vhost-user map. It checks the order of calls and every value; a
 * {@link QueueEngine} runs the queues. VIRTIO 1.2 §2.1, §3.1.
 */
export class VirtioNetDevice {
  readonly offeredFeatures: Features
  readonly queueSizeMax: number
  /** Times the driver has reset the device. */
  resets = 0
  readonly #config: ConfigSpace
  readonly #engine: QueueEngine
  readonly #listener: DriverListener
  readonly #queues: QueueSetup[]
  readonly #requiredFeatures: Features
  /** The driver's choice of features; null before it. */
  #chosen: Features | null = null
  /** The features in use. */
  #features: Features = 0n
  #status = 0

  constructor(options: {
    offeredFeatures: Features
    /** Offered features that a driver must accept. */
    requiredFeatures: Features
    queueCount: number
    queueSizeMax: number
    config: ConfigSpace
    engine: QueueEngine
    listener: DriverListener
  }) {
    assert(options.queueCount > 0)
    this.offeredFeatures = options.offeredFeatures
    this.#requiredFeatures = options.requiredFeatures
    this.queueSizeMax = options.queueSizeMax
    this.#config = options.config
    this.#engine = options.engine
    this.#listener = options.listener
    this.#queues = Array.from({ length: options.queueCount }, () => new QueueSetup())
  }

  get queueCount(): number {
    return this.#queues.length
  }

  /** The card's own MTU. Bytes. */
  get mtu(): number {
    return this.#config.ownMtu
  }

  /**
   * Sets the MTU that a driver reads and that bounds its frames, at most the card's own; null for the card's own. A
   * running driver has read the old value. VIRTIO 1.2 §5.1.4.1.
   */
  setMtu(mtu: number | null): Refusal {
    const config = this.#config
    const wanted = mtu ?? config.ownMtu
    if (wanted < MTU_MIN || wanted > config.ownMtu) return `MTU ${wanted}, which is not ${MTU_MIN} to ${config.ownMtu}`
    if (wanted !== config.mtu && this.#queues.some((queue) => queue.running)) return 'MTU changed while a ring runs'
    config.mtu = wanted
    this.#listener.mtuSet(mtu)
    return null
  }

  /**
   * Asks the driver to announce itself to the network after a migration, by VIRTIO_NET_S_ANNOUNCE. False without
   * VIRTIO_NET_F_GUEST_ANNOUNCE. VIRTIO 1.2 §5.1.6.5.4.
   */
  announce(): boolean {
    if (!this.driverOk || !hasFeature(this.#features, VIRTIO_NET_F_GUEST_ANNOUNCE)) return false
    this.#config.announce = true
    return true
  }

  /** Entries that the driver has set for the queue, 0 before it has; null if there is no such queue. */
  vqSize(index: number): number | null {
    return this.#queues[index]?.config.size ?? null
  }

  /** True if the queue has these addresses. */
  hasVqAddr(index: number, descAddr: number, availAddr: number, usedAddr: number): boolean {
    const config = this.#queues[index]?.config
    return config?.descAddr === descAddr && config.availAddr === availAddr && config.usedAddr === usedAddr
  }

  get driverOk(): boolean {
    return (this.#status & VIRTIO_CONFIG_S_DRIVER_OK) !== 0
  }

  isRunning(index: number): boolean {
    return this.#queues[index]?.running ?? false
  }

  /** True if the queues are packed rings. */
  get packed(): boolean {
    return hasFeature(this.#features, VIRTIO_F_RING_PACKED)
  }

  /**
   * Sets the driver addresses of the three areas, aligned to 16, 2 and 4 (packed: 16, 4 and 4). VIRTIO 1.2 §2.7,
   * §2.8.10.1.
   */
  setVqAddr(index: number, descAddr: number, availAddr: number, usedAddr: number): Refusal {
    const queue = this.#queues[index]
    if (queue === undefined) return noSuchQueue(index)
    if (queue.running) return `queue ${index}: address changed while it runs`
    if (!Number.isSafeInteger(descAddr) || !Number.isSafeInteger(availAddr) || !Number.isSafeInteger(usedAddr)) {
      return `queue ${index}: address beyond 2^53`
    }
    const availAlignment = this.packed ? 4 : 2
    if (descAddr % 16 !== 0 || availAddr % availAlignment !== 0 || usedAddr % 4 !== 0) {
      return `queue ${index}: misaligned address`
    }
    queue.config = { ...queue.config, descAddr, availAddr, usedAddr }
    return null
  }

  /** Stops the queue and forgets its set-up: a refused change of it also voids the previous one. */
  forgetVq(index: number): void {
    const queue = this.#queues[index]
    if (queue === undefined) return
    if (queue.running) this.#stop(index, queue)
    this.#queues[index] = new QueueSetup()
  }

  /** Sets the entries: at most what the device offers, in a split ring a power of two. VIRTIO 1.2 §2.7. */
  setVqNum(index: number, size: number): Refusal {
    const queue = this.#queues[index]
    if (queue === undefined) return noSuchQueue(index)
    if (queue.running) return `queue ${index}: size changed while it runs`
    if (size < 1 || size > this.queueSizeMax || (!this.packed && (size & (size - 1)) !== 0)) {
      return `queue ${index}: size ${size} is not ${this.packed ? '' : 'a power of two '}up to ${this.queueSizeMax}`
    }
    queue.config = { ...queue.config, size }
    return null
  }

  /**
   * Sets the ready flag. Idempotent. A queue that becomes ready starts at the next {@link settle}; one that becomes not
   * ready has stopped on return.
   */
  setVqReady(index: number, ready: boolean): Refusal {
    const queue = this.#queues[index]
    if (queue === undefined) return noSuchQueue(index)
    const { size, usedAddr, base } = queue.config
    if (ready && (size === 0 || usedAddr === 0)) return `queue ${index}: ready without size and addresses`
    if (ready && !this.#holds(size, base)) return `queue ${index}: its state is beyond its ${size} entries`
    if (!ready && queue.running) this.#stop(index, queue)
    queue.ready = ready
    return null
  }

  getVqReady(index: number): boolean {
    return this.#queues[index]?.ready ?? false
  }

  /** Sets the queue's base. */
  setVqState(index: number, base: VqBase | 'used'): Refusal {
    const queue = this.#queues[index]
    if (queue === undefined) return noSuchQueue(index)
    if (queue.running) return `queue ${index}: state changed while it runs`
    const { size } = queue.config
    if (size !== 0 && !this.#holds(size, base)) return `queue ${index}: beyond its ${size} entries`
    queue.config = { ...queue.config, base }
    return null
  }

  /** The queue's base, running or not; null if there is no such queue. */
  getVqState(index: number): VqBase | null {
    const queue = this.#queues[index]
    if (queue === undefined) return null
    if (queue.running) return this.#engine.base(index)
    return queue.config.base === 'used' ? 0 : queue.config.base
  }

  /**
   * Sets the driver's choice of features. It is checked at FEATURES_OK and may not change afterwards. VIRTIO 1.2
   * §3.1.1.
   */
  setFeatures(features: Features): Refusal {
    if (features === this.#chosen) return null
    if ((this.#status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) return 'features changed after FEATURES_OK'
    this.#chosen = features
    this.#features = features
    return null
  }

  /** The driver's choice; from FEATURES_OK on without features whose requirement is missing. */
  getFeatures(): Features {
    return this.#features
  }

  /** The driver's choice as it was set; null before it. */
  get chosenFeatures(): Features | null {
    return this.#chosen
  }

  /**
   * The driver's write to the status byte. 0 resets: on return no queue runs and no memory of the driver is mapped. A
   * refused FEATURES_OK or DRIVER_OK leaves the status as it was.
   */
  setStatus(status: number): Refusal {
    if (status === 0) {
      this.#reset(false)
      return null
    }
    const added = status & ~this.#status
    if ((this.#status & ~status & ~VIRTIO_CONFIG_S_NEEDS_RESET) !== 0) {
      return `status 0x${status.toString(16)} clears bits of 0x${this.#status.toString(16)} without a reset`
    }
    if ((added & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) {
      const refusal = this.#judgeFeatures()
      if (refusal !== null) return `FEATURES_OK refused: ${refusal}`
    }
    if ((added & VIRTIO_CONFIG_S_DRIVER_OK) !== 0 && (status & VIRTIO_CONFIG_S_FEATURES_OK) === 0) {
      return 'DRIVER_OK before FEATURES_OK'
    }
    if ((added & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) this.#agreeOnFeatures()
    this.#status = status | (this.#status & VIRTIO_CONFIG_S_NEEDS_RESET)
    if ((added & VIRTIO_CONFIG_S_DRIVER_OK) !== 0) this.#listener.driverUp(this.#features)
    if ((status & VIRTIO_CONFIG_S_FAILED) !== 0) this.#stopAll()
    return null
  }

  /**
   * Resets the device for another driver of the same guest: a front-end may set up a paused guest's device anew without
   * a reset.
   */
  renew(): void {
    this.#reset(true)
  }

  /** Sets DEVICE_NEEDS_RESET until the driver has reset the device. VIRTIO 1.2 §2.1.2. */
  needReset(): void {
    if (this.driverOk) this.#status |= VIRTIO_CONFIG_S_NEEDS_RESET
  }

  getStatus(): number {
    return this.#status
  }

  /** Accepts and ignores a write: the configuration space is read-only. VIRTIO 1.2 §5.1.4.2. */
  setConfig(_offset: number, _bytes: Uint8Array): Refusal {
    return null
  }

  /** Bytes of the configuration space, or null if they do not lie wholly inside it. */
  getConfig(offset: number, length: number): Uint8Array | null {
    return this.#config.read(offset, length)
  }

  /**
   * The driver's memory has changed in [start, last]. On return no old mapping exists. All mappings are dropped, not
   * only the range: valid memory is mapped again on first use, and changes are rare.
   */
  updateIotlb(start: number, last: number): Refusal {
    if (last < start) return `iova range ends before it starts`
    this.#engine.forgetMemory()
    return null
  }

  /**
   * Starts all ready queues once the driver has set DRIVER_OK. A transport calls it *after* its answer: the peer takes
   * no interrupt before. Idempotent.
   */
  settle(): void {
    if (!this.driverOk || (this.#status & VIRTIO_CONFIG_S_FAILED) !== 0) return
    for (const [index, queue] of this.#queues.entries()) {
      if (!queue.ready || queue.running) continue
      this.#engine.start(index, { ...queue.config, features: this.#features })
      queue.running = true
    }
  }

  /** Stops every queue; {@link settle} starts them again at their bases. */
  suspend(): void {
    this.#stopAll()
    for (const queue of this.#queues) queue.ready = false
  }

  /**
   * Takes over a driver that was set up with an earlier process: its status and features are accepted without checks.
   */
  adopt(status: number, features: Features): void {
    assert(this.#status === 0)
    this.#status = status
    this.#chosen = features
    this.#agreeOnFeatures()
    if (this.driverOk) this.#listener.driverUp(this.#features)
  }

  #judgeFeatures(): Refusal {
    if (this.#chosen === null) return 'the driver has chosen no features'
    return refuseFeatures(this.offeredFeatures, this.#requiredFeatures, this.#chosen)
  }

  #agreeOnFeatures(): void {
    assert(this.#chosen !== null, 'there is a choice')
    const { features, unmet } = agree(this.#chosen)
    this.#features = features
    if (unmet.length > 0) this.#listener.featuresUnmet(unmet)
  }

  /** True if a queue of `size` entries can have this base. A split ring can have any. */
  #holds(size: number, base: VqBase | 'used'): boolean {
    return !this.packed || base === 'used' || (base & 0x7fff) < size
  }

  #stop(index: number, queue: QueueSetup): void {
    queue.config = { ...queue.config, base: this.#engine.stop(index) }
    queue.running = false
  }

  #stopAll(): void {
    for (const [index, queue] of this.#queues.entries()) if (queue.running) this.#stop(index, queue)
  }

  #reset(sameGuest: boolean): void {
    this.#stopAll()
    this.#engine.forgetMemory()
    this.#config.reset()
    for (let i = 0; i < this.#queues.length; i++) this.#queues[i] = new QueueSetup()
    const wasSetUp = this.#status !== 0
    this.#status = 0
    this.#chosen = null
    this.#features = 0n
    if (!wasSetUp) return
    this.resets++
    this.#listener.driverReset(sameGuest)
  }
}

const noSuchQueue = (index: number): string => `no queue ${index}`
