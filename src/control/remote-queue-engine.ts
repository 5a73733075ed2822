import { SysError } from '../base/errors.ts'
import {
  COMMAND,
  COUNTER,
  type Command,
  type Direction,
  PARAM,
  type QueuePairBlock,
} from '../channel/queue-pair-block.ts'
import type { Features } from '../device/features.ts'
import type { QueueEngine } from '../device/queue-engine.ts'
import { native } from '../sys/native.ts'
import type { SignalTarget } from '../sys/peer-signal.ts'
import type { BorrowedArea } from '../transport/vhost-user/shared-area.ts'
import type { VirtqueueConfig, VqBase } from '../virtqueue/virtqueue-config.ts'

/** A queue worker takes a command between two batches, so this is only reached when it is stuck or dead. */
const COMMAND_TIMEOUT_MS = 10_000

/** One queue worker, as the device worker sees it. */
export type QueuePairHandle = {
  readonly block: QueuePairBlock
  /** eventfd that wakes the worker. */
  readonly wakeFd: number
}

/**
 * Runs queues in the queue workers: virtqueue 2n is receiveq n and 2n + 1 transmitq n (VIRTIO 1.2 §5.1.2), both of pair n.
 * Every call sleeps until the worker has answered.
 */
export class RemoteQueueEngine implements QueueEngine {
  readonly #pairs: readonly QueuePairHandle[]
  /** By queue; -1 for none. */
  readonly #kickFds: number[]
  readonly #callTargets: SignalTarget[]
  readonly #inflight: (BorrowedArea | null)[]

  constructor(pairs: readonly QueuePairHandle[]) {
    this.#pairs = pairs
    this.#kickFds = new Array<number>(pairs.length * 2).fill(-1)
    this.#callTargets = new Array<number>(pairs.length * 2).fill(-1)
    this.#inflight = new Array<BorrowedArea | null>(pairs.length * 2).fill(null)
  }

  /** The eventfd that the driver's side signals at a kick, from the queue's next start on. */
  setKick(index: number, fd: number): void {
    this.#kickFds[index] = fd
  }

  /** Where to note chains in flight, from the queue's next start on. */
  setInflight(index: number, area: BorrowedArea | null): void {
    this.#inflight[index] = area
  }

  /** Where to signal a call, from now on; -1 for nowhere. On return the one before is not used any more. */
  setCall(index: number, target: SignalTarget): void {
    this.#callTargets[index] = target
    const pair = this.#pairOf(index)
    pair.block.params[PARAM.queue] = index % 2
    pair.block.params[PARAM.callTarget] = target
    this.#command(pair, COMMAND.setCall)
  }

  /** A queue that is not enabled discards what the driver sends, and receives nothing. */
  setEnabled(index: number, enabled: boolean): void {
    const pair = this.#pairOf(index)
    pair.block.params[PARAM.queue] = index % 2
    pair.block.params[PARAM.enabled] = enabled ? 1 : 0
    this.#command(pair, COMMAND.setEnabled)
  }

  /** Where to note pages that are written, from now on, and what to signal then. */
  setLog(log: BorrowedArea | null, signal: SignalTarget): void {
    for (const pair of this.#pairs) {
      pair.block.params[PARAM.logAddress] = log?.address ?? 0
      pair.block.params[PARAM.logBytes] = log?.lengthBytes ?? 0
      pair.block.params[PARAM.logGuardSlot] = log?.guardSlot ?? 0
      pair.block.params[PARAM.logSignal] = signal
      this.#command(pair, COMMAND.setLog)
    }
  }

  /** Guest address of the used ring in the log; -1 for not to log writes to it. */
  setUsedLog(index: number, address: number): void {
    const pair = this.#pairOf(index)
    pair.block.params[PARAM.queue] = index % 2
    pair.block.params[PARAM.usedLog] = address
    this.#command(pair, COMMAND.setUsedLog)
  }

  start(index: number, spec: VirtqueueConfig): void {
    const pair = this.#pairOf(index)
    const params = pair.block.params
    params[PARAM.queue] = index % 2
    params[PARAM.size] = spec.size
    params[PARAM.descAddr] = spec.descAddr
    params[PARAM.availAddr] = spec.availAddr
    params[PARAM.usedAddr] = spec.usedAddr
    params[PARAM.featuresLow] = Number(spec.features & 0xffffffffn)
    params[PARAM.featuresHigh] = Number(spec.features >> 32n)
    params[PARAM.base] = spec.base === 'used' ? -1 : spec.base
    params[PARAM.kickFd] = this.#kickFds[index]!
    params[PARAM.callTarget] = this.#callTargets[index]!
    const inflight = this.#inflight[index]
    params[PARAM.inflightAddress] = inflight?.address ?? 0
    params[PARAM.inflightBytes] = inflight?.lengthBytes ?? 0
    params[PARAM.inflightGuardSlot] = inflight?.guardSlot ?? 0
    this.#command(pair, COMMAND.start)
  }

  stop(index: number): VqBase {
    const pair = this.#pairOf(index)
    pair.block.params[PARAM.queue] = index % 2
    this.#command(pair, COMMAND.stop)
    return this.base(index)
  }

  base(index: number): VqBase {
    // What the worker showed after its last batch: all that the driver can have seen.
    return this.#pairOf(index).block.counters[(index % 2) as Direction][COUNTER.base]!
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

  /** Packets are made and judged as if these features had been negotiated, from now on. */
  setPolicy(features: Features): void {
    for (const pair of this.#pairs) {
      pair.block.params[PARAM.featuresLow] = Number(features & 0xffffffffn)
      pair.block.params[PARAM.featuresHigh] = Number(features >> 32n)
      this.#command(pair, COMMAND.setPolicy)
    }
  }

  /** Calls for the queues of one direction wait for so many packets or microseconds, from now on; if either is 0, for nothing. */
  setCoalescing(direction: Direction, packets: number, usecs: number): void {
    for (const pair of this.#pairs) {
      pair.block.params[PARAM.queue] = direction
      pair.block.params[PARAM.coalescePackets] = packets
      pair.block.params[PARAM.coalesceUsecs] = usecs
      this.#command(pair, COMMAND.setCoalescing)
    }
  }

  /** Packets are hashed by this place of the ReceiveScaling from now on; -1: they are not. On return no other place is in use. */
  setScaling(place: number): void {
    for (const pair of this.#pairs) {
      pair.block.params[PARAM.scalingPlace] = place
      this.#command(pair, COMMAND.setScaling)
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
