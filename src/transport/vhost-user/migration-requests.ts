import { VHOST_USER_VRING_NOFD_MASK } from '../../abi/vhost-user.ts'
import type { OwnedFd } from '../../sys/fd.ts'
import { PeerSignal } from '../../sys/peer-signal.ts'
import { type CardState, DeviceStateTransfer, describeState } from './device-state.ts'
import type { DirtyLogging } from './dirty-logging.ts'
import { type Handlers, type Outcome, type RequestFields, u64Reply } from './requests.ts'
import type { SessionState } from './session-state.ts'

type Names = 'SET_LOG_BASE' | 'SET_LOG_FD' | 'SET_DEVICE_STATE_FD' | 'CHECK_DEVICE_STATE'

/**
 * Requests with which a front-end migrates its guest. docs/interop/vhost-user.rst, "Migration" and "Migrating back-end
 * state".
 */
export class MigrationRequests {
  readonly handlers: Handlers<Names> = {
    SET_LOG_BASE: (fields) => this.#setLogBase(fields),
    SET_LOG_FD: ({ fd }) => this.#setLogFd(fd),
    SET_DEVICE_STATE_FD: (fields) => this.#beginStateTransfer(fields),
    CHECK_DEVICE_STATE: () => this.#finishStateTransfer(),
  }
  readonly #state: SessionState
  readonly #logging: DirtyLogging
  /** From SET_DEVICE_STATE_FD to CHECK_DEVICE_STATE. */
  #transfer: DeviceStateTransfer | null = null

  constructor(state: SessionState, logging: DirtyLogging) {
    this.#state = state
    this.#logging = logging
  }

  [Symbol.dispose](): void {
    this.#transfer?.[Symbol.dispose]()
  }

  #setLogBase({ fd, lengthBytes, offset }: RequestFields['SET_LOG_BASE']): Outcome {
    // QEMU waits for the answer, REPLY_ACK or not.
    return this.#logging.setLog(fd.fd, lengthBytes, offset) ?? u64Reply(0n)
  }

  #setLogFd(fd: OwnedFd): Outcome {
    const signal = PeerSignal.adopt(fd.release())
    if (signal === null) return 'not an eventfd or unix socket'
    this.#logging.setSignal(signal)
    return null
  }

  /** The state that this card transfers, and that another card's state is compared with. */
  get #cardState(): CardState {
    const { device, pairs } = this.#state.options
    return { mtu: device.mtu, queuePairs: pairs }
  }

  /** Aborts a transfer that is in progress. */
  #beginStateTransfer({ direction, phase }: RequestFields['SET_DEVICE_STATE_FD']): Outcome {
    this.#transfer?.[Symbol.dispose]()
    this.#transfer = null
    const transfer = this.#state.anyRunning
      ? 'a ring runs'
      : DeviceStateTransfer.begin(direction, phase, this.#cardState)
    if (typeof transfer === 'string') {
      this.#state.options.log('warning', `SET_DEVICE_STATE_FD refused: ${transfer}`)
      // Bit 8: no descriptor. The low byte is not 0: refused.
      return u64Reply(BigInt(VHOST_USER_VRING_NOFD_MASK | 1))
    }
    this.#transfer = transfer
    return { ...u64Reply(0n), fds: [transfer.fd] }
  }

  #finishStateTransfer(): Outcome {
    const { log } = this.#state.options
    using transfer = this.#transfer
    this.#transfer = null
    const state = transfer?.finish(this.#cardState) ?? 'no SET_DEVICE_STATE_FD came before it'
    if (transfer === null || typeof state === 'string') {
      log('warning', `CHECK_DEVICE_STATE refused: ${state}`)
      return u64Reply(1n)
    }
    if (transfer.direction === 'load') this.#state.resumes = true
    log('info', `${transfer.direction === 'save' ? 'handed' : 'took'} over the state of ${describeState(state)}`)
    return u64Reply(0n)
  }
}
