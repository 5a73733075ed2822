import { isDeepStrictEqual } from 'node:util'
import { dropReasons } from '../../src/abi/drop-reason.ts'
import { VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE } from '../../src/abi/virtio-ring.ts'
import { DriverFault } from '../../src/base/errors.ts'
import { AddressSpace } from '../../src/memory/address-space.ts'
import { IovecArena } from '../../src/memory/iovec-arena.ts'
import type { Access } from '../../src/memory/region.ts'
import { needEvent } from '../../src/virtqueue/event-index.ts'
import { SplitQueue, type SplitQueueConfig } from '../../src/virtqueue/split.ts'
import { type Direction, POP, type Virtqueue } from '../../src/virtqueue/virtqueue.ts'
import { type RawDescriptor, SplitDriver } from '../support/driver-model.ts'
import { TestMemory } from '../support/memory.ts'
import type { Random } from '../support/random.ts'
import { type HostPiece, ReferenceQueue, type ReferenceRegion } from '../support/reference-queue.ts'

/** The real queue and the reference did not do the same. */
export class Mismatch extends Error {
  override name = 'Mismatch'
}

/** What is fuzzed: a canary puts something broken here. */
export type Subject = {
  readonly newSpace: () => AddressSpace
  readonly newQueue: (space: AddressSpace, config: SplitQueueConfig) => Virtqueue
}

export const realSubject: Subject = {
  newSpace: () => new AddressSpace(),
  newQueue: (space, config) => new SplitQueue(space, config),
}

/** How often what happened, to see that a run reached everything. */
export type Coverage = Map<string, number>

const agree = (what: string, actual: unknown, expected: unknown): void => {
  if (isDeepStrictEqual(actual, expected)) return
  throw new Mismatch(`${what}: ${JSON.stringify(actual)} instead of ${JSON.stringify(expected)}`)
}

/**
 * One ring with a hostile driver: it writes anything anywhere between the device's steps, and each step must do what the
 * reference does. Ends after `steps` or at the fault that quarantines the ring.
 */
export const fuzzSplitRing = (random: Random, steps: number, subject: Subject, coverage: Coverage): void => {
  const seen = (what: string): void => {
    coverage.set(what, (coverage.get(what) ?? 0) + 1)
  }
  const size = random.pick([1, 2, 4, 8, 16, 64])
  const direction = random.pick<Direction>([0, 1])
  const eventIdx = random.chance(0.5)
  const indirect = random.chance(0.8)
  const start = random.pick([0, 1, 65_535, 65_530, random.below(65_536)])

  // The ring, then adjacent regions of every permission and odd lengths, a hole, and one far away.
  const memory = new TestMemory(16_384, 0x1_0000)
  const regions: ReferenceRegion[] = [{ memory, access: 3 }]
  let at = memory.end
  for (let count = random.below(4); count > 0; count--) {
    const length = random.between(1, 300)
    regions.push({ memory: new TestMemory(length, at), access: random.pick([1, 2, 3, 3, 3]) })
    at += length
  }
  regions.push({ memory: new TestMemory(4096, at + 100), access: 3 })
  regions.push({ memory: new TestMemory(4096, 2 ** 52 + 1), access: 3 })
  const space = subject.newSpace()
  for (const region of regions) space.add(region.memory.region(region.access as Access))

  const driver = new SplitDriver(memory, { size, eventIdx, start })
  const drops = new Uint32Array(dropReasons.length)
  const queue = subject.newQueue(space, {
    size,
    descAddr: driver.descAddr,
    availAddr: driver.availAddr,
    usedAddr: driver.usedAddr,
    state: { nextAvail: start, nextUsed: start },
    indirect,
    eventIdx,
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
  const arena = new IovecArena(random.pick([1, 3, 64]), random.pick([2, 8, 512]))
  let consideredUsed = start

  const anyAddress = (): number => {
    const { memory: target } = random.pick(regions)
    return random.chance(0.1)
      ? random.pick([0, at + 50, 2 ** 32 + 0x1_0000])
      : target.start + random.between(-8, target.lengthBytes)
  }
  const anyDescriptor = (limit: number): RawDescriptor => {
    const address = anyAddress()
    const odd = random.chance(0.05)
    return {
      addressLow: address % 2 ** 32,
      addressHigh: odd ? random.u32() : Math.floor(address / 2 ** 32),
      length: random.chance(0.03) ? random.u32() : random.chance(0.1) ? 0 : random.between(1, 200),
      flags:
        (random.chance(0.4) ? VRING_DESC_F_NEXT : 0) |
        (random.chance(0.95) === (direction === 1) ? VRING_DESC_F_WRITE : 0) |
        (random.chance(0.05) ? random.below(65_536) & ~VRING_DESC_F_INDIRECT : 0),
      next: random.chance(0.03) ? random.below(65_536) : random.below(limit),
    }
  }
  const writeIndirect = (index: number): void => {
    const entries = random.between(1, 6)
    const target = random.pick(regions).memory
    const table = target.start + random.below(target.lengthBytes) - (random.chance(0.7) ? target.start % 16 : 0)
    for (let entry = 0; entry < entries; entry++) {
      const address = table + 16 * entry
      const holder = regions.find(({ memory: one }) => address >= one.start && address + 16 <= one.end)
      // The rings themselves are not written over: this driver wants to get somewhere.
      if (holder === undefined || address < driver.usedAddr + 6 + 8 * size) continue
      const flags = random.chance(0.03) ? { flags: VRING_DESC_F_INDIRECT } : {}
      driver.writeTable(address, [{ ...anyDescriptor(entries), ...flags }], holder.memory)
    }
    driver.setDescriptor(index, {
      addressLow: table % 2 ** 32,
      addressHigh: Math.floor(table / 2 ** 32),
      length: random.chance(0.1) ? random.pick([0, 8, 16 * 1025, 0xffff_fff0, random.u32()]) : 16 * entries,
      flags:
        VRING_DESC_F_INDIRECT |
        (random.chance(0.3) ? VRING_DESC_F_WRITE : 0) |
        (random.chance(0.05) ? VRING_DESC_F_NEXT : 0),
    })
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
  }

  const popOne = (): boolean => {
    const room = {
      chains: arena.chainCapacity - arena.chainCount,
      iovecs: arena.iovecCapacity - iovecsOf(arena),
      empty: iovecsOf(arena) === 0,
    }
    const before = arena.chainCount
    const expected = reference.pop(direction === 1, room)
    seen(expected.kind === 'fault' ? expected.code : expected.kind)
    let actual: number | string
    try {
      actual = queue.popInto(arena, direction)
    } catch (error) {
      if (!(error instanceof DriverFault)) throw error
      actual = error.code
    }
    agree('popInto', actual, expected.kind === 'fault' ? expected.code : POP[expected.kind])
    if (expected.kind === 'fault') return false
    agree('chains in the arena', arena.chainCount, expected.kind === 'chain' ? before + 1 : before)
    if (expected.kind === 'chain') agree('pieces', lastPieces(arena), expected.pieces)
    agree('open iovecs', arena.openIovecs, 0)
    return true
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
    ...regions.slice(1).map((region) => Bun.hash(region.memory.bytes)),
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
    for (let count = random.between(0, size + 1); count > 0; count--) if (!popOne()) return
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
  agree(
    'drops',
    Object.fromEntries(dropReasons.flatMap((reason, index) => (drops[index] === 0 ? [] : [[reason, drops[index]]]))),
    reference.drops,
  )
  for (const [reason, count] of Object.entries(reference.drops))
    coverage.set(reason, (coverage.get(reason) ?? 0) + count)
  queue[Symbol.dispose]()
  space.clear()
  for (const region of regions) {
    agree('views left', region.memory.buffers.filter((buffer) => !buffer.detached).length, 0)
  }
}

const iovecsOf = (arena: IovecArena): number => {
  const last = 2 * (arena.chainCount - 1)
  return arena.chainCount === 0 ? 0 : arena.chains[last]! + arena.chains[last + 1]!
}

const lastPieces = (arena: IovecArena): HostPiece[] => {
  const chain = 2 * (arena.chainCount - 1)
  return Array.from({ length: arena.chains[chain + 1]! }, (_, index) => {
    const [low, high, length, zero] = arena.iovecs.subarray(4 * (arena.chains[chain]! + index))
    if (zero !== 0) throw new Mismatch('the fourth word of an iovec is not 0')
    return { address: high! * 2 ** 32 + low!, length: length! }
  })
}
