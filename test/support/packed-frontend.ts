import { VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC } from '../../src/abi/virtio.ts'
import { EventFd } from '../../src/sys/eventfd.ts'
import { bit } from './bits.ts'
import type { GuestMemory } from './guest-memory.ts'
import { PackedDriver } from './packed-driver.ts'
import { DRIVER_FEATURES, Frontend, type FrontendRing, VhostUserClient } from './vhost-user-client.ts'

/** The features of a driver with packed rings. */
export const PACKED_FEATURES =
  DRIVER_FEATURES | bit(VIRTIO_F_RING_PACKED) | bit(VIRTIO_RING_F_EVENT_IDX) | bit(VIRTIO_RING_F_INDIRECT_DESC)

/** One packed ring as the front-end sees it. */
export class PackedFrontendRing {
  readonly index: number
  readonly driver: PackedDriver
  readonly kick = new EventFd()
  readonly call = new EventFd()
  readonly err = new EventFd()
  readonly buffers = new Map<number, number>()

  constructor(index: number, memory: GuestMemory, size: number) {
    this.index = index
    this.driver = new PackedDriver(memory, { size, eventIdx: true })
  }

  /** As {@link FrontendRing} has it. */
  get model(): PackedDriver {
    return this.driver
  }

  publish(): void {
    this.driver.publish()
    this.kick.signal()
  }

  /** What a front-end does with a ring depends on the layout nowhere. */
  get asFrontendRing(): FrontendRing {
    return this as unknown as FrontendRing
  }

  [Symbol.dispose](): void {
    for (const fd of [this.kick, this.call, this.err]) fd[Symbol.dispose]()
  }
}

/** A front-end whose driver has packed rings. */
export class PackedFrontend extends Frontend {
  readonly packedRx: PackedFrontendRing
  readonly packedTx: PackedFrontendRing

  constructor(path: string, size: number) {
    super(VhostUserClient.connect(path), { rings: 0, features: PACKED_FEATURES })
    this.packedRx = new PackedFrontendRing(0, this.memory, size)
    this.packedTx = new PackedFrontendRing(1, this.memory, size)
  }

  /** Connects, and sets everything up. The rings start at `base`: that of a new ring by default. */
  static startPacked(path: string, size = 64, base?: number): PackedFrontend {
    const frontend = new PackedFrontend(path, size)
    frontend.negotiate()
    frontend.shareMemory()
    for (const ring of [frontend.packedRx, frontend.packedTx]) {
      frontend.startRing(ring.asFrontendRing, base ?? ring.driver.base)
    }
    frontend.settle()
    return frontend
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]()
    this.packedRx[Symbol.dispose]()
    this.packedTx[Symbol.dispose]()
  }
}
