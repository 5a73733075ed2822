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

/** The fields that both layouts have at the same place. */
const VERSION = QUEUE_REGION_SPLIT.version / HALF_BYTES
const DESC_NUM = QUEUE_REGION_SPLIT.desc_num / HALF_BYTES
const LAST_BATCH_HEAD = QUEUE_REGION_SPLIT.last_batch_head / HALF_BYTES
const USED_IDX = QUEUE_REGION_SPLIT.used_idx / HALF_BYTES
/** Where a packed ring was, and where it is: index as a half-word, wrap counter as a byte. */
const OLD = {
  index: QUEUE_REGION_PACKED.old_used_idx / HALF_BYTES,
  wrapCounter: QUEUE_REGION_PACKED.old_used_wrap_counter,
}
const NEW = { index: QUEUE_REGION_PACKED.used_idx / HALF_BYTES, wrapCounter: QUEUE_REGION_PACKED.used_wrap_counter }

const invalid = (why: string): DriverFault => new DriverFault('INFLIGHT_INVALID', why)

/** What is common to the records of both layouts. The front-end can write into them at any time. */
abstract class InflightRecord {
  /** Somebody before us has noted something: known once the record has been started. */
  resumed = false
  protected readonly view: RecordView
  readonly #mapping: Mapping

  /** Takes over `mapping`, all of which is the region of one ring. */
  constructor(mapping: Mapping) {
    this.#mapping = mapping
    this.view = new RecordView(mapping)
  }

  /** The region is for a ring of `size`: the front-end has said how long it is. @throws DriverFault INFLIGHT_INVALID */
  protected checkRoom(size: number, packed: boolean): void {
    if (inflightRegionBytes(size, packed) > this.view.u8.length) throw invalid(`it has no room for a ring of ${size}`)
  }

  /** Has nobody used the region yet? */
  protected get isNew(): boolean {
    return this.view.u16[VERSION] === 0
  }

  /** The region is in use from now on; the rest of what a beginning needs is in it. */
  protected begin(size: number): void {
    this.view.u16[DESC_NUM] = size
    // ORDERING: last, since it says that the others can be believed.
    Atomics.store(this.view.u16, VERSION, INFLIGHT_VERSION)
  }

  /** Has the region been taken away? */
  get vanished(): boolean {
    return this.#mapping.guardHits() !== 0
  }

  [Symbol.dispose](): void {
    this.view.detach()
    this.#mapping[Symbol.dispose]()
  }
}

/**
 * Of a split ring: which heads are in flight, and the batch that is being used. After a crash the record and used.idx
 * together tell which chains the driver has not been given back, whatever the moment of the crash.
 */
export class SplitInflight extends InflightRecord {
  /** Heads that somebody before us has taken and not used, in the order in which he has. */
  resubmitted: Uint16Array = new Uint16Array(0)
  #counter = 0

  /**
   * Begins with a ring whose used.idx is `usedIdx`. False if nobody has noted anything yet. @throws DriverFault
   * INFLIGHT_INVALID for a record that makes no sense, or is too short.
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
    // The last batch was shown to the driver, and its end perhaps not noted.
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

  /** A chain was taken. */
  take(head: number): void {
    const word = this.#byteOf(head, DESC_STATE_SPLIT.counter) / WORD_BYTES
    this.view.u32[word] = this.#counter
    this.view.u32[word + 1] = this.#counter / 2 ** 32
    this.#counter++
    this.#setInflight(head, 1)
  }

  /** A chain goes back to be taken again. */
  giveBack(head: number): void {
    this.#setInflight(head, 0)
  }

  /** A chain is about to be shown as used. */
  batch(head: number): void {
    const { u16 } = this.view
    u16[this.#halfOf(head, DESC_STATE_SPLIT.next)] = u16[LAST_BATCH_HEAD]!
    // ORDERING: the link before the head of the list: whoever reads after a crash follows it.
    Atomics.store(u16, LAST_BATCH_HEAD, head)
  }

  /** A chain of the batch has been shown. */
  used(head: number): void {
    this.#setInflight(head, 0)
  }

  /** All of the batch has been dealt with. */
  endBatch(usedIdx: number): void {
    // ORDERING: after the marks of the batch.
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

/** A descriptor that was overwritten, as it was before: its length, and its buffer id and flags as one word. */
type Overwritten = { readonly slot: number; readonly lengthBytes: number; readonly idAndFlags: number }

/**
 * Of a packed ring, which does not tell where it was left. Since chains are used in order, none is in flight behind the
 * next one to be used: its place is noted, and, while a batch is being marked as used, the descriptors that are
 * overwritten by that.
 */
export class PackedInflight extends InflightRecord {
  #size = 0

  /**
   * Begins with a ring at the position that `given` says, or goes on where the record says: the position, and what is
   * to be undone in the ring before. `isAvailable` tells whether what lies at a position is the device's to take.
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
      // A batch was being shown to the driver: its first descriptor says whether it has been.
      if (isAvailable(before)) return { position: before, undone: this.#saved() }
    }
    const position = this.#noted(NEW)
    this.endBatch(position)
    return { position, undone: [] }
  }

  /** What was to be undone has been: the ring is at `position`. */
  undone(position: Position): void {
    this.#note(NEW, position)
    Atomics.store(this.view.u16, this.#numOf(0), 0)
  }

  /** The descriptor in `slot`, number `index` of a batch, is about to be overwritten. */
  save(index: number, slot: number, lengthBytes: number, idAndFlags: number): void {
    const at = this.#byteOf(index, 0)
    const { u16, u32 } = this.view
    u16[(at + DESC_STATE_PACKED.last) / HALF_BYTES] = slot
    // The first one's says that all are there.
    if (index > 0) u16[this.#numOf(index)] = 1
    u32[(at + DESC_STATE_PACKED.len) / WORD_BYTES] = lengthBytes
    u32[(at + DESC_STATE_PACKED.id) / WORD_BYTES] = idAndFlags
  }

  /** `count` descriptors have been saved; the chains up to `position` are about to be shown as used. */
  batch(count: number, position: Position): void {
    if (count < this.#size) this.view.u16[this.#numOf(count)] = 0
    // ORDERING: what was saved before the mark that it counts, that before anything of the ring is overwritten.
    Atomics.store(this.view.u16, this.#numOf(0), 1)
    this.#note(NEW, position)
  }

  /** They have been. */
  endBatch(position: Position): void {
    // ORDERING: the mark first: as long as it stands, the old place is the one that counts. A place is noted in two
    // stores.
    Atomics.store(this.view.u16, this.#numOf(0), 0)
    this.#note(OLD, position)
  }

  /** All entries are free, which is what a back-end that uses them differently begins with. */
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
    // The first one last: until then the driver, too, sees nothing of the batch.
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
