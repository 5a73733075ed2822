import { SysError } from '../base/errors.ts'
import { COUNTER, DIRECTION, type Direction, type QueueBlock } from '../channel/queue-block.ts'
import type { QueueCommand, QueueWiring } from '../channel/queue-command.ts'
import type { QueuePairBlock } from '../channel/queue-pair-block.ts'
import type { Features } from '../device/features.ts'
import type { BorrowedArea } from '../sys/mapping.ts'
import { native } from '../sys/native.ts'
import type { SignalTarget } from '../sys/peer-signal.ts'
import type { VirtqueueConfig, VqBase } from '../virtqueue/virtqueue-config.ts'

/** A queue worker takes a command between two batches: only a stuck or dead worker takes this long. */
const COMMAND_TIMEOUT_MS = 10_000

/** One queue worker, as the device worker sees it. */
export type QueuePairHandle = {
  readonly block: QueuePairBlock
  /** Eventfd that wakes the worker. */
  readonly wakeFd: number
}

const directionOf = (index: number): Direction => (index % 2 === 0 ? DIRECTION.rx : DIRECTION.tx)

/**
 * Commands the queue workers: virtqueue 2n is receiveq n and 2n + 1 transmitq n (VIRTIO 1.2 §5.1.2), both of pair n.
 * Every call sleeps until the worker has answered.
 */
export class QueueWorkers {
  readonly #pairs: readonly QueuePairHandle[]

  constructor(pairs: readonly QueuePairHandle[]) {
    this.#pairs = pairs
  }

  /** Starts the queue. */
  start(index: number, config: VirtqueueConfig, wiring: QueueWiring): void {
    this.#command(index, { kind: 'start', direction: directionOf(index), config, wiring })
  }

  /** Stops the queue. Returns its base. */
  stop(index: number): VqBase {
    this.#command(index, { kind: 'stop', direction: directionOf(index) })
    return this.base(index)
  }

  /** The queue's base, running or not. */
  base(index: number): VqBase {
    return this.#blockOf(index).counters[COUNTER.base]!
  }

  /** The base at which the queue was started, which may differ from the front-end's. */
  startBase(index: number): VqBase {
    return this.#blockOf(index).counters[COUNTER.startBase]!
  }

  /** Sets the target of calls; -1 for none. On return the previous target is out of use. */
  setCall(index: number, target: SignalTarget): void {
    this.#command(index, { kind: 'setCall', direction: directionOf(index), target })
  }

  /** A disabled queue drops what the driver sends, and receives nothing. */
  setEnabled(index: number, enabled: boolean): void {
    this.#command(index, { kind: 'setEnabled', direction: directionOf(index), enabled })
  }

  /** Sets the guest address under which used ring writes are logged; -1 for no logging. */
  setUsedLog(index: number, address: number): void {
    this.#command(index, { kind: 'setUsedLog', direction: directionOf(index), address })
  }

  /** Logs written pages in `log` and signals `signal`; null and -1 for neither. */
  setLog(log: BorrowedArea | null, signal: SignalTarget): void {
    this.#commandAll({ kind: 'setLog', log, signal })
  }

  /** Unmaps all driver memory. Running queues make their rings again over new mappings. */
  forgetMemory(): void {
    this.#commandAll({ kind: 'forgetMemory' })
  }

  /** Sets each worker's TAP queue fd; -1 for no TAP. */
  setTap(fds: readonly number[]): void {
    for (const [pair, handle] of this.#pairs.entries()) this.#send(handle, { kind: 'setTap', fd: fds[pair] ?? -1 })
  }

  /** The operator's side of the link. While it is down, what the driver sends is dropped and nothing is received. */
  setLink(up: boolean): void {
    this.#commandAll({ kind: 'setLink', up })
  }

  /** Checks and builds packets for these features and this MTU (bytes). */
  setPolicy(features: Features, mtu: number): void {
    this.#commandAll({ kind: 'setPolicy', features, mtu })
  }

  /** Delays the calls of one direction by this many packets or microseconds; if either is 0, calls are immediate. */
  setCoalescing(direction: Direction, packets: number, usecs: number): void {
    this.#commandAll({ kind: 'setCoalescing', direction, packets, usecs })
  }

  /** Hashes packets by this place of the ReceiveScaling; -1 for no hash. On return the other place is out of use. */
  setScaling(place: number): void {
    this.#commandAll({ kind: 'setScaling', place })
  }

  /** Discards packets that were received and not delivered, those in the TAP included. */
  discardReceived(): void {
    this.#commandAll({ kind: 'discardReceived' })
  }

  /** Ends the workers. */
  exit(): void {
    this.#commandAll({ kind: 'exit' })
  }

  #blockOf(index: number): QueueBlock {
    return this.#pairs[index >> 1]!.block.queues[directionOf(index)]
  }

  #command(index: number, command: QueueCommand): void {
    this.#send(this.#pairs[index >> 1]!, command)
  }

  #commandAll(command: QueueCommand): void {
    for (const handle of this.#pairs) this.#send(handle, command)
  }

  #send({ block, wakeFd }: QueuePairHandle, command: QueueCommand): void {
    block.issue(command)
    const signalled = native.vn_eventfd_signal(wakeFd)
    if (signalled < 0) throw new SysError('write(eventfd)', -signalled)
    if (!block.awaitDone(COMMAND_TIMEOUT_MS)) {
      throw new Error(`a queue worker has not answered command ${command.kind} within ${COMMAND_TIMEOUT_MS} ms`)
    }
  }
}
