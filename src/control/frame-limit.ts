import { VIRTIO_NET_F_MTU } from '../abi/virtio.ts'
import type { LogLevel } from '../channel/worker-messages.ts'
import { type Features, hasFeature } from '../device/features.ts'

/**
 * Which MTU bounds the card's frames. A driver with VIRTIO_NET_F_MTU is sent nothing longer than it was told, and what
 * it was told never changes (VIRTIO 1.2 §5.1.4.1): if the TAP's MTU is raised, all that can be done is to say so. Any
 * other driver has its MTU from its user, and gets what the TAP brings. A TAP whose MTU is lowered brings less, and
 * takes what the driver sends as before. A front-end may set an MTU for its driver, which then holds whatever else.
 */
export class FrameLimit {
  readonly #toldMtu: number
  readonly #log: (level: LogLevel, text: string) => void
  #mtu: number
  #setMtu: number | null = null
  /**
   * MTUs of the TAP that the user was told of last, for a driver that knows another one and for one that knows none.
   */
  #warnedOf = 0
  #informedOf = 0

  /** `toldMtu`: what the configuration space says. All MTUs are in bytes. */
  constructor(toldMtu: number, log: (level: LogLevel, text: string) => void) {
    this.#toldMtu = toldMtu
    this.#log = log
    this.#mtu = toldMtu
  }

  /** What holds for frames in both directions. */
  get mtu(): number {
    return this.#mtu
  }

  /**
   * The front-end has set an MTU for its driver, null for none any more. What it is applied to follows with {@link
   * update}.
   */
  set(mtu: number | null): void {
    this.#setMtu = mtu
  }

  /** The TAP's MTU (0 while it is not known) or the driver's features (none after a reset) may have changed. */
  update(tapMtu: number, features: Features): void {
    if (this.#setMtu !== null) {
      this.#mtu = this.#setMtu
      return
    }
    const told = this.#toldMtu
    const knows = hasFeature(features, VIRTIO_NET_F_MTU)
    this.#mtu = features === 0n || knows ? told : Math.max(told, tapMtu)
    if (tapMtu !== 0 && tapMtu <= told) this.#warnedOf = this.#informedOf = 0
    if (features === 0n || tapMtu <= told) return
    if (!knows && tapMtu !== this.#informedOf) {
      this.#informedOf = tapMtu
      this.#log('info', `the TAP has an MTU of ${tapMtu} now: frames of that pass if the driver's is as large`)
    }
    if (knows && tapMtu !== this.#warnedOf) {
      this.#warnedOf = tapMtu
      this.#log(
        'warning',
        `the TAP has an MTU of ${tapMtu} now, and the driver was told ${told}: ` +
          `longer frames are dropped (frame_too_long); set the TAP's back, or start again with --mtu ${tapMtu}`,
      )
    }
  }
}
