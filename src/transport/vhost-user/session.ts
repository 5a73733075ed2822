import {
  VHOST_F_LOG_ALL,
  VHOST_MEMORY_BASELINE_NREGIONS,
  VHOST_USER_ADD_MEM_REG,
  VHOST_USER_BACKEND_CONFIG_CHANGE_MSG,
  VHOST_USER_CONFIG,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VHOST_USER_GET_CONFIG,
  VHOST_USER_GET_FEATURES,
  VHOST_USER_GET_MAX_MEM_SLOTS,
  VHOST_USER_GET_PROTOCOL_FEATURES,
  VHOST_USER_GET_QUEUE_NUM,
  VHOST_USER_GET_STATUS,
  VHOST_USER_GET_VRING_BASE,
  VHOST_USER_MEM_REG_MSG,
  VHOST_USER_MEMORY,
  VHOST_USER_MEMORY_REGION,
  VHOST_USER_NET_SET_MTU,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_RARP,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_USER_REM_MEM_REG,
  VHOST_USER_RESET_DEVICE,
  VHOST_USER_RESET_OWNER,
  VHOST_USER_SEND_RARP,
  VHOST_USER_SET_BACKEND_REQ_FD,
  VHOST_USER_SET_CONFIG,
  VHOST_USER_SET_FEATURES,
  VHOST_USER_SET_MEM_TABLE,
  VHOST_USER_SET_OWNER,
  VHOST_USER_SET_PROTOCOL_FEATURES,
  VHOST_USER_SET_STATUS,
  VHOST_USER_SET_VRING_ADDR,
  VHOST_USER_SET_VRING_BASE,
  VHOST_USER_SET_VRING_CALL,
  VHOST_USER_SET_VRING_ENABLE,
  VHOST_USER_SET_VRING_ERR,
  VHOST_USER_SET_VRING_KICK,
  VHOST_USER_SET_VRING_NUM,
  VHOST_USER_VRING_IDX_MASK,
  VHOST_USER_VRING_NOFD_MASK,
  VHOST_VRING_ADDR,
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
import { native } from '../../sys/native.ts'
import { isEventFd, PeerSignal } from '../../sys/peer-signal.ts'
import { ringExtents } from '../../virtqueue/ring-extents.ts'
import { Connection, type Message } from './connection.ts'
import type { MemoryRegionMessage, MemoryTable } from './memory-table.ts'
import { MEMORY_SLOTS } from './memory-table.ts'
import type { Rings } from './rings.ts'

/** What this back-end speaks beside the basics. */
const PROTOCOL_FEATURES = [
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_RARP,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_STATUS,
].reduce((set, bit) => set | featureBit(bit), 0n)

/** Virtio feature bits that are about the transport, not about the device. */
const TRANSPORT_FEATURES: Features = featureBit(VHOST_USER_F_PROTOCOL_FEATURES) | featureBit(VHOST_F_LOG_ALL)

const STARTED =
  VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK

/** What became of a request: refused and why, done (null), or an answer of its own. */
type Outcome = Refusal | { readonly reply: Uint8Array; readonly fds?: readonly number[] }

type Handler = {
  readonly name: string
  /** Length of the body, or the range it must lie in. */
  readonly size: number | readonly [number, number]
  /** How many descriptors it may bring. Those that the handler does not `keep` are closed after it. */
  readonly fds?: readonly [number, number]
  readonly handle: (session: Session, body: DataView, fds: readonly number[], keep: () => void) => Outcome
}

const u64Reply = (value: bigint): { reply: Uint8Array } => {
  const reply = new Uint8Array(8)
  new DataView(reply.buffer).setBigUint64(0, value, true)
  return { reply }
}

const u64Of = (body: DataView): bigint => body.getBigUint64(0, true)
const numberAt = (body: DataView, offset: number): number => Number(body.getBigUint64(offset, true))

const regionAt = (body: DataView, at: number, fd: number): MemoryRegionMessage => ({
  guestAddress: numberAt(body, at + VHOST_USER_MEMORY_REGION.guest_phys_addr),
  lengthBytes: numberAt(body, at + VHOST_USER_MEMORY_REGION.memory_size),
  userAddress: numberAt(body, at + VHOST_USER_MEMORY_REGION.userspace_addr),
  mmapOffset: numberAt(body, at + VHOST_USER_MEMORY_REGION.mmap_offset),
  fd,
})

/** What a session needs of the card. */
export type SessionOptions = {
  readonly device: VirtioNetDevice
  readonly memory: MemoryTable
  readonly rings: Rings
  readonly pairs: number
  /** Sends a frame to the TAP in the driver's name. */
  readonly sendFrame: (frame: Uint8Array) => void
  readonly log: (level: 'debug' | 'info' | 'warning', text: string) => void
}

/** What the session keeps of one ring. */
class Ring {
  kickFd = -1
  call: PeerSignal | null = null
  err: PeerSignal | null = null
  enabled = false
}

/**
 * One front-end's connection from accept to hang-up: its requests, translated to operations of the virtio-net device. A ring
 * starts when it is kicked into being by SET_VRING_KICK and stops at GET_VRING_BASE. docs/interop/vhost-user.rst.
 */
export class Session {
  /** Requests carried out or refused. */
  messages = 0
  readonly connection: Connection
  readonly options: SessionOptions
  readonly #rings: Ring[]
  #protocolFeatures = 0n
  /** The front-end has sent SET_PROTOCOL_FEATURES. */
  #protocolChosen = false
  /** The driver's features with the transport's own, as the front-end has set them. */
  #setFeatures = 0n
  #backend: Connection | null = null

  constructor(fd: number, options: SessionOptions) {
    this.connection = new Connection(fd)
    this.options = options
    this.#rings = Array.from({ length: options.device.queueCount }, () => new Ring())
    for (const index of this.#rings.keys()) {
      options.rings.setCall(index, -1)
      options.rings.setEnabled(index, false)
    }
  }

  /**
   * Deals with at most `count` messages that have arrived. False when the front-end has hung up.
   * @throws ProtocolError when the connection is of no more use.
   */
  serve(count: number): boolean {
    this.connection.flush()
    this.#drainBackend()
    for (let i = 0; i < count && !this.connection.hasOutput; i++) {
      const message = this.connection.receive()
      if (message === 'end') return false
      if (message === null) break
      this.#carryOut(message)
      this.options.device.settle()
    }
    this.connection.checkDeadlines(performance.now())
    return true
  }

  /** Tells the front-end that the configuration space has changed, if it wants to know. */
  configChanged(): void {
    if (this.#backend === null || !this.#speaks(VHOST_USER_PROTOCOL_F_CONFIG)) return
    this.#backend.send(VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, new Uint8Array(0), { isReply: false })
  }

  /** Signals that the device has given up on a ring. */
  ringFailed(index: number): void {
    this.#rings[index]?.err?.signal()
  }

  /** Stops the rings, unmaps the memory, closes every descriptor. */
  [Symbol.dispose](): void {
    const { device, memory, rings } = this.options
    device.setStatus(0)
    memory.clear(() => rings.forgetMemory())
    for (const [index, ring] of this.#rings.entries()) {
      rings.setCall(index, -1)
      if (ring.kickFd >= 0) native.vn_close(ring.kickFd)
      ring.call?.[Symbol.dispose]()
      ring.err?.[Symbol.dispose]()
    }
    this.#backend?.[Symbol.dispose]()
    this.connection[Symbol.dispose]()
  }

  #carryOut(message: Message): void {
    this.messages++
    const handler = handlers.get(message.request)
    let outcome: Outcome = `unknown request ${message.request}`
    if (handler === undefined) for (const fd of message.fds) native.vn_close(fd)
    else outcome = this.#run(handler, message)
    const name = handler?.name ?? 'unknown request'
    if (outcome !== null && typeof outcome === 'object') {
      this.connection.send(message.request, outcome.reply, { isReply: true, fds: outcome.fds ?? [] })
      return
    }
    if (outcome !== null) this.options.log('warning', `${name} refused: ${outcome}`)
    if (message.needsReply && this.#speaks(VHOST_USER_PROTOCOL_F_REPLY_ACK)) {
      this.connection.send(message.request, u64Reply(outcome === null ? 0n : 1n).reply, { isReply: true })
    } else if (outcome !== null) {
      throw new ProtocolError(`${name} was refused, and the front-end did not ask whether it was: ${outcome}`)
    }
  }

  #run(handler: Handler, { body, fds }: Message): Outcome {
    const { name, size, handle } = handler
    const [fdsMin, fdsMax] = handler.fds ?? [0, 0]
    let kept = false
    try {
      if (fds.length < fdsMin || fds.length > fdsMax) throw new ProtocolError(`${name} with ${fds.length} descriptors`)
      const [min, max] = typeof size === 'number' ? [size, size] : size
      if (body.byteLength < min || body.byteLength > max) return `${body.byteLength} bytes`
      return handle(this, body, fds, () => {
        kept = true
      })
    } finally {
      if (!kept) for (const fd of fds) native.vn_close(fd)
    }
  }

  #speaks(bit: number): boolean {
    return hasFeature(this.#protocolFeatures, bit)
  }

  /** Front-ends answer our requests only if asked to, which we do not: what comes is thrown away. */
  #drainBackend(): void {
    const backend = this.#backend
    if (backend === null) return
    try {
      backend.flush()
      const message = backend.receive()
      if (message === null) return
      if (message !== 'end') for (const fd of message.fds) native.vn_close(fd)
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
    }
    backend[Symbol.dispose]()
    this.#backend = null
  }

  setFeatures(features: Features): Outcome {
    const { device, rings } = this.options
    // A front-end like QEMU serves the control queue itself, and takes only the bits along that it needs of a back-end.
    const ofDriver = features & ~TRANSPORT_FEATURES
    const chosen = hasFeature(ofDriver, VIRTIO_NET_F_CTRL_VQ) ? ofDriver : ofDriver & ~controlQueueFeatures
    if (chosen !== device.getFeatures() || !device.driverOk) {
      if (this.#rings.some((_, index) => device.isRunning(index))) return 'features changed while a ring runs'
      const status = device.getStatus()
      if ((status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) {
        // A driver that sets itself up anew, seen through a front-end without SET_STATUS.
        device.setStatus(0)
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
    this.#setFeatures = features
    if (!hasFeature(features, VHOST_USER_F_PROTOCOL_FEATURES)) {
      for (const [index, ring] of this.#rings.entries()) {
        ring.enabled = true
        rings.setEnabled(index, true)
      }
    }
    return null
  }

  setProtocolFeatures(features: bigint): Outcome {
    const extra = features & ~PROTOCOL_FEATURES
    if (extra !== 0n) return `protocol features 0x${extra.toString(16)} were not offered`
    this.#protocolFeatures = features
    this.#protocolChosen = true
    return null
  }

  setMemory(regions: readonly MemoryRegionMessage[]): Outcome {
    return this.options.memory.replace(regions, () => this.options.rings.forgetMemory())
  }

  setVringAddr(body: DataView): Outcome {
    const { device, memory } = this.options
    const index = body.getUint32(VHOST_VRING_ADDR.index, true)
    const size = device.vqSize(index)
    if (size === null) return `no ring ${index}`
    if (size === 0) return `ring ${index}: addresses before its size`
    const extents = ringExtents(size, device.packed)
    const at = (field: number, bytes: number): number | null => memory.toGuest(numberAt(body, field), bytes)
    const desc = at(VHOST_VRING_ADDR.descriptor, extents.desc)
    const avail = at(VHOST_VRING_ADDR.available, extents.avail)
    const used = at(VHOST_VRING_ADDR.used, extents.used)
    if (desc === null || avail === null || used === null) return `ring ${index}: not inside one memory region`
    // While migrating, a front-end sets the addresses of running rings again, with another log flag.
    if (device.isRunning(index) && device.hasVqAddr(index, desc, avail, used)) return null
    return device.setVqAddr(index, desc, avail, used)
  }

  /** The descriptor of a ring's message, -1 for none. A string says what is wrong with it. */
  #ringFd(body: DataView, fds: readonly number[]): { index: number; fd: number } | string {
    const value = u64Of(body)
    const index = Number(value & BigInt(VHOST_USER_VRING_IDX_MASK))
    if (value >> 9n !== 0n || this.#rings[index] === undefined) return `no ring 0x${value.toString(16)}`
    const noFd = (value & BigInt(VHOST_USER_VRING_NOFD_MASK)) !== 0n
    if (noFd !== (fds.length === 0)) throw new ProtocolError('the message and its descriptors do not agree')
    return { index, fd: noFd ? -1 : fds[0]! }
  }

  /** The signal of a ring's message, null for none. A string says what is wrong with it. */
  #ringSignal(body: DataView, fds: readonly number[], keep: () => void): [Ring, PeerSignal | null] | string {
    const target = this.#ringFd(body, fds)
    if (typeof target === 'string') return target
    const ring = this.#rings[target.index]!
    if (target.fd < 0) return [ring, null]
    keep()
    const signal = PeerSignal.adopt(target.fd)
    return signal === null ? `ring ${target.index}: nothing that can be signalled` : [ring, signal]
  }

  setVringKick(body: DataView, fds: readonly number[], keep: () => void): Outcome {
    const target = this.#ringFd(body, fds)
    if (typeof target === 'string') return target
    const { index, fd } = target
    if (fd < 0) return `ring ${index}: a ring without kicks would have to be polled for ever`
    // Anything else could be readable for ever.
    if (!isEventFd(fd)) return `ring ${index}: not an eventfd`
    const { device, rings } = this.options
    const ring = this.#rings[index]!
    const stopped = device.setVqReady(index, false)
    if (stopped !== null) return stopped
    if (!this.#speaks(VHOST_USER_PROTOCOL_F_STATUS) && !device.driverOk) {
      const refused = device.setStatus(STARTED)
      if (refused !== null) return refused
    }
    rings.setKick(index, fd)
    const refusal = device.setVqReady(index, true)
    if (refusal !== null) return refusal
    keep()
    if (ring.kickFd >= 0) native.vn_close(ring.kickFd)
    ring.kickFd = fd
    return null
  }

  setVringCall(body: DataView, fds: readonly number[], keep: () => void): Outcome {
    const target = this.#ringSignal(body, fds, keep)
    if (typeof target === 'string') return target
    const [ring, signal] = target
    this.options.rings.setCall(this.#rings.indexOf(ring), signal?.target ?? -1)
    ring.call?.[Symbol.dispose]()
    ring.call = signal
    return null
  }

  setVringErr(body: DataView, fds: readonly number[], keep: () => void): Outcome {
    const target = this.#ringSignal(body, fds, keep)
    if (typeof target === 'string') return target
    const [ring, signal] = target
    ring.err?.[Symbol.dispose]()
    ring.err = signal
    return null
  }

  setVringEnable(index: number, enabled: boolean): Outcome {
    const ring = this.#rings[index]
    if (ring === undefined) return `no ring ${index}`
    // QEMU enables the rings before it has sent any features, and before there is anything to enable.
    if (!this.#protocolChosen && !hasFeature(this.#setFeatures, VHOST_USER_F_PROTOCOL_FEATURES))
      return 'protocol features were not negotiated'
    ring.enabled = enabled
    this.options.rings.setEnabled(index, enabled)
    return null
  }

  getVringBase(index: number): Outcome {
    const { device } = this.options
    const stopped = device.setVqReady(index, false)
    const base = device.getVqState(index)
    if (stopped !== null || base === null) return stopped ?? `no ring ${index}`
    const reply = new Uint8Array(VHOST_VRING_STATE.sizeBytes)
    const view = new DataView(reply.buffer)
    view.setUint32(VHOST_VRING_STATE.index, index, true)
    view.setUint32(VHOST_VRING_STATE.num, base, true)
    return { reply }
  }

  getConfig(body: DataView): Outcome {
    const offset = body.getUint32(VHOST_USER_CONFIG.offset, true)
    const size = body.getUint32(VHOST_USER_CONFIG.size, true)
    if (size !== body.byteLength - VHOST_USER_CONFIG.payload) return 'size and length do not agree'
    const bytes = this.options.device.getConfig(offset, size)
    const header = new Uint8Array(body.buffer, body.byteOffset, VHOST_USER_CONFIG.payload).slice()
    // The document's way to say no: a payload of length 0.
    if (bytes === null) return { reply: new Uint8Array(0) }
    const reply = new Uint8Array(header.length + bytes.length)
    reply.set(header)
    reply.set(bytes, header.length)
    return { reply }
  }

  setBackendFd(fd: number, keep: () => void): Outcome {
    keep()
    this.#backend?.[Symbol.dispose]()
    native.vn_set_nonblock(fd, 1)
    this.#backend = new Connection(fd)
    return null
  }

  sendRarp(body: DataView): Outcome {
    const mac = new Uint8Array(body.buffer, body.byteOffset, 6)
    const frame = new Uint8Array(60)
    frame.fill(0xff, 0, 6)
    frame.set(mac, 6)
    // RFC 903: reverse ARP, request, for oneself.
    frame.set([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3], 12)
    frame.set(mac, 22)
    frame.set(mac, 32)
    this.options.sendFrame(frame)
    return null
  }
}

const stateOf = (body: DataView): { index: number; num: number } => ({
  index: body.getUint32(VHOST_VRING_STATE.index, true),
  num: body.getUint32(VHOST_VRING_STATE.num, true),
})

/** A front-end may wait for the whole header of a configuration, and for what lies behind it. */
const CONFIG_SIZE = [VHOST_USER_CONFIG.payload, VHOST_USER_CONFIG.payload + 256] as const
const ringFds = [0, 1] as const

const handlers: ReadonlyMap<number, Handler> = new Map<number, Handler>([
  [
    VHOST_USER_GET_FEATURES,
    {
      name: 'GET_FEATURES',
      size: 0,
      handle: (s) => u64Reply(s.options.device.offeredFeatures | featureBit(VHOST_USER_F_PROTOCOL_FEATURES)),
    },
  ],
  [VHOST_USER_SET_FEATURES, { name: 'SET_FEATURES', size: 8, handle: (s, body) => s.setFeatures(u64Of(body)) }],
  [
    VHOST_USER_GET_PROTOCOL_FEATURES,
    { name: 'GET_PROTOCOL_FEATURES', size: 0, handle: () => u64Reply(PROTOCOL_FEATURES) },
  ],
  [
    VHOST_USER_SET_PROTOCOL_FEATURES,
    { name: 'SET_PROTOCOL_FEATURES', size: 8, handle: (s, body) => s.setProtocolFeatures(u64Of(body)) },
  ],
  [VHOST_USER_SET_OWNER, { name: 'SET_OWNER', size: 0, handle: () => null }],
  // Deprecated, and defined by no two front-ends alike: the rings are stopped by GET_VRING_BASE in any case.
  [VHOST_USER_RESET_OWNER, { name: 'RESET_OWNER', size: 0, handle: () => null }],
  [
    VHOST_USER_SET_MEM_TABLE,
    {
      name: 'SET_MEM_TABLE',
      size: [
        VHOST_USER_MEMORY.sizeBytes,
        VHOST_USER_MEMORY.sizeBytes + VHOST_MEMORY_BASELINE_NREGIONS * VHOST_USER_MEMORY_REGION.sizeBytes,
      ],
      fds: [0, VHOST_MEMORY_BASELINE_NREGIONS],
      handle: (s, body, fds) => {
        const count = body.getUint32(VHOST_USER_MEMORY.nregions, true)
        if (count === 0 || count > VHOST_MEMORY_BASELINE_NREGIONS) throw new ProtocolError(`${count} memory regions`)
        if (fds.length !== count) throw new ProtocolError(`${count} memory regions with ${fds.length} descriptors`)
        const bytes = count * VHOST_USER_MEMORY_REGION.sizeBytes
        if (body.byteLength < VHOST_USER_MEMORY.regions + bytes) return `${body.byteLength} bytes for ${count} regions`
        return s.setMemory(
          fds.map((fd, i) => regionAt(body, VHOST_USER_MEMORY.regions + i * VHOST_USER_MEMORY_REGION.sizeBytes, fd)),
        )
      },
    },
  ],
  [VHOST_USER_GET_MAX_MEM_SLOTS, { name: 'GET_MAX_MEM_SLOTS', size: 0, handle: () => u64Reply(BigInt(MEMORY_SLOTS)) }],
  [
    VHOST_USER_ADD_MEM_REG,
    {
      name: 'ADD_MEM_REG',
      size: VHOST_USER_MEM_REG_MSG.sizeBytes,
      fds: [1, 1],
      handle: ({ options }, body, [fd]) =>
        options.memory.add(regionAt(body, VHOST_USER_MEM_REG_MSG.region.guest_phys_addr, fd!), () =>
          options.rings.forgetMemory(),
        ),
    },
  ],
  [
    VHOST_USER_REM_MEM_REG,
    {
      name: 'REM_MEM_REG',
      size: VHOST_USER_MEM_REG_MSG.sizeBytes,
      // Some front-ends send the descriptor along. It is of no use, and closed.
      fds: [0, 1],
      handle: ({ options }, body) =>
        options.memory.remove(regionAt(body, VHOST_USER_MEM_REG_MSG.region.guest_phys_addr, -1), () =>
          options.rings.forgetMemory(),
        ),
    },
  ],
  [
    VHOST_USER_SET_VRING_NUM,
    {
      name: 'SET_VRING_NUM',
      size: VHOST_VRING_STATE.sizeBytes,
      handle: ({ options }, body) => options.device.setVqNum(stateOf(body).index, stateOf(body).num),
    },
  ],
  [
    VHOST_USER_SET_VRING_ADDR,
    { name: 'SET_VRING_ADDR', size: VHOST_VRING_ADDR.sizeBytes, handle: (s, body) => s.setVringAddr(body) },
  ],
  [
    VHOST_USER_SET_VRING_BASE,
    {
      name: 'SET_VRING_BASE',
      size: VHOST_VRING_STATE.sizeBytes,
      handle: ({ options }, body) => options.device.setVqState(stateOf(body).index, stateOf(body).num),
    },
  ],
  [
    VHOST_USER_GET_VRING_BASE,
    {
      name: 'GET_VRING_BASE',
      size: VHOST_VRING_STATE.sizeBytes,
      handle: (s, body) => s.getVringBase(stateOf(body).index),
    },
  ],
  [
    VHOST_USER_SET_VRING_KICK,
    { name: 'SET_VRING_KICK', size: 8, fds: ringFds, handle: (s, body, fds, keep) => s.setVringKick(body, fds, keep) },
  ],
  [
    VHOST_USER_SET_VRING_CALL,
    { name: 'SET_VRING_CALL', size: 8, fds: ringFds, handle: (s, body, fds, keep) => s.setVringCall(body, fds, keep) },
  ],
  [
    VHOST_USER_SET_VRING_ERR,
    { name: 'SET_VRING_ERR', size: 8, fds: ringFds, handle: (s, body, fds, keep) => s.setVringErr(body, fds, keep) },
  ],
  [
    VHOST_USER_SET_VRING_ENABLE,
    {
      name: 'SET_VRING_ENABLE',
      size: VHOST_VRING_STATE.sizeBytes,
      handle: (s, body) => {
        const { index, num } = stateOf(body)
        return num > 1 ? `enable ${num}` : s.setVringEnable(index, num === 1)
      },
    },
  ],
  [VHOST_USER_GET_QUEUE_NUM, { name: 'GET_QUEUE_NUM', size: 0, handle: (s) => u64Reply(BigInt(s.options.pairs)) }],
  [VHOST_USER_SEND_RARP, { name: 'SEND_RARP', size: 8, handle: (s, body) => s.sendRarp(body) }],
  [
    VHOST_USER_NET_SET_MTU,
    {
      name: 'NET_SET_MTU',
      size: 8,
      handle: ({ options }, body) => {
        const mtu = u64Of(body)
        return mtu >= 68n && mtu <= BigInt(options.device.mtu)
          ? null
          : `MTU ${mtu} on a device of ${options.device.mtu}`
      },
    },
  ],
  [
    VHOST_USER_SET_BACKEND_REQ_FD,
    {
      name: 'SET_BACKEND_REQ_FD',
      size: [0, 8],
      fds: [1, 1],
      handle: (s, _body, [fd], keep) => s.setBackendFd(fd!, keep),
    },
  ],
  [VHOST_USER_GET_CONFIG, { name: 'GET_CONFIG', size: CONFIG_SIZE, handle: (s, body) => s.getConfig(body) }],
  [VHOST_USER_SET_CONFIG, { name: 'SET_CONFIG', size: CONFIG_SIZE, handle: () => null }],
  [
    VHOST_USER_SET_STATUS,
    {
      name: 'SET_STATUS',
      size: 8,
      handle: ({ options }, body) => {
        const status = u64Of(body)
        return status > 0xffn ? `status 0x${status.toString(16)}` : options.device.setStatus(Number(status))
      },
    },
  ],
  [
    VHOST_USER_GET_STATUS,
    { name: 'GET_STATUS', size: 0, handle: (s) => u64Reply(BigInt(s.options.device.getStatus())) },
  ],
  [VHOST_USER_RESET_DEVICE, { name: 'RESET_DEVICE', size: 0, handle: ({ options }) => options.device.setStatus(0) }],
])
