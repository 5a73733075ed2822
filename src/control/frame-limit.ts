import { VIRTIO_NET_F_MTU } from '../abi/virtio.ts'
import type { LogLevel } from '../channel/worker-messages.ts'
import { type Features, hasFeature } from '../device/features.ts'

/**
 * The MTU that bounds the card's frames. A driver with VIRTIO_NET_F_MTU receives nothing longer than `mtu` of the
 * configuration space, which never changes (VIRTIO 1.2 §5.1.4.1): if the TAP's MTU is raised, the card can only log
 * that. Any other driver has its MTU from its user and receives whatever the TAP delivers. If the TAP's MTU is lowered,
 * the TAP delivers shorter frames, and still takes what the driver sends. An MTU that the front-end sets overrides all
 * of this.
 */
export class FrameLimit {
  readonly #toldMtu: number
  readonly #log: (level: LogLevel, text: string) => void
  #mtu: number
  /** Set by the front-end; null for none. */
  #frontendMtu: number | null = null
  /** The TAP's MTU in the last warning to the user of a driver with VIRTIO_NET_F_MTU; 0 for none. */
  #warnedMtu = 0
  /** The TAP's MTU in the last notice to the user of a driver without it; 0 for none. */
  #noticedMtu = 0

  /** `toldMtu`: `mtu` of the configuration space. All MTUs are in bytes. */
  constructor(toldMtu: number, log: (level: LogLevel, text: string) => void) {
    this.#toldMtu = toldMtu
    this.#log = log
    this.#mtu = toldMtu
  }

  /** The bound for frames in both directions. Bytes of payload. */
  get mtu(): number {
    return this.#mtu
  }

  /** The front-end sets an MTU for its driver, or null for none. It takes effect at the next {@link update}. */
  set(mtu: number | null): void {
    this.#frontendMtu = mtu
  }

  /** Recalculates {@link mtu} from the TAP's MTU (0 while unknown) and the driver's features (0n after a reset). */
  update(tapMtu: number, features: Features): void {
    if (this.#frontendMtu !== null) {
      this.#mtu = this.#frontendMtu
      return
    }
    const told = this.#toldMtu
    const hasMtuFeature = hasFeature(features, VIRTIO_NET_F_MTU)
    this.#mtu = features === 0n || hasMtuFeature ? told : Math.max(told, tapMtu)
    if (tapMtu !== 0 && tapMtu <= told) this.#warnedMtu = this.#noticedMtu = 0
    if (features === 0n || tapMtu <= told) return
    if (!hasMtuFeature && tapMtu !== this.#noticedMtu) {
      this.#noticedMtu = tapMtu
      this.#log('info', `the TAP has an MTU of ${tapMtu} now: frames of that size pass if the driver's MTU is as large`)
    }
    if (hasMtuFeature && tapMtu !== this.#warnedMtu) {
      this.#warnedMtu = tapMtu
      this.#log(
        'warning',
        `the TAP has an MTU of ${tapMtu} now, and the driver was told ${told}: ` +
          `longer frames are dropped (frame_too_long); set the TAP's back, or start again with --mtu ${tapMtu}`,
      )
    }
  }
}
