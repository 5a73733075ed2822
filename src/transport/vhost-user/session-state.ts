import { hasFeature } from '../../device/features.ts'
import type { VirtioNetDevice } from '../../device/virtio-net-device.ts'
import type { BackendChannel } from './backend-channel.ts'
import type { MemoryTable } from './memory-table.ts'
import { SessionVring } from './session-vring.ts'
import type { VringHost } from './vring-host.ts'

/** What a session needs of the card. */
export type SessionOptions = {
  readonly device: VirtioNetDevice
  readonly memory: MemoryTable
  readonly host: VringHost
  readonly pairs: number
  /**
   * Offer VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS. Some front-ends negotiate whatever is offered, and this is slow.
   */
  readonly inBand: boolean
  /** Sends a frame to the TAP as if the driver had sent it. */
  readonly sendFrame: (frame: Uint8Array) => void
  readonly log: (level: 'debug' | 'info' | 'warning', text: string) => void
}

/** State that the parts of one session share. */
export class SessionState {
  readonly options: SessionOptions
  /** One for each queue of the device. */
  readonly vrings: readonly SessionVring[]
  /** The features of SET_PROTOCOL_FEATURES. */
  protocolFeatures = 0n
  /** The back-end channel, once the front-end has sent SET_BACKEND_REQ_FD. */
  backend: BackendChannel | null = null

  /** The driver ran before this session, perhaps on another host: it is asked to announce itself once it is up. */
  resumes = false

  constructor(options: SessionOptions) {
    this.options = options
    this.vrings = Array.from({ length: options.device.queueCount }, () => new SessionVring())
  }

  /** True if this protocol feature was negotiated. */
  negotiated(bit: number): boolean {
    return hasFeature(this.protocolFeatures, bit)
  }

  get anyRunning(): boolean {
    return this.vrings.some((_, index) => this.options.device.isRunning(index))
  }

  /** Keeps every vring from running until its next SET_VRING_KICK or VRING_KICK. */
  forgetKicks(): void {
    for (const vring of this.vrings) vring.kicked = false
  }
}
