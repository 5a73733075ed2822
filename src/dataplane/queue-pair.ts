import { DROP } from '../abi/drop-reason.ts'
import { DriverFault } from '../base/errors.ts'
import {
  COMMAND,
  COUNTER,
  DIRECTION,
  type Direction,
  PARAM,
  QUEUE_STATE,
  type QueuePairBlock,
} from '../channel/queue-pair-block.ts'
import { scalingPlace } from '../device/receive-scaling.ts'
import { AddressSpace } from '../memory/address-space.ts'
import { DirtyLog } from '../memory/dirty-log.ts'
import { IovecArena } from '../memory/iovec-arena.ts'
import type { RegionSource } from '../memory/region.ts'
import { BorrowedMapping } from '../sys/mapping.ts'
import { native } from '../sys/native.ts'
import { type SignalTarget, signalPeer } from '../sys/peer-signal.ts'
import { POLLIN, POLLOUT, Poller } from '../sys/poller.ts'
import type { PackedInflight, SplitInflight } from '../virtqueue/inflight-record.ts'
import { newInflightRecord, newVirtqueue, resumes } from '../virtqueue/new-virtqueue.ts'
import { logRing } from '../virtqueue/ring-log.ts'
import type { Virtqueue } from '../virtqueue/virtqueue.ts'
import type { VirtqueueConfig, VqBase } from '../virtqueue/virtqueue-config.ts'
import { CallCoalescing, NEVER } from './call-coalescing.ts'
import { IdlePolicy } from './idle-policy.ts'
import { DEAF_MS, KICKS_IN_VAIN_MAX } from './kicks-in-vain.ts'
import { maxFrameBytes, PacketIo } from './packet-io.ts'
import { ReceivePath } from './receive-path.ts'
import { TransmitPath } from './transmit-path.ts'
import { TURN } from './turn.ts'

const IOVECS = 8192
/** Enough that the longest packet, 65,589 bytes, fits into merged buffers of the least length, that of the header. */
const CHAINS = IOVECS

/** How a queue pair reaches its driver. */
export type DriverLink = {
  readonly memory: RegionSource
  /**
   * Interrupts the driver for the receiveq or transmitq of the pair. `target` is what the driver's side has set for that, or -1.
   * An error is ignored: it has gone away.
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

/** The parameters of a start, kept so that the queue can be made again over new memory. */
type QueueParams = {
  readonly config: VirtqueueConfig
  readonly kickFd: number
  readonly inflightAddress: number
  /** 0 for no record. */
  readonly inflightBytes: number
  readonly inflightGuardSlot: number
}

const inflightOf = (params: QueueParams): SplitInflight | PackedInflight | null => {
  const { config, inflightAddress, inflightBytes, inflightGuardSlot } = params
  if (inflightBytes === 0) return null
  return newInflightRecord(new BorrowedMapping(inflightAddress, inflightBytes, inflightGuardSlot), config)
}

const memoryVanished = (): DriverFault => new DriverFault('MEMORY_VANISHED', 'the driver took away memory in use')

/** One direction of the pair: a virtqueue while it runs, and what to make it of. */
class Side {
  readonly direction: Direction
  params: QueueParams | null = null
  queue: Virtqueue | null = null
  callTarget: SignalTarget = -1
  enabled = true
  /** Guest address of the used ring in the dirty log, or -1. */
  usedLog = -1
  /** Where chains in flight are noted. */
  inflight: SplitInflight | PackedInflight | null = null
  /** When the driver is called. */
  readonly coalescing = new CallCoalescing()
  /** Kicks since the driver has last made anything available. */
  kicksInVain = 0
  constructor(direction: Direction) {
    this.direction = direction
  }
}

/**
 * One queue pair against one TAP queue: the loop of a queue worker. It sleeps in one place only, between turns; each turn
 * is bounded, the two directions alternate, and commands are taken between turns.
 */
export class QueuePair {
  readonly #block: QueuePairBlock
  readonly #fds: QueuePairFds
  readonly #link: DriverLink
  readonly #space: AddressSpace
  readonly #rxArena = new IovecArena(CHAINS, IOVECS)
  readonly #txArena = new IovecArena(CHAINS, IOVECS)
  readonly #io: PacketIo
  readonly #poller = new Poller(4)
  readonly #idle: IdlePolicy
  readonly #wakeSlot: number
  readonly #tapSlot: number
  readonly #rxKickSlot: number
  readonly #txKickSlot: number
  readonly #rx = new Side(DIRECTION.rx)
  readonly #tx = new Side(DIRECTION.tx)
  #receive: ReceivePath | null = null
  #transmit: TransmitPath | null = null
  #tapFd = -1
  #linkUp = true
  #exit = false
  /** Work that is known to wait, so that the loop does not sleep. */
  #rxPending = false
  #txPending = false
  /** Receive: the ring has no buffers; the TAP is not listened to until the driver kicks. */
  #rxStarved = false
  /** Transmit: the TAP takes no more until it is writable. */
  #txBlocked = false
  /** Transmit: the driver has been asked to kick, and has not since. */
  #txListens = false
  #log: DirtyLog | null = null
  #logSignal: SignalTarget = -1
  /** Kicks are not listened to until then; 0: they are. */
  #deafUntilMs = 0
  /** No call that waits is due before then. */
  #callAtMs = NEVER

  constructor(options: {
    block: QueuePairBlock
    fds: QueuePairFds
    link: DriverLink
    tap: { fd: number; hasVnetHdr: boolean }
    mtu: number
    /** Shared memory of a ReceiveFilter. */
    receiveFilter: SharedArrayBuffer
    /** Shared memory of a ReceiveScaling. */
    receiveScaling: SharedArrayBuffer
    /** Microseconds to look for work before sleeping; null to adapt. */
    busyPollUs: number | null
  }) {
    this.#block = options.block
    this.#fds = options.fds
    this.#link = options.link
    this.#space = new AddressSpace(options.link.memory)
    const [rx, tx] = this.#block.counters
    this.#io = new PacketIo(this.#rxArena, this.#txArena, options.tap, { rx, tx, drops: this.#block.drops })
    this.#io.receiveFilter = options.receiveFilter
    this.#scaling = options.receiveScaling
    this.#frameBytes = maxFrameBytes(options.mtu)
    this.#idle = new IdlePolicy(options.busyPollUs)
    this.#wakeSlot = this.#poller.add(this.#fds.wakeFd, POLLIN)
    this.#tapSlot = this.#poller.add(-1, 0)
    this.#rxKickSlot = this.#poller.add(-1, POLLIN)
    this.#txKickSlot = this.#poller.add(-1, POLLIN)
    this.#setTap(options.tap.fd)
  }

  readonly #frameBytes: number
  readonly #scaling: SharedArrayBuffer

  /** Runs until the device worker says exit. */
  run(): void {
    this.#block.markAlive()
    while (!this.#exit) {
      if (this.#rxPending || this.#txPending) this.#wait(0)
      else if (!this.#spin() && this.#listenForKicks()) this.#sleep()
      if (this.#deafUntilMs !== 0 && performance.now() >= this.#deafUntilMs) this.#hearKicks()
      if (this.#callAtMs !== NEVER) this.#callWhenDue()
      if (this.#txPending) this.#serve(this.#tx)
      if (this.#rxPending) this.#serve(this.#rx)
    }
    this.#stop(this.#rx)
    this.#stop(this.#tx)
    this.#log?.[Symbol.dispose]()
    this.#space.clear()
  }

  /** Looks for work for a while instead of sleeping. True if there is some. */
  #spin(): boolean {
    const spinMs = this.#idle.spinMs
    if (spinMs === 0) return false
    const untilMs = Math.min(performance.now() + spinMs, this.#callAtMs)
    do {
      if (!this.#txBlocked && this.#tx.queue !== null && this.#tx.queue.pending > 0) {
        this.#txPending = true
        return true
      }
      if (this.#wait(0)) return true
    } while (performance.now() < untilMs)
    return false
  }

  /** Asks the driver for kicks, just before a sleep: not while we look ourselves. False if it has sent something meanwhile. */
  #listenForKicks(): boolean {
    if (this.#txListens || this.#txBlocked || this.#tx.queue === null) return true
    this.#txListens = !this.#tx.queue.enableNotification()
    this.#txPending = !this.#txListens
    return this.#txListens
  }

  #sleep(): void {
    const fromMs = performance.now()
    this.#wait(this.#timeoutMs(fromMs))
    this.#idle.slept(performance.now() - fromMs)
  }

  /** Milliseconds until something is to be done that nothing wakes the thread for; -1 for never. */
  #timeoutMs(nowMs: number): number {
    const deafMs = this.#deafUntilMs === 0 ? NEVER : DEAF_MS
    const timeoutMs = Math.min(deafMs, this.#callAtMs - nowMs)
    return timeoutMs === NEVER ? -1 : Math.max(0, timeoutMs)
  }

  /** Takes up what has happened, waiting for it up to `timeoutMs` (-1: for ever). True if something has. */
  #wait(timeoutMs: number): boolean {
    const poller = this.#poller
    if (poller.wait(timeoutMs) === 0) return false
    const tap = poller.ready(this.#tapSlot)
    if ((tap & POLLIN) !== 0) this.#rxPending = true
    if ((tap & POLLOUT) !== 0) {
      this.#txBlocked = false
      this.#txPending = true
      this.#listenToTap()
    }
    if ((tap & ~(POLLIN | POLLOUT)) !== 0) this.#loseTap()
    if (poller.ready(this.#txKickSlot) !== 0) {
      this.#takeKick(this.#tx)
      if (!this.#txBlocked) this.#txPending = true
    }
    if (poller.ready(this.#rxKickSlot) !== 0) {
      this.#takeKick(this.#rx)
      this.#rxStarved = false
      this.#rxPending = this.#receives
      this.#listenToTap()
    }
    if (poller.ready(this.#wakeSlot) !== 0) {
      native.vn_eventfd_drain(this.#fds.wakeFd)
      this.#obey()
    }
    return true
  }

  #takeKick(side: Side): void {
    native.vn_eventfd_drain(side.params!.kickFd)
    this.#block.counters[side.direction][COUNTER.kicks]!++
    side.queue!.disableNotification()
    if (side.direction === DIRECTION.tx) this.#txListens = false
    if (++side.kicksInVain > KICKS_IN_VAIN_MAX) {
      this.#deafUntilMs = performance.now() + DEAF_MS
      this.#listenToKicks()
    }
  }

  /** Ends the time in which kicks were not listened to; what came meanwhile is found by looking. */
  #hearKicks(): void {
    this.#deafUntilMs = 0
    for (const side of [this.#rx, this.#tx]) side.kicksInVain = 0
    this.#txPending = this.#tx.queue !== null && !this.#txBlocked
    if (this.#rxStarved) {
      this.#rxStarved = false
      this.#rxPending = this.#receives
    }
    this.#listenToTap()
  }

  #listenToKicks(): void {
    const deaf = this.#deafUntilMs !== 0
    const { rx, tx } = { rx: this.#rx, tx: this.#tx }
    this.#poller.setFd(this.#rxKickSlot, this.#rxStarved && !deaf ? rx.params!.kickFd : -1)
    this.#poller.setFd(this.#txKickSlot, tx.queue !== null && !deaf ? tx.params!.kickFd : -1)
  }

  /** One turn of one direction, and all that follows from how it ended. */
  #serve(side: Side): void {
    try {
      if (side.direction === DIRECTION.tx) this.#serveTransmit()
      else this.#serveReceive(side.queue!)
      if (this.#log !== null) this.#logRing(this.#log, side)
      this.#signal(side)
      if (this.#space.guardHits() !== 0 || side.inflight?.vanished) throw memoryVanished()
    } catch (fault) {
      if (!(fault instanceof DriverFault)) throw fault
      // Zeroes in a ring look like a driver that has lost its way.
      this.#quarantine(side, this.#space.guardHits() === 0 ? fault : memoryVanished())
    }
  }

  #logRing(log: DirtyLog, side: Side): void {
    logRing(log, side.params!.config, side.usedLog)
    signalPeer(this.#logSignal)
    if (log.vanished) throw new DriverFault('MEMORY_VANISHED', 'the dirty log was taken away')
  }

  #serveTransmit(): void {
    const path = this.#transmit!
    // What is taken now moves the ring past the place at which the driver was asked to kick.
    this.#txListens = false
    const turn = !this.#linkUp
      ? path.discard(DROP.link_down)
      : !this.#tx.enabled
        ? path.discard(DROP.queue_disabled)
        : this.#tapFd < 0
          ? path.discard(DROP.tap_gone)
          : path.turn()
    switch (turn) {
      case TURN.idle:
        this.#txPending = false
        break
      case TURN.blocked:
        this.#txPending = false
        this.#txBlocked = true
        this.#listenToTap()
        break
      default:
        this.#txPending = true
    }
  }

  #serveReceive(queue: Virtqueue): void {
    switch (this.#receive!.turn()) {
      case TURN.idle:
        this.#rxPending = false
        break
      case TURN.noBuffers:
        this.#rxPending = queue.enableNotification()
        if (!this.#rxPending) {
          this.#rxStarved = true
          this.#listenToTap()
        }
        break
      case TURN.tapError:
        this.#loseTap()
        break
      default:
        this.#rxPending = true
    }
  }

  /** Shows progress to main and interrupts the driver if it wants that. */
  #signal(side: Side): void {
    const counters = this.#block.counters[side.direction]
    const queue = side.queue!
    if (counters[COUNTER.nextUsed] === queue.nextUsed) return
    side.kicksInVain = 0
    counters[COUNTER.batches]!++
    const { coalescing } = side
    if (coalescing.active) {
      const used = (queue.nextUsed - counters[COUNTER.nextUsed]!) & 0xffff
      if (coalescing.waits(used, queue.size)) {
        this.#showProgress(side)
        this.#callAtMs = Math.min(this.#callAtMs, coalescing.dueMs)
        return
      }
    }
    this.#showProgress(side)
    this.#call(side)
  }

  /** Interrupts the driver if it wants that for anything used since it was last asked. */
  #call(side: Side): void {
    if (!side.queue!.needsCall()) return
    this.#block.counters[side.direction][COUNTER.calls]!++
    this.#link.call(side.direction, side.callTarget)
  }

  /** Makes the calls whose time has come. */
  #callWhenDue(): void {
    const nowMs = performance.now()
    if (nowMs < this.#callAtMs) return
    const rx = this.#rx
    const tx = this.#tx
    if (nowMs >= rx.coalescing.dueMs) this.#callNow(rx)
    if (nowMs >= tx.coalescing.dueMs) this.#callNow(tx)
    this.#callAtMs = Math.min(rx.coalescing.dueMs, tx.coalescing.dueMs)
  }

  /** Makes the call that waits, if one does. */
  #callNow(side: Side): void {
    if (side.coalescing.dueMs === NEVER) return
    side.coalescing.clear()
    this.#call(side)
  }

  #showProgress(side: Side): void {
    const counters = this.#block.counters[side.direction]
    counters[COUNTER.nextAvail] = side.queue!.nextAvail
    counters[COUNTER.nextUsed] = side.queue!.nextUsed
    counters[COUNTER.pending] = side.queue!.pending
    counters[COUNTER.base] = side.queue!.base
  }

  /** The ring is not touched any more until the driver resets the device. */
  #quarantine(side: Side, fault: DriverFault): void {
    if (side.queue !== null) this.#showProgress(side)
    this.#drop(side)
    this.#block.counters[side.direction][COUNTER.quarantines]!++
    this.#block.setQuarantineReason(side.direction, fault.message)
    this.#block.setQueueState(side.direction, QUEUE_STATE.quarantined)
    native.vn_eventfd_signal(this.#fds.deviceWakeFd)
  }

  /** The TAP answers with errors only: it is left alone until the device worker has a new one. */
  #loseTap(): void {
    this.#setTap(-1)
    native.vn_eventfd_signal(this.#fds.deviceWakeFd)
  }

  #setTap(fd: number): void {
    this.#tapFd = fd
    this.#io.tapFd = fd
    this.#txBlocked = false
    this.#txPending = this.#tx.queue !== null
    this.#rxPending = this.#receives
    this.#listenToTap()
  }

  /** Can packets of the TAP go anywhere? */
  get #receives(): boolean {
    const rx = this.#rx
    return rx.queue !== null && rx.enabled && this.#tapFd >= 0 && this.#linkUp && !this.#rxStarved
  }

  #listenToTap(): void {
    const events = (this.#receives ? POLLIN : 0) | (this.#txBlocked ? POLLOUT : 0)
    this.#poller.setFd(this.#tapSlot, events === 0 ? -1 : this.#tapFd)
    this.#poller.setEvents(this.#tapSlot, events)
    this.#listenToKicks()
  }

  #obey(): void {
    const block = this.#block
    const command = block.pendingCommand()
    if (command === COMMAND.none) return
    const params = block.params
    const side = params[PARAM.queue] === DIRECTION.rx ? this.#rx : this.#tx
    switch (command) {
      case COMMAND.start:
        side.params = {
          config: {
            size: params[PARAM.size]!,
            descAddr: params[PARAM.descAddr]!,
            availAddr: params[PARAM.availAddr]!,
            usedAddr: params[PARAM.usedAddr]!,
            base: params[PARAM.base]! < 0 ? 'used' : params[PARAM.base]!,
            features: BigInt(params[PARAM.featuresLow]!) | (BigInt(params[PARAM.featuresHigh]!) << 32n),
          },
          kickFd: params[PARAM.kickFd]!,
          inflightAddress: params[PARAM.inflightAddress]!,
          inflightBytes: params[PARAM.inflightBytes]!,
          inflightGuardSlot: params[PARAM.inflightGuardSlot]!,
        }
        side.callTarget = params[PARAM.callTarget]!
        this.#begin(side)
        break
      case COMMAND.stop:
        this.#stop(side)
        break
      case COMMAND.forgetMemory:
        this.#forgetMemory()
        break
      case COMMAND.setTap:
        this.#setTap(params[PARAM.tapFd]!)
        break
      case COMMAND.setLink:
        this.#linkUp = params[PARAM.linkUp] === 1
        this.#setTap(this.#tapFd)
        break
      case COMMAND.setCall:
        side.callTarget = params[PARAM.callTarget]!
        break
      case COMMAND.setEnabled:
        side.enabled = params[PARAM.enabled] === 1
        this.#setTap(this.#tapFd)
        break
      case COMMAND.setPolicy:
        this.#io.setPolicy(params[PARAM.featuresLow]!, params[PARAM.featuresHigh]!, this.#frameBytes)
        break
      case COMMAND.setLog:
        this.#setLog()
        break
      case COMMAND.setUsedLog:
        side.usedLog = params[PARAM.usedLog]!
        break
      case COMMAND.setCoalescing:
        // Sooner than either the old or the new setting says is always right.
        this.#callNow(side)
        side.coalescing.set(params[PARAM.coalescePackets]!, params[PARAM.coalesceUsecs]!)
        break
      case COMMAND.setScaling: {
        const place = params[PARAM.scalingPlace]!
        this.#io.receiveScaling = place < 0 ? null : scalingPlace(this.#scaling, place)
        break
      }
      case COMMAND.exit:
        this.#exit = true
        break
    }
    block.answer()
  }

  #setLog(): void {
    const { params } = this.#block
    this.#log?.[Symbol.dispose]()
    const lengthBytes = params[PARAM.logBytes]!
    this.#log =
      lengthBytes === 0
        ? null
        : new DirtyLog(
            this.#space,
            new BorrowedMapping(params[PARAM.logAddress]!, lengthBytes, params[PARAM.logGuardSlot]!),
          )
    this.#logSignal = params[PARAM.logSignal]!
    if (this.#receive !== null) this.#receive.log = this.#log
  }

  /** Starts a queue as the driver's side has set it up, perhaps where somebody else was. */
  #begin(side: Side): void {
    const { config } = side.params!
    this.#start(side, config.base)
    if (side.queue === null || !resumes(config, side.inflight)) return
    this.#link.call(side.direction, side.callTarget)
  }

  #start(side: Side, base: VqBase | 'used'): void {
    const params = side.params!
    const { config } = params
    try {
      side.inflight = inflightOf(params)
      const queue = newVirtqueue(
        this.#space,
        { ...config, base },
        { drops: this.#block.drops, inflight: side.inflight },
      )
      side.queue = queue
      if (side.direction === DIRECTION.rx) {
        this.#receive = new ReceivePath(queue, this.#rxArena, this.#io)
        this.#receive.log = this.#log
      } else this.#transmit = new TransmitPath(queue, this.#txArena, this.#io)
      queue.disableNotification()
    } catch (fault) {
      if (!(fault instanceof DriverFault)) throw fault
      this.#quarantine(side, fault)
      return
    }
    this.#io.setPolicy(Number(config.features & 0xffffffffn), Number(config.features >> 32n), this.#frameBytes)
    this.#block.setQueueState(side.direction, QUEUE_STATE.running)
    this.#block.counters[side.direction][COUNTER.size] = config.size
    this.#showProgress(side)
    if (side.direction === DIRECTION.rx) this.#rxStarved = false
    // What the driver made available before there was anybody to kick is found by looking.
    this.#setTap(this.#tapFd)
  }

  #stop(side: Side): void {
    if (side.queue !== null) this.#showProgress(side)
    this.#drop(side)
    side.params = null
    this.#block.setQueueState(side.direction, QUEUE_STATE.stopped)
  }

  /** Lets go of a queue's memory. */
  #drop(side: Side): void {
    // Nobody else would make it.
    this.#callNow(side)
    side.queue?.[Symbol.dispose]()
    side.queue = null
    side.inflight?.[Symbol.dispose]()
    side.inflight = null
    if (side.direction === DIRECTION.rx) {
      this.#receive = null
      this.#rxPending = false
      this.#rxStarved = false
    } else {
      this.#transmit = null
      this.#txPending = false
      this.#txBlocked = false
      this.#txListens = false
    }
    side.kicksInVain = 0
    this.#listenToTap()
  }

  /** Unmaps everything; queues that run are made again over what is mapped next. */
  #forgetMemory(): void {
    const running = [this.#rx, this.#tx].filter((side) => side.queue !== null)
    const bases = running.map((side) => side.queue!.base)
    for (const side of running) this.#drop(side)
    this.#space.clear()
    for (const [i, side] of running.entries()) this.#start(side, bases[i]!)
  }
}
