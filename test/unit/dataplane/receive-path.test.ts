/** The receive path between a real TAP and a ring of either layout, with the record of chains in flight beside it. */

import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { dropReasons } from '../../../src/abi/drop-reason.ts'
import { TUN_F_CSUM, TUN_F_TSO4 } from '../../../src/abi/tun.ts'
import { DESC_STATE_SPLIT, inflightRegionBytes, QUEUE_REGION_SPLIT } from '../../../src/abi/vhost-user-inflight.ts'
import {
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_HASH_REPORT,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../../../src/abi/virtio.ts'
import { QueueBlock } from '../../../src/channel/queue-block.ts'
import { MigrationLog } from '../../../src/dataplane/migration-log.ts'
import { PacketIo } from '../../../src/dataplane/packet-io.ts'
import { ReceivePath } from '../../../src/dataplane/receive-path.ts'
import { TapErrors } from '../../../src/dataplane/tap-errors.ts'
import { TapQueue } from '../../../src/dataplane/tap-queue.ts'
import { TURN } from '../../../src/dataplane/turn.ts'
import { netHeaderBytes } from '../../../src/device/net-header.ts'
import { AddressSpace } from '../../../src/memory/address-space.ts'
import { IovecArena } from '../../../src/memory/iovec-arena.ts'
import type { OwnedFd } from '../../../src/sys/fd.ts'
import { Poller } from '../../../src/sys/poller.ts'
import { PackedInflight, SplitInflight } from '../../../src/virtqueue/inflight-record.ts'
import { newVirtqueue } from '../../../src/virtqueue/new-virtqueue.ts'
import type { Virtqueue } from '../../../src/virtqueue/virtqueue.ts'
import { bits } from '../../support/bits.ts'
import { SplitDriver } from '../../support/driver-model.ts'
import { concat, encodeHeader, gsoHeader, makePacket, noise, type PacketShape } from '../../support/frames.ts'
import { TestMemory } from '../../support/memory.ts'
import { PackedDriver } from '../../support/packed-driver.ts'
import { countsOf } from '../../support/pieces.ts'
import { drain, Namespace, unavailable, writeFrame } from '../../support/tap-lab.ts'

const reason = unavailable()
if (reason !== null) console.log(`receive path: skipped, ${reason}`)

const offloads = bits(VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4)
const modern = bits(VIRTIO_F_VERSION_1)
const merge = bits(VIRTIO_NET_F_MRG_RXBUF)
const BUFFERS_AT = 0x8_0000

const tcp = (length: number): PacketShape => ({ protocol: 'tcp', version: 4, payload: noise(length, length + 1) })
/** A finished frame of so many bytes. */
const frameOf = (bytes: number): Uint8Array => makePacket(tcp(bytes - 54), true).frame
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex')

/** A driver that offers receive buffers, a device that fills them from `tap`, and what is between them. */
class Receiver {
  readonly memory = new TestMemory(1 << 22)
  readonly record: TestMemory
  readonly driver: SplitDriver | PackedDriver
  readonly packed: boolean
  readonly headerBytes: number
  readonly path: ReceivePath
  readonly queue: Virtqueue
  readonly #io: PacketIo
  readonly #drops = new Float64Array(dropReasons.length)
  /** Where the buffers of each chain are, in the order of the chains. */
  readonly #given: { id: number; pieces: { address: number; length: number }[] }[] = []
  #nextBuffer: number

  constructor(tap: OwnedFd, hasVnetHdr: boolean, shape: { packed: boolean; size: number; features: bigint }) {
    const { packed, size } = shape
    this.packed = packed
    const layout = packed ? bits(VIRTIO_F_RING_PACKED) : 0n
    const features = shape.features | layout | bits(VIRTIO_RING_F_INDIRECT_DESC)
    this.headerBytes = netHeaderBytes(features)
    this.driver = packed
      ? new PackedDriver(this.memory, { size })
      : new SplitDriver(this.memory, { size, start: 0xfffe })
    this.record = new TestMemory(inflightRegionBytes(size, packed))
    this.#nextBuffer = this.memory.start + BUFFERS_AT
    const space = new AddressSpace()
    space.add(this.memory.region())
    const { descAddr, availAddr, usedAddr } = this.driver
    const poller = new Poller(2)
    const inflight = packed ? new PackedInflight(this.record) : new SplitInflight(this.record)
    const base = packed ? 0x8000 : 0xfffe
    const config = { size, descAddr, availAddr, usedAddr, base, features }
    this.queue = newVirtqueue(space, config, { drops: this.#drops, inflight })
    const arena = new IovecArena(8192, 8192)
    const counters = { rx: new Float64Array(4), tx: new Float64Array(4), drops: this.#drops }
    this.#io = new PacketIo(arena, new IovecArena(8192, 8192), { hasVnetHdr }, counters)
    this.#io.setPolicy(features, 1522)
    const queue = new TapQueue(poller, this.#io)
    queue.use(tap.fd)
    const unexpected = (): void => {
      throw new Error('the path has failed')
    }
    this.path = new ReceivePath(
      {
        block: QueueBlock.private(),
        drops: this.#drops,
        space,
        log: new MigrationLog(space),
        poller,
        call: unexpected,
        failed: unexpected,
      },
      { arena, io: this.#io, tap: queue, errors: new TapErrors(unexpected), tapFailed: unexpected },
    )
    this.path.started(this.queue)
  }

  /** Offers a chain of buffers of these lengths; false if the ring has no room for it. */
  offer(lengths: readonly number[], indirect = false): boolean {
    const pieces = lengths.map((length) => {
      const address = this.#nextBuffer
      this.#nextBuffer += length
      return { address, length, writable: true }
    })
    const id = this.driver.add(pieces, indirect ? { indirectFrom: 0 } : {})
    if (id < 0) return false
    this.#given.push({ id, pieces })
    this.driver.publish()
    return true
  }

  /** The next used chain: the frame, or all that is there if it is shorter than a header. They come in order. */
  reap(): { length: number; frame: string } | undefined {
    const used = this.driver.reap()
    if (used === undefined) return undefined
    const { id, pieces } = this.#given.shift()!
    expect(used.id).toBe(id)
    const bytes = concat(
      ...pieces.map(({ address, length }) =>
        this.memory.bytes.subarray(address - this.memory.start, address - this.memory.start + length),
      ),
    )
    return { length: used.length, frame: hex(bytes.subarray(this.headerBytes, used.length)) }
  }

  /** Chains that the record has in flight. A packed ring's record has those of a batch that is being shown only. */
  get inFlight(): number {
    if (this.packed) return 0
    const at = (index: number): number =>
      QUEUE_REGION_SPLIT.desc + index * DESC_STATE_SPLIT.sizeBytes + DESC_STATE_SPLIT.inflight
    return Array.from({ length: this.driver.size }, (_, index): number => this.record.bytes[at(index)]!).reduce(
      (total, flag) => total + flag,
      0,
    )
  }

  /** What was dropped since the last call. */
  takeDrops(): object {
    const drops = countsOf(this.#drops)
    this.#drops.fill(0)
    return drops
  }

  [Symbol.dispose](): void {
    this.#io[Symbol.dispose]()
  }
}

for (const vnetHdr of [true, false]) {
  describe.skipIf(reason !== null)(`receive path, TAP ${vnetHdr ? 'with' : 'without'} vnet header`, () => {
    let namespace: Namespace
    let peer: OwnedFd
    let tap: OwnedFd
    let receiver: Receiver | undefined

    beforeAll(() => {
      namespace = new Namespace()
      namespace.bridge('br0')
      const taken = TUN_F_CSUM | TUN_F_TSO4
      peer = namespace.tap({ name: 'peer', vnetHdr: true, bridge: 'br0', offloads: taken })
      tap = namespace.tap({ name: 'card', vnetHdr, bridge: 'br0', offloads: taken })
      for (const name of ['peer', 'card']) namespace.ip('link', 'set', name, 'mtu', '1504')
    })
    afterAll(() => {
      peer?.[Symbol.dispose]()
      tap?.[Symbol.dispose]()
      namespace?.[Symbol.dispose]()
    })
    beforeEach(() => drain(tap))
    afterEach(() => {
      receiver?.[Symbol.dispose]()
      receiver = undefined
    })

    const arrive = (frame: Uint8Array, header = encodeHeader({})): void => writeFrame(peer, concat(header, frame))
    const arriveGso = (payloadBytes: number): Uint8Array => {
      const packet = makePacket(tcp(payloadBytes))
      arrive(packet.frame, encodeHeader(gsoHeader(tcp(payloadBytes), packet, 1000)))
      return packet.frame
    }
    const newReceiver = (packed: boolean, features: bigint, size = 64): Receiver => {
      receiver = new Receiver(tap, vnetHdr, { packed, size, features })
      return receiver
    }

    for (const packed of [false, true]) {
      const layout = packed ? 'packed' : 'split'
      for (const [name, features] of [
        ['legacy driver', 0n],
        ['VERSION_1', modern],
        ['VERSION_1 with offloads', modern | offloads],
        ['HASH_REPORT', modern | bits(VIRTIO_NET_F_HASH_REPORT)],
      ] as const) {
        test(`${layout}, ${name}: a frame too long for the buffer is dropped, the next one gets the buffer`, () => {
          const each = newReceiver(packed, features)
          const room = 1514
          // As firmware offers them: a header of its own, then room for a frame; and in one piece.
          for (let chain = 0; chain < 8; chain++) {
            each.offer(chain % 2 === 0 ? [each.headerBytes, room] : [each.headerBytes + room])
          }
          const short = frameOf(100)
          const exact = frameOf(room)
          const long = frameOf(room + 4)
          // Alone, so that nothing else moves the ring.
          arrive(long)
          expect(each.path.turn()).toBe(TURN.idle)
          expect(each.takeDrops()).toEqual({ rx_buffer_too_small: 1 })
          expect(each.reap()).toBeUndefined()
          expect(each.inFlight).toBe(0)
          for (const frame of [short, long, long, exact, long, short]) arrive(frame)
          expect(each.path.turn()).toBe(TURN.idle)
          expect(each.takeDrops()).toEqual({ rx_buffer_too_small: 3 })
          for (const frame of [short, exact, short]) {
            expect(each.reap()).toEqual({ length: each.headerBytes + frame.length, frame: hex(frame) })
          }
          expect(each.reap()).toBeUndefined()
          expect(each.inFlight).toBe(0)
          expect(each.driver.outstanding).toBe(5)
        })
      }

      test(`${layout}: more frames too long than a turn takes end the turn, and none of the buffers`, () => {
        const each = newReceiver(packed, modern)
        each.offer([each.headerBytes, 1514])
        for (let count = 0; count < 300; count++) arrive(frameOf(1518))
        expect(each.path.turn()).toBe(TURN.more)
        expect(each.path.turn()).toBe(TURN.idle)
        expect(each.takeDrops()).toEqual({ rx_buffer_too_small: 300 })
        arrive(frameOf(1514))
        each.path.turn()
        expect(each.reap()).toMatchObject({ frame: hex(frameOf(1514)) })
      })

      test(`${layout}: buffers without room for a header go back, and those after them are used`, () => {
        const each = newReceiver(packed, modern)
        each.offer([11])
        each.offer([4, 4])
        each.offer([12, 1514])
        arrive(frameOf(1518))
        arrive(frameOf(200))
        each.path.turn()
        expect([each.reap()?.length, each.reap()?.length]).toEqual([0, 0])
        expect(each.reap()).toEqual({ length: 212, frame: hex(frameOf(200)) })
        expect(each.takeDrops()).toEqual({ rx_buffer_too_small: 3 })
        expect(each.inFlight).toBe(0)
      })

      test(`${layout}, mergeable: a frame longer than all of the full ring is dropped, and no buffer is used`, () => {
        // Chains of one descriptor, of two, and of an indirect table fill the ring with different numbers of chains.
        for (const [lengths, indirect] of [
          [[40], false],
          [[12, 28], false],
          [[20, 20], true],
          [[10, 10, 10, 10], false],
        ] as const) {
          const each = newReceiver(packed, modern | merge, 16)
          let chains = 0
          while (each.offer(lengths, indirect)) chains++
          arrive(frameOf(1000))
          arrive(frameOf(100))
          for (let turn = 0; turn < 8 && each.path.turn() === TURN.more; turn++);
          expect(each.takeDrops()).toEqual({ rx_too_long_for_ring: 1 })
          const used = Math.ceil((12 + 100) / 40)
          for (let left = 12 + 100; left > 0; left -= 40) expect(each.reap()?.length).toBe(Math.min(left, 40))
          expect(each.reap()).toBeUndefined()
          expect(each.driver.outstanding).toBe(chains - used)
          expect(each.inFlight).toBe(0)
          each[Symbol.dispose]()
          receiver = undefined
        }
      })

      test(`${layout}, mergeable: a frame waits for buffers while the ring has room for more`, () => {
        const each = newReceiver(packed, modern | merge, 64)
        const frame = frameOf(1000)
        arrive(frame)
        for (let chain = 0; chain < 9; chain++) each.offer([100])
        expect(each.path.turn()).toBe(TURN.noBuffers)
        expect(each.path.turn()).toBe(TURN.noBuffers)
        expect(each.reap()).toBeUndefined()
        expect(each.inFlight).toBe(0)
        for (let chain = 0; chain < 2; chain++) each.offer([100])
        expect(each.path.turn()).toBe(TURN.idle)
        expect(each.takeDrops()).toEqual({})
        for (let left = 1012; left > 0; left -= 100) expect(each.reap()?.length).toBe(Math.min(left, 100))
        expect(each.driver.outstanding).toBe(0)
      })

      // A TAP without vnet header hands over frames of the MTU only.
      if (vnetHdr) {
        test(`${layout}: a GSO frame too long for a big-packet buffer is dropped, and the buffer stays`, () => {
          const each = newReceiver(packed, modern | offloads)
          for (let chain = 0; chain < 2; chain++) each.offer([12, ...new Array(5).fill(4096)], true)
          arriveGso(30_000)
          const fits = arriveGso(20_000)
          arriveGso(30_000)
          expect(each.path.turn()).toBe(TURN.idle)
          expect(each.takeDrops()).toEqual({ rx_buffer_too_small: 2 })
          expect(each.reap()).toEqual({ length: 12 + fits.length, frame: hex(fits) })
          expect(each.reap()).toBeUndefined()
          expect(each.inFlight).toBe(0)
        })

        test(`${layout}, mergeable: the longest frame arrives in many small buffers, if the ring has so many`, () => {
          const each = newReceiver(packed, modern | offloads | merge, 1024)
          while (each.offer([100]));
          const frame = arriveGso(65_000)
          for (let turn = 0; turn < 16 && each.path.turn() === TURN.more; turn++);
          expect(each.takeDrops()).toEqual({})
          for (let left = 12 + frame.length; left > 0; left -= 100)
            expect(each.reap()?.length).toBe(Math.min(left, 100))
          expect(each.reap()).toBeUndefined()
        })
      }
    }
  })
}
