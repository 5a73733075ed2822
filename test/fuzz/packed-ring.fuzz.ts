import { dropReasons } from '../../src/abi/drop-reason.ts'
import { VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT } from '../../src/abi/virtio-ring.ts'
import { DriverFault } from '../../src/base/errors.ts'
import { AddressSpace } from '../../src/memory/address-space.ts'
import { PackedQueue, type PackedQueueConfig } from '../../src/virtqueue/packed.ts'
import type { BufferDirection, Virtqueue } from '../../src/virtqueue/virtqueue.ts'
import { PackedDriver, type RawPackedDescriptor } from '../support/packed-driver.ts'
import type { Random } from '../support/random.ts'
import { ReferencePackedQueue } from '../support/reference-packed-queue.ts'
import { ringFeatures } from '../support/ring-features.ts'
import {
  agree,
  anyArena,
  type Coverage,
  checkDrops,
  FuzzMemory,
  Mismatch,
  popBatchBoth,
  popBoth,
  type Subject,
} from './ring-fuzz.ts'

export type PackedSubject = Subject<PackedQueueConfig>

export const realSubject: PackedSubject = {
  newSpace: () => new AddressSpace(),
  newQueue: (space, config) => new PackedQueue(space, config),
}

/** The base is right and the ring new: a queue that does not start is wrong. */
const startedBy = (newQueue: () => Virtqueue): Virtqueue => {
  try {
    return newQueue()
  } catch (error) {
    if (error instanceof DriverFault) throw new Mismatch(`the queue does not start: ${error.message}`)
    throw error
  }
}

/**
 * One ring with a hostile driver: it writes anything anywhere between the device's steps, and each step must do what
 * the reference does. Ends after `steps` or at the fault that quarantines the ring.
 */
export const fuzzPackedRing = (random: Random, steps: number, subject: PackedSubject, coverage: Coverage): void => {
  const size = random.pick([1, 2, 3, 5, 8, 13, 64, 100])
  const direction = random.pick<BufferDirection>([0, 1])
  const eventIdx = random.chance(0.5)
  const indirect = random.chance(0.8)
  const start = random.below(2 * size)

  const world = new FuzzMemory(random)
  const { ring: memory, regions } = world
  const space = subject.newSpace()
  world.addTo(space)
  const driver = new PackedDriver(memory, { size, eventIdx, start })
  const drops = new Uint32Array(dropReasons.length)
  const queue = startedBy(() =>
    subject.newQueue(space, {
      size,
      descAddr: driver.descAddr,
      availAddr: driver.availAddr,
      usedAddr: driver.usedAddr,
      base: driver.base,
      features: ringFeatures({ indirect, eventIdx, packed: true }),
      drops,
    }),
  )
  const reference = new ReferencePackedQueue({ regions, size, descAddr: driver.descAddr, start: driver.next, indirect })
  const arena = anyArena(random)
  const startedAt = driver.next.offWrap
  /** Where the device was when it last thought of calling. */
  const considered = driver.next.copy()

  const anyDescriptor = (): RawPackedDescriptor & { flags: number } => {
    const id = random.chance(0.5) ? random.below(size) : random.below(65_536)
    // Wrap bits are the driver's to set, once it has all else.
    const withoutWrap = <T extends { flags: number }>(raw: T): T => ({ ...raw, flags: raw.flags & ~0x8080 })
    if (random.chance(0.3)) {
      const table = world.anyTable(driver.usedAddr + 4, (address, _entries, holder) => {
        const buffer = world.anyBuffer(direction)
        const odd = random.chance(0.1) ? random.pick([VRING_DESC_F_NEXT, VRING_DESC_F_INDIRECT, 0x8080]) : 0
        driver.writeTable(address, [{ ...buffer, id: random.below(65_536), flags: buffer.flags | odd }], holder)
      })
      return { ...table, id }
    }
    return withoutWrap({ ...world.anyBuffer(direction), id })
  }

  /** Entries between what was published and where the driver writes next: not its own. */
  const taken = (): number => {
    const place = reference.published.copy()
    for (let entries = 0; entries <= size; entries++, place.step()) {
      if (place.offWrap === driver.next.offWrap) return entries
    }
    return size
  }

  /** Something the driver does. Now and then it breaks the ring itself. */
  const drive = (): void => {
    for (let chains = random.below(5); chains > 0; chains--) {
      const room = size - taken()
      // Longer than the ring has room for: it may as well try.
      const length = random.chance(0.02) ? random.between(1, size + 1) : Math.min(random.between(1, 4), room)
      if (length === 0) break
      driver.write(
        Array.from({ length }, (_, index) => {
          const descriptor = anyDescriptor()
          const linked = index + 1 < length !== random.chance(0.02)
          const flags = (descriptor.flags & ~VRING_DESC_F_NEXT) | (linked ? VRING_DESC_F_NEXT : 0)
          return { ...descriptor, flags }
        }),
      )
      if (random.chance(0.9)) driver.publish()
    }
    if (random.chance(0.3)) {
      const near = reference.published.copy()
      near.step(random.below(2 * size))
      driver.setEvent(
        random.chance(0.8) ? random.below(4) : random.below(65_536),
        random.chance(0.8) ? near.offWrap : random.below(65_536),
      )
    }
    if (random.chance(0.02)) driver.deviceEvent.setUint32(0, random.u32(), true)
    if (random.chance(0.02)) {
      const at = 16 * random.below(size) + 14
      driver.ring.setUint16(
        at,
        random.chance(0.5) ? driver.ring.getUint16(at, true) ^ 0x8080 : random.below(65_536),
        true,
      )
    }
    if (random.chance(0.02)) driver.ring.setUint16(16 * random.below(size) + 12, random.below(65_536), true)
  }

  const ringOf = (): Uint8Array => memory.bytes.slice(driver.descAddr - memory.start, driver.availAddr - memory.start)
  const driverEventOf = (): number => driver.driverEvent.getUint32(0, true)

  const publish = (): void => {
    const expected = ringOf()
    const view = new DataView(expected.buffer)
    for (const { slot, id, length, flags, next } of reference.publish()) {
      // In a transmitq nothing is written: the length tells where the chain ends.
      const end = next.wrap === 1 ? next.slot : next.slot + size
      view.setUint32(16 * slot + 8, direction === 0 && length === 0 ? (end | 0x766e_0000) >>> 0 : length, true)
      view.setUint16(16 * slot + 12, id, true)
      view.setUint16(16 * slot + 14, flags, true)
    }
    queue.publishUsed()
    agree('the ring after publishing', Buffer.from(ringOf()).toString('hex'), Buffer.from(expected).toString('hex'))
    agree('base', queue.base, reference.published.offWrap * 65_537)

    const offWrap = driver.driverEvent.getUint16(0, true)
    const flags = driver.driverEvent.getUint16(2, true) & 3
    const moved = reference.movedSince
    reference.movedSince = 0
    let passed = false
    for (let left = moved; left > 0; left--, considered.step()) if (considered.offWrap === offWrap) passed = true
    const beyond = (offWrap & 0x7fff) >= size
    const wanted = flags === 1 ? false : flags === 2 && eventIdx && !beyond ? passed : true
    agree('needsCall', queue.needsCall(), moved > 0 && wanted)
  }

  /** Where the ring was started is one of the next entries to be used. */
  const isBeforeStart = (): boolean => {
    const place = reference.published.copy()
    let left = 0
    while (place.offWrap !== startedAt && left <= 2 * size) {
      place.step()
      left++
    }
    return left > 0 && left <= Math.min(32, size >> 2)
  }

  const notify = (): void => {
    if (random.chance(0.3)) {
      queue.disableNotification()
      agree('event flags', driver.deviceEvent.getUint16(2, true), 1)
    } else {
      const { frontier } = reference
      agree('enableNotification', queue.enableNotification(), reference.isAvailable(frontier))
      // The place to kick for is also a note of where the device stands, and so is only given while both are the same.
      const byPlace = eventIdx && frontier.offWrap === reference.published.offWrap && !isBeforeStart()
      agree('event flags', driver.deviceEvent.getUint16(2, true), byPlace ? 2 : 0)
      if (byPlace) agree('event entry', driver.deviceEvent.getUint16(0, true), frontier.offWrap)
    }
  }

  for (let step = 0; step < steps; step++) {
    drive()
    const untouched = [driverEventOf(), ...world.outside()]
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
    if (random.chance(0.8)) publish()
    notify()
    agree('memory that is not the device’s to write', [driverEventOf(), ...world.outside()], untouched)
  }
  checkDrops(drops, reference, coverage)
  queue[Symbol.dispose]()
  space.clear()
  world.checkViews()
}
