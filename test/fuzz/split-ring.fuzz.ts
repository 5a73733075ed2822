import { dropReasons } from '../../src/abi/drop-reason.ts'
import { VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT } from '../../src/abi/virtio-ring.ts'
import { AddressSpace } from '../../src/memory/address-space.ts'
import { needEvent } from '../../src/virtqueue/event-index.ts'
import { SplitQueue, type SplitQueueConfig } from '../../src/virtqueue/split.ts'
import type { BufferDirection } from '../../src/virtqueue/virtqueue.ts'
import { type RawDescriptor, SplitDriver } from '../support/driver-model.ts'
import type { Random } from '../support/random.ts'
import { ReferenceQueue } from '../support/reference-queue.ts'
import { ringFeatures } from '../support/ring-features.ts'
import {
  agree,
  anyArena,
  type Coverage,
  checkDrops,
  FuzzMemory,
  popBatchBoth,
  popBoth,
  type Subject,
} from './ring-fuzz.ts'

export type SplitSubject = Subject<SplitQueueConfig>

export const realSubject: SplitSubject = {
  newSpace: () => new AddressSpace(),
  newQueue: (space, config) => new SplitQueue(space, config),
}

/**
 * One ring with a hostile driver: it writes anything anywhere between the device's steps, and each step must do what
 * the reference does. Ends after `steps` or at the fault that quarantines the ring.
 */
export const fuzzSplitRing = (random: Random, steps: number, subject: SplitSubject, coverage: Coverage): void => {
  const size = random.pick([1, 2, 4, 8, 16, 64])
  const direction = random.pick<BufferDirection>([0, 1])
  const eventIdx = random.chance(0.5)
  const indirect = random.chance(0.8)
  const start = random.pick([0, 1, 65_535, 65_530, random.below(65_536)])

  const world = new FuzzMemory(random)
  const { ring: memory, regions } = world
  const space = subject.newSpace()
  world.addTo(space)

  const driver = new SplitDriver(memory, { size, eventIdx, start })
  const drops = new Uint32Array(dropReasons.length)
  const queue = subject.newQueue(space, {
    size,
    descAddr: driver.descAddr,
    availAddr: driver.availAddr,
    usedAddr: driver.usedAddr,
    base: start,
    features: ringFeatures({ indirect, eventIdx }),
    drops,
  })
  const reference = new ReferenceQueue({
    regions,
    size,
    descAddr: driver.descAddr,
    availAddr: driver.availAddr,
    start,
    indirect,
  })
  const arena = anyArena(random)
  let consideredUsed = start

  const anyDescriptor = (limit: number): RawDescriptor => {
    const buffer = world.anyBuffer(direction)
    return {
      ...buffer,
      flags: buffer.flags | (random.chance(0.4) ? VRING_DESC_F_NEXT : 0),
      next: random.chance(0.03) ? random.below(65_536) : random.below(limit),
    }
  }
  const writeIndirect = (index: number): void => {
    const table = world.anyTable(driver.usedAddr + 6 + 8 * size, (address, entries, holder) => {
      const flags = random.chance(0.03) ? { flags: VRING_DESC_F_INDIRECT } : {}
      driver.writeTable(address, [{ ...anyDescriptor(entries), ...flags }], holder)
    })
    driver.setDescriptor(index, { ...table, flags: table.flags | (random.chance(0.05) ? VRING_DESC_F_NEXT : 0) })
  }

  /** Something the driver does. Now and then it breaks the ring itself. */
  const drive = (): void => {
    for (let count = random.between(1, 2 * size); count > 0; count--) {
      const index = random.below(size)
      if (random.chance(0.3)) writeIndirect(index)
      else driver.setDescriptor(index, anyDescriptor(size))
    }
    const held = reference.outstanding.length + reference.staged.length
    const waiting = (driver.availIdx - reference.nextUsed + 65_536 - reference.outstanding.length) % 65_536
    const room = size - held - waiting
    const busy = new Set(reference.outstanding.map(({ head }) => head))
    for (let slot = 0; slot < waiting; slot++) {
      busy.add(driver.avail.getUint16(4 + 2 * ((driver.availIdx - 1 - slot + 65_536) % size), true))
    }
    const free = Array.from({ length: size }, (_, head) => head).filter((head) => !busy.has(head))
    for (let count = random.below(room + 1); count > 0 && free.length > 0; count--) {
      const head = free.splice(random.below(free.length), 1)[0]!
      driver.avail.setUint16(4 + 2 * (driver.availIdx % size), head, true)
      driver.availIdx = driver.availIdx + 1
    }
    if (random.chance(0.3))
      driver.usedEvent = random.chance(0.8) ? reference.nextUsed + random.between(-2, 4) : random.u32()
    if (random.chance(0.3)) driver.availFlags = random.pick([0, 1, random.below(65_536)])
    if (random.chance(0.02)) driver.used.setUint16(2 * random.below(3 + 4 * size), random.below(65_536), true)
    if (random.chance(0.01)) driver.availIdx = random.pick([driver.availIdx - 1, driver.availIdx + size, random.u32()])
    if (random.chance(0.01)) driver.avail.setUint16(4 + 2 * random.below(size), random.below(2 * size), true)
    // A head that the device has, or that waits already.
    if (random.chance(0.03) && waiting > 0) {
      driver.avail.setUint16(4 + 2 * ((driver.availIdx + size - 1) % size), random.pick([...busy]), true)
    }
  }

  const publish = (): void => {
    const from = reference.publishedUsed
    const published = reference.publish()
    queue.publishUsed()
    const elements = published.map((_, index) => {
      const element = 4 + 8 * ((from + index) % size)
      return { id: driver.used.getUint32(element, true), length: driver.used.getUint32(element + 4, true) }
    })
    if (published.length > 0) {
      agree('used.idx', driver.usedIdx, reference.publishedUsed)
      agree('used elements', elements, published)
    }
    const wanted = eventIdx
      ? needEvent(driver.usedEvent, reference.publishedUsed, consideredUsed)
      : (driver.availFlags & 1) === 0
    agree('needsCall', queue.needsCall(), reference.publishedUsed !== consideredUsed && wanted)
    consideredUsed = reference.publishedUsed
  }

  const deviceOnly = (): unknown[] => [
    Bun.hash(memory.bytes.subarray(driver.descAddr - memory.start, driver.usedAddr - memory.start)),
    ...world.outside(),
  ]

  for (let step = 0; step < steps; step++) {
    drive()
    const untouched = deviceOnly()
    if (arena.chainCount > 0 && random.chance(0.7)) {
      queue.unpop(reference.inFlight)
      reference.unpop(reference.inFlight)
      arena.clear()
    } else if (reference.inFlight === 0) {
      arena.clear()
    }
    const count = random.between(0, size + 1)
    if (random.chance(0.5)) {
      if (!popBatchBoth(queue, reference, arena, direction, coverage, count)) return
    } else {
      for (let left = count; left > 0; left--) {
        if (!popBoth(queue, reference, arena, direction, coverage)) return
      }
    }
    const back = random.chance(0.3) ? random.between(0, Math.min(reference.inFlight, arena.chainCount)) : 0
    queue.unpop(back)
    reference.unpop(back)
    arena.removeLast(back)
    for (let count = random.between(0, reference.inFlight); count > 0; count--) {
      const length = direction === 1 ? random.u32() : 0
      queue.stageUsed(length)
      reference.stage(length)
    }
    agree('inFlight', queue.inFlight, reference.inFlight)
    agree('nextUsed', queue.nextUsed, reference.nextUsed)
    publish()
    agree('memory that is not the device’s to write', deviceOnly(), untouched)
  }
  checkDrops(drops, reference, coverage)
  queue[Symbol.dispose]()
  space.clear()
  world.checkViews()
}
