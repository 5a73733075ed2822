/**
 * A device service in this thread, a round at a time, with queue workers in threads of their own. Around it a transport
 * that does what a test says, a guest's memory, and sockets that play the TAP.
 */
import { DeviceBlock } from '../../src/channel/device-block.ts'
import { QueuePairBlock } from '../../src/channel/queue-pair-block.ts'
import type { DeviceWorkerMessage, ServeQueuePair } from '../../src/channel/worker-messages.ts'
import type { DeviceQueues } from '../../src/control/device-queues.ts'
import { DeviceService } from '../../src/control/device-service.ts'
import type { ControlTransport, TransportEnd } from '../../src/device/control-transport.ts'
import type { Features } from '../../src/device/features.ts'
import { ReceiveFilter } from '../../src/device/receive-filter.ts'
import { ReceiveScaling } from '../../src/device/receive-scaling.ts'
import type { VirtioNetDevice } from '../../src/device/virtio-net-device.ts'
import { EventFd } from '../../src/sys/eventfd.ts'
import { native } from '../../src/sys/native.ts'
import { workerUrl } from '../../src/sys/worker.ts'
import type { Tap } from '../../src/tap/tap.ts'
import { MEMORY_BLOCK_BYTES, MemoryTable, memoryTableSource } from '../../src/transport/vhost-user/memory-table.ts'
import { SplitDriver } from './driver-model.ts'
import { concat, encodeHeader } from './frames.ts'
import { GuestMemory } from './guest-memory.ts'
import { socketPair } from './socket-pair.ts'

const RING_SIZE = 16
const HANG_MS = 60_000
const STARTING = 3
const NEGOTIATED = 11
const RUNNING = 15
const OFFLINE = { exists: true, name: 'tap0', index: 7, carrier: true, mtu: 1500, master: 0 }

/** A transport whose messages are the test's: {@link serve} runs them. */
class ScriptedTransport implements ControlTransport {
  messages = 0
  connected = true
  ended: TransportEnd | null = null
  /** What is carried out in the next round. */
  readonly script: (() => void)[] = []
  /** Its calls, as text. */
  readonly told: string[] = []
  adopts: (() => void) | null = null

  watch(): void {}
  adopt(): boolean {
    this.adopts?.()
    return this.adopts !== null
  }
  serve(): void {
    for (const act of this.script.splice(0)) {
      act()
      this.messages++
    }
  }
  tick(): number {
    return -1
  }
  configChanged(): void {
    this.told.push('config changed')
  }
  queueFailed(index: number, fault: number): void {
    this.told.push(`queue ${index} failed: ${fault}`)
  }
  [Symbol.dispose](): void {
    this.told.push('disposed')
  }
}

export type ServiceRigOptions = { readonly offered: Features; readonly pairs?: number; readonly adopt?: boolean }

export class DeviceServiceRig implements AsyncDisposable {
  readonly transport = new ScriptedTransport()
  readonly posted: DeviceWorkerMessage[] = []
  readonly block = new DeviceBlock()
  readonly pairBlocks: readonly QueuePairBlock[]
  readonly service: DeviceService
  readonly memory = new GuestMemory(1 << 22)
  /** Calls of the TAP's methods, as text. */
  readonly tapped: string[] = []
  /** The host's ends of the TAP, by pair. */
  readonly hosts: number[]
  device!: VirtioNetDevice
  queues!: DeviceQueues
  /** By queue; made anew by each {@link bringUp}. */
  drivers: SplitDriver[] = []
  readonly #wake = new EventFd()
  readonly #kicks: EventFd[]
  readonly #pairWakes: EventFd[]
  readonly #taps: number[]
  readonly #workers: Worker[]
  readonly #events = socketPair()

  private constructor({ offered, pairs = 1, adopt = false }: ServiceRigOptions) {
    const memory = new SharedArrayBuffer(MEMORY_BLOCK_BYTES)
    const table = new MemoryTable(memory)
    const { start, lengthBytes, userStart, fileOffset } = this.memory
    const region = {
      guestAddress: start,
      lengthBytes,
      userAddress: userStart,
      mmapOffset: fileOffset,
      fd: this.memory.fd,
    }
    table.replace([region], () => {})
    const ends = Array.from({ length: pairs }, () => socketPair('datagram'))
    this.#taps = ends.map(([tap]) => tap)
    this.hosts = ends.map(([, host]) => host)
    this.pairBlocks = ends.map(() => new QueuePairBlock())
    this.#pairWakes = ends.map(() => new EventFd())
    this.#kicks = Array.from({ length: 2 * pairs + 1 }, () => new EventFd())
    const shared = {
      receiveFilter: new ReceiveFilter().buffer,
      receiveScaling: new SharedArrayBuffer(ReceiveScaling.byteLength),
    }
    this.#workers = this.pairBlocks.map((block, pairIndex) => {
      const worker = new Worker(workerUrl('dataplane/queue-worker.ts'))
      worker.postMessage({
        transport: { kind: 'vhost-user', memory },
        wakeFd: this.#pairWakes[pairIndex]!.fd,
        deviceWakeFd: this.#wake.fd,
        block: block.buffer,
        pairIndex,
        tapFd: this.#taps[pairIndex]!,
        tapHasVnetHdr: true,
        ...shared,
        busyPollUs: 0,
        cpu: null,
      } satisfies ServeQueuePair)
      return worker
    })
    this.service = new DeviceService(
      this.#tap(),
      {
        kind: 'serve',
        transport: { kind: 'vhost-user', endpoint: { kind: 'connected', fd: -1 }, memory, inBand: false },
        wakeFd: this.#wake.fd,
        block: this.block.buffer,
        pairs: this.pairBlocks.map(({ buffer }, pair) => ({ block: buffer, wakeFd: this.#pairWakes[pair]!.fd })),
        ...shared,
        offeredFeatures: offered,
        queueSizeMax: 256,
        mac: Uint8Array.of(2, 0, 0, 0, 0, 1),
        mtu: 1500,
        adopt,
      },
      {
        memory: memoryTableSource(memory),
        requiredFeatures: 0n,
        make: (device, queues) => {
          this.device = device
          this.queues = queues
          for (const [index, kick] of this.#kicks.entries()) queues.setKick(index, kick.fd)
          return this.transport
        },
      },
      (message) => this.posted.push(message),
    )
  }

  /** The service has begun; `prepare` is called before. */
  static async start(
    options: ServiceRigOptions,
    prepare: (rig: DeviceServiceRig) => void = () => {},
  ): Promise<DeviceServiceRig> {
    const rig = new DeviceServiceRig(options)
    const untilMs = performance.now() + HANG_MS
    // A worker is loaded while this thread runs its event loop.
    while (!rig.pairBlocks.every((block) => block.awaitAlive(1)) && performance.now() < untilMs) await Bun.sleep(1)
    prepare(rig)
    rig.service.begin()
    return rig
  }

  /** Carries out in one round what a driver's messages say. */
  act(...acts: (() => unknown)[]): void {
    this.transport.script.push(...acts)
    this.round()
  }

  round(): void {
    this.service.round(0)
  }

  /** Runs rounds until the condition holds. */
  until(what: string, isSo: () => boolean): void {
    const untilMs = performance.now() + HANG_MS
    while (!isSo()) {
      if (performance.now() > untilMs) throw new Error(`waited for ${what}`)
      this.service.round(1)
    }
  }

  /** Tells the device where the queues are; new rings for each. */
  setUpQueues(indices: readonly number[]): void {
    for (const index of indices) {
      const driver = new SplitDriver(this.memory, { size: RING_SIZE })
      this.drivers[index] = driver
      this.device.setVqNum(index, RING_SIZE)
      this.device.setVqAddr(index, driver.descAddr, driver.availAddr, driver.usedAddr)
      this.device.setVqState(index, 0)
      this.device.setVqReady(index, true)
    }
  }

  /** A driver sets the device up with these features and queues, all of which then run. */
  bringUp(features: Features, indices: readonly number[] = [0, 1]): void {
    this.act(
      () => this.device.setStatus(STARTING),
      () => this.device.setFeatures(features),
      () => this.device.setStatus(NEGOTIATED),
      () => this.setUpQueues(indices),
      () => this.device.setStatus(RUNNING),
      () => this.device.settle(),
    )
  }

  reset(): void {
    this.act(() => this.device.setStatus(0))
  }

  /** The driver sends a frame on a transmitq and kicks. */
  send(index: number, frame: Uint8Array): void {
    const packet = concat(encodeHeader({}), frame)
    const address = this.memory.allocate(packet.length)
    this.memory.bytes(address, packet.length).set(packet)
    this.drivers[index]!.add([{ address, length: packet.length }])
    this.drivers[index]!.publish()
    this.kick(index)
  }

  /** The driver gives a receive buffer and kicks. */
  offerBuffer(index: number): void {
    this.drivers[index]!.add([{ address: this.memory.allocate(2048), length: 2048, writable: true }])
    this.drivers[index]!.publish()
    this.kick(index)
  }

  kick(index: number): void {
    this.#kicks[index]!.signal()
  }

  /** A frame comes to the TAP. */
  arrive(frame: Uint8Array, pair = 0): void {
    const packet = concat(encodeHeader({}), frame)
    native.vn_write(this.hosts[pair]!, packet, packet.length)
  }

  /** A frame has come out of the TAP; null if none has. */
  sent(pair = 0): Uint8Array | null {
    const bytes = new Uint8Array(2048)
    const length = native.vn_read(this.hosts[pair]!, bytes, bytes.length)
    return length < 0 ? null : bytes.slice(12, length)
  }

  /** Signals the service as main does. */
  wake(): void {
    this.#wake.signal()
  }

  get log(): string[] {
    return this.posted.flatMap((message) => (message.kind === 'log' ? [message.text] : []))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.service.end()
    for (const worker of this.#workers) worker.terminate()
    this.memory[Symbol.dispose]()
    for (const fd of [...this.#taps, ...this.hosts, ...this.#events]) native.vn_close(fd)
    for (const event of [this.#wake, ...this.#kicks, ...this.#pairWakes]) event[Symbol.dispose]()
  }

  /** What the service uses of a TAP. */
  #tap(): Tap {
    const note = (what: string) => (): void => {
      this.tapped.push(what)
    }
    const state = { ...OFFLINE, up: true }
    const monitor = { fd: this.#events[0], state, drain: () => state, [Symbol.dispose]: note('monitor closed') }
    return {
      name: 'tap0',
      index: 7,
      fds: this.#taps,
      created: true,
      warnings: [],
      openLinkMonitor: () => monitor,
      setOffloads: (features: bigint) => note(`offloads ${features.toString(16)}`)(),
      setCarrier: (on: boolean) => note(`carrier ${on}`)(),
      steer: note('steer'),
      setQueueAttached: (pair: number, attached: boolean) => note(`queue ${pair} ${attached ? 'in' : 'out'}`)(),
      keep: () => {},
      noteMtu: () => {},
      isAttached: () => true,
      lacksBridge: () => false,
      [Symbol.dispose]: note('closed'),
    } as unknown as Tap
  }
}
