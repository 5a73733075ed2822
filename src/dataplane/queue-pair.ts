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
/** The longest packet (65,589 bytes) fits into this many merged buffers of the least length, that of the header. */
const CHAINS = IOVECS

/** While a driver sends in every round, at most this many consecutive rounds do not poll the descriptors. */
const UNPOLLED_ROUNDS_MAX = 8

/** How a queue pair reaches its driver. */
export type DriverLink = {
  readonly memory: RegionSource
  /**
   * Interrupts the driver for the receiveq or transmitq of the pair. `target`: the call target that the front-end has
   * set, or -1. Errors are ignored: the peer is gone.
   */
  call(direction: Direction, target: SignalTarget): void
}

/** The eventfds between a queue pair and the device worker. */
export type QueuePairFds = {
  /** Signalled by the device worker when a command is in the block. */
  readonly wakeFd: number
  /** Signalled by the queue pair when a queue is quarantined or the TAP has failed. */
  readonly deviceWakeFd: number
}

/** Parts of a queue pair. */
export type QueuePairOptions = {
  readonly block: QueuePairBlock
  readonly fds: QueuePairFds
  readonly link: DriverLink
  readonly tap: { readonly fd: number; readonly hasVnetHdr: boolean }
  /** Shared memory of a ReceiveFilter. */
  readonly receiveFilter: SharedArrayBuffer
  /** Shared memory of a ReceiveScaling. */
  readonly receiveScaling: SharedArrayBuffer
  /** Microseconds to spin before sleeping; null for adaptive. */
  readonly busyPollUs: number | null
}

/**
 * The loop of a queue worker: one queue pair against one TAP queue. It sleeps in one place only, between turns. Each
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
  /** Rounds since the descriptors were polled. */
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
    const errors = new TapErrors(() => this.#wakeDeviceWorker())
    const shared = { io: this.#io, tap: this.#tap, errors }
    this.#rx = new ReceivePath(this.#queueOptions(link, DIRECTION.rx), { ...shared, arena: rxArena, tapFailed })
    this.#tx = new TransmitPath(this.#queueOptions(link, DIRECTION.tx), { ...shared, arena: txArena })
  }

  #queueOptions(link: DriverLink, direction: Direction): ServedQueueOptions {
    return {
      block: this.#block.queues[direction],
      drops: this.#block.drops,
      space: this.#space,
      log: this.#log,
      poller: this.#poller,
      call: (target) => link.call(direction, target),
      failed: () => this.#wakeDeviceWorker(),
    }
  }

  /** Runs until the command `exit`. */
  run(): void {
    this.#block.markAlive()
    while (!this.#exit) this.round()
    this[Symbol.dispose]()
  }

  /** One round: sleeps if there is nothing to do, handles what is ready, and gives each pending direction a turn. */
  round(): void {
    const rx = this.#rx
    const tx = this.#tx
    if (rx.pending || tx.pending) this.#wait(0)
    else if (!this.#spin() && tx.requestKicks()) this.#sleep()
    // A driver that sends in every round must not delay everything else.
    if (++this.#unpolledRounds > UNPOLLED_ROUNDS_MAX) this.#wait(0)
    if (this.#dueMs !== NEVER) this.#serveDue()
    if (tx.pending) tx.queue.serve()
    if (rx.pending) rx.queue.serve()
  }

  /** Stops the queues and unmaps the driver's memory. */
  [Symbol.dispose](): void {
    this.#rx.queue.stop()
    this.#tx.queue.stop()
    this.#log.set(null, -1)
    this.#space.clear()
    this.#io[Symbol.dispose]()
  }

  /** Spins for a while instead of sleeping. True if there is work. */
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

  /** When timed work is due, by `performance.now()`. */
  get #dueMs(): number {
    return Math.min(this.#rx.queue.dueMs, this.#tx.queue.dueMs, this.#rx.starvedUntilMs)
  }

  #serveDue(): void {
    const nowMs = performance.now()
    if (nowMs >= this.#rx.queue.dueMs) this.#rx.queue.serveDue(nowMs)
    if (nowMs >= this.#tx.queue.dueMs) this.#tx.queue.serveDue(nowMs)
    if (nowMs >= this.#rx.starvedUntilMs) this.#rx.kicked()
  }

  /** Waits up to `timeoutMs` (-1: for ever) and handles what is ready. True if anything was. */
  #wait(timeoutMs: number): boolean {
    this.#unpolledRounds = 0
    if (this.#poller.wait(timeoutMs) === 0) return false
    const rx = this.#rx
    const tx = this.#tx
    const tap = this.#tap.ready
    if (tap !== 0) {
      if ((tap & POLLIN) !== 0) rx.pending = true
      if ((tap & POLLOUT) !== 0) tx.schedule()
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

  /** The TAP answers with errors only: it is not used until the device worker sets a new one. */
  #loseTap(): void {
    this.#useTap(-1)
    this.#wakeDeviceWorker()
  }

  #wakeDeviceWorker(): void {
    native.vn_eventfd_signal(this.#fds.deviceWakeFd)
  }

  #useTap(fd: number): void {
    this.#tap.use(fd)
    this.#schedule()
  }

  /** The TAP or the link state has changed. */
  #schedule(): void {
    this.#rx.schedule()
    this.#tx.schedule()
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
        this.#schedule()
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

  /** Unmaps all driver memory. Running queues make their rings again over new mappings. */
  #forgetMemory(): void {
    const queues = [this.#rx.queue, this.#tx.queue]
    for (const queue of queues) queue.suspend()
    this.#space.clear()
    for (const queue of queues) queue.resume()
  }
}
