import {
  VRING_DESC_F_INDIRECT,
  VRING_DESC_F_NEXT,
  VRING_DESC_F_WRITE,
  VRING_PACKED_EVENT_FLAG_DESC,
  VRING_PACKED_EVENT_FLAG_DISABLE,
  VRING_PACKED_EVENT_FLAG_ENABLE,
} from '../../src/abi/virtio-ring.ts'
import {
  type AddOptions,
  type DriverMemory,
  type DriverModel,
  type Element,
  highWord,
  lowWord,
  type RawBuffer,
  type UsedChain,
} from './driver-model.ts'

/** A raw descriptor of a packed ring. Its `flags` are without the wrap bits. */
export type RawPackedDescriptor = RawBuffer & { readonly id?: number }

export type PackedDriverOptions = {
  readonly size: number
  readonly eventIdx?: boolean
  /** Entries gone by before the start, as after a migration: 0 to 2 * size - 1. */
  readonly start?: number
}

/** An entry of the ring, with the wrap counter of whoever stands there. */
export class RingPlace {
  readonly size: number
  slot: number
  wrap: number

  constructor(size: number, slot: number, wrap: number) {
    this.size = size
    this.slot = slot
    this.wrap = wrap
  }

  step(count = 1): void {
    for (let left = count; left > 0; left--) {
      this.slot++
      if (this.slot === this.size) {
        this.slot = 0
        this.wrap ^= 1
      }
    }
  }

  copy(): RingPlace {
    return new RingPlace(this.size, this.slot, this.wrap)
  }

  /** As an event suppression structure has it. */
  get offWrap(): number {
    return this.slot | (this.wrap << 15)
  }
}

/** VIRTIO 1.2 §2.8.21 and §2.8.22, from the driver's side. */
export class PackedDriver implements DriverModel {
  readonly size: number
  readonly memory: DriverMemory
  readonly descAddr: number
  readonly availAddr: number
  readonly usedAddr: number
  readonly ring: DataView
  readonly driverEvent: DataView
  readonly deviceEvent: DataView
  readonly eventIdx: boolean
  /** Where the next descriptor goes, and where the next used one is expected. */
  readonly next: RingPlace
  readonly lastUsed: RingPlace
  /** Flags of first descriptors that wait to be written. */
  readonly #unpublished: { slot: number; flags: number }[] = []
  /** Free buffer ids: numbers that are no places in the ring. */
  readonly #ids: number[]
  /** Descriptors of each chain that the device has, by id. */
  readonly #chains = new Map<number, number>()
  #free: number
  readonly #kickConsidered: RingPlace
  #addedSince = 0

  constructor(memory: DriverMemory, options: PackedDriverOptions) {
    const { size, eventIdx = false, start = 0 } = options
    this.size = size
    this.memory = memory
    this.eventIdx = eventIdx
    this.descAddr = memory.allocate(16 * size, 16)
    this.availAddr = memory.allocate(4, 4)
    this.usedAddr = memory.allocate(4, 4)
    this.ring = memory.dataView(this.descAddr, 16 * size)
    this.driverEvent = memory.dataView(this.availAddr, 4)
    this.deviceEvent = memory.dataView(this.usedAddr, 4)
    this.next = new RingPlace(size, start % size, start < size ? 1 : 0)
    this.lastUsed = this.next.copy()
    this.#kickConsidered = this.next.copy()
    this.#free = size
    this.#ids = Array.from({ length: size }, (_, index) => (0xbeef + 7 * index) & 0xffff)
    // What went round before was used: both wrap bits are those of the round in which it was.
    const place = this.next.copy()
    for (let left = size; left > 0; left--) {
      this.ring.setUint16(16 * place.slot + 14, place.wrap === 1 ? 0 : 0x8080, true)
      place.step()
    }
  }

  get freeDescriptors(): number {
    return this.#free
  }

  get outstanding(): number {
    return this.#chains.size
  }

  /** The base of a device that starts where this driver is. */
  get base(): number {
    return (this.next.offWrap | (this.next.offWrap << 16)) >>> 0
  }

  add(elements: readonly Element[], options: AddOptions = {}): number {
    const direct = options.indirectFrom ?? elements.length
    if (direct !== elements.length && direct !== 0) throw new Error('a packed chain is direct or indirect, not both')
    const needed = direct === 0 ? 1 : direct
    if (needed > this.#free || elements.length === 0) return -1
    const id = this.#ids.shift()!
    if (direct === 0) {
      const table = options.tableAddress ?? this.memory.allocate(16 * elements.length)
      this.writeTable(table, elements.map(rawOf))
      const length = 16 * elements.length
      this.write([
        { addressLow: lowWord(table), addressHigh: highWord(table), length, id, flags: VRING_DESC_F_INDIRECT },
      ])
    } else {
      this.write(
        elements.map((element, index) => {
          const raw = rawOf(element)
          // Only the last one's id counts. VIRTIO 1.2 §2.8.6.
          return index + 1 < needed ? { ...raw, id: 0xdead, flags: raw.flags | VRING_DESC_F_NEXT } : { ...raw, id }
        }),
      )
    }
    this.#chains.set(id, needed)
    return id
  }

  publish(): void {
    for (const { slot, flags } of this.#unpublished) this.ring.setUint16(16 * slot + 14, flags, true)
    this.#unpublished.length = 0
  }

  needsKick(): boolean {
    const flags = this.deviceEvent.getUint16(2, true)
    const offWrap = this.deviceEvent.getUint16(0, true)
    const added = this.#addedSince
    this.#addedSince = 0
    let passed = false
    for (let left = added; left > 0; left--) {
      if (this.#kickConsidered.offWrap === offWrap) passed = true
      this.#kickConsidered.step()
    }
    if (added === 0 || flags === VRING_PACKED_EVENT_FLAG_DISABLE) return false
    return flags === VRING_PACKED_EVENT_FLAG_DESC ? passed : true
  }

  reap(): UsedChain | undefined {
    const at = 16 * this.lastUsed.slot
    const flags = this.ring.getUint16(at + 14, true)
    const both = this.lastUsed.wrap === 1 ? 0x8080 : 0
    if ((flags & 0x8080) !== both) return undefined
    const id = this.ring.getUint16(at + 12, true)
    const descriptors = this.#chains.get(id)
    if (descriptors === undefined) throw new Error(`the device used ${id}, which it did not have`)
    this.#chains.delete(id)
    this.#ids.push(id)
    this.#free += descriptors
    this.lastUsed.step(descriptors)
    return { id, length: (flags & VRING_DESC_F_WRITE) === 0 ? 0 : this.ring.getUint32(at + 8, true) }
  }

  enableCalls(): void {
    if (this.eventIdx) this.setEvent(VRING_PACKED_EVENT_FLAG_DESC, this.lastUsed.offWrap)
    else this.setEvent(VRING_PACKED_EVENT_FLAG_ENABLE)
  }

  disableCalls(): void {
    this.setEvent(VRING_PACKED_EVENT_FLAG_DISABLE)
  }

  /** Writes the driver's event suppression structure, whatever it says. */
  setEvent(flags: number, offWrap = 0): void {
    this.driverEvent.setUint16(0, offWrap, true)
    this.driverEvent.setUint16(2, flags, true)
  }

  offerBuffers(buffers: readonly RawBuffer[]): number {
    const id = 0x1234
    this.offerRaw(
      buffers.map((buffer, index) =>
        index + 1 < buffers.length ? { ...buffer, flags: (buffer.flags ?? 0) | VRING_DESC_F_NEXT } : { ...buffer, id },
      ),
    )
    return id
  }

  writeTableOf(address: number, buffers: readonly RawBuffer[], memory = this.memory): void {
    this.writeTable(address, buffers, memory)
  }

  /** A chain of raw descriptors, made available at once. Its `id` is the last one's, and the driver expects it back. */
  offerRaw(descriptors: readonly RawPackedDescriptor[]): void {
    this.write(descriptors)
    this.#chains.set(descriptors.at(-1)?.id ?? 0, descriptors.length)
    this.publish()
  }

  /** Writes descriptors from the next entry on, with its wrap bits; the first one's flags only with {@link publish}. */
  write(descriptors: readonly RawPackedDescriptor[]): void {
    for (const [index, descriptor] of descriptors.entries()) {
      const { slot, wrap } = this.next
      writeRaw(this.ring, 16 * slot, descriptor)
      const flags = (descriptor.flags ?? 0) | (wrap === 1 ? 0x80 : 0x8000)
      if (index === 0) this.#unpublished.push({ slot, flags })
      else this.ring.setUint16(16 * slot + 14, flags, true)
      this.next.step()
    }
    this.#free -= descriptors.length
    this.#addedSince += descriptors.length
  }

  /** Writes an indirect table at a driver address, which may be unaligned. */
  writeTable(address: number, descriptors: readonly RawPackedDescriptor[], memory = this.memory): void {
    const view = memory.dataView(address, 16 * descriptors.length)
    for (const [index, descriptor] of descriptors.entries()) {
      writeRaw(view, index * 16, descriptor)
      view.setUint16(index * 16 + 14, descriptor.flags ?? 0, true)
    }
  }
}

const rawOf = (element: Element): RawPackedDescriptor & { flags: number } => ({
  addressLow: lowWord(element.address),
  addressHigh: highWord(element.address),
  length: element.length,
  flags: element.writable ? VRING_DESC_F_WRITE : 0,
})

/** All but the flags. */
const writeRaw = (view: DataView, at: number, descriptor: RawPackedDescriptor): void => {
  view.setUint32(at, descriptor.addressLow ?? 0, true)
  view.setUint32(at + 4, descriptor.addressHigh ?? 0, true)
  view.setUint32(at + 8, descriptor.length ?? 0, true)
  view.setUint16(at + 12, descriptor.id ?? 0, true)
}
