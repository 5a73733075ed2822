import { HASH_TYPES } from '../../src/abi/receive-scaling.ts'
import {
  VIRTIO_NET_CTRL_MQ,
  VIRTIO_NET_CTRL_MQ_RSS_CONFIG,
  VIRTIO_NET_ERR,
  VIRTIO_NET_OK,
} from '../../src/abi/virtio-net.ts'
import { parseMac } from '../../src/base/mac.ts'
import { type ControlEffects, ControlQueue } from '../../src/device/control-queue.ts'
import { controlQueueFeatures, type Features, implementedFeatures } from '../../src/device/features.ts'
import { ReceiveFilter } from '../../src/device/receive-filter.ts'
import type { ScalingConfig } from '../../src/device/receive-scaling.ts'
import type { AddressSpace } from '../../src/memory/address-space.ts'
import type { Virtqueue } from '../../src/virtqueue/virtqueue.ts'
import type { AddOptions, DriverModel, Element } from './driver-model.ts'
import type { TestMemory } from './memory.ts'
import { type PackedFixtureOptions, packedFixture } from './packed-fixture.ts'
import { type FixtureOptions, splitFixture } from './split-fixture.ts'

/** The card's address in these tests. */
export const CARD_MAC = '02:00:00:00:00:01'
export const PAIRS_MAX = 4
/** What memory holds that nobody has written. */
export const UNTOUCHED = 0xee

export const macBytes = (text: string): Uint8Array => parseMac(text)!
export const le16 = (value: number): number[] => [value & 0xff, value >>> 8]
export const le32 = (value: number): number[] => [...le16(value & 0xffff), ...le16(value >>> 16)]
export const le64 = (value: bigint): number[] => [...new Uint8Array(new BigUint64Array([value]).buffer)]

/** The command that sets receive-side scaling: all hash types and one queue pair unless told. */
export const rssConfig = ({
  hashTypes = HASH_TYPES,
  table = [0],
  mask = table.length - 1,
  unclassified = 0,
  maxTx = 1,
  key = [1, 2, 3, 4],
  keyBytes = key.length,
}: {
  hashTypes?: number
  table?: readonly number[]
  mask?: number
  unclassified?: number
  maxTx?: number
  key?: readonly number[]
  keyBytes?: number
} = {}): number[] => [
  ...[VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_RSS_CONFIG],
  ...[...le32(hashTypes), ...le16(mask), ...le16(unclassified)],
  ...[...table.flatMap(le16), ...le16(maxTx), keyBytes, ...key],
]

/** Records what commands change. */
export class RecordingEffects implements ControlEffects {
  readonly calls: string[] = []
  /** What the next effects that may fail answer. */
  possible = true
  setQueuePairs(pairs: number): boolean {
    this.calls.push(`pairs ${pairs}`)
    return this.possible
  }
  setMac(mac: Uint8Array): void {
    this.calls.push(`mac ${Buffer.from(mac).toString('hex')}`)
  }
  announceAcked(): void {
    this.calls.push('announce acked')
  }
  setGuestOffloads(features: Features): boolean {
    this.calls.push(`features ${features.toString(16)}`)
    return this.possible
  }
  setCoalescing(direction: 'rx' | 'tx', packets: number, usecs: number): void {
    this.calls.push(`${direction} ${packets} packets ${usecs} us`)
  }
  setScaling({ hashTypes, key, steering }: ScalingConfig): boolean {
    const table = steering && `[${steering.indirection}], else ${steering.unclassified}, of ${steering.pairs}`
    this.calls.push(`hash ${hashTypes.toString(16)} by ${Buffer.from(key).toString('hex')} to ${table}`)
    return this.possible
  }
}

/** How a command is laid out in buffers. */
export type Framing = {
  /** Lengths of the readable buffers; what is left goes into a last one. One buffer by default. */
  readonly pieces?: readonly number[]
  /** Lengths of the writable buffers: one of 1 byte by default. */
  readonly answer?: readonly number[]
  readonly options?: AddOptions
}

/** A ring of either layout. */
type Ring = {
  readonly driver: DriverModel
  readonly memory: TestMemory
  readonly queue: Virtqueue
  readonly space: AddressSpace
}

/** All that the control queue implements, or less. */
type Negotiated = { readonly features?: Features }

/** A control queue on a ring, and everything it acts on. */
const controlOver = <R extends Ring>(ring: R, options: Negotiated) => {
  const { driver, memory, queue, space } = ring
  const features = options.features ?? implementedFeatures | controlQueueFeatures
  const filter = new ReceiveFilter()
  filter.start(features, macBytes(CARD_MAC))
  const effects = new RecordingEffects()
  let calls = 0
  const control = new ControlQueue({
    queue,
    space,
    features,
    pairsMax: PAIRS_MAX,
    filter,
    effects,
    call: () => {
      if (queue.needsCall()) calls++
    },
  })
  const bytesAt = (address: number, length: number): Uint8Array =>
    memory.bytes.subarray(address - memory.start, address - memory.start + length)

  /** Makes a command available; its id, and its writable buffers. */
  const offer = (command: readonly number[], framing: Framing = {}): { id: number; answers: Uint8Array[] } => {
    const elements: Element[] = []
    let from = 0
    for (const length of [...(framing.pieces ?? []), Number.POSITIVE_INFINITY]) {
      const piece = command.slice(from, from + length)
      if (from >= command.length) break
      from += piece.length
      const address = memory.allocate(piece.length, 1)
      bytesAt(address, piece.length).set(piece)
      elements.push({ address, length: piece.length })
    }
    const answers = (framing.answer ?? [1]).map((length) => {
      const address = memory.allocate(length, 1)
      elements.push({ address, length, writable: true })
      return bytesAt(address, length).fill(UNTOUCHED)
    })
    const id = driver.add(elements, framing.options)
    if (id < 0) throw new Error('the ring is full')
    driver.publish()
    return { id, answers }
  }

  /**
   * Sends one command and returns the answer. Throws unless exactly one byte was written, and the chain is used with
   * length 1.
   */
  const send = (command: readonly number[], framing: Framing = {}): 'ok' | 'refused' => {
    const { id, answers } = offer(command, framing)
    control.turn()
    const used = driver.reap()
    if (used?.id !== id || used.length !== 1) throw new Error(`used ${JSON.stringify(used)} for ${id}`)
    const [ack, ...rest] = answers.flatMap((answer) => [...answer])
    if (rest.some((byte) => byte !== UNTOUCHED)) throw new Error('more than the answer was written')
    if (ack !== VIRTIO_NET_OK && ack !== VIRTIO_NET_ERR) throw new Error(`answered with ${ack}`)
    return ack === VIRTIO_NET_OK ? 'ok' : 'refused'
  }

  return { ...ring, filter, effects, control, offer, send, callCount: () => calls }
}

export type ControlFixtureOptions = FixtureOptions & Negotiated

/** A control queue on a split ring, its driver, and everything it acts on. */
export const controlFixture = (options: ControlFixtureOptions = {}) =>
  controlOver(splitFixture({ size: 64, ...options }), options)

/** The same on a packed ring. */
export const packedControlFixture = (options: PackedFixtureOptions & Negotiated = {}) =>
  controlOver(packedFixture({ size: 64, ...options }), options)

/** What both layouts have in common. */
export type AnyControlFixture = ReturnType<typeof controlOver<Ring>>
export type ControlFixture = ReturnType<typeof controlFixture>
