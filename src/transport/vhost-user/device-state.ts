import { constants } from 'node:fs'
import {
  VHOST_TRANSFER_STATE_DIRECTION_LOAD,
  VHOST_TRANSFER_STATE_DIRECTION_SAVE,
  VHOST_TRANSFER_STATE_PHASE_STOPPED,
} from '../../abi/vhost-user.ts'
import { SysError } from '../../base/errors.ts'
import { OwnedFd, open } from '../../sys/fd.ts'
import { check, cString, native } from '../../sys/native.ts'

/**
 * The state of a card that a migration transfers. A front-end knows all other state itself, or it is in guest memory.
 */
export type CardState = { readonly mtu: number; readonly queuePairs: number }

/** Longest state that is accepted, bytes. */
export const STATE_BYTES_MAX = 4096

/** Name of the state's first field; its value is the format of the others. */
const OWNER = 'vduse-net'
const FORMAT = 1

/** The state as transferred: a short JSON text. */
export const stateBytes = ({ mtu, queuePairs }: CardState): Uint8Array =>
  new TextEncoder().encode(JSON.stringify({ [OWNER]: FORMAT, mtu, queuePairs }))

/** The state as one phrase for the log. */
export const describeState = ({ mtu, queuePairs }: CardState): string =>
  `a card with MTU ${mtu} and ${queuePairs} queue pair${queuePairs === 1 ? '' : 's'}`

const NOT_A_STATE = 'the transferred state is not that of a vduse-net card; run vduse-net at both ends of a migration'

const parse = (bytes: Uint8Array): unknown => {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch {
    // Not UTF-8, not JSON, or nested too deeply.
    return null
  }
}

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) > 0

/** The transferred state. A string says why the card `here` cannot resume it, and what to do. */
export const readState = (bytes: Uint8Array, here: CardState): CardState | string => {
  if (bytes.length > STATE_BYTES_MAX) return `${NOT_A_STATE} (more than ${STATE_BYTES_MAX} bytes)`
  const text = parse(bytes)
  if (typeof text !== 'object' || text === null) return NOT_A_STATE
  const { [OWNER]: format, mtu, queuePairs } = text as Record<string, unknown>
  if (!isCount(format)) return NOT_A_STATE
  if (format !== FORMAT)
    return `the other card's state has format ${format}, this one reads ${FORMAT}; run the same vduse-net at both ends`
  if (!isCount(mtu) || !isCount(queuePairs)) return `${NOT_A_STATE} (without an MTU or queue pairs)`
  if (mtu > here.mtu)
    return (
      `the other card has MTU ${mtu}, and this one drops frames longer than ${here.mtu}; start ` +
      `it with --mtu ${mtu}`
    )
  if (queuePairs > here.queuePairs)
    return (
      `the other card has ${queuePairs} queue pair${queuePairs === 1 ? '' : 's'}, and this one ` +
      `${here.queuePairs}; start it with --queue-pairs ${queuePairs}`
    )
  return { mtu, queuePairs }
}

/**
 * A transfer of device state to or from the front-end.
 *
 * The specification allows the back-end to answer with a channel of its own in place of the front-end's. This one does:
 * a memfd, opened once for each side. A read or write on the front-end's pipe could block without limit, because both
 * sides share the flags of the open file, and only the pipe's owner may open it again with other flags. The memfd holds
 * the complete text before the other side gets it, so no read or write blocks.
 */
export class DeviceStateTransfer implements Disposable {
  readonly direction: 'save' | 'load'
  readonly #ours: OwnedFd
  readonly #theirs: OwnedFd

  private constructor(direction: 'save' | 'load', ours: OwnedFd, theirs: OwnedFd) {
    this.direction = direction
    this.#ours = ours
    this.#theirs = theirs
  }

  /** Begins the transfer that SET_DEVICE_STATE_FD asks for. A string says why it is refused. */
  static begin(direction: number, phase: number, card: CardState): DeviceStateTransfer | string {
    if (phase !== VHOST_TRANSFER_STATE_PHASE_STOPPED) return `unknown phase ${phase}`
    if (direction === VHOST_TRANSFER_STATE_DIRECTION_SAVE) return DeviceStateTransfer.#make('save', stateBytes(card))
    if (direction === VHOST_TRANSFER_STATE_DIRECTION_LOAD) return DeviceStateTransfer.#make('load', new Uint8Array(0))
    return `unknown direction ${direction}`
  }

  static #make(direction: 'save' | 'load', bytes: Uint8Array): DeviceStateTransfer | string {
    try {
      using file = new OwnedFd(check('memfd_create', native.vn_memfd(cString('vduse-net-state'), 0)))
      if (bytes.length > 0 && check('write', native.vn_write(file.fd, bytes, bytes.length)) !== bytes.length)
        return 'no memory for it'
      // A second open gives the front-end a file position of its own, at the start.
      const theirs = open(`/proc/self/fd/${file.fd}`, direction === 'save' ? constants.O_RDONLY : constants.O_WRONLY)
      return new DeviceStateTransfer(direction, new OwnedFd(file.release()), theirs)
    } catch (error) {
      // For example, the process is out of descriptors.
      if (error instanceof SysError) return error.message
      throw error
    }
  }

  /** The front-end's end of the channel, to be sent to it. */
  get fd(): number {
    return this.#theirs.fd
  }

  /** The front-end has finished: returns the transferred state. A string says why `here` cannot resume it. */
  finish(here: CardState): CardState | string {
    if (this.direction === 'save') return here
    const bytes = new Uint8Array(STATE_BYTES_MAX + 1)
    const length = native.vn_read(this.#ours.fd, bytes, bytes.length)
    return length < 0 ? new SysError('read', -length).message : readState(bytes.subarray(0, length), here)
  }

  [Symbol.dispose](): void {
    this.#ours[Symbol.dispose]()
    this.#theirs[Symbol.dispose]()
  }
}
