import { VIRTIO_NET_F_STATUS } from '../abi/virtio.ts'
import { UserError } from '../base/errors.ts'
import type { Mac } from '../base/mac.ts'
import type { OpenedTap } from '../channel/worker-messages.ts'
import type { TransportEnd } from '../device/control-transport.ts'
import { hasFeature } from '../device/features.ts'
import type { TapOptions } from '../tap/tap-options.ts'
import type { Card, DeviceView, QueueView, ReadyView, StatsView } from './card.ts'
import type { CardIdentity, FeatureOverrides } from './card-identity.ts'
import { type CommonDeviceView, commonDeviceView, queueViews, readyView, statsView } from './card-views.ts'
import type { CardWorkers, Tuning } from './card-workers.ts'

/** Options of either kind of card. */
export type CardOptions = {
  readonly name: string
  readonly tap: TapOptions
  readonly mac: Mac
  /** Entries of a ring at most. */
  readonly queueSize: number
  readonly features: FeatureOverrides
  readonly tuning: Tuning
  /** Called once when the card cannot go on; the owner then stops it. */
  readonly onEnd: (end: TransportEnd) => void
}

/**
 * The part of a card on main that does not depend on the transport. The workers serve the device; main reads their
 * blocks.
 */
export abstract class ServedCard implements Card {
  /** Undoes the steps done so far, the newest first. */
  protected readonly undo = new AsyncDisposableStack()
  /** These three are set by {@link setUp}, in this order. */
  protected workers!: CardWorkers
  protected tap!: OpenedTap
  protected identity!: CardIdentity
  readonly #startedMs = performance.now()

  /** Makes the card; each step registers how to undo it. Throws UserError. */
  protected abstract setUp(): Promise<void>

  /** The transport's part of the view. */
  protected abstract ownView(): Omit<DeviceView, keyof CommonDeviceView>

  /** Why the transport keeps packets from passing; null if it does not. */
  protected abstract missing(): string | null

  /**
   * Makes the card visible to drivers where that is a separate step, once the rest of the program is ready. Throws
   * UserError. {@link stop} undoes it.
   */
  attach(): void {}

  /** Resolves when the card is served; it is until {@link stop}. Throws UserError after undoing everything. */
  protected async begin(): Promise<this> {
    try {
      await this.setUp()
      return this
    } catch (error) {
      await this.undo.disposeAsync()
      throw error
    }
  }

  /** Stops the card and undoes everything. */
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
