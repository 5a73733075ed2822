import { rmSync } from 'node:fs'
import { constants } from 'node:os'
import { VIRTIO_F_ACCESS_PLATFORM, VIRTIO_NET_F_MQ, VIRTIO_NET_F_STATUS } from '../abi/virtio.ts'
import { EXIT, errnoName, UserError } from '../base/errors.ts'
import { logger } from '../base/log.ts'
import type { Mac } from '../base/mac.ts'
import {
  controlQueueFeatures,
  featureBit,
  hasFeature,
  implementedFeatures,
  packedRingFeatures,
} from '../device/features.ts'
import { OwnedFd } from '../sys/fd.ts'
import { connectUnix, listenUnix } from '../sys/unix-socket.ts'
import type { TapOptions } from '../tap/tap.ts'
import type { VhostUserEndpoint } from '../transport/vhost-user/endpoint.ts'
import { MEMORY_BLOCK_BYTES } from '../transport/vhost-user/memory-table.ts'
import type { Card, DeviceView, QueueView, ReadyView, StatsView } from './card.ts'
import { type CardIdentity, chooseFeatures, type FeatureWishes } from './card-identity.ts'
import { commonDeviceView, queueViews, readyView, statsView } from './card-views.ts'
import { CardWorkers, type Tuning } from './card-workers.ts'
import type { OpenedTap } from './worker-messages.ts'

const { EACCES, EADDRINUSE, ENOENT, EPERM } = constants.errno
const log = logger('main')

/** Without an IOMMU of the front-end's there is nothing for VIRTIO_F_ACCESS_PLATFORM to translate. */
const CARRIED =
  (implementedFeatures | controlQueueFeatures | packedRingFeatures) & ~featureBit(VIRTIO_F_ACCESS_PLATFORM)

/** Where front-ends are to come from. */
export type VhostUserSocket =
  | { readonly kind: 'path'; readonly path: string; readonly client: boolean; readonly oneOff: boolean }
  /** An inherited descriptor of a connected socket. */
  | { readonly kind: 'fd'; readonly fd: number }

/** What a card is made of. */
export type VhostUserCardOptions = {
  readonly name: string
  readonly socket: VhostUserSocket
  readonly tap: TapOptions
  readonly mac: Mac
  readonly pairs: number
  /** Entries of a ring at most. */
  readonly queueSize: number
  readonly features: FeatureWishes
  readonly tuning: Tuning
  /** Called once when the card has come to its end: a failure, or the only front-end has gone. */
  readonly onFailure: (why: string) => void
}

/** A card over vhost-user on main's side: it makes the socket and starts the workers. */
export class VhostUserCard implements Card {
  readonly #options: VhostUserCardOptions
  /** Undoes what has been done so far, the newest first. */
  readonly #undo = new AsyncDisposableStack()
  readonly #startedMs = performance.now()
  #workers!: CardWorkers
  #tap!: OpenedTap
  #identity!: CardIdentity

  private constructor(options: VhostUserCardOptions) {
    this.#options = options
  }

  /** Serves a card from when it resolves until {@link stop}. Throws UserError, and leaves nothing behind then. */
  static async start(options: VhostUserCardOptions): Promise<VhostUserCard> {
    const card = new VhostUserCard(options)
    try {
      await card.#start()
      return card
    } catch (error) {
      await card.#undo.disposeAsync()
      throw error
    }
  }

  stop(): Promise<void> {
    return this.#undo.disposeAsync()
  }

  device(): DeviceView {
    const { name, pairs, socket } = this.#options
    return {
      ...commonDeviceView(this.#workers.block, this.#tap, this.#identity, pairs, this.#startedMs),
      name,
      transport: 'vhost-user',
      attached: true,
      bind: 'none',
      driver: null,
      vduse: null,
      vhostUser: { socket: socket.kind === 'fd' ? `fd ${socket.fd}` : socket.path },
    }
  }

  queues(): readonly QueueView[] {
    return queueViews(this.#workers.pairBlocks, this.#identity.queueSize)
  }

  stats(): StatsView {
    return statsView(this.#workers.pairBlocks)
  }

  ready(): ReadyView {
    const missing = this.#workers.ending ? 'the card is being taken down' : null
    return readyView(this.#workers.block, this.#tap, this.queues(), missing)
  }

  async setLinkUp(up: boolean): Promise<void> {
    if (!hasFeature(this.#identity.offered, VIRTIO_NET_F_STATUS)) {
      throw new UserError(
        'the link cannot be switched: the device does not offer VIRTIO_NET_F_STATUS',
        'start without -status',
      )
    }
    await this.#workers.setLinkUp(up)
  }

  async #start(): Promise<void> {
    const { mac, pairs, queueSize, features, socket } = this.#options
    const endpoint = this.#makeEndpoint(socket)
    this.#workers = new CardWorkers(pairs, this.#options.tuning, this.#options.onFailure)
    this.#undo.defer(() => this.#workers.stop())
    this.#tap = await this.#workers.openTap(this.#options.tap)
    const carried = pairs > 1 ? CARRIED : CARRIED & ~featureBit(VIRTIO_NET_F_MQ)
    this.#identity = { mac, mtu: this.#tap.mtu, offered: chooseFeatures(carried, this.#tap, features), queueSize }
    const memory = new SharedArrayBuffer(MEMORY_BLOCK_BYTES)
    await this.#workers.serve(
      this.#tap,
      this.#identity,
      { device: { kind: 'vhost-user', endpoint, memory }, queues: { kind: 'vhost-user', memory } },
      false,
    )
    if (endpoint.kind === 'listen') log.info(`waiting for a front-end on ${endpoint.path}`)
  }

  #makeEndpoint(socket: VhostUserSocket): VhostUserEndpoint {
    if (socket.kind === 'fd') return { kind: 'connected', fd: socket.fd }
    const { path, client, oneOff } = socket
    if (client) return { kind: 'connect', path, oneOff }
    const fd = this.#undo.use(new OwnedFd(this.#listen(path)))
    this.#undo.defer(() => rmSync(path, { force: true }))
    return { kind: 'listen', fd: fd.fd, path, oneOff }
  }

  #listen(path: string): number {
    let fd = listenUnix(path)
    if (fd === -EADDRINUSE) {
      const other = connectUnix(path)
      if (other >= 0) {
        new OwnedFd(other)[Symbol.dispose]()
        throw new UserError(
          `--socket-path ${path}: another process listens there`,
          'stop that process, or choose another path',
        )
      }
      // A socket that nobody listens on is what a process that died leaves; any other file is not ours to remove.
      if (other === -constants.errno.ECONNREFUSED) {
        rmSync(path)
        fd = listenUnix(path)
      }
    }
    if (fd >= 0) return fd
    const exit = fd === -EACCES || fd === -EPERM ? EXIT.permission : EXIT.runtime
    const hint = fd === -ENOENT ? 'make the folder first' : 'choose a path in a folder that you may write to'
    throw new UserError(`--socket-path ${path}: ${errnoName(-fd)}`, hint, exit)
  }
}
