import { assert } from '../base/assert.ts'
import type { BorrowedArea } from '../sys/mapping.ts'
import type { SignalTarget } from '../sys/peer-signal.ts'
import type { VirtqueueConfig } from '../virtqueue/virtqueue-config.ts'
import type { Direction } from './queue-block.ts'

/** How a queue reaches its driver beside the ring. */
export type QueueWiring = {
  /** The eventfd that the driver's side signals at a kick. */
  readonly kickFd: number
  /** Where to signal a call; -1: the driver's side does not want to be called, or is called otherwise. */
  readonly callTarget: SignalTarget
  /** Where chains in flight are noted; null for nowhere. */
  readonly inflight: BorrowedArea | null
  /** Guest address by which writes to the used ring are logged; -1 for not to. */
  readonly usedLog: number
}

/** What the device worker asks of a queue worker, which has done it when it answers. */
export type QueueCommand =
  /** Serve a queue, perhaps where another process was. */
  | {
      readonly kind: 'start'
      readonly direction: Direction
      readonly config: VirtqueueConfig
      readonly wiring: QueueWiring
    }
  /** Leave the ring alone; where it was stopped stands in its block. */
  | { readonly kind: 'stop'; readonly direction: Direction }
  /** Unmap everything; queues that run are made again over what is mapped next. */
  | { readonly kind: 'forgetMemory' }
  /** Use this descriptor of a TAP queue; -1 while there is no TAP. */
  | { readonly kind: 'setTap'; readonly fd: number }
  /** While the link is down, drop what the driver sends and receive nothing. */
  | { readonly kind: 'setLink'; readonly up: boolean }
  /** A queue that is not enabled discards what the driver sends, and receives nothing. */
  | { readonly kind: 'setEnabled'; readonly direction: Direction; readonly enabled: boolean }
  /** Signal calls there; the target before is not used any more. */
  | { readonly kind: 'setCall'; readonly direction: Direction; readonly target: SignalTarget }
  /** Make and judge packets as if these features had been negotiated, and for this MTU. Bytes. */
  | { readonly kind: 'setPolicy'; readonly features: bigint; readonly mtu: number }
  /** Note pages that are written in this log, and signal then; null and -1 for neither. */
  | { readonly kind: 'setLog'; readonly log: BorrowedArea | null; readonly signal: SignalTarget }
  /** Log writes to the used ring by this guest address; -1 for not to. */
  | { readonly kind: 'setUsedLog'; readonly direction: Direction; readonly address: number }
  /** Call for so many packets, or so many microseconds after the first; 0 of either for at once. */
  | {
      readonly kind: 'setCoalescing'
      readonly direction: Direction
      readonly packets: number
      readonly usecs: number
    }
  /** Hash packets by this place of the ReceiveScaling; -1 for not to. */
  | { readonly kind: 'setScaling'; readonly place: number }
  /** Throw away what was received and not delivered: it was for another driver. */
  | { readonly kind: 'discardReceived' }
  /** Stop everything and end. */
  | { readonly kind: 'exit' }

type Kind = QueueCommand['kind']
type Of<K extends Kind> = Extract<QueueCommand, { kind: K }>

/** Numbers that the longest command takes: `start`. */
export const PARAMETERS = 16

/** Parameters in the order in which they are written and read. */
class Parameters {
  readonly #numbers: Float64Array
  #at = 0

  constructor(numbers: Float64Array) {
    this.#numbers = numbers
  }

  put(...numbers: number[]): this {
    for (const number of numbers) this.#numbers[this.#at++] = number
    assert(this.#at <= PARAMETERS, 'a command has more parameters than there is room for')
    return this
  }

  take(): number {
    return this.#numbers[this.#at++]!
  }

  putFeatures(features: bigint): this {
    return this.put(Number(features & 0xffff_ffffn), Number(features >> 32n))
  }

  takeFeatures(): bigint {
    return BigInt(this.take()) | (BigInt(this.take()) << 32n)
  }

  /** No area has length 0. */
  putArea(area: BorrowedArea | null): this {
    return this.put(area?.address ?? 0, area?.lengthBytes ?? 0, area?.guardSlot ?? 0)
  }

  takeArea(): BorrowedArea | null {
    const area = { address: this.take(), lengthBytes: this.take(), guardSlot: this.take() }
    return area.lengthBytes === 0 ? null : area
  }

  takeDirection(): Direction {
    return this.take() as Direction
  }
}

type Codec<K extends Kind> = {
  readonly write: (to: Parameters, command: Of<K>) => void
  readonly read: (from: Parameters) => Omit<Of<K>, 'kind'>
}

const putStart = (to: Parameters, { direction, config, wiring }: Of<'start'>): void => {
  const { size, descAddr, availAddr, usedAddr, base, features } = config
  to.put(direction, size, descAddr, availAddr, usedAddr, base === 'used' ? -1 : base).putFeatures(features)
  to.put(wiring.kickFd, wiring.callTarget, wiring.usedLog).putArea(wiring.inflight)
}

const takeStart = (from: Parameters): Omit<Of<'start'>, 'kind'> => {
  const direction = from.takeDirection()
  const [size, descAddr, availAddr, usedAddr] = [from.take(), from.take(), from.take(), from.take()]
  const base = from.take()
  const features = from.takeFeatures()
  const [kickFd, callTarget, usedLog] = [from.take(), from.take(), from.take()]
  return {
    direction,
    config: { size, descAddr, availAddr, usedAddr, base: base < 0 ? 'used' : base, features },
    wiring: { kickFd, callTarget, usedLog, inflight: from.takeArea() },
  }
}

const NOTHING = { write: () => {}, read: () => ({}) }

/** A command's number is its place in this list. Each takes its parameters in the order in which they were put. */
const codecs: { readonly [K in Kind]: Codec<K> } = {
  start: { write: putStart, read: takeStart },
  stop: {
    write: (to, { direction }) => to.put(direction),
    read: (from) => ({ direction: from.takeDirection() }),
  },
  forgetMemory: NOTHING,
  setTap: {
    write: (to, { fd }) => to.put(fd),
    read: (from) => ({ fd: from.take() }),
  },
  setLink: {
    write: (to, { up }) => to.put(up ? 1 : 0),
    read: (from) => ({ up: from.take() === 1 }),
  },
  setEnabled: {
    write: (to, { direction, enabled }) => to.put(direction, enabled ? 1 : 0),
    read: (from) => ({ direction: from.takeDirection(), enabled: from.take() === 1 }),
  },
  setCall: {
    write: (to, { direction, target }) => to.put(direction, target),
    read: (from) => ({ direction: from.takeDirection(), target: from.take() }),
  },
  setPolicy: {
    write: (to, { features, mtu }) => to.putFeatures(features).put(mtu),
    read: (from) => ({ features: from.takeFeatures(), mtu: from.take() }),
  },
  setLog: {
    write: (to, { log, signal }) => to.putArea(log).put(signal),
    read: (from) => ({ log: from.takeArea(), signal: from.take() }),
  },
  setUsedLog: {
    write: (to, { direction, address }) => to.put(direction, address),
    read: (from) => ({ direction: from.takeDirection(), address: from.take() }),
  },
  setCoalescing: {
    write: (to, { direction, packets, usecs }) => to.put(direction, packets, usecs),
    read: (from) => ({ direction: from.takeDirection(), packets: from.take(), usecs: from.take() }),
  },
  setScaling: {
    write: (to, { place }) => to.put(place),
    read: (from) => ({ place: from.take() }),
  },
  discardReceived: NOTHING,
  exit: NOTHING,
}

const kinds = Object.keys(codecs) as readonly Kind[]
/** The table is typed by kind; which one a value has is known when it runs only. */
const codecOf = (kind: Kind): Codec<Kind> => codecs[kind] as unknown as Codec<Kind>

/** Writes the parameters of a command to `numbers`, {@link PARAMETERS} of them, and returns the command's number. */
export const encodeCommand = (command: QueueCommand, numbers: Float64Array): number => {
  codecOf(command.kind).write(new Parameters(numbers), command)
  return kinds.indexOf(command.kind)
}

/** The command that {@link encodeCommand} has written. */
export const decodeCommand = (number: number, numbers: Float64Array): QueueCommand => {
  const kind = kinds[number]
  assert(kind !== undefined, 'a command of no kind')
  return { kind, ...codecOf(kind).read(new Parameters(numbers)) } as QueueCommand
}
