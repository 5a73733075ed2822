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
import { DIRECTION, POP, type Virtqueue } from '../virtqueue/virtqueue.ts'
import { type Features, featureBit, hasFeature, withoutUnmet } from './features.ts'
import { MAC_BYTES, type ReceiveFilter, type ReceiveMode, VLANS } from './receive-filter.ts'
import { parseHashConfig, parseRssConfig, type ScalingConfig } from './receive-scaling.ts'

/** Commands of one turn: a flood of them must not keep the transport's messages waiting. */
const COMMANDS_PER_TURN = 16
/** Bytes of a command at most, header included: room for ten thousand addresses. A longer one is refused. */
const COMMAND_BYTES_MAX = 64 * 1024
/** `class` and `command`. */
const HEADER_BYTES = 2
const IOVEC_BYTES = 16
/**
 * Microseconds that a driver may have its calls delayed by. More is a mistake: whoever waits for a packet would think
 * it lost.
 */
const CALL_DELAY_USECS_MAX = 100_000

/** Offloads that the driver may switch while it runs, by the bits of their features. VIRTIO 1.2 §5.1.6.5.8. */
const guestOffloads: Features = [
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
].reduce((set, bit) => set | featureBit(bit), 0n)

/**
 * What commands change outside of the control queue. Each has happened when the call returns, because the driver is
 * told then. False: it cannot be done, and nothing has changed.
 */
export interface ControlEffects {
  /**
   * Pairs 1 to `pairs` are in use, at most as many as there are: from now on nothing is received on one above, and
   * nothing of what is sent there is read. The host chooses which one receives a packet.
   */
  setQueuePairs(pairs: number): boolean
  /** `mac` of the configuration space is these six bytes. The receive filter knows already. */
  setMac(mac: Uint8Array): void
  /** VIRTIO_NET_S_ANNOUNCE is no longer set in the configuration space. */
  announceAcked(): void
  /**
   * Received packets are made as if these features had been negotiated: those that were, but for some of the GUEST_
   * kind.
   */
  setGuestOffloads(features: Features): boolean
  /**
   * The driver is called for each queue of one direction once `packets` are used that it was not called for, or `usecs`
   * microseconds after the first of them. If either is 0, at once. VIRTIO 1.3 §5.1.6.5.9.
   */
  setCoalescing(direction: 'rx' | 'tx', packets: number, usecs: number): void
  /**
   * Received packets are hashed like this, and steered if it says how; if not, the host chooses queues as it did at
   * first.
   */
  setScaling(config: ScalingConfig): boolean
}

/** What a control queue is made of. */
export type ControlQueueOptions = {
  /** A queue over `space`. The owner disposes of it. */
  readonly queue: Virtqueue
  readonly space: AddressSpace
  /** The negotiated features. */
  readonly features: Features
  /** `max_virtqueue_pairs` of the configuration space. */
  readonly pairsMax: number
  readonly filter: ReceiveFilter
  readonly effects: ControlEffects
  /** Calls the driver, if it wants that for what was used: the queue is asked by this, and only once for the same. */
  readonly call: () => void
}

/** Does a driver with these features know of more than one queue pair? VIRTIO 1.2 §5.1.2, §5.1.4. */
export const usesQueuePairs = (features: Features): boolean =>
  hasFeature(features, VIRTIO_NET_F_MQ) || hasFeature(features, VIRTIO_NET_F_RSS)

/** Index of the control queue: behind all receive and transmit queues that the driver knows of. VIRTIO 1.2 §5.1.2. */
export const controlQueueIndex = (features: Features, pairsMax: number): number =>
  2 * (usesQueuePairs(features) ? pairsMax : 1)

/** Carries a command out whose data is all there; false if the data is not what the command takes. */
type Execute = (data: Uint8Array, options: ControlQueueOptions) => boolean

type Command = {
  /** Without this the command is unknown. */
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

/** One `struct virtio_net_ctrl_mac` from `offset` on: its addresses, and where it ends; null if it is not all there. */
const macsAt = (data: Uint8Array, offset: number): { macs: Uint8Array[]; end: number } | null => {
  const first = offset + 4
  if (first > data.length) return null
  const entries = viewOf(data).getUint32(offset, true)
  // Compared before it is multiplied with: the number is the driver's.
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
  // An offload without the one that it builds on cannot show in any packet, so that it is as good as off.
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
 * The device's side of controlq: takes the driver's commands, carries them out, and answers each with one byte. It runs
 * on the device thread. A command may be cut into buffers in any way (VIRTIO 1.2 §2.7.4.1); one that is unknown, whose
 * feature was not negotiated, or whose data is shorter or longer than it should be is answered with VIRTIO_NET_ERR and
 * changes nothing. VIRTIO 1.2 §5.1.6.5.
 */
export class ControlQueue {
  /** Where to note which of the driver's pages are written, or null for not to. The owner notes writes to the ring. */
  log: DirtyLog | null = null
  readonly #options: ControlQueueOptions
  readonly #arena = new IovecArena(1, CHAIN_SEGMENTS_MAX)
  /** One byte more than a command may have, so that one that is too long shows. */
  readonly #command = new Uint8Array(COMMAND_BYTES_MAX + 1)
  readonly #answer = new Uint8Array(1)

  constructor(options: ControlQueueOptions) {
    this.#options = options
  }

  /**
   * Serves what waits, to a limit; to be called when the driver kicks, and once when the queue starts. True if there
   * may be more: call again soon, no kick will come for it.
   * @throws DriverFault of the queue, or MEMORY_VANISHED: the queue is to be quarantined
   */
  turn(): boolean {
    const { queue } = this.#options
    for (let tries = 0; tries < COMMANDS_PER_TURN; tries++) {
      this.#arena.clear()
      const result = queue.popInto(this.#arena, DIRECTION.mixed)
      if (result === POP.empty) return queue.enableNotification()
      assert(result !== POP.full, 'an empty arena has room for any chain')
      if (result === POP.chain) this.#serve()
      // A driver spins until it has its answer, so each is shown at once.
      queue.publishUsed()
      this.#options.call()
    }
    return true
  }

  /** Serves the chain in the arena. */
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

  /** What was read of pages that are gone are zeroes, which must not pass for a command. */
  #checkMemory(): void {
    if (this.#options.space.guardHits() === 0) return
    throw new DriverFault('MEMORY_VANISHED', 'the driver took away memory in use')
  }
}
