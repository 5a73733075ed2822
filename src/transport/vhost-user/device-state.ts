import { constants } from 'node:fs'
import {
  VHOST_TRANSFER_STATE_DIRECTION_LOAD,
  VHOST_TRANSFER_STATE_DIRECTION_SAVE,
  VHOST_TRANSFER_STATE_PHASE_STOPPED,
} from '../../abi/vhost-user.ts'
import { SysError } from '../../base/errors.ts'
import { OwnedFd, open } from '../../sys/fd.ts'
import { check, cString, native } from '../../sys/native.ts'

/** What is handed over of a card. All else a front-end that migrates knows already, or keeps in the guest's memory. */
export type CardState = { readonly mtu: number; readonly queuePairs: number }

/** Longest text that is read. Bytes. */
export const STATE_BYTES_MAX = 4096

/** The text's first field says whose it is, and in which format the others are. */
const OWNER = 'vduse-net'
const FORMAT = 1

/** The state as the bytes that are handed over: a short JSON text. */
export const stateBytes = ({ mtu, queuePairs }: CardState): Uint8Array =>
  new TextEncoder().encode(JSON.stringify({ [OWNER]: FORMAT, mtu, queuePairs }))

/** For the log. */
export const describeState = ({ mtu, queuePairs }: CardState): string =>
  `a card with MTU ${mtu} and ${queuePairs} queue pair${queuePairs === 1 ? '' : 's'}`

const NOT_OURS = 'what was handed over is no state of a vduse-net card; have vduse-net at both ends of a migration'

const parse = (bytes: Uint8Array): unknown => {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch {
    // No UTF-8, no JSON, or nested too deeply.
    return null
  }
}

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) > 0

/** The state that was handed over; a string says why the card `here` cannot go on in its place, and what to do. */
export const readState = (bytes: Uint8Array, here: CardState): CardState | string => {
  if (bytes.length > STATE_BYTES_MAX) return `${NOT_OURS} (more than ${STATE_BYTES_MAX} bytes)`
  const text = parse(bytes)
  if (typeof text !== 'object' || text === null) return NOT_OURS
  const { [OWNER]: format, mtu, queuePairs } = text as Record<string, unknown>
  if (!isCount(format)) return NOT_OURS
  if (format !== FORMAT)
    return `the other card's state is in format ${format}, and not ${FORMAT}; have the same vduse-net at both ends`
  if (!isCount(mtu) || !isCount(queuePairs)) return `${NOT_OURS} (without an MTU or queue pairs)`
  if (mtu > here.mtu)
    return (
      `the other card has MTU ${mtu}, and this one drops what is longer than ${here.mtu}; start ` +
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
 * A state on its way: to the front-end, or from there.
 *
 * The document lets the back-end answer with a channel of its own instead of the front-end's, and so does this one: a
 * file in memory, opened once for each side. On a pipe of the front-end's a read or a write could wait for as long as
 * the front-end likes, since both share the flags of the open file; it may be full, or silent, or no pipe; and opening
 * it anew, for flags of our own, is for nobody but the user who has made it. In this file a text is whole before the
 * other side gets it, and nothing waits.
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

  /** As SET_DEVICE_STATE_FD says it; a string says why there is none. */
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
      // Opened anew it is read or written from its beginning.
      const theirs = open(`/proc/self/fd/${file.fd}`, direction === 'save' ? constants.O_RDONLY : constants.O_WRONLY)
      return new DeviceStateTransfer(direction, new OwnedFd(file.release()), theirs)
    } catch (error) {
      // Out of descriptors, say.
      if (error instanceof SysError) return error.message
      throw error
    }
  }

  /** The front-end's end of the channel, to be sent to it. */
  get fd(): number {
    return this.#theirs.fd
  }

  /** The front-end has done its part: the state that has gone over; a string says why `here` cannot go on with it. */
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
