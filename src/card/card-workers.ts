import { RECEIVE_FILTER } from '../abi/receive-filter.ts'
import { UserError } from '../base/errors.ts'
import { logger } from '../base/log.ts'
import { parseMac } from '../base/mac.ts'
import { DeviceBlock } from '../channel/device-block.ts'
import { QueuePairBlock } from '../channel/queue-pair-block.ts'
import type {
  CloseTap,
  DeviceWorkerMessage,
  OpenedTap,
  OpenTap,
  QueueWorkerLink,
  ServeDevice,
  ServeQueuePair,
  TransportLink,
} from '../channel/worker-messages.ts'
import type { TransportEnd } from '../device/control-transport.ts'
import { ReceiveScaling } from '../device/receive-scaling.ts'
import { EventFd } from '../sys/eventfd.ts'
import { workerUrl } from '../sys/worker.ts'
import type { TapOptions } from '../tap/tap-options.ts'
import type { CardIdentity } from './card-identity.ts'

const deviceLog = logger('device')

/** Bound for answers of the device worker, which takes much less: it only bounds a hang. */
const WORKER_TIMEOUT_MS = 60_000

/** How the queue workers use processors. */
export type Tuning = {
  /** Microseconds to spin before sleeping; null for adaptive. */
  readonly busyPollUs: number | null
  /** Processors to run on, one for each worker in turn; none for any. */
  readonly cpus: readonly number[]
}

/** A caller that waits for a message of the device worker. */
type Waiter = {
  readonly kinds: readonly string[]
  readonly resolve: (message: DeviceWorkerMessage) => void
  readonly reject: (why: Error) => void
}

/**
 * A card's threads on main's side: one device worker, which owns the TAP, and a queue worker for each queue pair. Main
 * starts them, reads their blocks, and ends them.
 */
export class CardWorkers {
  readonly block = new DeviceBlock()
  readonly pairBlocks: readonly QueuePairBlock[]
  readonly #onEnd: (end: TransportEnd) => void
  readonly #tuning: Tuning
  /** Undoes the steps done so far, the newest first. */
  readonly #undo = new AsyncDisposableStack()
  readonly #waiters: Waiter[] = []
  readonly #wake: EventFd
  readonly #pairWakes: EventFd[] = []
  readonly #receiveFilter = new SharedArrayBuffer(RECEIVE_FILTER.sizeBytes)
  readonly #receiveScaling = new SharedArrayBuffer(ReceiveScaling.byteLength)
  readonly #deviceWorker: Worker
  /** `serve` was sent, and `serving` was received. */
  #serving = false
  #served = false
  #stopped = false
  /** Set when a thread has died: awaited messages may never come. */
  #failure: UserError | null = null
  #ending = false

  /** `onEnd` is called once, when the threads cannot go on. Throws SysError. */
  constructor(pairs: number, tuning: Tuning, onEnd: (end: TransportEnd) => void) {
    this.#tuning = tuning
    this.pairBlocks = Array.from({ length: pairs }, () => new QueuePairBlock())
    this.#onEnd = onEnd
    this.#wake = this.#undo.use(new EventFd())
    this.#deviceWorker = this.#startWorker('control/device-worker.ts')
    this.#deviceWorker.onmessage = ({ data }: MessageEvent<DeviceWorkerMessage>) => this.#take(data)
    this.#undo.defer(() => this.#stopDeviceWorker())
  }

  /** True once `onEnd` was called or {@link stop} has begun. */
  get ending(): boolean {
    return this.#ending
  }

  /** Throws UserError. */
  async openTap(tap: TapOptions): Promise<OpenedTap> {
    this.#deviceWorker.postMessage({ kind: 'open', tap } satisfies OpenTap)
    const answer = await this.#message('opened', 'refused')
    if (answer.kind === 'opened') return answer.tap
    if (answer.kind === 'refused') throw new UserError(answer.message, answer.hint, answer.exitCode)
    throw new Error(`unexpected message of the device worker: ${answer.kind}`)
  }

  /** Resolves when the device is served. `adopt`: the device was left by a process that died. */
  async serve(
    tap: OpenedTap,
    identity: CardIdentity,
    transport: { readonly device: TransportLink; readonly queues: QueueWorkerLink },
    adopt: boolean,
  ): Promise<void> {
    for (const [pairIndex, block] of this.pairBlocks.entries()) {
      const wake = this.#undo.use(new EventFd())
      this.#pairWakes.push(wake)
      this.#startWorker('dataplane/queue-worker.ts').postMessage({
        transport: transport.queues,
        wakeFd: wake.fd,
        deviceWakeFd: this.#wake.fd,
        block: block.buffer,
        pairIndex,
        tapFd: tap.fds[pairIndex]!,
        tapHasVnetHdr: tap.hasVnetHdr,
        receiveFilter: this.#receiveFilter,
        receiveScaling: this.#receiveScaling,
        busyPollUs: this.#tuning.busyPollUs,
        cpu: this.#tuning.cpus[pairIndex % this.#tuning.cpus.length] ?? null,
      } satisfies ServeQueuePair)
    }
    // Registered once more: it makes the queue workers unmap all memory, before they are terminated.
    this.#undo.defer(() => this.#stopDeviceWorker())
    this.#serving = true
    this.#deviceWorker.postMessage({
      kind: 'serve',
      transport: transport.device,
      wakeFd: this.#wake.fd,
      block: this.block.buffer,
      pairs: this.pairBlocks.map((block, index) => ({ block: block.buffer, wakeFd: this.#pairWakes[index]!.fd })),
      receiveFilter: this.#receiveFilter,
      receiveScaling: this.#receiveScaling,
      offeredFeatures: identity.offered,
      queueSizeMax: identity.queueSize,
      mac: parseMac(identity.mac)!,
      mtu: identity.mtu,
      adopt,
    } satisfies ServeDevice)
    await this.#message('serving')
    this.#served = true
  }

  /** Switches the operator's side of the link. Resolves when the driver can read the change. */
  async setLinkUp(up: boolean): Promise<void> {
    const sequence = this.block.requestLinkUp(up)
    this.#wake.signal()
    while (this.block.requestDone < sequence) await this.#message('request-done')
  }

  /** Ends the threads: queues stopped, memory unmapped, TAP closed. */
  async stop(): Promise<void> {
    this.#ending = true
    await this.#undo.disposeAsync()
  }

  #startWorker(module: `${string}-worker.ts`): Worker {
    const worker = new Worker(workerUrl(module))
    worker.onerror = (event) => {
      event.preventDefault()
      // Bun puts the source of the error in front of its message.
      const why = /^\w*Error: .+$/m.exec(event.message)?.[0] ?? event.message.split('\n', 1)[0]
      this.#fail(worker, `${module.replace(/^.*\/|\.ts$/g, '')}: ${why}`)
    }
    this.#undo.defer(() => {
      worker.onerror = null
      worker.terminate()
    })
    return worker
  }

  async #stopDeviceWorker(): Promise<void> {
    // A device worker that does not serve yet may wait for the queue worker that died.
    if (this.#stopped || (this.#failure !== null && !this.#served)) return
    if (this.#serving) {
      this.block.requestStop()
      this.#wake.signal()
    } else this.#deviceWorker.postMessage({ kind: 'close' } satisfies CloseTap)
    try {
      await this.#message('stopped')
    } catch (error) {
      // It is terminated anyway, and the process frees what it held.
      deviceLog.error(`the device worker does not stop: ${(error as Error).message}`)
    }
  }

  /** A worker died of an error. */
  #fail(worker: Worker, why: string): void {
    if (worker === this.#deviceWorker) this.#stopped = true
    this.#failure ??= new UserError(
      why,
      'if `vduse-net doctor` finds nothing, this is a fault of the program: report it',
    )
    for (const waiter of this.#waiters.splice(0)) waiter.reject(this.#failure)
    this.#end({ why, failed: true })
  }

  #take(message: DeviceWorkerMessage): void {
    if (message.kind === 'log') {
      deviceLog[message.level](message.text)
      return
    }
    if (message.kind === 'ended') this.#end(message.end)
    if (message.kind === 'stopped') this.#stopped = true
    for (const waiter of this.#waiters.splice(0)) {
      if (waiter.kinds.includes(message.kind)) waiter.resolve(message)
      else this.#waiters.push(waiter)
    }
  }

  /** The next message of one of these kinds. Throws if none comes in time, or if a worker has died. */
  #message(...kinds: DeviceWorkerMessage['kind'][]): Promise<DeviceWorkerMessage> {
    return new Promise((resolve, reject) => {
      if (this.#failure !== null && !(kinds.includes('stopped') && this.#served)) {
        reject(this.#failure)
        return
      }
      const timer = setTimeout(
        () => reject(new Error(`no message ${kinds.join(' or ')} from the device worker`)),
        WORKER_TIMEOUT_MS,
      )
      const settle =
        <T>(then: (value: T) => void) =>
        (value: T): void => {
          clearTimeout(timer)
          then(value)
        }
      this.#waiters.push({ kinds, resolve: settle(resolve), reject: settle(reject) })
    })
  }

  #end(end: TransportEnd): void {
    if (this.#ending) return
    this.#ending = true
    this.#onEnd(end)
  }
}
