/**
 * The loop of a queue worker in this thread, a round at a time: a driver on one side, and a pair of sockets that plays
 * the TAP.
 */
import { expect } from 'bun:test'
import { VIRTIO_F_VERSION_1 } from '../../src/abi/virtio.ts'
import { VIRTIO_NET_HDR } from '../../src/abi/virtio-net.ts'
import { COUNTER, DIRECTION, type Direction } from '../../src/channel/queue-block.ts'
import type { QueueCommand, QueueWiring } from '../../src/channel/queue-command.ts'
import { QueuePairBlock } from '../../src/channel/queue-pair-block.ts'
import { QueuePair } from '../../src/dataplane/queue-pair.ts'
import { ReceiveFilter } from '../../src/device/receive-filter.ts'
import { ReceiveScaling } from '../../src/device/receive-scaling.ts'
import { EventFd } from '../../src/sys/eventfd.ts'
import { check, native } from '../../src/sys/native.ts'
import { POLLIN, Poller } from '../../src/sys/poller.ts'
import type { VirtqueueConfig, VqBase } from '../../src/virtqueue/virtqueue-config.ts'
import { SplitDriver } from './driver-model.ts'
import { concat, encodeHeader, type Header, noise } from './frames.ts'
import { TestMemory } from './memory.ts'
import { PackedDriver } from './packed-driver.ts'
import { countsOf } from './pieces.ts'
import { ringFeatures } from './ring-features.ts'
import { socketPair } from './socket-pair.ts'

const HEADER_BYTES = VIRTIO_NET_HDR.sizeBytes + 2
const BUFFER_BYTES = 2048
/** Enough rounds to finish all pending work. */
const ROUNDS_MAX = 32
/** asm-generic/socket.h */
const SOL_SOCKET = 1
const SO_SNDBUF = 7

/** A frame that any receive filter takes and that a test can tell from others. */
export const frameOf = (length: number, seed = 1): Uint8Array => {
  const frame = noise(length, seed)
  frame.fill(0xff, 0, 6)
  // No protocol that anybody looks into.
  frame.set([0x02, 0, 0, 0, 0, seed, 0x88, 0xb5], 6)
  return frame
}

export type RigOptions = {
  readonly packed?: boolean
  readonly size?: number
  readonly features?: bigint
  /** Both indices of a split ring at the start: by default they wrap soon. */
  readonly start?: number
}

export class QueuePairRig {
  memory = new TestMemory(1 << 22)
  readonly block = new QueuePairBlock()
  readonly pair: QueuePair
  readonly features: bigint
  readonly size: number
  readonly drivers: readonly (SplitDriver | PackedDriver)[]
  readonly kicks = [new EventFd(), new EventFd()]
  readonly deviceWake = new EventFd()
  /** Direction of each call that the driver got. */
  readonly calls: Direction[] = []
  /** The host's end of the TAP. */
  readonly host: number
  readonly #tap: number
  readonly #wake = new EventFd()
  readonly #bases: readonly number[]
  readonly #buffers = new Map<number, number>()
  /** Answers of {@link RegionSource}: mappings made so far. */
  mappings = 0

  constructor(options: RigOptions = {}) {
    const { packed = false, size = 16, features = 0n, start = 0xfffe } = options
    ;[this.#tap, this.host] = socketPair('datagram')
    // A few frames fill it.
    check('SO_SNDBUF', native.vn_setsockopt(this.#tap, SOL_SOCKET, SO_SNDBUF, 1))
    this.size = size
    this.features = features | (1n << BigInt(VIRTIO_F_VERSION_1)) | ringFeatures({ packed, indirect: true })
    const newDriver = () =>
      packed ? new PackedDriver(this.memory, { size }) : new SplitDriver(this.memory, { size, start })
    this.drivers = [newDriver(), newDriver()]
    this.#bases = this.drivers.map((driver) => (driver instanceof PackedDriver ? driver.base : start))
    this.pair = new QueuePair({
      block: this.block,
      fds: { wakeFd: this.#wake.fd, deviceWakeFd: this.deviceWake.fd },
      link: {
        memory: {
          resolve: () => {
            this.mappings++
            return this.memory.region()
          },
        },
        call: (direction) => this.calls.push(direction),
      },
      tap: { fd: this.#tap, hasVnetHdr: true },
      receiveFilter: new ReceiveFilter().buffer,
      receiveScaling: new SharedArrayBuffer(ReceiveScaling.byteLength),
      busyPollUs: 0,
    })
    this.command({ kind: 'setPolicy', features: this.features, mtu: 1500 })
  }

  /** One round that does not sleep. */
  round(): void {
    this.#wake.signal()
    this.pair.round()
  }

  /** As many rounds as it takes until nothing moves any more. */
  settle(): void {
    for (let quiet = 0, before = ''; quiet < 3; ) {
      this.round()
      const now = JSON.stringify([...this.block.queues.map(({ counters }) => [...counters]), [...this.block.drops]])
      quiet = now === before ? quiet + 1 : 0
      before = now
    }
  }

  /** True if the device worker was notified since the last call. */
  takeDeviceWake(): boolean {
    const poller = new Poller(1)
    poller.add(this.deviceWake.fd, POLLIN)
    const woken = poller.wait(0) === 1
    this.deviceWake.drain()
    return woken
  }

  /** Has a command carried out. */
  command(command: QueueCommand): void {
    this.block.issue(command)
    for (let rounds = 0; rounds < ROUNDS_MAX && !this.block.awaitDone(0); rounds++) this.round()
    expect(this.block.awaitDone(0)).toBeTrue()
  }

  config(direction: Direction, base?: VqBase | 'used'): VirtqueueConfig {
    const driver = this.drivers[direction]!
    const { descAddr, availAddr, usedAddr } = driver
    return {
      size: this.size,
      descAddr,
      availAddr,
      usedAddr,
      base: base ?? this.#bases[direction]!,
      features: this.features,
    }
  }

  start(direction: Direction, base?: VqBase | 'used', wiring: Partial<QueueWiring> = {}): void {
    const kickFd = this.kicks[direction]!.fd
    this.command({
      kind: 'start',
      direction,
      config: this.config(direction, base),
      wiring: { kickFd, callTarget: -1, inflight: null, usedLog: -1, ...wiring },
    })
  }

  startBoth(): void {
    for (const direction of [DIRECTION.rx, DIRECTION.tx]) this.start(direction)
    // A ring that does not start at 0 may be one that another process served: its driver is called.
    this.calls.length = 0
  }

  counter(direction: Direction, counter: keyof typeof COUNTER): number {
    return this.block.queues[direction].counters[COUNTER[counter]]!
  }

  get drops(): object {
    return countsOf(this.block.drops)
  }

  /** The driver gives a receive buffer. */
  offerBuffer(lengthBytes = BUFFER_BYTES): void {
    this.addBuffer(lengthBytes)
    this.drivers[DIRECTION.rx]!.publish()
  }

  /** The driver prepares a receive buffer. */
  addBuffer(lengthBytes = BUFFER_BYTES): void {
    const address = this.memory.allocate(lengthBytes)
    const id = this.drivers[DIRECTION.rx]!.add([{ address, length: lengthBytes, writable: true }])
    if (id < 0) throw new Error('the ring is full')
    this.#buffers.set(id, address)
  }

  /** The next frame that the driver has received, with its header. */
  received(): { readonly header: Uint8Array; readonly frame: Uint8Array } | undefined {
    const used = this.drivers[DIRECTION.rx]!.reap()
    if (used === undefined) return undefined
    const bytes = this.#at(this.#buffers.get(used.id)!, used.length)
    return { header: bytes.slice(0, HEADER_BYTES), frame: bytes.slice(HEADER_BYTES) }
  }

  /** The driver sends a frame. */
  send(frame: Uint8Array, header: Partial<Header> = {}): void {
    this.addFrame(frame, header)
    this.drivers[DIRECTION.tx]!.publish()
  }

  /** The driver prepares a frame. */
  addFrame(frame: Uint8Array, header: Partial<Header> = {}): void {
    const packet = concat(encodeHeader(header), frame)
    const address = this.memory.allocate(packet.length)
    this.#at(address, packet.length).set(packet)
    const id = this.drivers[DIRECTION.tx]!.add([{ address, length: packet.length }])
    if (id < 0) throw new Error('the ring is full')
  }

  kick(direction: Direction): void {
    this.kicks[direction]!.signal()
  }

  /** A frame comes to the TAP from the host. */
  arrive(frame: Uint8Array, header: Partial<Header> = {}): void {
    const packet = concat(encodeHeader(header), frame)
    expect(native.vn_write(this.host, packet, packet.length)).toBe(packet.length)
  }

  /** The next frame that the host gets of the TAP. */
  sent(): Uint8Array | undefined {
    const bytes = new Uint8Array(70_000)
    const length = native.vn_read(this.host, bytes, bytes.length)
    return length < 0 ? undefined : bytes.slice(HEADER_BYTES, length)
  }

  #at(address: number, length: number): Uint8Array {
    return this.memory.bytes.subarray(address - this.memory.start, address - this.memory.start + length)
  }

  [Symbol.dispose](): void {
    this.pair[Symbol.dispose]()
    for (const fd of [this.host, this.#tap]) native.vn_close(fd)
    for (const event of [...this.kicks, this.deviceWake, this.#wake]) event[Symbol.dispose]()
  }
}
