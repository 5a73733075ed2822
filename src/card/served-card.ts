import { VIRTIO_NET_F_STATUS } from '../abi/virtio.ts'
import { UserError } from '../base/errors.ts'
import type { Mac } from '../base/mac.ts'
import type { OpenedTap } from '../channel/worker-messages.ts'
import type { TransportEnd } from '../device/control-transport.ts'
import { hasFeature } from '../device/features.ts'
import type { TapOptions } from '../tap/tap-options.ts'
import type { Card, DeviceView, QueueView, ReadyView, StatsView } from './card.ts'
import type { CardIdentity, FeatureWishes } from './card-identity.ts'
import { type CommonDeviceView, commonDeviceView, queueViews, readyView, statsView } from './card-views.ts'
import type { CardWorkers, Tuning } from './card-workers.ts'

/** What any card is made of. */
export type CardOptions = {
  readonly name: string
  readonly tap: TapOptions
  readonly mac: Mac
  /** Entries of a ring at most. */
  readonly queueSize: number
  readonly features: FeatureWishes
  readonly tuning: Tuning
  /** Called once when the card cannot go on by itself: it is to be stopped. */
  readonly onEnd: (end: TransportEnd) => void
}

/**
 * A card on main's side, but for what its transport is about: the workers do the work, main looks into their blocks.
 */
export abstract class ServedCard implements Card {
  /** Undoes what has been done so far, the newest first. */
  protected readonly undo = new AsyncDisposableStack()
  /** These three are set by {@link setUp}, in this order. */
  protected workers!: CardWorkers
  protected tap!: OpenedTap
  protected identity!: CardIdentity
  readonly #startedMs = performance.now()

  /** Makes everything, each thing with its undoing. Throws UserError. */
  protected abstract setUp(): Promise<void>

  /** What the transport adds to the view. */
  protected abstract ownView(): Omit<DeviceView, keyof CommonDeviceView>

  /** What of the transport keeps packets from flowing, or null. */
  protected abstract missing(): string | null

  /**
   * Lets drivers come, where that is a step of its own, once the rest of the program is ready. Throws UserError; {@link
   * stop} undoes it.
   */
  attach(): void {}

  /** Serves the card from when it resolves until {@link stop}. Throws UserError, and leaves nothing behind then. */
  protected async begin(): Promise<this> {
    try {
      await this.setUp()
      return this
    } catch (error) {
      await this.undo.disposeAsync()
      throw error
    }
  }

  /** Takes everything down. */
  stop(): Promise<void> {
    return this.undo.disposeAsync()
  }

  device(): DeviceView {
    const { block, pairBlocks } = this.workers
    return {
      ...commonDeviceView(block, this.tap, this.identity, pairBlocks.length, this.#startedMs),
      ...this.ownView(),
    }
  }

  queues(): readonly QueueView[] {
    return queueViews(this.workers.pairBlocks, this.identity.queueSize)
  }

  stats(): StatsView {
    return statsView(this.workers.pairBlocks)
  }

  ready(): ReadyView {
    const missing = this.workers.ending ? 'the card is being taken down' : this.missing()
    return readyView(this.workers.block, this.tap, this.queues(), missing)
  }

  logLinesLeftOut(): number {
    return this.workers.block.logLinesLeftOut
  }

  async setLinkUp(up: boolean): Promise<void> {
    if (!hasFeature(this.identity.offered, VIRTIO_NET_F_STATUS)) {
      throw new UserError(
        'the link cannot be switched: the device does not offer VIRTIO_NET_F_STATUS',
        'start without -status',
      )
    }
    await this.workers.setLinkUp(up)
  }
}
