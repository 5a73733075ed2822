import { VHOST_USER_F_PROTOCOL_FEATURES } from '../../src/abi/vhost-user.ts'
import { VIRTIO_F_ACCESS_PLATFORM } from '../../src/abi/virtio.ts'
import { ConfigSpace } from '../../src/device/config-space.ts'
import {
  controlQueueFeatures,
  featureBit,
  featureNames,
  implementedFeatures,
  packedRingFeatures,
} from '../../src/device/features.ts'
import type { QueueEngine } from '../../src/device/queue-engine.ts'
import { VirtioNetDevice } from '../../src/device/virtio-net-device.ts'
import type { BorrowedArea } from '../../src/sys/mapping.ts'
import type { SignalTarget } from '../../src/sys/peer-signal.ts'
import { Poller } from '../../src/sys/poller.ts'
import { MEMORY_BLOCK_BYTES, MemoryTable } from '../../src/transport/vhost-user/memory-table.ts'
import { Session } from '../../src/transport/vhost-user/session.ts'
import type { SessionOptions } from '../../src/transport/vhost-user/session-state.ts'
import type { VringHost } from '../../src/transport/vhost-user/vring-host.ts'
import type { VirtqueueConfig, VqBase } from '../../src/virtqueue/virtqueue-config.ts'
import { bit } from './bits.ts'
import { socketPair } from './socket-pair.ts'
import { VhostUserClient } from './vhost-user-client.ts'

/** Entries of a ring at most. */
export const QUEUE_SIZE_MAX = 256
/** What the card of the fixture offers a driver. */
export const OFFERED =
  (implementedFeatures | controlQueueFeatures | packedRingFeatures) & ~featureBit(VIRTIO_F_ACCESS_PLATFORM)

/** Replaces the threads that run the vrings: records calls, and runs nothing. */
export class RecordingVringHost implements VringHost, QueueEngine {
  readonly calls: string[] = []
  readonly running = new Map<number, VirtqueueConfig>()
  readonly kickFds = new Map<number, number>()
  readonly callTargets = new Map<number, SignalTarget>()
  readonly inflight = new Map<number, BorrowedArea | null>()
  log: BorrowedArea | null = null
  /** Where a vring stops. */
  stopsAt: VqBase = 0

  start(index: number, config: VirtqueueConfig): void {
    this.running.set(index, config)
    this.calls.push(`start ${index}`)
  }
  stop(index: number): VqBase {
    this.running.delete(index)
    this.calls.push(`stop ${index}`)
    return this.stopsAt
  }
  base(): VqBase {
    return this.stopsAt
  }
  setKick(index: number, fd: number): void {
    this.kickFds.set(index, fd)
  }
  setCall(index: number, target: SignalTarget): void {
    this.callTargets.set(index, target)
  }
  setEnabled(index: number, enabled: boolean): void {
    this.calls.push(`${enabled ? 'enable' : 'disable'} ${index}`)
  }
  setInflight(index: number, area: BorrowedArea | null): void {
    this.inflight.set(index, area)
  }
  forgetMemory(): void {
    this.calls.push('forget memory')
  }
  setLog(log: BorrowedArea | null): void {
    this.log = log
    this.calls.push(log === null ? 'no log' : 'log')
  }
  setUsedLog(index: number, address: number): void {
    this.calls.push(`used log ${index} ${address}`)
  }

  /** Calls since this was last called. */
  takeCalls(): string[] {
    return this.calls.splice(0)
  }
}

/** A card with two queue pairs and a control queue without threads, and a record of what happens to it. */
export class RecordedCard {
  readonly host = new RecordingVringHost()
  readonly poller = new Poller(16)
  readonly config = new ConfigSpace({
    mac: new Uint8Array([2, 0, 0, 0, 0, 1]),
    mtu: 1500,
    maxVirtqueuePairs: 2,
    linkUp: true,
  })
  /** What drivers have done, in the order of time. */
  readonly driver: string[] = []
  readonly log: string[] = []
  readonly sent: Uint8Array[] = []
  readonly memory = new MemoryTable(new SharedArrayBuffer(MEMORY_BLOCK_BYTES))
  readonly device = new VirtioNetDevice({
    offeredFeatures: OFFERED,
    requiredFeatures: 0n,
    queueCount: 5,
    queueSizeMax: QUEUE_SIZE_MAX,
    config: this.config,
    engine: this.host,
    listener: {
      driverUp: (features) => this.driver.push(`up: ${featureNames(features).join(' ')}`),
      featuresUnmet: (which) => this.driver.push(`unmet: ${which.join(', ')}`),
      mtuSet: (mtu) => this.driver.push(`MTU ${mtu}`),
      driverReset: () => this.driver.push('reset'),
    },
  })

  sessionOptions(inBand = false): SessionOptions {
    return {
      device: this.device,
      memory: this.memory,
      host: this.host,
      pairs: 2,
      inBand,
      sendFrame: (frame) => this.sent.push(frame),
      log: (level, text) => this.log.push(`${level}: ${text}`),
    }
  }
}

/**
 * A session on one end of a socket pair, in this process, with a front-end at the other. It serves when it is told to.
 */
export class SessionFixture extends RecordedCard implements Disposable {
  readonly client: VhostUserClient
  readonly session: Session
  #hungUp = false
  #ended = false

  constructor(options: { readonly inBand?: boolean } = {}) {
    super()
    const [ours, theirs] = socketPair()
    this.client = new VhostUserClient(theirs)
    this.session = new Session(ours, this.sessionOptions(options.inBand), this.poller)
    this.host.takeCalls()
  }

  /** Makes the session handle what was sent. False if the front-end has closed the connection. @throws ProtocolError */
  serve(): boolean {
    this.poller.wait(0)
    return this.session.serve(64)
  }

  /** Sends a request and makes the session handle it, without REPLY_ACK. @throws ProtocolError */
  tell(request: number, body?: Uint8Array, fds: readonly number[] = []): void {
    this.client.send(request, body, { fds })
    this.serve()
  }

  /** A request that has an answer of its own: the answer's body. */
  ask(request: number, body?: Uint8Array, fds: readonly number[] = []): DataView {
    this.tell(request, body, fds)
    return this.client.answer(request).body
  }

  /** A request that is confirmed: true if it was carried out. REPLY_ACK was negotiated. */
  does(request: number, body?: Uint8Array, fds: readonly number[] = []): boolean {
    this.client.send(request, body, { fds, flags: 0x9 })
    this.serve()
    return this.client.answer(request).body.getBigUint64(0, true) === 0n
  }

  /** The front-end goes. */
  hangUp(): void {
    if (!this.#hungUp) this.client[Symbol.dispose]()
    this.#hungUp = true
  }

  /** Ends the session, which releases everything. */
  end(): void {
    if (!this.#ended) this.session[Symbol.dispose]()
    this.#ended = true
  }

  [Symbol.dispose](): void {
    this.end()
    this.hangUp()
  }
}

/** Virtio features as SET_FEATURES has them, with the bit for protocol features. */
export const withProtocol = (features: bigint): bigint => features | bit(VHOST_USER_F_PROTOCOL_FEATURES)
