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
  /** Offer VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS: some front-ends take what they are offered, and it is slow. */
  readonly inBand: boolean
  /** Sends a frame to the TAP in the driver's name. */
  readonly sendFrame: (frame: Uint8Array) => void
  readonly log: (level: 'debug' | 'info' | 'warning', text: string) => void
}

/** What the parts of one session share. */
export class SessionState {
  readonly options: SessionOptions
  /** One for each queue of the device. */
  readonly vrings: readonly SessionVring[]
  /** What SET_PROTOCOL_FEATURES has said. */
  protocolFeatures = 0n
  /** The connection for requests of ours, once the front-end has given one. */
  backend: BackendChannel | null = null

  /** The driver ran before this session, and perhaps elsewhere: it is to announce itself once it is up. */
  resumes = false

  constructor(options: SessionOptions) {
    this.options = options
    this.vrings = Array.from({ length: options.device.queueCount }, () => new SessionVring())
  }

  /** Was this protocol feature negotiated? */
  speaks(bit: number): boolean {
    return hasFeature(this.protocolFeatures, bit)
  }

  get anyRunning(): boolean {
    return this.vrings.some((_, index) => this.options.device.isRunning(index))
  }

  /** No vring is to run until it is given a kick again. */
  forgetKicks(): void {
    for (const vring of this.vrings) vring.kicked = false
  }
}
