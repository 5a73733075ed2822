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

/** Who wants to know what the driver does, as it does it. */
export interface DriverListener {
  /** The driver has set DRIVER_OK, with these features. No queue runs yet. */
  driverUp(features: Features): void
  /**
   * The driver has chosen features that lack what they require, like `guest_tso4 without guest_csum`: they are not
   * used.
   */
  featuresUnmet(which: readonly string[]): void
  /** An MTU for drivers has been set from outside, or null: the card's own holds again. */
  mtuSet(mtu: number | null): void
  /**
   * The device is as new, after it had begun to be set up. No queue runs any more. `sameGuest`: the next driver belongs
   * to the same guest, so that what was received for this one is still for it.
   */
  driverReset(sameGuest: boolean): void
}

/**
 * Why an operation was refused, for the log; null if it was done. The transport turns it into its own kind of refusal.
 */
export type Refusal = string | null

/** Of IPv4. VIRTIO 1.2 §5.1.4.1. */
const MTU_MIN = 68

/** A queue as its driver has set it up so far: its configuration but for the features, which are the device's. */
class QueueSetup {
  config: Omit<VirtqueueConfig, 'features'> = { size: 0, descAddr: 0, availAddr: 0, usedAddr: 0, base: 0 }
  ready = false
  running = false
}

/**
 * A virtio-net device as its driver sees it, whatever carries the messages: the operations are those of Linux's
 * `vdpa_config_ops` (include/linux/vdpa.h), which both VDUSE and vhost-user can be translated to. It checks every order
 * of calls and every value; queues are run by the engine it is given. VIRTIO 1.2 §2.1, §3.1.
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
  /** What the driver has chosen, null for nothing yet. */
  #chosen: Features | null = null
  /** What of it is used. */
  #features: Features = 0n
  #status = 0

  constructor(options: {
    offeredFeatures: Features
    /** Of those that are offered a driver cannot go without these. */
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
   * Sets the MTU that a driver reads and that bounds its frames, at most the card's own; null for the card's own again.
   * A driver that runs has read another one. VIRTIO 1.2 §5.1.4.1.
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
   * Asks the driver to announce itself to the network, in the configuration space: it is somewhere else than before.
   * False if it does not know how. VIRTIO 1.2 §5.1.6.5.4.
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

  /** Has the queue these addresses? */
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

  /** Are the queues packed rings? */
  get packed(): boolean {
    return hasFeature(this.#features, VIRTIO_F_RING_PACKED)
  }

  /**
   * Driver addresses of the three areas, aligned to 16, 2 and 4, in a packed ring 16, 4 and 4. VIRTIO 1.2 §2.7,
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

  /**
   * Stops the queue and forgets how it was set up: what the driver said of it last was refused, and what it said before
   * is void.
   */
  forgetVq(index: number): void {
    const queue = this.#queues[index]
    if (queue === undefined) return
    if (queue.running) this.#stop(index, queue)
    this.#queues[index] = new QueueSetup()
  }

  /** Entries: at most what the device offers, in a split ring a power of two. VIRTIO 1.2 §2.7. */
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
   * Idempotent. A queue that becomes ready starts at the next {@link settle}; one that stops being so has stopped on
   * return.
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

  /** Where the queue starts. */
  setVqState(index: number, base: VqBase | 'used'): Refusal {
    const queue = this.#queues[index]
    if (queue === undefined) return noSuchQueue(index)
    if (queue.running) return `queue ${index}: state changed while it runs`
    const { size } = queue.config
    if (size !== 0 && !this.#holds(size, base)) return `queue ${index}: beyond its ${size} entries`
    queue.config = { ...queue.config, base }
    return null
  }

  /** Where the queue is, running or not; null if there is no such queue. */
  getVqState(index: number): VqBase | null {
    const queue = this.#queues[index]
    if (queue === undefined) return null
    if (queue.running) return this.#engine.base(index)
    return queue.config.base === 'used' ? 0 : queue.config.base
  }

  /** The driver's choice. Judged when it sets FEATURES_OK; it may not change afterwards. VIRTIO 1.2 §3.1.1. */
  setFeatures(features: Features): Refusal {
    if (features === this.#chosen) return null
    if ((this.#status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) return 'features changed after FEATURES_OK'
    this.#chosen = features
    this.#features = features
    return null
  }

  /** What the driver has chosen; from FEATURES_OK on without the features that lack what they require. */
  getFeatures(): Features {
    return this.#features
  }

  /** What the driver has chosen, as it said it; null for nothing yet. */
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
   * Makes the device as new for a driver of the same guest: a guest that was paused sets it up anew without a word of
   * why.
   */
  renew(): void {
    this.#reset(true)
  }

  /**
   * The device cannot go on as it is: the driver may read that in the status, until it has reset the device. VIRTIO 1.2
   * §2.1.2.
   */
  needReset(): void {
    if (this.driverOk) this.#status |= VIRTIO_CONFIG_S_NEEDS_RESET
  }

  getStatus(): number {
    return this.#status
  }

  /** Read-only for the driver: a write is taken and ignored. VIRTIO 1.2 §5.1.4.2. */
  setConfig(_offset: number, _bytes: Uint8Array): Refusal {
    return null
  }

  /** Bytes of the configuration space, or null if they do not lie wholly inside it. */
  getConfig(offset: number, length: number): Uint8Array | null {
    return this.#config.read(offset, length)
  }

  /**
   * The driver's memory has changed in [start, last]: on return nothing of the old one is mapped. All of it is dropped,
   * whatever the range: what is still valid is mapped again on its first use, and a change is rare.
   */
  updateIotlb(start: number, last: number): Refusal {
    if (last < start) return `iova range ends before it starts`
    this.#engine.forgetMemory()
    return null
  }

  /**
   * Starts what may run now: the queues that are ready, once the driver has set DRIVER_OK. A transport calls it *after*
   * it has answered: the peer takes no interrupt before. Idempotent.
   */
  settle(): void {
    if (!this.driverOk || (this.#status & VIRTIO_CONFIG_S_FAILED) !== 0) return
    for (const [index, queue] of this.#queues.entries()) {
      if (!queue.ready || queue.running) continue
      this.#engine.start(index, { ...queue.config, features: this.#features })
      queue.running = true
    }
  }

  /** Stops every queue where it is; {@link settle} starts them again. */
  suspend(): void {
    this.#stopAll()
    for (const queue of this.#queues) queue.ready = false
  }

  /**
   * Takes over a device whose driver set itself up with an earlier process: its status and choice are facts, not
   * requests.
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

  /** Is the base in a queue of `size` entries? An index of a split ring always is. */
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
