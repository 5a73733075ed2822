import { VIRTIO_F_ACCESS_PLATFORM, VIRTIO_NET_F_MQ, VIRTIO_NET_F_RSS } from '../abi/virtio.ts'
import { EXIT, errnoName, UserError } from '../base/errors.ts'
import { logger } from '../base/log.ts'
import { controlQueueFeatures, featureBit, implementedFeatures, packedRingFeatures } from '../device/features.ts'
import { native } from '../sys/native.ts'
import { isUnixSocket } from '../sys/peer-signal.ts'
import type { VhostUserEndpoint } from '../transport/vhost-user/endpoint.ts'
import { MEMORY_BLOCK_BYTES } from '../transport/vhost-user/memory-table.ts'
import { chooseFeatures } from './card-identity.ts'
import { CardWorkers } from './card-workers.ts'
import { listenForFrontends, type SocketAccess } from './listen-for-frontends.ts'
import { qemuCommand } from './qemu-command.ts'
import { type CardOptions, ServedCard } from './served-card.ts'

const log = logger('main')

/** Not VIRTIO_F_ACCESS_PLATFORM: the back-end implements no vhost-user IOTLB, so it cannot translate. */
const CARRIED =
  (implementedFeatures | controlQueueFeatures | packedRingFeatures) & ~featureBit(VIRTIO_F_ACCESS_PLATFORM)

/** Features that need more than one pair. */
const OF_SEVERAL_PAIRS = featureBit(VIRTIO_NET_F_MQ) | featureBit(VIRTIO_NET_F_RSS)

/** Error text for a requested feature that vhost-user cannot carry. */
const NOT_CARRIED = { why: 'not over vhost-user', hint: 'leave it out' } as const
const OF_NO_USE_TO_ONE_PAIR = {
  why: 'not with one queue pair over vhost-user',
  hint: 'leave it out, or give --queue-pairs 2 or more',
} as const

/** Where front-ends connect. */
export type VhostUserSocket =
  | ({
      readonly kind: 'path'
      /** A path, or `@NAME` for an abstract socket. */
      readonly path: string
      readonly client: boolean
      readonly oneOff: boolean
    } & SocketAccess)
  /** An inherited descriptor of a connected socket. */
  | { readonly kind: 'fd'; readonly fd: number }

export type VhostUserCardOptions = CardOptions & {
  readonly socket: VhostUserSocket
  readonly pairs: number
  /** Offer VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS. */
  readonly inBand: boolean
}

/** Checks an inherited socket and sets close-on-exec. Throws UserError. */
const inherited = (fd: number): number => {
  // Checked first: /proc has no entry for a closed descriptor.
  const isOpen = native.vn_set_cloexec(fd) >= 0
  const isSocket = isOpen && isUnixSocket(fd)
  if (isSocket && native.vn_is_connected_stream(fd) === 1) return fd
  const what = isSocket ? 'not a connected stream socket' : isOpen ? 'not a unix socket' : 'not an open descriptor'
  throw new UserError(
    `--fd ${fd}: ${what}`,
    'give the number of a connected unix socket that the parent leaves open',
    EXIT.usage,
  )
}

/** A card over vhost-user, on main: makes the socket and serves one front-end after the other. */
export class VhostUserCard extends ServedCard {
  readonly #options: VhostUserCardOptions

  private constructor(options: VhostUserCardOptions) {
    super()
    this.#options = options
  }

  /**
   * Starts the card. Throws UserError after undoing everything. `onEnd` is also called when the only front-end has
   * disconnected.
   */
  static start(options: VhostUserCardOptions): Promise<VhostUserCard> {
    return new VhostUserCard(options).begin()
  }

  protected override missing(): string | null {
    return null
  }

  protected override ownView() {
    const { name, socket } = this.#options
    return {
      name,
      transport: 'vhost-user',
      attached: this.workers.block.connected,
      bind: 'none',
      driver: null,
      vduse: null,
      vhostUser: { socket: socket.kind === 'fd' ? `fd ${socket.fd}` : socket.path },
    } as const
  }

  protected override async setUp(): Promise<void> {
    const { mac, pairs, queueSize, features, socket, inBand } = this.#options
    const endpoint = await this.#makeEndpoint(socket)
    this.workers = new CardWorkers(pairs, this.#options.tuning, this.#options.onEnd)
    this.undo.defer(() => this.workers.stop())
    this.tap = await this.workers.openTap(this.#options.tap)
    const carried = pairs > 1 ? CARRIED : CARRIED & ~OF_SEVERAL_PAIRS
    const { steeringErrno } = this.tap
    if (steeringErrno !== 0) {
      log.warning(
        'receive-side scaling is not offered, the host chooses the queue of a packet: bpf: ' +
          `${errnoName(steeringErrno)} (CAP_BPF is needed)`,
      )
    }
    const uncarried = pairs > 1 ? NOT_CARRIED : OF_NO_USE_TO_ONE_PAIR
    this.identity = {
      mac,
      mtu: this.tap.mtu,
      offered: chooseFeatures(carried, this.tap, features, uncarried),
      queueSize,
    }
    const memory = new SharedArrayBuffer(MEMORY_BLOCK_BYTES)
    await this.workers.serve(
      this.tap,
      this.identity,
      { device: { kind: 'vhost-user', endpoint, memory, inBand }, queues: { kind: 'vhost-user', memory } },
      false,
    )
    if (endpoint.kind === 'connected') return
    log.info(
      `${endpoint.kind === 'listen' ? 'waiting for a front-end' : 'connecting to a front-end'} on ${endpoint.path}`,
    )
  }

  /** Says how a VM uses the card, once nothing can refuse this start any more. */
  override attach(): void {
    const { socket, mac, pairs, queueSize } = this.#options
    if (socket.kind === 'fd') return
    const { path, client } = socket
    const command = qemuCommand({ path, isServer: client, mac, mtu: this.tap.mtu, pairs, queueSize })
    if (command !== null) log.info(`for a VM: ${command}`)
  }

  async #makeEndpoint(socket: VhostUserSocket): Promise<VhostUserEndpoint> {
    if (socket.kind === 'fd') return { kind: 'connected', fd: inherited(socket.fd) }
    const { path, client, oneOff } = socket
    if (client) return { kind: 'connect', path, oneOff }
    const listening = await listenForFrontends(path, socket)
    this.undo.use(listening.fd)
    if (listening.name !== null) this.undo.use(listening.name)
    return { kind: 'listen', fd: listening.fd.fd, path, oneOff }
  }
}
