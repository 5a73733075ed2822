import { dlopen, FFIType, ptr } from 'bun:ffi'
import { constants } from 'node:os'
import { POLLFD, POLLIN, POLLOUT } from '../../src/abi/linux.ts'
import {
  VHOST_USER_F_PROTOCOL_FEATURES,
  VHOST_USER_GET_FEATURES,
  VHOST_USER_GET_PROTOCOL_FEATURES,
  VHOST_USER_GET_VRING_BASE,
  VHOST_USER_HEADER,
  VHOST_USER_MEMORY_REGION,
  VHOST_USER_NEED_REPLY,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_REPLY,
  VHOST_USER_SET_FEATURES,
  VHOST_USER_SET_MEM_TABLE,
  VHOST_USER_SET_OWNER,
  VHOST_USER_SET_PROTOCOL_FEATURES,
  VHOST_USER_SET_VRING_ADDR,
  VHOST_USER_SET_VRING_BASE,
  VHOST_USER_SET_VRING_CALL,
  VHOST_USER_SET_VRING_ENABLE,
  VHOST_USER_SET_VRING_ERR,
  VHOST_USER_SET_VRING_KICK,
  VHOST_USER_SET_VRING_NUM,
  VHOST_USER_VERSION,
  VHOST_VRING_STATE,
} from '../../src/abi/vhost-user.ts'
import {
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_NET_F_HASH_REPORT,
  VIRTIO_NET_F_MRG_RXBUF,
} from '../../src/abi/virtio.ts'
import { EventFd } from '../../src/sys/eventfd.ts'
import { addressOf, check, native } from '../../src/sys/native.ts'
import { connectUnix } from '../../src/sys/unix-socket.ts'
import { bit } from './bits.ts'
import { type DriverModel, SplitDriver } from './driver-model.ts'
import { GuestMemory, type GuestMemoryOptions } from './guest-memory.ts'
import { PackedDriver } from './packed-driver.ts'
import { HANG_MS } from './patience.ts'

const { EAGAIN, ECONNRESET, EPIPE } = constants.errno

/** What a front-end reads: a message of the backend's. `fds` are the reader's. */
export type Received = {
  readonly request: number
  readonly flags: number
  readonly body: DataView
  readonly fds: readonly number[]
}

/** Bytes of a body, from numbers of 4 or (bigint) 8 bytes. */
export const bodyOf = (...fields: readonly (number | bigint)[]): Uint8Array => {
  const view = new DataView(
    new ArrayBuffer(fields.reduce<number>((sum, field) => sum + (typeof field === 'bigint' ? 8 : 4), 0)),
  )
  let at = 0
  for (const field of fields) {
    if (typeof field === 'bigint') {
      view.setBigUint64(at, BigInt.asUintN(64, field), true)
      at += 8
    } else {
      view.setUint32(at, field, true)
      at += 4
    }
  }
  return new Uint8Array(view.buffer)
}

const u64 = (value: number): bigint => BigInt(value)

const pollfdOf = (fd: number, events: number): Int32Array => {
  const request = new Int32Array(POLLFD.sizeBytes / 4)
  request[0] = fd
  request[1] = events
  return request
}

/** The POLL* bits of a descriptor, once there are any of `events`; 0 if none come in time. */
export const poll = (fd: number, events: number, timeoutMs: number): number => {
  const request = pollfdOf(fd, events)
  check('poll', native.vn_poll(request, 1, timeoutMs))
  return (request[1] ?? 0) >>> 16
}

const libc = dlopen('libc.so.6', { sendmsg: { args: ['i32', 'ptr', 'i32'], returns: FFIType.i64_fast } })

/** Sends bytes with any number of descriptors; {@link native} sends as many as a message may have. Bytes sent. */
const sendManyFds = (socket: number, bytes: Uint8Array, fds: readonly number[]): number => {
  // struct cmsghdr and struct msghdr of linux/socket.h; 1, 1: SOL_SOCKET, SCM_RIGHTS.
  const control = new Uint8Array(16 + Math.ceil(fds.length / 2) * 8)
  const controlView = new DataView(control.buffer)
  controlView.setBigUint64(0, BigInt(16 + fds.length * 4), true)
  controlView.setUint32(8, 1, true)
  controlView.setUint32(12, 1, true)
  fds.forEach((fd, index) => {
    controlView.setInt32(16 + index * 4, fd, true)
  })
  const iovec = new BigUint64Array([BigInt(ptr(bytes)), BigInt(bytes.length)])
  const header = new BigUint64Array([0n, 0n, BigInt(ptr(iovec)), 1n, BigInt(ptr(control)), BigInt(control.length), 0n])
  return Number(libc.symbols.sendmsg(socket, header, 0x4000))
}

/** A connection to a backend that can send anything, right or wrong. Reads block; the backend is another process. */
export class VhostUserClient {
  readonly fd: number

  /** Takes over a connected, non-blocking socket. */
  constructor(fd: number) {
    this.fd = fd
  }

  static connect(path: string): VhostUserClient {
    return new VhostUserClient(check(`connect ${path}`, connectUnix(path)))
  }

  /** Sends raw bytes. Returns false once the backend has closed the connection. */
  sendBytes(bytes: Uint8Array, fds: readonly number[] = []): boolean {
    let sent = 0
    while (sent < bytes.length) {
      const rest = bytes.subarray(sent)
      const written =
        fds.length > 8 && sent === 0
          ? sendManyFds(this.fd, rest, fds)
          : native.vn_send_fds(
              this.fd,
              addressOf(rest),
              rest.length,
              Int32Array.from(sent === 0 ? fds : []),
              sent === 0 ? fds.length : 0,
            )
      if (written === -EPIPE || written === -ECONNRESET) return false
      if (written === -EAGAIN) {
        if (poll(this.fd, POLLOUT, HANG_MS) === 0) throw new Error('the backend does not read')
        continue
      }
      sent += check('sendmsg', written)
    }
    return true
  }

  /** Sends one request; `header` overrides fields of its header. */
  send(
    request: number,
    body: Uint8Array = new Uint8Array(0),
    options: { readonly fds?: readonly number[]; readonly flags?: number; readonly size?: number } = {},
  ): boolean {
    const header = bodyOf(request, options.flags ?? VHOST_USER_VERSION, options.size ?? body.length)
    return this.sendBytes(new Uint8Array(Buffer.concat([header, body])), options.fds)
  }

  /** The next message; null if none comes in time, 'closed' if the backend has closed the connection. */
  receive(timeoutMs = HANG_MS): Received | null | 'closed' {
    const header = this.#read(VHOST_USER_HEADER.sizeBytes, timeoutMs)
    if (header === null || header === 'closed') return header
    const view = new DataView(header.bytes.buffer)
    const size = view.getUint32(VHOST_USER_HEADER.size, true)
    const body = this.#read(size, HANG_MS)
    if (body === null || body === 'closed') throw new Error('a message without its body')
    return {
      request: view.getUint32(VHOST_USER_HEADER.request, true),
      flags: view.getUint32(VHOST_USER_HEADER.flags, true),
      body: new DataView(body.bytes.buffer),
      fds: header.fds,
    }
  }

  /** A request that has an answer. Throws unless it is one, and the right one. */
  request(request: number, body?: Uint8Array, fds: readonly number[] = []): Received {
    this.send(request, body, { fds })
    return this.answer(request)
  }

  /** The answer to a request. */
  answer(request: number): Received {
    const received = this.receive()
    if (received === null || received === 'closed') throw new Error(`request ${request}: ${received ?? 'no answer'}`)
    if (received.request !== request || received.flags !== (VHOST_USER_VERSION | VHOST_USER_REPLY)) {
      throw new Error(`request ${request}: answered by ${received.request}, flags 0x${received.flags.toString(16)}`)
    }
    return received
  }

  /** A request whose outcome is asked for with REPLY_ACK: true if it was carried out. */
  carriesOut(request: number, body?: Uint8Array, fds: readonly number[] = []): boolean {
    this.send(request, body, { fds, flags: VHOST_USER_VERSION | VHOST_USER_NEED_REPLY })
    return this.answer(request).body.getBigUint64(0, true) === 0n
  }

  /** Answers a request of the backend's. */
  sendAnswer(request: number, outcome: bigint): boolean {
    return this.send(request, bodyOf(outcome), { flags: VHOST_USER_VERSION | VHOST_USER_REPLY })
  }

  u64(request: number): bigint {
    return this.request(request).body.getBigUint64(0, true)
  }

  /**
   * Waits until the backend closes the connection; false if it does not in time. Throws if it sends something first.
   */
  isClosed(timeoutMs = HANG_MS): boolean {
    const received = this.receive(timeoutMs)
    if (received !== null && received !== 'closed')
      throw new Error(`the backend said ${received.request} instead of hanging up`)
    return received === 'closed'
  }

  [Symbol.dispose](): void {
    native.vn_close(this.fd)
  }

  #read(
    length: number,
    timeoutMs: number,
  ): { bytes: Uint8Array<ArrayBuffer>; fds: readonly number[] } | null | 'closed' {
    const bytes = new Uint8Array(length)
    const received = new Int32Array(10)
    const fds: number[] = []
    const deadline = performance.now() + timeoutMs
    for (let have = 0; have < length; ) {
      const count = native.vn_recv_fds(this.fd, addressOf(bytes) + have, length - have, received)
      if (count === 0 || count === -ECONNRESET) return 'closed'
      if (count === -EAGAIN) {
        const left = deadline - performance.now()
        if (left <= 0) return null
        poll(this.fd, POLLIN, Math.ceil(left))
        continue
      }
      have += check('recvmsg', count)
      fds.push(...received.subarray(2, 2 + received[0]!))
    }
    return { bytes, fds }
  }
}

/** A driver, and where its ring lies. */
type PlacedDriver = DriverModel & { readonly descAddr: number; readonly availAddr: number; readonly usedAddr: number }

/** A ring to make. `start`: how far it has come before. */
export type RingShape = {
  readonly size: number
  readonly packed: boolean
  readonly eventIdx?: boolean
  readonly start?: number
}

/** One ring as the front-end sees it. */
export class FrontendRing {
  readonly #start: number
  readonly index: number
  #model: PlacedDriver
  readonly #shape: RingShape
  readonly kick = new EventFd()
  readonly call = new EventFd()
  readonly err = new EventFd()
  /** Addresses of receive buffers, by chain. */
  readonly buffers = new Map<number, number>()

  constructor(index: number, memory: GuestMemory, options: RingShape) {
    this.index = index
    this.#start = options.start ?? 0
    this.#shape = options
    this.#model = options.packed ? new PackedDriver(memory, options) : new SplitDriver(memory, options)
  }

  get model(): PlacedDriver {
    return this.#model
  }

  /** Puts a new ring in the place of this one, with nothing in it. */
  renew(memory: GuestMemory): void {
    this.#model = this.#shape.packed ? new PackedDriver(memory, this.#shape) : new SplitDriver(memory, this.#shape)
    this.buffers.clear()
    this.call.drain()
    this.kick.drain()
  }

  /** The driver of a split ring, for tests that look into it. */
  get driver(): SplitDriver {
    if (this.model instanceof SplitDriver) return this.model
    throw new Error('a packed ring')
  }

  /** Where a new ring begins, as SET_VRING_BASE has it. */
  get base(): number {
    return this.model instanceof PackedDriver ? this.model.base : this.#start
  }

  /** Publishes what was added, and kicks. */
  publish(): void {
    this.model.publish()
    this.kick.signal()
  }

  /** Waits for a call; false if none comes in time. */
  called(timeoutMs = HANG_MS): boolean {
    if ((poll(this.call.fd, POLLIN, timeoutMs) & POLLIN) === 0) return false
    this.call.drain()
    return true
  }

  [Symbol.dispose](): void {
    for (const fd of [this.kick, this.call, this.err]) fd[Symbol.dispose]()
  }
}

export type FrontendOptions = {
  /** Virtio features to choose, of those that are offered. */
  readonly features?: bigint
  /** Protocol features to choose; null: SET_PROTOCOL_FEATURES is not sent, and bit 30 not set. */
  readonly protocolFeatures?: bigint | null
  readonly memoryBytes?: number
  readonly memory?: GuestMemoryOptions
  readonly rings?: number
  readonly ringSize?: number
  readonly packed?: boolean
}

export const DRIVER_FEATURES = bit(VIRTIO_F_VERSION_1) | bit(VIRTIO_NET_F_MRG_RXBUF)
const PROTOCOL_FEATURES = bit(VHOST_USER_PROTOCOL_F_REPLY_ACK)

/** A correct front-end: it has a guest with memory and rings, and sets a device up like QEMU does. */
export class Frontend implements Disposable {
  /** The connection; another one after {@link reconnect}. */
  client: VhostUserClient
  readonly memory: GuestMemory
  readonly rings: readonly FrontendRing[]
  readonly options: FrontendOptions
  #features: bigint | null = null

  constructor(client: VhostUserClient, options: FrontendOptions = {}) {
    this.client = client
    this.options = options
    this.memory = new GuestMemory(options.memoryBytes ?? 1 << 20, options.memory)
    this.rings = Array.from(
      { length: options.rings ?? 2 },
      (_, index) =>
        new FrontendRing(index, this.memory, { size: options.ringSize ?? 64, packed: options.packed ?? false }),
    )
  }

  /** Connects, and sets everything up. */
  static start(path: string, options: FrontendOptions = {}): Frontend {
    const frontend = new Frontend(VhostUserClient.connect(path), options)
    frontend.negotiate()
    frontend.shareMemory()
    for (const ring of frontend.rings) frontend.startRing(ring)
    frontend.settle()
    return frontend
  }

  /** Returns when the backend has handled all requests. */
  settle(): void {
    this.client.u64(VHOST_USER_GET_FEATURES)
  }

  /** Virtio features that it chooses. */
  get driverFeatures(): bigint {
    return (
      (this.#features ?? this.options.features ?? DRIVER_FEATURES) |
      (this.options.packed ? bit(VIRTIO_F_RING_PACKED) : 0n)
    )
  }

  /** Bytes of the header in front of each frame. VIRTIO 1.2 §5.1.6, §5.1.6.1. */
  get headerBytes(): number {
    if ((this.driverFeatures & bit(VIRTIO_NET_F_HASH_REPORT)) !== 0n) return 20
    return (this.driverFeatures & DRIVER_FEATURES) !== 0n ? 12 : 10
  }

  get rx(): FrontendRing {
    return this.rings[0]!
  }

  get tx(): FrontendRing {
    return this.rings[1]!
  }

  negotiate(): void {
    const { client } = this
    const protocolFeatures =
      this.options.protocolFeatures === undefined ? PROTOCOL_FEATURES : this.options.protocolFeatures
    client.send(VHOST_USER_SET_OWNER)
    const offered = client.u64(VHOST_USER_GET_FEATURES)
    if (protocolFeatures !== null) {
      const spoken = client.u64(VHOST_USER_GET_PROTOCOL_FEATURES)
      if ((protocolFeatures & ~spoken) !== 0n) throw new Error(`protocol features 0x${spoken.toString(16)} only`)
      client.send(VHOST_USER_SET_PROTOCOL_FEATURES, bodyOf(protocolFeatures))
    }
    const wanted = this.driverFeatures
    if ((wanted & ~offered) !== 0n) throw new Error(`features 0x${offered.toString(16)} only`)
    client.send(
      VHOST_USER_SET_FEATURES,
      bodyOf(wanted | (protocolFeatures === null ? 0n : bit(VHOST_USER_F_PROTOCOL_FEATURES))),
    )
  }

  /** Chooses other features from now on, as the next driver does. */
  choose(features: bigint): void {
    this.#features = features
    const own = this.options.protocolFeatures === null ? 0n : bit(VHOST_USER_F_PROTOCOL_FEATURES)
    this.client.send(VHOST_USER_SET_FEATURES, bodyOf(this.driverFeatures | own))
  }

  /** Starts a new ring of the same shape, as the next driver does. */
  restartAnew(ring: FrontendRing): void {
    ring.renew(this.memory)
    this.startRing(ring, ring.base)
  }

  /** Goes on with another back-end: the driver and its rings stay as they are, and are to be started. */
  reconnect(path: string): void {
    this.client[Symbol.dispose]()
    this.client = VhostUserClient.connect(path)
    this.negotiate()
    this.shareMemory()
  }

  shareMemory(): void {
    this.client.send(VHOST_USER_SET_MEM_TABLE, tableOf(this.memory), { fds: [this.memory.fd] })
  }

  startRing(ring: FrontendRing, base = ring.base): void {
    this.placeRing(ring, base)
    this.client.send(VHOST_USER_SET_VRING_CALL, bodyOf(u64(ring.index)), { fds: [ring.call.fd] })
    this.client.send(VHOST_USER_SET_VRING_ERR, bodyOf(u64(ring.index)), { fds: [ring.err.fd] })
    this.giveKick(ring)
    if (this.options.protocolFeatures !== null) this.enable(ring, true)
  }

  giveKick(ring: FrontendRing): void {
    this.client.send(VHOST_USER_SET_VRING_KICK, bodyOf(u64(ring.index)), { fds: [ring.kick.fd] })
  }

  /** Size, base and addresses. */
  placeRing(ring: FrontendRing, base = ring.base): void {
    this.client.send(VHOST_USER_SET_VRING_NUM, bodyOf(ring.index, ring.model.size))
    this.client.send(VHOST_USER_SET_VRING_BASE, bodyOf(ring.index, base))
    this.client.send(VHOST_USER_SET_VRING_ADDR, this.addressesOf(ring))
  }

  addressesOf(ring: FrontendRing, flags = 0, log = 0): Uint8Array {
    const { model, index } = ring
    const [desc, used, avail] = [model.descAddr, model.usedAddr, model.availAddr].map((at) => u64(this.memory.user(at)))
    return bodyOf(index, flags, desc!, used!, avail!, u64(log))
  }

  enable(ring: FrontendRing, enabled: boolean): void {
    this.client.send(VHOST_USER_SET_VRING_ENABLE, bodyOf(ring.index, enabled ? 1 : 0))
  }

  /** Stops the ring; where it is. */
  stopRing(ring: FrontendRing): number {
    return this.client
      .request(VHOST_USER_GET_VRING_BASE, bodyOf(ring.index, 0))
      .body.getUint32(VHOST_VRING_STATE.num, true)
  }

  /** Makes a frame available to the card; the head of its chain. Kicks unless told not to. */
  transmit(frame: Uint8Array, options: { readonly kick?: boolean; readonly ring?: FrontendRing } = {}): number {
    const ring = options.ring ?? this.tx
    const { headerBytes } = this
    const length = headerBytes + frame.length
    const buffer = this.memory.allocate(length)
    const bytes = this.memory.bytes(buffer, length)
    bytes.fill(0, 0, headerBytes)
    bytes.set(frame, headerBytes)
    const head = ring.model.add([{ address: buffer, length }])
    if (head < 0) throw new Error('the ring is full')
    if (options.kick !== false) ring.publish()
    return head
  }

  /** Gives the card buffers to receive into, until it has `count`. */
  provide(count: number, bytes = 2048, ring: FrontendRing = this.rx): void {
    while (ring.model.outstanding < count) {
      const address = this.memory.allocate(bytes)
      ring.buffers.set(ring.model.add([{ address, length: bytes, writable: true }]), address)
    }
    ring.publish()
  }

  /** The next frame that the card delivers. Throws if none comes. */
  receive(ring: FrontendRing = this.rx): Uint8Array {
    return this.receiveWithHeader(ring).subarray(this.headerBytes)
  }

  /** As {@link receive}, with the header in front. */
  receiveWithHeader(ring: FrontendRing = this.rx): Uint8Array {
    const { id, length } = this.used(ring)
    return this.memory.bytes(ring.buffers.get(id)!, length).slice()
  }

  /** Waits until the card has used a chain of the ring: its length. Throws if it does not. */
  used(ring: FrontendRing, timeoutMs = HANG_MS): { readonly id: number; readonly length: number } {
    const deadline = performance.now() + timeoutMs
    for (;;) {
      const chain = ring.model.reap()
      if (chain !== undefined) return chain
      if (performance.now() > deadline) throw new Error(`ring ${ring.index}: nothing was used`)
      if ((poll(ring.call.fd, POLLIN, 5) & POLLIN) !== 0) ring.call.drain()
    }
  }

  /** As {@link used}, without touching the call descriptor. */
  usedWithoutCall(ring: FrontendRing, timeoutMs = HANG_MS): { readonly id: number; readonly length: number } {
    const deadline = performance.now() + timeoutMs
    for (;;) {
      const chain = ring.model.reap()
      if (chain !== undefined) return chain
      if (performance.now() > deadline) throw new Error(`ring ${ring.index}: nothing was used`)
      poll(this.client.fd, 0, 1)
    }
  }

  [Symbol.dispose](): void {
    this.client[Symbol.dispose]()
    for (const ring of this.rings) ring[Symbol.dispose]()
    this.memory[Symbol.dispose]()
  }
}

/** A region as SET_MEM_TABLE and ADD_MEM_REG have it. */
export const regionOf = (memory: GuestMemory): Uint8Array => {
  const region = bodyOf(u64(memory.start), u64(memory.lengthBytes), u64(memory.userStart), u64(memory.fileOffset))
  if (region.length !== VHOST_USER_MEMORY_REGION.sizeBytes) throw new Error('a region of another size')
  return region
}

/** The body of SET_MEM_TABLE. */
export const tableOf = (...memories: readonly GuestMemory[]): Uint8Array =>
  new Uint8Array(Buffer.concat([bodyOf(memories.length, 0), ...memories.map(regionOf)]))

/** The body of ADD_MEM_REG and REM_MEM_REG. */
export const memRegOf = (memory: GuestMemory): Uint8Array =>
  new Uint8Array(Buffer.concat([bodyOf(0n), regionOf(memory)]))
