import { SysError } from '../base/errors.ts'
import type { QueueEngine, VqSpec, VqState } from '../device/queue-engine.ts'
import { native } from '../sys/native.ts'
import { COMMAND, COUNTER, type Command, type Direction, PARAM, type QueuePairBlock } from './queue-pair-block.ts'

/** A queue worker takes a command between two batches, so this is only reached when it is stuck or dead. */
const COMMAND_TIMEOUT_MS = 10_000

/** One queue worker, as the device worker sees it. */
export type QueuePairHandle = {
  readonly block: QueuePairBlock
  /** eventfd that wakes the worker. */
  readonly wakeFd: number
}

/** Kick eventfd of one queue, signalled by the driver's side. */
export type KickFds = readonly number[]

/**
 * Runs queues in the queue workers: virtqueue 2n is receiveq n and 2n + 1 transmitq n (VIRTIO 1.2 §5.1.2), both of pair n.
 * Every call sleeps until the worker has answered.
 */
export class RemoteQueueEngine implements QueueEngine {
  readonly #pairs: readonly QueuePairHandle[]
  readonly #kickFds: KickFds

  constructor(pairs: readonly QueuePairHandle[], kickFds: KickFds) {
    this.#pairs = pairs
    this.#kickFds = kickFds
  }

  start(index: number, spec: VqSpec): void {
    const pair = this.#pairOf(index)
    const params = pair.block.params
    params[PARAM.queue] = index % 2
    params[PARAM.size] = spec.size
    params[PARAM.descAddr] = spec.descAddr
    params[PARAM.availAddr] = spec.availAddr
    params[PARAM.usedAddr] = spec.usedAddr
    params[PARAM.featuresLow] = Number(spec.features & 0xffffffffn)
    params[PARAM.featuresHigh] = Number(spec.features >> 32n)
    params[PARAM.nextAvail] = spec.state === 'used' ? -1 : spec.state.nextAvail
    params[PARAM.nextUsed] = spec.state === 'used' ? -1 : spec.state.nextUsed
    params[PARAM.kickFd] = this.#kickFds[index]!
    this.#command(pair, COMMAND.start)
  }

  stop(index: number): VqState {
    const pair = this.#pairOf(index)
    pair.block.params[PARAM.queue] = index % 2
    this.#command(pair, COMMAND.stop)
    return this.state(index)
  }

  state(index: number): VqState {
    const pair = this.#pairOf(index)
    // What the worker published after its last batch: all that the driver can have seen.
    const counters = pair.block.counters[(index % 2) as Direction]
    return { nextAvail: counters[COUNTER.nextAvail]!, nextUsed: counters[COUNTER.nextUsed]! }
  }

  forgetMemory(): void {
    for (const pair of this.#pairs) this.#command(pair, COMMAND.forgetMemory)
  }

  /** Each worker's TAP queue fd from now on; -1 while there is no TAP. */
  setTap(fds: readonly number[]): void {
    for (const [index, pair] of this.#pairs.entries()) {
      pair.block.params[PARAM.tapFd] = fds[index] ?? -1
      this.#command(pair, COMMAND.setTap)
    }
  }

  /** While the operator has taken the link down, what the driver sends is dropped and nothing is received. */
  setLink(up: boolean): void {
    for (const pair of this.#pairs) {
      pair.block.params[PARAM.linkUp] = up ? 1 : 0
      this.#command(pair, COMMAND.setLink)
    }
  }

  /** Ends the workers. */
  exit(): void {
    for (const pair of this.#pairs) this.#command(pair, COMMAND.exit)
  }

  #pairOf(index: number): QueuePairHandle {
    return this.#pairs[index >> 1]!
  }

  #command(pair: QueuePairHandle, command: Command): void {
    pair.block.issue(command)
    const signalled = native.vn_eventfd_signal(pair.wakeFd)
    if (signalled < 0) throw new SysError('write(eventfd)', -signalled)
    if (!pair.block.awaitDone(COMMAND_TIMEOUT_MS)) throw new Error(`queue worker did not answer command ${command}`)
  }
}
