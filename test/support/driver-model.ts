import {
  VRING_AVAIL_F_NO_INTERRUPT,
  VRING_DESC_F_INDIRECT,
  VRING_DESC_F_NEXT,
  VRING_DESC_F_WRITE,
  VRING_USED_F_NO_NOTIFY,
} from '../../src/abi/virtio-ring.ts'

/** What a driver needs of its memory. Addresses are the driver's. */
export interface DriverMemory {
  /** Address of `length` unused bytes. */
  allocate(length: number, alignment?: number): number
  dataView(address: number, length: number): DataView
}

/** One buffer of a chain, in driver addresses. */
export type Element = { readonly address: number; readonly length: number; readonly writable?: boolean }

/** A chain that came back. */
export type UsedChain = { readonly id: number; readonly length: number }

export type AddOptions = {
  /** Elements from this index on go into an indirect table: 0 for all. Absent: no table. */
  readonly indirectFrom?: number
  /** Where to put the table; by default it is allocated. */
  readonly tableAddress?: number
}

/**
 * The driver's side of one virtqueue of either layout: correct, with methods for tests that misbehave. Chains are
 * added, published together, and reaped.
 */
export interface DriverModel {
  readonly size: number
  /** Descriptors of the ring that are free. */
  readonly freeDescriptors: number
  /** Chains that the device has. */
  readonly outstanding: number
  /** Prepares a chain; its id, or -1 if there are not enough free descriptors. */
  add(elements: readonly Element[], options?: AddOptions): number
  /** Makes all prepared chains available. */
  publish(): void
  /** Whether the device wants a kick for what was published since this was last asked. */
  needsKick(): boolean
  /** The next used chain, or undefined. Throws if the device broke the protocol. */
  reap(): UsedChain | undefined
  /** Asks for a call at the next used chain. */
  enableCalls(): void
  disableCalls(): void

  /** Makes one chain of these buffers available, on a ring that nothing was added to; its id. The layout links them. */
  offerBuffers(buffers: readonly RawBuffer[]): number
  /** Writes an indirect table of these buffers at a driver address, which may be unaligned. */
  writeTableOf(address: number, buffers: readonly RawBuffer[], memory?: DriverMemory): void
}

/**
 * What a descriptor of either layout says of its buffer, for a driver that misbehaves. The address is two words, so
 * that it may be anything.
 */
export type RawBuffer = {
  readonly addressLow?: number
  readonly addressHigh?: number
  readonly length?: number
  readonly flags?: number
}

/** A raw descriptor of a split ring. */
export type RawDescriptor = RawBuffer & { readonly next?: number }

export type SplitDriverOptions = {
  readonly size: number
  readonly eventIdx?: boolean
  /** Start of both indices, as after a migration. */
  readonly start?: number
}

export const lowWord = (address: number): number => address % 2 ** 32
export const highWord = (address: number): number => Math.floor(address / 2 ** 32)

/** VIRTIO 1.2 §2.7.13 and §2.7.14, from the driver's side. */
export class SplitDriver implements DriverModel {
  readonly size: number
  readonly memory: DriverMemory
  readonly descAddr: number
  readonly availAddr: number
  readonly usedAddr: number
  readonly descriptors: DataView
  readonly avail: DataView
  readonly used: DataView
  readonly eventIdx: boolean
  /** Free descriptors, the next one last. */
  readonly #free: number[]
  /** The descriptors of each chain that the device has, by head. */
  readonly #chains = new Map<number, number[]>()
  #nextAvail: number
  #kickConsidered: number
  #lastUsed: number

  constructor(memory: DriverMemory, options: SplitDriverOptions) {
    const { size, eventIdx = false, start = 0 } = options
    this.size = size
    this.memory = memory
    this.eventIdx = eventIdx
    this.descAddr = memory.allocate(16 * size, 16)
    this.availAddr = memory.allocate(6 + 2 * size, 2)
    this.usedAddr = memory.allocate(6 + 8 * size, 4)
    this.descriptors = memory.dataView(this.descAddr, 16 * size)
    this.avail = memory.dataView(this.availAddr, 6 + 2 * size)
    this.used = memory.dataView(this.usedAddr, 6 + 8 * size)
    this.#free = Array.from({ length: size }, (_, index) => size - 1 - index)
    this.#nextAvail = start
    this.#kickConsidered = start
    this.#lastUsed = start
    this.avail.setUint16(2, start, true)
    this.used.setUint16(2, start, true)
    this.usedEvent = start
    this.availEvent = start
  }

  get freeDescriptors(): number {
    return this.#free.length
  }

  get outstanding(): number {
    return this.#chains.size
  }

  get availIdx(): number {
    return this.avail.getUint16(2, true)
  }

  set availIdx(value: number) {
    this.avail.setUint16(2, value & 0xffff, true)
  }

  get availFlags(): number {
    return this.avail.getUint16(0, true)
  }

  set availFlags(value: number) {
    this.avail.setUint16(0, value, true)
  }

  get usedIdx(): number {
    return this.used.getUint16(2, true)
  }

  get usedFlags(): number {
    return this.used.getUint16(0, true)
  }

  get usedEvent(): number {
    return this.avail.getUint16(4 + 2 * this.size, true)
  }

  set usedEvent(value: number) {
    this.avail.setUint16(4 + 2 * this.size, value & 0xffff, true)
  }

  get availEvent(): number {
    return this.used.getUint16(4 + 8 * this.size, true)
  }

  set availEvent(value: number) {
    this.used.setUint16(4 + 8 * this.size, value & 0xffff, true)
  }

  add(elements: readonly Element[], options: AddOptions = {}): number {
    const direct = options.indirectFrom ?? elements.length
    const inTable = elements.slice(direct)
    const needed = direct + (inTable.length > 0 ? 1 : 0)
    if (needed > this.#free.length || needed === 0) return -1
    const indices = Array.from({ length: needed }, () => this.#free.pop()!)
    for (const [position, index] of indices.entries()) {
      const more = position + 1 < needed
      const flags = more ? VRING_DESC_F_NEXT : 0
      const next = indices[position + 1] ?? 0
      if (position < direct) {
        this.setDescriptor(index, rawOf(elements[position]!, flags, next))
      } else {
        const table = options.tableAddress ?? this.memory.allocate(16 * inTable.length)
        this.writeTable(
          table,
          inTable.map((element, at) =>
            rawOf(element, at + 1 < inTable.length ? VRING_DESC_F_NEXT : 0, (at + 1) % inTable.length),
          ),
        )
        const descriptor = { address: table, length: 16 * inTable.length }
        this.setDescriptor(index, rawOf(descriptor, flags | VRING_DESC_F_INDIRECT, next))
      }
    }
    const head = indices[0]!
    this.#chains.set(head, indices)
    this.exposeHead(head)
    return head
  }

  publish(): void {
    this.availIdx = this.#nextAvail
  }

  needsKick(): boolean {
    const next = this.availIdx
    const prev = this.#kickConsidered
    this.#kickConsidered = next
    if (next === prev) return false
    if (!this.eventIdx) return (this.usedFlags & VRING_USED_F_NO_NOTIFY) === 0
    // The chain at availEvent is among those from prev up to next.
    return ((this.availEvent - prev) & 0xffff) < ((next - prev) & 0xffff)
  }

  reap(): UsedChain | undefined {
    if (this.usedIdx === this.#lastUsed) return undefined
    const at = 4 + 8 * (this.#lastUsed % this.size)
    const id = this.used.getUint32(at, true)
    const length = this.used.getUint32(at + 4, true)
    const indices = this.#chains.get(id)
    if (indices === undefined) throw new Error(`the device used ${id}, which it did not have`)
    this.#chains.delete(id)
    this.#free.push(...indices.reverse())
    this.#lastUsed = (this.#lastUsed + 1) & 0xffff
    return { id, length }
  }

  /** The used element with index `index`, as it stands there. */
  usedAt(index: number): UsedChain {
    const at = 4 + 8 * (index % this.size)
    return { id: this.used.getUint32(at, true), length: this.used.getUint32(at + 4, true) }
  }

  /** Puts a used element into the ring as if the device had. */
  useFor(head: number): void {
    const index = this.usedIdx
    this.used.setUint32(4 + 8 * (index % this.size), head, true)
    this.used.setUint32(8 + 8 * (index % this.size), 0, true)
    this.used.setUint16(2, index + 1, true)
  }

  /** Starts both indices anew, as after a migration. Nothing is outstanding. */
  moveTo(index: number): void {
    this.#nextAvail = index
    this.#kickConsidered = index
    this.#lastUsed = index
    this.availIdx = index
    this.used.setUint16(2, index, true)
  }

  /** Passes over a used element of a chain that was made available raw. */
  skipUsed(): void {
    this.#lastUsed = (this.#lastUsed + 1) & 0xffff
  }

  enableCalls(): void {
    if (this.eventIdx) this.usedEvent = this.#lastUsed
    else this.availFlags = 0
  }

  disableCalls(): void {
    // With EVENT_IDX: an event that was just passed comes again after 2^16 chains.
    if (this.eventIdx) this.usedEvent = this.#lastUsed - 1
    else this.availFlags = VRING_AVAIL_F_NO_INTERRUPT
  }

  /** Writes a descriptor of the ring's table as given, whatever it says. */
  setDescriptor(index: number, descriptor: RawDescriptor): void {
    writeRaw(this.descriptors, index * 16, descriptor)
  }

  /** Writes an indirect table at a driver address, which may be unaligned. */
  writeTable(address: number, descriptors: readonly RawDescriptor[], memory = this.memory): void {
    const view = memory.dataView(address, 16 * descriptors.length)
    for (const [index, descriptor] of descriptors.entries()) writeRaw(view, index * 16, descriptor)
  }

  /** Puts `head` into the next slot of the avail ring, whatever it is; `publish` makes it available. */
  exposeHead(head: number): void {
    this.avail.setUint16(4 + 2 * (this.#nextAvail % this.size), head, true)
    this.#nextAvail = (this.#nextAvail + 1) & 0xffff
  }

  offerBuffers(buffers: readonly RawBuffer[]): number {
    this.offerRaw(linked(buffers))
    return 0
  }

  writeTableOf(address: number, buffers: readonly RawBuffer[], memory = this.memory): void {
    this.writeTable(address, linked(buffers), memory)
  }

  /**
   * A chain of raw descriptors from index 0 of the table on, made available at once. The driver expects `head` back.
   */
  offerRaw(descriptors: readonly RawDescriptor[], head = 0): void {
    for (const [index, descriptor] of descriptors.entries()) this.setDescriptor(index, descriptor)
    this.#chains.set(head, [])
    this.exposeHead(head)
    this.publish()
  }
}

const rawOf = (element: Element, flags: number, next: number): RawDescriptor => ({
  addressLow: lowWord(element.address),
  addressHigh: highWord(element.address),
  length: element.length,
  flags: flags | (element.writable ? VRING_DESC_F_WRITE : 0),
  next,
})

/** The buffers as descriptors 0, 1, 2, ... */
const linked = (buffers: readonly RawBuffer[]): RawDescriptor[] =>
  buffers.map((buffer, index) =>
    index + 1 < buffers.length
      ? { ...buffer, flags: (buffer.flags ?? 0) | VRING_DESC_F_NEXT, next: index + 1 }
      : buffer,
  )

const writeRaw = (view: DataView, at: number, descriptor: RawDescriptor): void => {
  view.setUint32(at, descriptor.addressLow ?? 0, true)
  view.setUint32(at + 4, descriptor.addressHigh ?? 0, true)
  view.setUint32(at + 8, descriptor.length ?? 0, true)
  view.setUint16(at + 12, descriptor.flags ?? 0, true)
  view.setUint16(at + 14, descriptor.next ?? 0, true)
}
