import { DIRECTION, type Direction } from '../channel/queue-block.ts'
import type { QueueCommand } from '../channel/queue-command.ts'
import type { QueuePairBlock } from '../channel/queue-pair-block.ts'
import { scalingPlace } from '../device/receive-scaling.ts'
import { AddressSpace } from '../memory/address-space.ts'
import { IovecArena } from '../memory/iovec-arena.ts'
import type { RegionSource } from '../memory/region.ts'
import { native } from '../sys/native.ts'
import type { SignalTarget } from '../sys/peer-signal.ts'
import { POLLIN, POLLOUT, Poller } from '../sys/poller.ts'
import { NEVER } from './call-coalescing.ts'
import { IdlePolicy } from './idle-policy.ts'
import { MigrationLog } from './migration-log.ts'
import { maxFrameBytes, PacketIo } from './packet-io.ts'
import { ReceivePath } from './receive-path.ts'
import type { ServedQueueOptions } from './served-queue.ts'
import { TapErrors } from './tap-errors.ts'
import { TapQueue } from './tap-queue.ts'
import { TransmitPath } from './transmit-path.ts'

const IOVECS = 8192
/** Enough that the longest packet, 65,589 bytes, fits into merged buffers of the least length, that of the header. */
const CHAINS = IOVECS

/** Rounds in which a transmitq has something new may follow each other so often without a look at anything else. */
const UNPOLLED_ROUNDS_MAX = 8

/** How a queue pair reaches its driver. */
export type DriverLink = {
  readonly memory: RegionSource
  /**
   * Interrupts the driver for the receiveq or transmitq of the pair. `target` is what the driver's side has set for
   * that, or -1. An error is ignored: it has gone away.
   */
  call(direction: Direction, target: SignalTarget): void
}

/** How a queue pair is told to move, and tells that something happened. */
export type QueuePairFds = {
  /** Commands wait in the block. */
  readonly wakeFd: number
  /** Signalled when a queue is quarantined or the TAP answers with an error. */
  readonly deviceWakeFd: number
}

/** What a queue pair is made of. */
export type QueuePairOptions = {
  readonly block: QueuePairBlock
  readonly fds: QueuePairFds
  readonly link: DriverLink
  readonly tap: { readonly fd: number; readonly hasVnetHdr: boolean }
  /** Shared memory of a ReceiveFilter. */
  readonly receiveFilter: SharedArrayBuffer
  /** Shared memory of a ReceiveScaling. */
  readonly receiveScaling: SharedArrayBuffer
  /** Microseconds to look for work before sleeping; null to adapt. */
  readonly busyPollUs: number | null
}

/**
 * The loop of a queue worker: one queue pair against one TAP queue. It sleeps in one place only, between turns; each
 * turn is bounded, the two directions alternate, and commands are taken between turns.
 */
export class QueuePair {
  readonly #block: QueuePairBlock
  readonly #fds: QueuePairFds
  readonly #space: AddressSpace
  readonly #log: MigrationLog
  readonly #io: PacketIo
  readonly #poller = new Poller(4)
  readonly #idle: IdlePolicy
  readonly #wakeSlot: number
  readonly #tap: TapQueue
  readonly #rx: ReceivePath
  readonly #tx: TransmitPath
  readonly #scaling: SharedArrayBuffer
  #exit = false
  /** Rounds since the descriptors were looked at. */
  #unpolledRounds = 0

  constructor(options: QueuePairOptions) {
    const { block, fds, link } = options
    this.#block = block
    this.#fds = fds
    this.#space = new AddressSpace(link.memory)
    this.#log = new MigrationLog(this.#space)
    this.#scaling = options.receiveScaling
    this.#idle = new IdlePolicy(options.busyPollUs)
    const [rx, tx] = block.queues
    const [rxArena, txArena] = [new IovecArena(CHAINS, IOVECS), new IovecArena(CHAINS, IOVECS)]
    const counters = { rx: rx.counters, tx: tx.counters, drops: block.drops }
    this.#io = new PacketIo(rxArena, txArena, options.tap, counters)
    this.#io.receiveFilter = options.receiveFilter
    this.#wakeSlot = this.#poller.add(fds.wakeFd, POLLIN)
    this.#tap = new TapQueue(this.#poller, this.#io)
    this.#tap.use(options.tap.fd)
    const tapFailed = (): void => this.#loseTap()
    const errors = new TapErrors(() => this.#tellDeviceWorker())
    const way = { io: this.#io, tap: this.#tap, errors }
    this.#rx = new ReceivePath(this.#queueOptions(link, DIRECTION.rx), { ...way, arena: rxArena, tapFailed })
    this.#tx = new TransmitPath(this.#queueOptions(link, DIRECTION.tx), { ...way, arena: txArena })
  }

  #queueOptions(link: DriverLink, direction: Direction): ServedQueueOptions {
    return {
      block: this.#block.queues[direction],
      drops: this.#block.drops,
      space: this.#space,
      log: this.#log,
      poller: this.#poller,
      call: (target) => link.call(direction, target),
      failed: () => this.#tellDeviceWorker(),
    }
  }

  /** Runs until the device worker says exit. */
  run(): void {
    this.#block.markAlive()
    while (!this.#exit) this.round()
    this[Symbol.dispose]()
  }

  /**
   * One round: sleeps if there is nothing to do, takes up what has happened, and gives each direction that needs it a
   * turn.
   */
  round(): void {
    const rx = this.#rx
    const tx = this.#tx
    if (rx.pending || tx.pending) this.#wait(0)
    else if (!this.#spin() && tx.requestKicks()) this.#sleep()
    // A driver that sends something in each round must not keep everything else waiting.
    if (++this.#unpolledRounds > UNPOLLED_ROUNDS_MAX) this.#wait(0)
    if (this.#dueMs !== NEVER) this.#passTime()
    if (tx.pending) tx.queue.serve()
    if (rx.pending) rx.queue.serve()
  }

  /** Stops the queues and lets go of the driver's memory. */
  [Symbol.dispose](): void {
    this.#rx.queue.stop()
    this.#tx.queue.stop()
    this.#log.set(null, -1)
    this.#space.clear()
    this.#io[Symbol.dispose]()
  }

  /** Looks for work for a while instead of sleeping. True if there is some. */
  #spin(): boolean {
    const spinMs = this.#idle.spinMs
    if (spinMs === 0) return false
    const untilMs = Math.min(performance.now() + spinMs, this.#dueMs)
    do {
      if (this.#tx.poll() || this.#wait(0)) return true
    } while (performance.now() < untilMs)
    return false
  }

  #sleep(): void {
    const fromMs = performance.now()
    const dueMs = this.#dueMs
    this.#wait(dueMs === NEVER ? -1 : Math.max(0, dueMs - fromMs))
    this.#idle.slept(performance.now() - fromMs)
  }

  /** When something is to be done that nothing wakes the thread for. */
  get #dueMs(): number {
    return Math.min(this.#rx.queue.dueMs, this.#tx.queue.dueMs, this.#rx.starvedUntilMs)
  }

  #passTime(): void {
    const nowMs = performance.now()
    if (nowMs >= this.#rx.queue.dueMs) this.#rx.queue.passTime(nowMs)
    if (nowMs >= this.#tx.queue.dueMs) this.#tx.queue.passTime(nowMs)
    if (nowMs >= this.#rx.starvedUntilMs) this.#rx.kicked()
  }

  /** Takes up what has happened, waiting for it up to `timeoutMs` (-1: for ever). True if something has. */
  #wait(timeoutMs: number): boolean {
    this.#unpolledRounds = 0
    if (this.#poller.wait(timeoutMs) === 0) return false
    const rx = this.#rx
    const tx = this.#tx
    const tap = this.#tap.ready
    if (tap !== 0) {
      if ((tap & POLLIN) !== 0) rx.pending = true
      if ((tap & POLLOUT) !== 0) tx.look()
      if ((tap & ~(POLLIN | POLLOUT)) !== 0) this.#loseTap()
    }
    tx.queue.takeKick()
    rx.queue.takeKick()
    if (this.#poller.ready(this.#wakeSlot) !== 0) {
      native.vn_eventfd_drain(this.#fds.wakeFd)
      this.#takeCommand()
    }
    return true
  }

  /** The TAP answers with errors only: it is left alone until the device worker has a new one. */
  #loseTap(): void {
    this.#useTap(-1)
    this.#tellDeviceWorker()
  }

  #tellDeviceWorker(): void {
    native.vn_eventfd_signal(this.#fds.deviceWakeFd)
  }

  #useTap(fd: number): void {
    this.#tap.use(fd)
    this.#look()
  }

  /** The way of packets has changed. */
  #look(): void {
    this.#rx.look()
    this.#tx.look()
  }

  #takeCommand(): void {
    const command = this.#block.pendingCommand()
    if (command === null) return
    this.#carryOut(command)
    this.#block.answer()
  }

  #carryOut(command: QueueCommand): void {
    const [rx, tx] = [this.#rx, this.#tx]
    const pathOf = (direction: Direction): ReceivePath | TransmitPath => (direction === DIRECTION.rx ? rx : tx)
    switch (command.kind) {
      case 'start':
        pathOf(command.direction).queue.start(command.config, command.wiring)
        break
      case 'stop':
        pathOf(command.direction).queue.stop()
        break
      case 'forgetMemory':
        this.#forgetMemory()
        break
      case 'setTap':
        this.#useTap(command.fd)
        break
      case 'setLink':
        this.#tap.linkUp = command.up
        this.#look()
        break
      case 'setEnabled':
        pathOf(command.direction).enabled = command.enabled
        break
      case 'setCall':
        pathOf(command.direction).queue.setCall(command.target)
        break
      case 'setPolicy':
        this.#io.setPolicy(command.features, maxFrameBytes(command.mtu))
        break
      case 'setLog':
        this.#log.set(command.log, command.signal)
        break
      case 'setUsedLog':
        pathOf(command.direction).queue.setUsedLog(command.address)
        break
      case 'setCoalescing':
        pathOf(command.direction).queue.setCoalescing(command.packets, command.usecs)
        break
      case 'setScaling':
        this.#io.receiveScaling = command.place < 0 ? null : scalingPlace(this.#scaling, command.place)
        break
      case 'discardReceived':
        this.#io.discardReceived()
        break
      case 'exit':
        this.#exit = true
        break
    }
  }

  /** Unmaps everything; queues that run are made again over what is mapped next. */
  #forgetMemory(): void {
    const queues = [this.#rx.queue, this.#tx.queue]
    for (const queue of queues) queue.suspend()
    this.#space.clear()
    for (const queue of queues) queue.resume()
  }
}
