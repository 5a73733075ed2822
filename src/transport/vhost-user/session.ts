import {
  VHOST_F_LOG_ALL,
  VHOST_USER_CONFIG,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VHOST_USER_INFLIGHT,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_RARP,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_USER_VRING_IDX_MASK,
  VHOST_USER_VRING_NOFD_MASK,
  VHOST_VRING_ADDR,
  VHOST_VRING_F_LOG,
  VHOST_VRING_STATE,
} from '../../abi/vhost-user.ts'
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_NET_F_CTRL_VQ,
} from '../../abi/virtio.ts'
import { ProtocolError } from '../../base/errors.ts'
import { controlQueueFeatures, type Features, featureBit, hasFeature } from '../../device/features.ts'
import type { Refusal, VirtioNetDevice } from '../../device/virtio-net-device.ts'
import { EventFd } from '../../sys/eventfd.ts'
import { native } from '../../sys/native.ts'
import { isEventFd, isSocket, ownTarget, PeerSignal } from '../../sys/peer-signal.ts'
import { POLLIN, POLLOUT, type Poller } from '../../sys/poller.ts'
import { ringExtents } from '../../virtqueue/ring-extents.ts'
import { BackendChannel } from './backend-channel.ts'
import { Connection, type Message } from './connection.ts'
import { type CardState, DeviceStateTransfer, describeState } from './device-state.ts'
import { DirtyLogging } from './dirty-logging.ts'
import { InflightArea, type InflightDescription, type RingLayout } from './inflight-area.ts'
import type { MemoryRegionMessage, MemoryTable } from './memory-table.ts'
import { type Outcome, requestOf, u64Reply } from './requests.ts'
import { overlap, Ring } from './ring.ts'
import type { Rings } from './rings.ts'

/** What this back-end speaks beside the basics. */
const PROTOCOL_FEATURES = [
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_RARP,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
].reduce((set, bit) => set | featureBit(bit), 0n)

/** Virtio feature bits that are about the transport, not about the device. */
const TRANSPORT_FEATURES: Features = featureBit(VHOST_USER_F_PROTOCOL_FEATURES) | featureBit(VHOST_F_LOG_ALL)

const STARTED =
  VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK

const numberAt = (body: DataView, offset: number): number => Number(body.getBigUint64(offset, true))

/** What a session needs of the card. */
export type SessionOptions = {
  readonly device: VirtioNetDevice
  readonly memory: MemoryTable
  readonly rings: Rings
  readonly pairs: number
  /** Offer VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS: some front-ends take what they are offered, and it is slow. */
  readonly inBand: boolean
  /** Sends a frame to the TAP in the driver's name. */
  readonly sendFrame: (frame: Uint8Array) => void
  readonly log: (level: 'debug' | 'info' | 'warning', text: string) => void
}

/**
 * One front-end's connection from accept to hang-up: its requests, translated to operations of the virtio-net device. A ring
 * starts when it is given a kick descriptor, or kicked by a message, and stops at GET_VRING_BASE. docs/interop/vhost-user.rst.
 */
export class Session {
  /** Requests carried out or refused. */
  messages = 0
  readonly #connection: Connection
  readonly #options: SessionOptions
  readonly #poller: Poller
  readonly #slot: number
  readonly #backendSlot: number
  readonly #rings: Ring[]
  readonly #logging: DirtyLogging
  #protocolFeatures = 0n
  /** The front-end has sent SET_PROTOCOL_FEATURES. */
  #protocolChosen = false
  /** The driver's features with the transport's own, as the front-end has set them. */
  #setFeatures = 0n
  #backend: BackendChannel | null = null
  /** Made for a front-end that has asked, until it gives it back; and the one that it has given, in which chains are noted. */
  #inflightMade: InflightArea | null = null
  #inflight: InflightArea | null = null
  /** From SET_DEVICE_STATE_FD to CHECK_DEVICE_STATE. */
  #stateTransfer: DeviceStateTransfer | null = null

  /** Takes over the descriptor of a connected, non-blocking socket. */
  constructor(fd: number, options: SessionOptions, poller: Poller) {
    this.#connection = new Connection(fd, 'requests')
    this.#options = options
    this.#poller = poller
    this.#slot = poller.add(fd, POLLIN)
    this.#backendSlot = poller.add(-1, POLLIN)
    this.#rings = Array.from({ length: options.device.queueCount }, () => new Ring())
    this.#logging = new DirtyLogging(this.#rings, options.rings, options.memory)
    for (const index of this.#rings.keys()) {
      options.rings.setCall(index, -1)
      options.rings.setEnabled(index, false)
    }
  }

  /** POLL* bits that the last wait found for the connection. */
  get heard(): number {
    return this.#poller.ready(this.#slot)
  }

  /** Milliseconds until something is too late, -1 for never. */
  timeoutMs(nowMs: number): number {
    const times = [this.#connection.timeoutMs(nowMs), this.#backend?.timeoutMs(nowMs) ?? -1].filter((ms) => ms >= 0)
    return times.length === 0 ? -1 : Math.min(...times)
  }

  /**
   * Deals with what has arrived, with at most `count` messages. False when the front-end has hung up.
   * @throws ProtocolError when the connection is of no more use.
   */
  serve(count: number): boolean {
    this.#serveInBandCalls()
    if (this.#backend !== null) this.#serveBackend(this.#backend)
    this.#connection.flush()
    for (let i = 0; i < count && !this.#connection.hasOutput; i++) {
      const message = this.#connection.receive()
      if (message === 'end') return false
      if (message === null) break
      this.#carryOut(message)
      this.#options.device.settle()
    }
    this.#connection.checkDeadlines(performance.now())
    // As long as answers are not taken, nothing more is asked.
    this.#poller.setEvents(this.#slot, this.#connection.hasOutput ? POLLOUT : POLLIN)
    if (this.#backend !== null)
      this.#poller.setEvents(this.#backendSlot, this.#backend.hasOutput ? POLLIN | POLLOUT : POLLIN)
    return true
  }

  /** Tells the front-end that the configuration space has changed, if it wants to know. */
  configChanged(): void {
    if (this.#speaks(VHOST_USER_PROTOCOL_F_CONFIG)) this.#backend?.configChanged()
  }

  /** The device has given up on a ring: the front-end is told in each way that it knows. */
  ringFailed(index: number): void {
    const ring = this.#rings[index]
    if (ring?.err !== null) ring?.err.signal()
    else if (this.#speaks(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS)) this.#backend?.ringFailed(index)
    this.#options.device.needReset()
    this.configChanged()
  }

  /** Stops the rings, unmaps the memory, closes every descriptor. */
  [Symbol.dispose](): void {
    const { device, memory, rings } = this.#options
    device.setStatus(0)
    this.#logging[Symbol.dispose]()
    for (const index of this.#rings.keys()) rings.setInflight(index, null)
    this.#inflightMade?.[Symbol.dispose]()
    this.#inflight?.[Symbol.dispose]()
    this.#stateTransfer?.[Symbol.dispose]()
    memory.clear(() => rings.forgetMemory())
    for (const [index, ring] of this.#rings.entries()) {
      rings.setCall(index, -1)
      if (ring.inBandCallSlot >= 0) this.#poller.remove(ring.inBandCallSlot)
      ring[Symbol.dispose]()
    }
    // The slots first: the numbers may come to mean other files at once.
    this.#poller.remove(this.#backendSlot)
    this.#poller.remove(this.#slot)
    this.#backend?.[Symbol.dispose]()
    this.#connection[Symbol.dispose]()
  }

  #carryOut(message: Message): void {
    this.messages++
    const { name, outcome } = this.#run(message)
    if (outcome !== null && typeof outcome === 'object') {
      this.#connection.answer(message.request, outcome.reply, outcome.fds)
      return
    }
    if (outcome !== null) this.#options.log('warning', `${name} refused: ${outcome}`)
    if (message.needsReply && this.#speaks(VHOST_USER_PROTOCOL_F_REPLY_ACK)) {
      this.#connection.answer(message.request, u64Reply(outcome === null ? 0n : 1n).reply)
    } else if (outcome !== null) {
      throw new ProtocolError(`${name} was refused, and the front-end did not ask whether it was: ${outcome}`)
    }
  }

  #run({ request: number, body, fds }: Message): { readonly name: string; readonly outcome: Outcome } {
    let kept = false
    try {
      const request = requestOf(number)
      const name = request?.name ?? `request ${number}`
      const [fdsMin, fdsMax] = request?.fds ?? [0, 0]
      if (fds.length < fdsMin || fds.length > fdsMax) throw new ProtocolError(`${name} with ${fds.length} descriptors`)
      if (request === undefined) return { name, outcome: 'unknown' }
      if (request.feature !== undefined && !this.#speaks(request.feature))
        return { name, outcome: 'its protocol feature was not negotiated' }
      const [min, max] = typeof request.size === 'number' ? [request.size, request.size] : request.size
      if (body.byteLength < min || body.byteLength > max) return { name, outcome: `${body.byteLength} bytes` }
      const keep = (): void => {
        kept = true
      }
      return { name, outcome: request.handle(this, body, fds, keep) }
    } finally {
      if (!kept) for (const fd of fds) native.vn_close(fd)
    }
  }

  #speaks(bit: number): boolean {
    return hasFeature(this.#protocolFeatures, bit)
  }

  #serveBackend(backend: BackendChannel): void {
    try {
      if (backend.serve()) return
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
      this.#options.log('warning', `the front-end's back-channel: ${error.message}`)
    }
    // Without it a ring that is called by messages would stand still for ever.
    if (this.#rings.some((ring) => ring.inBandCall !== null)) throw new ProtocolError('no way left to call the driver')
    this.#poller.setFd(this.#backendSlot, -1)
    backend[Symbol.dispose]()
    this.#backend = null
  }

  #serveInBandCalls(): void {
    for (const [index, { inBandCall, inBandCallSlot }] of this.#rings.entries()) {
      if (inBandCall === null || this.#poller.ready(inBandCallSlot) === 0) continue
      inBandCall.drain()
      this.#backend?.call(index)
    }
  }

  getProtocolFeatures(): bigint {
    return PROTOCOL_FEATURES | (this.#options.inBand ? featureBit(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS) : 0n)
  }

  getFeatures(): Features {
    return this.#options.device.offeredFeatures | TRANSPORT_FEATURES
  }

  setFeatures(features: Features): Outcome {
    const { device } = this.#options
    // A front-end like QEMU serves the control queue itself, and takes only the bits along that it needs of a back-end.
    const ofDriver = features & ~TRANSPORT_FEATURES
    const chosen = hasFeature(ofDriver, VIRTIO_NET_F_CTRL_VQ) ? ofDriver : ofDriver & ~controlQueueFeatures
    const status = device.getStatus()
    const agreed = (status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0 && chosen === device.getFeatures()
    const inUse = this.#rings.some((ring, index) => ring.kicked || device.getVqReady(index))
    // QEMU says the same again for each queue pair, while the rings of the pairs before wait for the driver.
    if (!agreed || (device.driverOk && !inUse)) {
      if (this.#rings.some((_, index) => device.isRunning(index))) return 'features changed while a ring runs'
      if ((status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) {
        // A driver that sets itself up anew, seen through a front-end without SET_STATUS.
        device.setStatus(0)
        for (const ring of this.#rings) ring.kicked = false
      }
      const refusal = device.setFeatures(chosen)
      if (refusal !== null) return refusal
      if (!this.#speaks(VHOST_USER_PROTOCOL_F_STATUS)) {
        const refused =
          device.setStatus(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER) ??
          device.setStatus(STARTED & ~VIRTIO_CONFIG_S_DRIVER_OK)
        if (refused !== null) return refused
      }
    }
    const refusal = this.#logging.setEnabled(hasFeature(features, VHOST_F_LOG_ALL))
    if (refusal !== null) return refusal
    this.#setFeatures = features
    if (!hasFeature(features, VHOST_USER_F_PROTOCOL_FEATURES)) {
      for (const index of this.#rings.keys()) this.#enableRing(index, true)
    }
    return null
  }

  setProtocolFeatures(features: bigint): Outcome {
    const extra = features & ~this.getProtocolFeatures()
    if (extra !== 0n) return `0x${extra.toString(16)} were not offered`
    const partners = featureBit(VHOST_USER_PROTOCOL_F_BACKEND_REQ) | featureBit(VHOST_USER_PROTOCOL_F_REPLY_ACK)
    if (hasFeature(features, VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS) && (features & partners) !== partners)
      throw new ProtocolError('in-band notifications without BACKEND_REQ and REPLY_ACK')
    this.#protocolFeatures = features
    this.#protocolChosen = true
    return null
  }

  queuePairs(): number {
    return this.#options.pairs
  }

  setMemory(regions: readonly MemoryRegionMessage[]): Outcome {
    const { memory, rings } = this.#options
    return this.#logging.refuseMemory(regions) ?? memory.replace(regions, () => rings.forgetMemory())
  }

  addRegion(region: MemoryRegionMessage): Outcome {
    const { memory, rings } = this.#options
    return this.#logging.refuseMemory([region]) ?? memory.add(region, () => rings.forgetMemory())
  }

  removeRegion(region: MemoryRegionMessage): Outcome {
    const { device, memory, rings } = this.#options
    const range = { start: region.guestAddress, lengthBytes: region.lengthBytes }
    const user = this.#rings.findIndex(
      ({ areas }, index) => device.isRunning(index) && areas.some((area) => overlap(area, range)),
    )
    if (user >= 0) return `ring ${user} runs in it`
    return memory.remove(region, () => rings.forgetMemory())
  }

  setLogBase(fd: number, lengthBytes: number, offset: number): Outcome {
    const refusal = this.#logging.setLog(fd, lengthBytes, offset)
    // It always has an answer, which says nothing: QEMU waits for it.
    return refusal ?? u64Reply(0n)
  }

  setLogFd(fd: number, keep: () => void): Outcome {
    keep()
    const signal = PeerSignal.adopt(fd)
    if (signal === null) return 'nothing that can be signalled'
    this.#logging.setSignal(signal)
    return null
  }

  getInflight(description: InflightDescription, answerBytes: number): Outcome {
    const { queues, queueSize } = description
    const refusal = this.#refuseInflight(description)
    if (refusal !== null) return refusal
    const area = InflightArea.make(queues, queueSize, this.#layout)
    if (typeof area === 'string') return area
    this.#inflightMade?.[Symbol.dispose]()
    this.#inflightMade = area
    const reply = new Uint8Array(answerBytes)
    const view = new DataView(reply.buffer)
    view.setBigUint64(VHOST_USER_INFLIGHT.mmap_size, BigInt(area.description.lengthBytes), true)
    view.setUint16(VHOST_USER_INFLIGHT.num_queues, queues, true)
    view.setUint16(VHOST_USER_INFLIGHT.queue_size, queueSize, true)
    return { reply, fds: [area.fd] }
  }

  setInflight(description: InflightDescription, fd: number): Outcome {
    const { device, rings } = this.#options
    if (this.#rings.some((_, index) => device.isRunning(index))) return 'a ring runs'
    const refusal = this.#refuseInflight(description)
    if (refusal !== null) return refusal
    const area = InflightArea.open(fd, description, this.#layout)
    if (typeof area === 'string') return area
    for (const index of this.#rings.keys()) rings.setInflight(index, null)
    this.#inflight?.[Symbol.dispose]()
    this.#inflight = area
    this.#inflightMade?.[Symbol.dispose]()
    this.#inflightMade = null
    return null
  }

  get #layout(): RingLayout {
    return this.#options.device.packed ? 'packed' : 'split'
  }

  #refuseInflight({ queues, queueSize }: InflightDescription): Refusal {
    const { device } = this.#options
    const fits = queues > 0 && queues <= device.queueCount && queueSize > 0 && queueSize <= device.queueSizeMax
    return fits ? null : `${queues} rings of ${queueSize}`
  }

  /** What is handed over of this card, and what another card's state is judged by. */
  get #cardState(): CardState {
    return { mtu: this.#options.device.mtu, queuePairs: this.#options.pairs }
  }

  /** SET_DEVICE_STATE_FD. A transfer that was under way is given up. */
  beginStateTransfer(direction: number, phase: number): Outcome {
    this.#stateTransfer?.[Symbol.dispose]()
    this.#stateTransfer = null
    const { device, log } = this.#options
    const transfer = this.#rings.some((_, index) => device.isRunning(index))
      ? 'a ring runs'
      : DeviceStateTransfer.begin(direction, phase, this.#cardState)
    if (typeof transfer === 'string') {
      log('warning', `SET_DEVICE_STATE_FD refused: ${transfer}`)
      // Refused, and without a descriptor.
      return u64Reply(BigInt(VHOST_USER_VRING_NOFD_MASK | 1))
    }
    this.#stateTransfer = transfer
    return { ...u64Reply(0n), fds: [transfer.fd] }
  }

  /** CHECK_DEVICE_STATE. */
  finishStateTransfer(): Outcome {
    const { log } = this.#options
    using transfer = this.#stateTransfer
    this.#stateTransfer = null
    const state = transfer?.finish(this.#cardState) ?? 'no SET_DEVICE_STATE_FD came before it'
    if (transfer === null || typeof state === 'string') {
      log('warning', `CHECK_DEVICE_STATE refused: ${state}`)
      return u64Reply(1n)
    }
    log('info', `${transfer.direction === 'save' ? 'handed' : 'took'} over the state of ${describeState(state)}`)
    return u64Reply(0n)
  }

  setVringNum(index: number, size: number): Outcome {
    const { device } = this.#options
    const ring = this.#rings[index]
    // User Mode Linux sets up a ring anew that it has only disabled: its driver was reset, which it tells nobody.
    if (ring?.enabled === false && device.isRunning(index)) {
      ring.kicked = false
      const refusal = device.setVqReady(index, false)
      if (refusal !== null) return refusal
    }
    return device.setVqNum(index, size)
  }

  setVringAddr(body: DataView): Outcome {
    const { device, memory } = this.#options
    const index = body.getUint32(VHOST_VRING_ADDR.index, true)
    const size = device.vqSize(index)
    const ring = this.#rings[index]
    if (size === null || ring === undefined) return `no ring ${index}`
    if (size === 0) return `ring ${index}: addresses before its size`
    const extents = ringExtents(size, device.packed)
    const at = (field: number, bytes: number): number | null => memory.toGuest(numberAt(body, field), bytes)
    const desc = at(VHOST_VRING_ADDR.descriptor, extents.desc)
    const avail = at(VHOST_VRING_ADDR.available, extents.avail)
    const used = at(VHOST_VRING_ADDR.used, extents.used)
    if (desc === null || avail === null || used === null) return `ring ${index}: not inside one memory region`
    const logged = (body.getUint32(VHOST_VRING_ADDR.flags, true) & (1 << VHOST_VRING_F_LOG)) !== 0
    const usedLog = logged ? numberAt(body, VHOST_VRING_ADDR.log) : -1
    if (!this.#logging.covers(usedLog, extents.used)) return `ring ${index}: its used ring is outside of the log`
    // While migrating, a front-end sets the addresses of running rings again, with another log flag.
    const same = device.isRunning(index) && device.hasVqAddr(index, desc, avail, used)
    const refusal = same ? null : device.setVqAddr(index, desc, avail, used)
    if (refusal !== null) return refusal
    ring.areas = [
      { start: desc, lengthBytes: extents.desc },
      { start: avail, lengthBytes: extents.avail },
      { start: used, lengthBytes: extents.used },
    ]
    this.#logging.setUsedLog(index, usedLog, extents.used)
    return null
  }

  setVringBase(index: number, base: number): Outcome {
    return this.#options.device.setVqState(index, base)
  }

  setVringKick(body: DataView, fds: readonly number[], keep: () => void): Outcome {
    const target = this.#ringFd(body, fds)
    if (typeof target === 'string') return target
    const { index, fd } = target
    if (fd < 0) return `ring ${index}: a ring without kicks would have to be polled for ever`
    // Anything else could be readable for ever.
    if (!isEventFd(fd)) return `ring ${index}: not an eventfd`
    const refusal = this.#startRing(index, fd)
    if (refusal === null) keep()
    return refusal
  }

  /** VRING_KICK: what a kick descriptor would be signalled for. It starts a ring that has none. */
  kick(index: number, reserved: number): Outcome {
    const ring = this.#rings[index]
    if (ring === undefined || reserved !== 0) return `no ring ${index}, ${reserved}`
    if (ring.kickFd < 0) {
      const event = new EventFd()
      const refusal = this.#startRing(index, event.fd)
      if (refusal !== null) {
        event[Symbol.dispose]()
        return refusal
      }
      event.release()
    }
    native.vn_eventfd_signal(ring.kickFd)
    return null
  }

  /** On success the descriptor is the ring's. */
  #startRing(index: number, kickFd: number): Refusal {
    const { device, rings } = this.#options
    const stopped = device.setVqReady(index, false)
    if (stopped !== null) return stopped
    if (!this.#speaks(VHOST_USER_PROTOCOL_F_STATUS) && !device.driverOk) {
      const refused = device.setStatus(STARTED)
      if (refused !== null) return refused
    }
    const ring = this.#rings[index]!
    this.#callInBand(index, ring)
    rings.setKick(index, kickFd)
    rings.setInflight(index, this.#inflight?.regionOf(index, this.#layout) ?? null)
    const refusal = device.setVqReady(index, true)
    if (refusal !== null) {
      rings.setKick(index, ring.kickFd)
      return refusal
    }
    ring.setKick(kickFd)
    ring.kicked = true
    // What waits in the ring of a front-end that has come back would be thrown away if the ring ran, and were enabled only then.
    if (ring.enabled === null) device.setVqReady(index, false)
    return null
  }

  #enableRing(index: number, enabled: boolean): void {
    const { device, rings } = this.#options
    const ring = this.#rings[index]!
    ring.enabled = enabled
    rings.setEnabled(index, enabled)
    if (ring.kicked) device.setVqReady(index, true)
  }

  /** A ring without a call descriptor is called by messages, if that was negotiated. */
  #callInBand(index: number, ring: Ring): void {
    if (ring.call !== null || ring.callDeclined || ring.inBandCall !== null || this.#backend === null) return
    if (!this.#speaks(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS)) return
    ring.inBandCall = new EventFd()
    ring.inBandCallSlot = this.#poller.add(ring.inBandCall.fd, POLLIN)
    this.#options.rings.setCall(index, ownTarget(ring.inBandCall.fd))
  }

  setVringCall(body: DataView, fds: readonly number[], keep: () => void): Outcome {
    const target = this.#ringSignal(body, fds, keep)
    if (typeof target === 'string') return target
    const { index, signal } = target
    const ring = this.#rings[index]!
    this.#options.rings.setCall(index, signal?.target ?? -1)
    ring.call?.[Symbol.dispose]()
    ring.call = signal
    ring.callDeclined = signal === null
    return null
  }

  setVringErr(body: DataView, fds: readonly number[], keep: () => void): Outcome {
    const target = this.#ringSignal(body, fds, keep)
    if (typeof target === 'string') return target
    const ring = this.#rings[target.index]!
    ring.err?.[Symbol.dispose]()
    ring.err = target.signal
    return null
  }

  setVringEnable(index: number, enabled: boolean): Outcome {
    if (this.#rings[index] === undefined) return `no ring ${index}`
    // QEMU enables the rings before it has sent any features, and before there is anything to enable. DPDK disables them when it
    // connects anew, before it has negotiated anything: so they are.
    const negotiated = this.#protocolChosen || hasFeature(this.#setFeatures, VHOST_USER_F_PROTOCOL_FEATURES)
    if (!negotiated) return enabled ? 'protocol features were not negotiated' : null
    this.#enableRing(index, enabled)
    return null
  }

  /** Stops the ring. Asked again it says the same. */
  getVringBase(index: number): Outcome {
    const { device } = this.#options
    const ring = this.#rings[index]
    if (ring !== undefined) ring.kicked = false
    const stopped = device.setVqReady(index, false)
    const base = device.getVqState(index)
    if (stopped !== null || base === null) return stopped ?? `no ring ${index}`
    const reply = new Uint8Array(VHOST_VRING_STATE.sizeBytes)
    const view = new DataView(reply.buffer)
    view.setUint32(VHOST_VRING_STATE.index, index, true)
    view.setUint32(VHOST_VRING_STATE.num, base, true)
    return { reply }
  }

  /** The descriptor of a ring's message, -1 for none. A string says what is wrong with it. */
  #ringFd(body: DataView, fds: readonly number[]): { readonly index: number; readonly fd: number } | string {
    const value = body.getBigUint64(0, true)
    const index = Number(value & BigInt(VHOST_USER_VRING_IDX_MASK))
    if (value >> 9n !== 0n || this.#rings[index] === undefined) return `no ring 0x${value.toString(16)}`
    const noFd = (value & BigInt(VHOST_USER_VRING_NOFD_MASK)) !== 0n
    if (noFd !== (fds.length === 0)) throw new ProtocolError('the message and its descriptors do not agree')
    return { index, fd: noFd ? -1 : fds[0]! }
  }

  /** The signal of a ring's message, null for none. A string says what is wrong with it. */
  #ringSignal(
    body: DataView,
    fds: readonly number[],
    keep: () => void,
  ): { readonly index: number; readonly signal: PeerSignal | null } | string {
    const target = this.#ringFd(body, fds)
    if (typeof target === 'string') return target
    const { index, fd } = target
    if (fd < 0) return { index, signal: null }
    keep()
    const signal = PeerSignal.adopt(fd)
    return signal === null ? `ring ${index}: nothing that can be signalled` : { index, signal }
  }

  setMtu(mtu: bigint): Outcome {
    const { device } = this.#options
    return mtu >= 68n && mtu <= BigInt(device.mtu) ? null : `MTU ${mtu} on a device of ${device.mtu}`
  }

  setStatus(status: bigint): Outcome {
    if (status === 0n) for (const ring of this.#rings) ring.kicked = false
    return status > 0xffn ? `status 0x${status.toString(16)}` : this.#options.device.setStatus(Number(status))
  }

  getStatus(): number {
    return this.#options.device.getStatus()
  }

  /** All rings stopped and disabled, the device as new. Memory and descriptors stay. */
  resetDevice(): Outcome {
    const { device, rings } = this.#options
    device.setStatus(0)
    for (const [index, ring] of this.#rings.entries()) {
      ring.kicked = false
      ring.enabled = null
      rings.setEnabled(index, false)
    }
    return null
  }

  getConfig(body: DataView): Outcome {
    const offset = body.getUint32(VHOST_USER_CONFIG.offset, true)
    const size = body.getUint32(VHOST_USER_CONFIG.size, true)
    if (size !== body.byteLength - VHOST_USER_CONFIG.payload) return 'size and length do not agree'
    const bytes = this.#options.device.getConfig(offset, size)
    // The document's way to say no: a payload of length 0.
    if (bytes === null) return { reply: new Uint8Array(0) }
    const reply = new Uint8Array(body.byteLength)
    reply.set(new Uint8Array(body.buffer, body.byteOffset, VHOST_USER_CONFIG.payload))
    reply.set(bytes, VHOST_USER_CONFIG.payload)
    return { reply }
  }

  setConfig(body: DataView): Outcome {
    const offset = body.getUint32(VHOST_USER_CONFIG.offset, true)
    const size = body.getUint32(VHOST_USER_CONFIG.size, true)
    if (size !== body.byteLength - VHOST_USER_CONFIG.payload) return 'size and length do not agree'
    const bytes = new Uint8Array(body.buffer, body.byteOffset + VHOST_USER_CONFIG.payload, size)
    return this.#options.device.setConfig(offset, bytes)
  }

  setBackendFd(fd: number, keep: () => void): Outcome {
    if (!isSocket(fd)) return 'not a socket'
    keep()
    this.#backend?.[Symbol.dispose]()
    this.#backend = new BackendChannel(fd)
    this.#poller.setFd(this.#backendSlot, fd)
    return null
  }

  sendRarp(mac: Uint8Array): Outcome {
    const frame = new Uint8Array(60)
    frame.fill(0xff, 0, 6)
    frame.set(mac, 6)
    // RFC 903: reverse ARP, request, for oneself.
    frame.set([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3], 12)
    frame.set(mac, 22)
    frame.set(mac, 32)
    this.#options.sendFrame(frame)
    return null
  }
}
