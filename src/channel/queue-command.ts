import { assert } from '../base/assert.ts'
import type { BorrowedArea } from '../sys/mapping.ts'
import type { SignalTarget } from '../sys/peer-signal.ts'
import type { VirtqueueConfig } from '../virtqueue/virtqueue-config.ts'
import type { Direction } from './queue-block.ts'

/** What a queue needs beside its ring. */
export type QueueWiring = {
  /** The kick eventfd. */
  readonly kickFd: number
  /** Where to signal a call; -1 if the front-end wants none, or if calls take another way (VDUSE). */
  readonly callTarget: SignalTarget
  /** The record of chains in flight; null for none. */
  readonly inflight: BorrowedArea | null
  /** Guest address under which used ring writes are logged; -1 for no logging. */
  readonly usedLog: number
}

/** Commands of the device worker to a queue worker. The answer means that the command is carried out. */
export type QueueCommand =
  /** Start a queue. It may resume where another process stopped. */
  | {
      readonly kind: 'start'
      readonly direction: Direction
      readonly config: VirtqueueConfig
      readonly wiring: QueueWiring
    }
  /** Stop a queue. Its base is then in its block. */
  | { readonly kind: 'stop'; readonly direction: Direction }
  /** Unmap all driver memory. Running queues make their rings again over new mappings. */
  | { readonly kind: 'forgetMemory' }
  /** Use this descriptor of a TAP queue; -1 for no TAP. */
  | { readonly kind: 'setTap'; readonly fd: number }
  /** While the link is down, drop what the driver sends and receive nothing. */
  | { readonly kind: 'setLink'; readonly up: boolean }
  /** A disabled queue drops what the driver sends, and receives nothing. */
  | { readonly kind: 'setEnabled'; readonly direction: Direction; readonly enabled: boolean }
  /** Signal calls to this target; the previous one goes out of use. */
  | { readonly kind: 'setCall'; readonly direction: Direction; readonly target: SignalTarget }
  /** Check and build packets for these features and this MTU (bytes). */
  | { readonly kind: 'setPolicy'; readonly features: bigint; readonly mtu: number }
  /** Log written pages in `log` and signal `signal`; null and -1 for neither. */
  | { readonly kind: 'setLog'; readonly log: BorrowedArea | null; readonly signal: SignalTarget }
  /** Log used ring writes under this guest address; -1 for no logging. */
  | { readonly kind: 'setUsedLog'; readonly direction: Direction; readonly address: number }
  /** Delay calls by this many packets or microseconds; if either is 0, calls are immediate. */
  | {
      readonly kind: 'setCoalescing'
      readonly direction: Direction
      readonly packets: number
      readonly usecs: number
    }
  /** Hash packets by this place of the ReceiveScaling; -1 for no hash. */
  | { readonly kind: 'setScaling'; readonly place: number }
  /** Discard packets that were received and not delivered: they were for another driver. */
  | { readonly kind: 'discardReceived' }
  /** Stop both queues and end the worker. */
  | { readonly kind: 'exit' }

type Kind = QueueCommand['kind']
type Of<K extends Kind> = Extract<QueueCommand, { kind: K }>

/** Room for parameters: the longest command is `start`. */
export const PARAMETERS = 16

/** A cursor over the parameters of one command. */
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

/** A command's number is its index here. `read` takes the parameters in the order in which `write` put them. */
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
/** Widens the type: the table is typed by kind, and the kind of a value is known at run time only. */
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
