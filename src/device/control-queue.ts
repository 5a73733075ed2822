import {
  VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
  VIRTIO_NET_F_CTRL_MAC_ADDR,
  VIRTIO_NET_F_CTRL_RX,
  VIRTIO_NET_F_CTRL_RX_EXTRA,
  VIRTIO_NET_F_CTRL_VLAN,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
  VIRTIO_NET_F_HASH_REPORT,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_NOTF_COAL,
  VIRTIO_NET_F_RSS,
} from '../abi/virtio.ts'
import {
  VIRTIO_NET_CTRL_ANNOUNCE,
  VIRTIO_NET_CTRL_ANNOUNCE_ACK,
  VIRTIO_NET_CTRL_GUEST_OFFLOADS,
  VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET,
  VIRTIO_NET_CTRL_MAC,
  VIRTIO_NET_CTRL_MAC_ADDR_SET,
  VIRTIO_NET_CTRL_MAC_TABLE_SET,
  VIRTIO_NET_CTRL_MQ,
  VIRTIO_NET_CTRL_MQ_HASH_CONFIG,
  VIRTIO_NET_CTRL_MQ_RSS_CONFIG,
  VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MIN,
  VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
  VIRTIO_NET_CTRL_NOTF_COAL,
  VIRTIO_NET_CTRL_NOTF_COAL_RX_SET,
  VIRTIO_NET_CTRL_NOTF_COAL_TX_SET,
  VIRTIO_NET_CTRL_RX,
  VIRTIO_NET_CTRL_RX_ALLMULTI,
  VIRTIO_NET_CTRL_RX_ALLUNI,
  VIRTIO_NET_CTRL_RX_NOBCAST,
  VIRTIO_NET_CTRL_RX_NOMULTI,
  VIRTIO_NET_CTRL_RX_NOUNI,
  VIRTIO_NET_CTRL_RX_PROMISC,
  VIRTIO_NET_CTRL_VLAN,
  VIRTIO_NET_CTRL_VLAN_ADD,
  VIRTIO_NET_CTRL_VLAN_DEL,
  VIRTIO_NET_ERR,
  VIRTIO_NET_OK,
} from '../abi/virtio-net.ts'
import { assert } from '../base/assert.ts'
import { DriverFault } from '../base/errors.ts'
import { refuseMac } from '../base/mac.ts'
import type { AddressSpace } from '../memory/address-space.ts'
import type { DirtyLog } from '../memory/dirty-log.ts'
import { IovecArena } from '../memory/iovec-arena.ts'
import { addressOf, native } from '../sys/native.ts'
import { CHAIN_SEGMENTS_MAX } from '../virtqueue/descriptor-chain.ts'
import { BUFFER_DIRECTION, POP, type Virtqueue } from '../virtqueue/virtqueue.ts'
import { type Features, featureBit, hasFeature, withoutUnmet } from './features.ts'
import { MAC_BYTES, type ReceiveFilter, type ReceiveMode, VLANS } from './receive-filter.ts'
import { parseHashConfig, parseRssConfig, type ScalingConfig } from './receive-scaling.ts'

/** Most commands of one turn: a flood of commands must not delay the transport's messages. */
const COMMANDS_PER_TURN = 16
/** Most bytes of a command with its header: room for ten thousand addresses. A longer command is refused. */
const COMMAND_BYTES_MAX = 64 * 1024
/** `class` and `command`. */
const HEADER_BYTES = 2
const IOVEC_BYTES = 16
/**
 * Longest delay of calls that a driver may set. Microseconds. A longer one is refused as a mistake: protocols would
 * take packets for lost.
 */
const CALL_DELAY_USECS_MAX = 100_000

/** Feature bits of the offloads that a running driver may switch. VIRTIO 1.2 §5.1.6.5.8. */
const guestOffloads: Features = [
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
].reduce((set, bit) => set | featureBit(bit), 0n)

/**
 * Effects of commands outside of the control queue. Each is complete when the call returns, because the command is
 * acknowledged then. False: it failed, and nothing has changed.
 */
export interface ControlEffects {
  /**
   * Activates the first `pairs` queue pairs. The others receive nothing, and what the driver sends there is dropped.
   * The host chooses the pair that receives a packet.
   */
  setQueuePairs(pairs: number): boolean
  /** Sets `mac` of the configuration space (six bytes). The receive filter has it already. */
  setMac(mac: Uint8Array): void
  /** Clears VIRTIO_NET_S_ANNOUNCE in the configuration space. */
  announceAcked(): void
  /** Delivers received packets as for these features: the negotiated ones without some GUEST_ offloads. */
  setGuestOffloads(features: Features): boolean
  /**
   * Delays the calls of one direction until `packets` packets are used, or until `usecs` microseconds after the first.
   * If either is 0, calls are immediate. VIRTIO 1.3 §5.1.6.5.9.
   */
  setCoalescing(direction: 'rx' | 'tx', packets: number, usecs: number): void
  /**
   * Hashes received packets, and steers them if `config` has a steering table; without one the host chooses the queue.
   */
  setScaling(config: ScalingConfig): boolean
}

/** Parts of a control queue. */
export type ControlQueueOptions = {
  /** The ring, over `space`. The owner disposes of it. */
  readonly queue: Virtqueue
  readonly space: AddressSpace
  /** The negotiated features. */
  readonly features: Features
  /** `max_virtqueue_pairs` of the configuration space. */
  readonly pairsMax: number
  readonly filter: ReceiveFilter
  readonly effects: ControlEffects
  /** Calls the driver if {@link Virtqueue.needsCall} says so. */
  readonly call: () => void
}

/** True if a driver with these features may use more than one queue pair. VIRTIO 1.2 §5.1.2, §5.1.4. */
export const usesQueuePairs = (features: Features): boolean =>
  hasFeature(features, VIRTIO_NET_F_MQ) || hasFeature(features, VIRTIO_NET_F_RSS)

/** Index of the control queue: behind the receive and transmit queues. VIRTIO 1.2 §5.1.2. */
export const controlQueueIndex = (features: Features, pairsMax: number): number =>
  2 * (usesQueuePairs(features) ? pairsMax : 1)

/** Executes a command. False if its data is invalid or an effect failed. */
type Execute = (data: Uint8Array, options: ControlQueueOptions) => boolean

type Command = {
  /** Feature bit without which the command is unknown. */
  readonly feature: number
  readonly execute: Execute
}

const viewOf = (data: Uint8Array): DataView => new DataView(data.buffer, data.byteOffset, data.length)

const receiveMode =
  (mode: ReceiveMode): Execute =>
  (data, { filter }) => {
    if (data.length !== 1) return false
    filter.setMode(mode, data[0] !== 0)
    return true
  }

/** Parses one `struct virtio_net_ctrl_mac` at `offset`: its addresses and end offset; null if it is truncated. */
const macsAt = (data: Uint8Array, offset: number): { macs: Uint8Array[]; end: number } | null => {
  const first = offset + 4
  if (first > data.length) return null
  const entries = viewOf(data).getUint32(offset, true)
  // Checked before the multiplication: the driver chooses the number.
  if (entries > (data.length - first) / MAC_BYTES) return null
  const end = first + entries * MAC_BYTES
  const macs: Uint8Array[] = []
  for (let at = first; at < end; at += MAC_BYTES) macs.push(data.slice(at, at + MAC_BYTES))
  return { macs, end }
}

const setMacTable: Execute = (data, { filter }) => {
  const unicast = macsAt(data, 0)
  const multicast = unicast && macsAt(data, unicast.end)
  if (!unicast || !multicast || multicast.end !== data.length) return false
  filter.setTable([...unicast.macs, ...multicast.macs])
  return true
}

const setMacAddress: Execute = (data, { filter, effects }) => {
  if (data.length !== MAC_BYTES || refuseMac(data) !== null) return false
  const mac = data.slice()
  filter.setMac(mac)
  effects.setMac(mac)
  return true
}

const setVlan =
  (member: boolean): Execute =>
  (data, { filter }) => {
    if (data.length !== 2) return false
    const vlan = viewOf(data).getUint16(0, true)
    if (vlan >= VLANS) return false
    filter.setVlan(vlan, member)
    return true
  }

const acknowledgeAnnounce: Execute = (data, { effects }) => {
  if (data.length !== 0) return false
  effects.announceAcked()
  return true
}

const setQueuePairs: Execute = (data, { effects, pairsMax }) => {
  if (data.length !== 2) return false
  const pairs = viewOf(data).getUint16(0, true)
  if (pairs < VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MIN || pairs > pairsMax) return false
  return effects.setQueuePairs(pairs)
}

const setGuestOffloads: Execute = (data, { effects, features }) => {
  if (data.length !== 8) return false
  const wanted = viewOf(data).getBigUint64(0, true)
  if ((wanted & ~(features & guestOffloads)) !== 0n) return false
  // An offload whose requirement is off cannot occur in a packet: it counts as off.
  return effects.setGuestOffloads(withoutUnmet((features & ~guestOffloads) | wanted))
}

const setCoalescing =
  (direction: 'rx' | 'tx'): Execute =>
  (data, { effects }) => {
    if (data.length !== 8) return false
    const [packets, usecs] = [viewOf(data).getUint32(0, true), viewOf(data).getUint32(4, true)]
    if (usecs > CALL_DELAY_USECS_MAX) return false
    effects.setCoalescing(direction, packets, usecs)
    return true
  }

const setReceiveScaling: Execute = (data, { effects, pairsMax }) => {
  const config = parseRssConfig(data, pairsMax)
  return config !== null && effects.setScaling(config)
}

const setHash: Execute = (data, { effects }) => {
  const config = parseHashConfig(data)
  return config !== null && effects.setScaling(config)
}

const keyOf = (commandClass: number, command: number): number => (commandClass << 8) | command

/** By class and command. VIRTIO 1.2 §5.1.6.5. */
const commands: ReadonlyMap<number, Command> = new Map(
  (
    [
      [VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_F_CTRL_RX, receiveMode('promisc')],
      [VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI, VIRTIO_NET_F_CTRL_RX, receiveMode('allmulti')],
      [VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLUNI, VIRTIO_NET_F_CTRL_RX_EXTRA, receiveMode('alluni')],
      [VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOMULTI, VIRTIO_NET_F_CTRL_RX_EXTRA, receiveMode('nomulti')],
      [VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOUNI, VIRTIO_NET_F_CTRL_RX_EXTRA, receiveMode('nouni')],
      [VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOBCAST, VIRTIO_NET_F_CTRL_RX_EXTRA, receiveMode('nobcast')],
      [VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_F_CTRL_RX, setMacTable],
      [VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_F_CTRL_MAC_ADDR, setMacAddress],
      [VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, VIRTIO_NET_F_CTRL_VLAN, setVlan(true)],
      [VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_DEL, VIRTIO_NET_F_CTRL_VLAN, setVlan(false)],
      [VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_F_GUEST_ANNOUNCE, acknowledgeAnnounce],
      [VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_F_MQ, setQueuePairs],
      [VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_RSS_CONFIG, VIRTIO_NET_F_RSS, setReceiveScaling],
      [VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_HASH_CONFIG, VIRTIO_NET_F_HASH_REPORT, setHash],
      [
        VIRTIO_NET_CTRL_GUEST_OFFLOADS,
        VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET,
        VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
        setGuestOffloads,
      ],
      [VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_NOTF_COAL_TX_SET, VIRTIO_NET_F_NOTF_COAL, setCoalescing('tx')],
      [VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_NOTF_COAL_RX_SET, VIRTIO_NET_F_NOTF_COAL, setCoalescing('rx')],
    ] as const
  ).map(([commandClass, command, feature, execute]) => [keyOf(commandClass, command), { feature, execute }]),
)

/**
 * The device's side of controlq: executes the driver's commands and answers each with one ack byte. It runs on the
 * device thread. A command may be split into buffers in any way (VIRTIO 1.2 §2.7.4.1). The answer is VIRTIO_NET_ERR,
 * and nothing changes, if the command is unknown, its feature was not negotiated, or its data has the wrong length.
 * VIRTIO 1.2 §5.1.6.5.
 */
export class ControlQueue {
  /** The dirty log for written pages; null for none. The owner logs writes to the ring. */
  log: DirtyLog | null = null
  readonly #options: ControlQueueOptions
  readonly #arena = new IovecArena(1, CHAIN_SEGMENTS_MAX)
  /** One byte longer than a command may be, to detect one that is too long. */
  readonly #command = new Uint8Array(COMMAND_BYTES_MAX + 1)
  readonly #answer = new Uint8Array(1)

  constructor(options: ControlQueueOptions) {
    this.#options = options
  }

  /**
   * Serves a bounded number of commands. Call it when the driver kicks, and once at the start. True if there may be
   * more: call it again, no kick comes for those.
   * @throws DriverFault of the queue, or MEMORY_VANISHED: the queue is to be quarantined
   */
  turn(): boolean {
    const { queue } = this.#options
    for (let tries = 0; tries < COMMANDS_PER_TURN; tries++) {
      this.#arena.clear()
      const result = queue.popInto(this.#arena, BUFFER_DIRECTION.mixed)
      if (result === POP.empty) return queue.enableNotification()
      assert(result !== POP.full, 'an empty arena has room for any chain')
      if (result === POP.chain) this.#serve()
      // A driver busy-waits for each answer, so each is published at once.
      queue.publishUsed()
      this.#options.call()
    }
    return true
  }

  /** Executes the command in the arena and answers it. */
  #serve(): void {
    const { queue } = this.#options
    const iovecs = addressOf(this.#arena.iovecs)
    const readable = this.#arena.readableIovecs
    const writable = this.#arena.chains[1]! - readable
    const lengthBytes = native.vn_guest_read(iovecs, readable, this.#command, this.#command.length)
    this.#checkMemory()
    this.#answer[0] = this.#execute(this.#command.subarray(0, lengthBytes)) ? VIRTIO_NET_OK : VIRTIO_NET_ERR
    const written = native.vn_guest_write(iovecs + readable * IOVEC_BYTES, writable, this.#answer, 1)
    assert(written === 1, 'the writable part of a chain is not empty')
    this.log?.markChain(this.#arena, 0, written, readable)
    queue.stageUsed(written)
    this.#checkMemory()
  }

  #execute(bytes: Uint8Array): boolean {
    if (bytes.length < HEADER_BYTES || bytes.length > COMMAND_BYTES_MAX) return false
    const command = commands.get(keyOf(bytes[0]!, bytes[1]!))
    if (command === undefined || !hasFeature(this.#options.features, command.feature)) return false
    return command.execute(bytes.subarray(HEADER_BYTES), this.#options)
  }

  /** Vanished pages read as zeroes, which must not pass for a command. */
  #checkMemory(): void {
    if (this.#options.space.guardHits() === 0) return
    throw new DriverFault('MEMORY_VANISHED', 'the driver took away memory in use')
  }
}
