import {
  DESC_STATE_PACKED,
  DESC_STATE_SPLIT,
  INFLIGHT_VERSION,
  inflightRegionBytes,
  QUEUE_REGION_PACKED,
  QUEUE_REGION_SPLIT,
} from '../abi/vhost-user-inflight.ts'
import { DriverFault } from '../base/errors.ts'
import type { Mapping } from '../memory/region.ts'
import { RecordView } from '../memory/ring-view.ts'
import { type Position, slotOf } from './packed-descriptor.ts'

const WORD_BYTES = 4
const HALF_BYTES = 2

/** Fields at the same offset in both layouts. */
const VERSION = QUEUE_REGION_SPLIT.version / HALF_BYTES
const DESC_NUM = QUEUE_REGION_SPLIT.desc_num / HALF_BYTES
const LAST_BATCH_HEAD = QUEUE_REGION_SPLIT.last_batch_head / HALF_BYTES
const USED_IDX = QUEUE_REGION_SPLIT.used_idx / HALF_BYTES
/** Position of a packed ring before (OLD) and after (NEW) a batch: index as a half-word, wrap counter as a byte. */
const OLD = {
  index: QUEUE_REGION_PACKED.old_used_idx / HALF_BYTES,
  wrapCounter: QUEUE_REGION_PACKED.old_used_wrap_counter,
}
const NEW = { index: QUEUE_REGION_PACKED.used_idx / HALF_BYTES, wrapCounter: QUEUE_REGION_PACKED.used_wrap_counter }

const invalid = (why: string): DriverFault => new DriverFault('INFLIGHT_INVALID', why)

/** The common part of both layouts. The front-end can write to the record at any time. */
abstract class InflightRecord {
  /** True if another process has used the record. Valid after `start`. */
  resumed = false
  protected readonly view: RecordView
  readonly #mapping: Mapping

  /** Takes over `mapping`, which holds the region of one ring. */
  constructor(mapping: Mapping) {
    this.#mapping = mapping
    this.view = new RecordView(mapping)
  }

  /**
   * Checks that the front-end's region has room for a ring of `size`.
   * @throws DriverFault INFLIGHT_INVALID
   */
  protected checkRoom(size: number, packed: boolean): void {
    if (inflightRegionBytes(size, packed) > this.view.u8.length) throw invalid(`it has no room for a ring of ${size}`)
  }

  /** True if no process has used the region. */
  protected get isNew(): boolean {
    return this.view.u16[VERSION] === 0
  }

  /** Marks the region as in use. The layout's own fields are initialised already. */
  protected begin(size: number): void {
    this.view.u16[DESC_NUM] = size
    // ORDERING: the version last: it makes the other fields valid.
    Atomics.store(this.view.u16, VERSION, INFLIGHT_VERSION)
  }

  /** True if pages of the region have vanished. */
  get vanished(): boolean {
    return this.#mapping.guardHits() !== 0
  }

  [Symbol.dispose](): void {
    this.view.detach()
    this.#mapping[Symbol.dispose]()
  }
}

/**
 * A split ring's record: the heads in flight, and the batch being published. After a crash at any moment, record and
 * used.idx together tell which chains the driver has not got back.
 */
export class SplitInflight extends InflightRecord {
  /** Heads that another process has popped and not used, in the order in which it popped them. */
  resubmitted: Uint16Array = new Uint16Array(0)
  #counter = 0

  /**
   * Starts with a ring whose used.idx is `usedIdx`. Returns {@link resumed}.
   * @throws DriverFault INFLIGHT_INVALID if the record is inconsistent or too short
   */
  start(size: number, usedIdx: number): boolean {
    this.checkRoom(size, false)
    const { u16, u8 } = this.view
    if (this.isNew) {
      u16[USED_IDX] = usedIdx
      this.begin(size)
      return false
    }
    this.resumed = true
    if (u16[DESC_NUM] !== size) throw invalid(`it is not for a ring of ${size}`)
    const batch = (usedIdx - u16[USED_IDX]!) & 0xffff
    if (batch > size) throw invalid(`a batch of ${batch} in a ring of ${size}`)
    // The last batch was published, but perhaps not marked as ended.
    let head = u16[LAST_BATCH_HEAD]!
    for (let left = batch; left > 0; left--) {
      if (head >= size) throw invalid(`descriptor ${head} of ${size}`)
      this.#setInflight(head, 0)
      head = u16[this.#halfOf(head, DESC_STATE_SPLIT.next)]!
    }
    u16[USED_IDX] = usedIdx
    const heads: { readonly head: number; readonly counter: number }[] = []
    for (let index = 0; index < size; index++) {
      if (u8[this.#byteOf(index, DESC_STATE_SPLIT.inflight)] === 1)
        heads.push({ head: index, counter: this.#counterOf(index) })
    }
    heads.sort((a, b) => a.counter - b.counter)
    this.resubmitted = Uint16Array.from(heads, ({ head: taken }) => taken)
    this.#counter = (heads.at(-1)?.counter ?? -1) + 1
    return true
  }

  /** Records a popped chain. */
  take(head: number): void {
    const word = this.#byteOf(head, DESC_STATE_SPLIT.counter) / WORD_BYTES
    this.view.u32[word] = this.#counter
    this.view.u32[word + 1] = this.#counter / 2 ** 32
    this.#counter++
    this.#setInflight(head, 1)
  }

  /** Removes a chain that goes back to the ring. */
  giveBack(head: number): void {
    this.#setInflight(head, 0)
  }

  /** Adds a chain to the batch that is about to be published. */
  batch(head: number): void {
    const { u16 } = this.view
    u16[this.#halfOf(head, DESC_STATE_SPLIT.next)] = u16[LAST_BATCH_HEAD]!
    // ORDERING: the link before the list's head: a reader after a crash follows the links.
    Atomics.store(u16, LAST_BATCH_HEAD, head)
  }

  /** Removes a published chain of the batch. */
  used(head: number): void {
    this.#setInflight(head, 0)
  }

  /** Ends the batch. */
  endBatch(usedIdx: number): void {
    // ORDERING: after the chains of the batch were removed.
    Atomics.store(this.view.u16, USED_IDX, usedIdx)
  }

  #setInflight(head: number, value: 0 | 1): void {
    Atomics.store(this.view.u8, this.#byteOf(head, DESC_STATE_SPLIT.inflight), value)
  }

  #counterOf(head: number): number {
    const word = this.#byteOf(head, DESC_STATE_SPLIT.counter) / WORD_BYTES
    return this.view.u32[word]! + this.view.u32[word + 1]! * 2 ** 32
  }

  #byteOf(head: number, field: number): number {
    return QUEUE_REGION_SPLIT.desc + head * DESC_STATE_SPLIT.sizeBytes + field
  }

  #halfOf(head: number, field: number): number {
    return this.#byteOf(head, field) / HALF_BYTES
  }
}

/** The old contents of an overwritten descriptor: length, and buffer id and flags as one word. */
type Overwritten = { readonly slot: number; readonly lengthBytes: number; readonly idAndFlags: number }

/**
 * A packed ring's record. The ring itself does not tell where a device stopped. Chains are used in order, so the
 * position of the next one to use is enough, and, while a batch is being published, the descriptors that it overwrites.
 */
export class PackedInflight extends InflightRecord {
  #size = 0

  /**
   * Starts at the position that `given` returns if the record is new, else at the recorded one. Returns the position,
   * and the descriptors to restore in the ring first. `isAvailable`: true if the descriptor at a position is available.
   * @throws DriverFault INFLIGHT_INVALID
   */
  start(
    size: number,
    given: () => Position,
    isAvailable: (position: Position) => boolean,
  ): { readonly position: Position; readonly undone: readonly Overwritten[] } {
    this.checkRoom(size, true)
    this.#size = size
    if (this.isNew) {
      const base = given()
      this.#linkFree()
      this.#note(NEW, base)
      this.#note(OLD, base)
      this.begin(size)
      return { position: base, undone: [] }
    }
    this.resumed = true
    if (this.view.u16[DESC_NUM] !== size) throw invalid(`it is not for a ring of ${size}`)
    if (this.view.u16[this.#numOf(0)] === 1) {
      const before = this.#noted(OLD)
      // The crash interrupted a batch. Its first descriptor, written last, tells whether the batch was published.
      if (isAvailable(before)) return { position: before, undone: this.#saved() }
    }
    const position = this.#noted(NEW)
    this.endBatch(position)
    return { position, undone: [] }
  }

  /** Records that the descriptors of {@link start} were restored and the ring is at `position`. */
  undone(position: Position): void {
    this.#note(NEW, position)
    Atomics.store(this.view.u16, this.#numOf(0), 0)
  }

  /** Saves the descriptor in `slot`, number `index` of a batch, before it is overwritten. */
  save(index: number, slot: number, lengthBytes: number, idAndFlags: number): void {
    const at = this.#byteOf(index, 0)
    const { u16, u32 } = this.view
    u16[(at + DESC_STATE_PACKED.last) / HALF_BYTES] = slot
    // Entry 0 is marked last: its mark validates the batch.
    if (index > 0) u16[this.#numOf(index)] = 1
    u32[(at + DESC_STATE_PACKED.len) / WORD_BYTES] = lengthBytes
    u32[(at + DESC_STATE_PACKED.id) / WORD_BYTES] = idAndFlags
  }

  /** Starts the publication of the chains up to `position`, after `count` descriptors were saved. */
  batch(count: number, position: Position): void {
    if (count < this.#size) this.view.u16[this.#numOf(count)] = 0
    // ORDERING: saved descriptors, then the mark that validates them, then the writes to the ring.
    Atomics.store(this.view.u16, this.#numOf(0), 1)
    this.#note(NEW, position)
  }

  /** Ends the batch. */
  endBatch(position: Position): void {
    // ORDERING: the mark first: while it is set the old position counts, and a position takes two stores.
    Atomics.store(this.view.u16, this.#numOf(0), 0)
    this.#note(OLD, position)
  }

  /** Links all entries as free: other back-ends expect that of a new record. */
  #linkFree(): void {
    for (let index = 0; index + 1 < this.#size; index++) {
      this.view.u16[this.#byteOf(index, DESC_STATE_PACKED.next) / HALF_BYTES] = index + 1
    }
  }

  #saved(): Overwritten[] {
    const { u16, u32 } = this.view
    const saved: Overwritten[] = []
    for (let index = 0; index < this.#size; index++) {
      const at = this.#byteOf(index, 0)
      if (u16[this.#numOf(index)] !== 1) break
      const slot = u16[(at + DESC_STATE_PACKED.last) / HALF_BYTES]!
      if (slot >= this.#size) throw invalid(`entry ${slot} of ${this.#size}`)
      const lengthBytes = u32[(at + DESC_STATE_PACKED.len) / WORD_BYTES]!
      saved.push({ slot, lengthBytes, idAndFlags: u32[(at + DESC_STATE_PACKED.id) / WORD_BYTES]! })
    }
    // The first descriptor is restored last: until then the driver sees nothing of the batch.
    return saved.reverse()
  }

  #noted({ index, wrapCounter }: typeof OLD): Position {
    const slot = this.view.u16[index]!
    const wrap = this.view.u8[wrapCounter]!
    if (slot >= this.#size || wrap > 1) throw invalid(`entry ${slot}, wrap counter ${wrap} of ${this.#size}`)
    return wrap === 1 ? slot : slot + this.#size
  }

  #note({ index, wrapCounter }: typeof OLD, position: Position): void {
    Atomics.store(this.view.u16, index, slotOf(position, this.#size))
    Atomics.store(this.view.u8, wrapCounter, position < this.#size ? 1 : 0)
  }

  #numOf(index: number): number {
    return this.#byteOf(index, DESC_STATE_PACKED.num) / HALF_BYTES
  }

  #byteOf(index: number, field: number): number {
    return QUEUE_REGION_PACKED.desc + index * DESC_STATE_PACKED.sizeBytes + field
  }
}
