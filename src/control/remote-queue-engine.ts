import { SysError } from '../base/errors.ts'
import { COUNTER, DIRECTION, type Direction, type QueueBlock } from '../channel/queue-block.ts'
import type { QueueCommand, QueueWiring } from '../channel/queue-command.ts'
import type { QueuePairBlock } from '../channel/queue-pair-block.ts'
import type { Features } from '../device/features.ts'
import type { BorrowedArea } from '../sys/mapping.ts'
import { native } from '../sys/native.ts'
import type { SignalTarget } from '../sys/peer-signal.ts'
import type { VirtqueueConfig, VqBase } from '../virtqueue/virtqueue-config.ts'

/** A queue worker takes a command between two batches, so this is only reached when it is stuck or dead. */
const COMMAND_TIMEOUT_MS = 10_000

/** One queue worker, as the device worker sees it. */
export type QueuePairHandle = {
  readonly block: QueuePairBlock
  /** eventfd that wakes the worker. */
  readonly wakeFd: number
}

const directionOf = (index: number): Direction => (index % 2 === 0 ? DIRECTION.rx : DIRECTION.tx)

/**
 * Commands queue workers: virtqueue 2n is receiveq n and 2n + 1 transmitq n (VIRTIO 1.2 §5.1.2), both of pair n. Every
 * call sleeps until the worker has answered.
 */
export class RemoteQueueEngine {
  readonly #pairs: readonly QueuePairHandle[]

  constructor(pairs: readonly QueuePairHandle[]) {
    this.#pairs = pairs
  }

  /** Serves the queue from now on. */
  start(index: number, config: VirtqueueConfig, wiring: QueueWiring): void {
    this.#command(index, { kind: 'start', direction: directionOf(index), config, wiring })
  }

  /** Stops the queue; where it stopped. */
  stop(index: number): VqBase {
    this.#command(index, { kind: 'stop', direction: directionOf(index) })
    return this.base(index)
  }

  /** Where the queue is, running or not. */
  base(index: number): VqBase {
    return this.#blockOf(index).counters[COUNTER.base]!
  }

  /** Where to signal a call, from now on; -1 for nowhere. On return the one before is not used any more. */
  setCall(index: number, target: SignalTarget): void {
    this.#command(index, { kind: 'setCall', direction: directionOf(index), target })
  }

  /** A queue that is not enabled discards what the driver sends, and receives nothing. */
  setEnabled(index: number, enabled: boolean): void {
    this.#command(index, { kind: 'setEnabled', direction: directionOf(index), enabled })
  }

  /** Guest address of the used ring in the log; -1 for not to log it. */
  setUsedLog(index: number, address: number): void {
    this.#command(index, { kind: 'setUsedLog', direction: directionOf(index), address })
  }

  /** Where to note pages that are written, from now on, and what to signal then. */
  setLog(log: BorrowedArea | null, signal: SignalTarget): void {
    this.#commandAll({ kind: 'setLog', log, signal })
  }

  /** Unmaps the driver's memory. Queues that run map again what they need. */
  forgetMemory(): void {
    this.#commandAll({ kind: 'forgetMemory' })
  }

  /** Each worker's TAP queue fd from now on; -1 while there is no TAP. */
  setTap(fds: readonly number[]): void {
    for (const [pair, handle] of this.#pairs.entries()) this.#send(handle, { kind: 'setTap', fd: fds[pair] ?? -1 })
  }

  /** While the operator has taken the link down, what the driver sends is dropped and nothing is received. */
  setLink(up: boolean): void {
    this.#commandAll({ kind: 'setLink', up })
  }

  /** Packets are made and judged as if these features had been negotiated, and for this MTU (bytes), from now on. */
  setPolicy(features: Features, mtu: number): void {
    this.#commandAll({ kind: 'setPolicy', features, mtu })
  }

  /**
   * Calls for the queues of one direction wait for so many packets or microseconds, from now on; if either is 0, for
   * nothing.
   */
  setCoalescing(direction: Direction, packets: number, usecs: number): void {
    this.#commandAll({ kind: 'setCoalescing', direction, packets, usecs })
  }

  /**
   * Packets are hashed by this place of the ReceiveScaling from now on; -1: they are not. On return no other place is
   * in use.
   */
  setScaling(place: number): void {
    this.#commandAll({ kind: 'setScaling', place })
  }

  /** Throws away what was received and not delivered, in the TAP as well. */
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
