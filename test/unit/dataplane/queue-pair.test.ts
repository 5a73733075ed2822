/** A queue worker's loop in this thread: a driver model on either ring layout, and sockets that play the TAP. */

import { afterEach, describe, expect, test } from 'bun:test'
import { constants } from 'node:fs'
import { constants as osConstants } from 'node:os'
import { VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF } from '../../../src/abi/virtio.ts'
import { VIRTIO_NET_HDR_F_NEEDS_CSUM } from '../../../src/abi/virtio-net.ts'
import { DRIVER_FAULT } from '../../../src/base/driver-faults.ts'
import { DIRECTION, QUEUE_STATE } from '../../../src/channel/queue-block.ts'
import { SPURIOUS_KICKS_MAX } from '../../../src/dataplane/spurious-kicks.ts'
import { OwnedFd, openRaw } from '../../../src/sys/fd.ts'
import { bit } from '../../support/bits.ts'
import { SplitDriver } from '../../support/driver-model.ts'
import { makePacket, noise } from '../../support/frames.ts'
import type { PackedDriver } from '../../support/packed-driver.ts'
import { frameOf, QueuePairRig, type RigOptions } from '../../support/queue-pair-rig.ts'

const { rx, tx } = DIRECTION
const HANG_MS = 60_000

let rig: QueuePairRig | undefined
afterEach(() => {
  rig?.[Symbol.dispose]()
  rig = undefined
})

const newRig = (options: RigOptions): QueuePairRig => {
  rig = new QueuePairRig(options)
  return rig
}

/** Everything that the host gets. */
const allSent = (each: QueuePairRig): number[] => {
  const seeds: number[] = []
  for (let frame = each.sent(); frame !== undefined; frame = each.sent()) seeds.push(frame[11]!)
  return seeds
}

/** Everything that the driver gets. */
const allReceived = (each: QueuePairRig): number[] => {
  const seeds: number[] = []
  for (let one = each.received(); one !== undefined; one = each.received()) seeds.push(one.frame[11]!)
  return seeds
}

/** Makes the ring say what no driver may. */
const breakRing = (driver: SplitDriver | PackedDriver): void => {
  if (driver instanceof SplitDriver) driver.availIdx = driver.availIdx + driver.size + 1
  else driver.offerRaw([{ flags: 1 }])
}

describe.each([
  ['split', false],
  ['packed', true],
] as const)('a queue worker on %s rings', (_, packed) => {
  test('carries frames both ways, and calls the driver once a batch', () => {
    const each = newRig({ packed })
    each.startBoth()
    for (let seed = 1; seed <= 3; seed++) {
      each.offerBuffer()
      each.send(frameOf(100, seed))
      each.arrive(frameOf(200, seed + 10))
    }
    each.kick(tx)
    each.kick(rx)
    each.settle()
    expect(each.sent()).toEqual(frameOf(100, 1))
    expect(allSent(each)).toEqual([2, 3])
    expect(each.received()?.frame).toEqual(frameOf(200, 11))
    expect(allReceived(each)).toEqual([12, 13])
    expect(each.calls.toSorted()).toEqual([rx, tx])
    expect([each.counter(tx, 'packets'), each.counter(rx, 'packets')]).toEqual([3, 3])
    expect(each.drops).toEqual({})
  })

  test('finds what was made available before it was started, without a kick', () => {
    const each = newRig({ packed })
    each.send(frameOf(100, 1))
    each.offerBuffer()
    each.arrive(frameOf(100, 2))
    each.startBoth()
    each.settle()
    expect([allSent(each), allReceived(each)]).toEqual([[1], [2]])
  })

  test('asks a driver that has given no buffers for a kick, and takes them at once when it comes', () => {
    const each = newRig({ packed })
    each.startBoth()
    each.arrive(frameOf(100, 1))
    each.settle()
    expect(each.counter(rx, 'kicks')).toBe(0)
    each.offerBuffer()
    expect(each.drivers[rx]!.needsKick()).toBeTrue()
    each.kick(rx)
    each.settle()
    expect(allReceived(each)).toEqual([1])
    expect(each.drops).toEqual({})
  })

  test(
    'finds the buffers of a driver that never kicks for them, and looks less and less often while there are none',
    () => {
      const each = newRig({ packed })
      each.startBoth()
      for (let seed = 1; seed <= 3; seed++) {
        each.arrive(frameOf(100, seed))
        each.settle()
        each.offerBuffer()
        const got: number[] = []
        for (const untilMs = performance.now() + HANG_MS; got.length === 0 && performance.now() < untilMs; ) {
          each.round()
          got.push(...allReceived(each))
        }
        expect(got).toEqual([seed])
      }
      expect(each.counter(rx, 'kicks')).toBe(0)
      each.arrive(frameOf(100, 4))
      each.settle()
      const fromMs = performance.now()
      // Each sleeps until something is due: 10, 20, 40 and 80 ms, and after each comes a round that finds nothing.
      for (let rounds = 0; rounds < 8; rounds++) each.pair.round()
      expect(performance.now() - fromMs).toBeGreaterThan(100)
      expect(each.drops).toEqual({})
    },
    2 * HANG_MS,
  )

  test('a driver that sends one frame in each round keeps neither what is received waiting nor a command', () => {
    const each = newRig({ packed })
    each.startBoth()
    each.settle()
    each.offerBuffer()
    each.arrive(frameOf(100, 1))
    const got: number[] = []
    const sent: number[] = []
    // It is under way when the host's frame comes.
    each.send(frameOf(100, 2))
    each.kick(tx)
    each.round()
    each.kick(rx)
    for (let rounds = 0; rounds < 64 && got.length === 0; rounds++) {
      each.send(frameOf(100, 2))
      if (each.drivers[tx]!.needsKick()) each.kick(tx)
      each.round()
      sent.push(...allSent(each))
      while (each.drivers[tx]!.reap());
      got.push(...allReceived(each))
    }
    expect(got).toEqual([1])
    expect(sent.length).toBeGreaterThan(4)
    each.send(frameOf(100, 3))
    each.command({ kind: 'setLink', up: false })
  })

  test('keeps what the TAP does not take, in order, until it does', () => {
    const each = newRig({ packed, size: 64 })
    each.startBoth()
    const seeds = Array.from({ length: 40 }, (_, index) => index + 1)
    for (const seed of seeds) each.send(frameOf(100, seed))
    each.kick(tx)
    each.settle()
    expect(each.counter(tx, 'packets')).toBeLessThan(40)
    const got: number[] = []
    for (let rounds = 0; rounds < 40 && got.length < 40; rounds++) {
      got.push(...allSent(each))
      each.settle()
    }
    expect(got).toEqual(seeds)
    for (let chain = 0; chain < 40; chain++) expect(each.drivers[tx]!.reap()?.length).toBe(0)
    expect(each.drops).toEqual({})
  })

  test('goes on in new memory where it was in the old', () => {
    const each = newRig({ packed })
    each.startBoth()
    for (let seed = 1; seed <= 30; seed++) {
      each.offerBuffer()
      each.arrive(frameOf(100, seed))
      each.send(frameOf(100, seed + 100))
      if (seed % 3 === 0) each.command({ kind: 'forgetMemory' })
      each.kick(tx)
      each.kick(rx)
      each.settle()
      expect([allReceived(each), allSent(each)]).toEqual([[seed], [seed + 100]])
      while (each.drivers[tx]!.reap());
    }
    expect(each.mappings).toBe(11)
    // All views of the memory that was forgotten are gone.
    each.command({ kind: 'stop', direction: rx })
    each.command({ kind: 'stop', direction: tx })
    each.command({ kind: 'forgetMemory' })
    expect(each.memory.buffers.every((buffer) => buffer.detached)).toBeTrue()
  })

  test('offloads that the driver has switched off stay off over new memory and a restarted ring', () => {
    const each = newRig({ packed, features: bit(VIRTIO_NET_F_CSUM) | bit(VIRTIO_NET_F_GUEST_CSUM) })
    each.startBoth()
    const packet = makePacket({ protocol: 'udp', version: 4, payload: noise(64) })
    packet.frame.fill(0xff, 0, 6)
    const open = {
      flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
      csum_start: packet.transport,
      csum_offset: packet.checksumOffset,
    }
    const flagsOfNext = (): number | undefined => {
      each.offerBuffer()
      each.arrive(packet.frame, open)
      each.kick(rx)
      each.settle()
      return each.received()?.header[0]
    }
    expect(flagsOfNext()).toBe(VIRTIO_NET_HDR_F_NEEDS_CSUM)
    each.command({ kind: 'setPolicy', features: each.features & ~bit(VIRTIO_NET_F_GUEST_CSUM), mtu: 1500 })
    expect(flagsOfNext()).toBe(0)
    each.command({ kind: 'forgetMemory' })
    expect(flagsOfNext()).toBe(0)
    each.command({ kind: 'stop', direction: rx })
    each.start(rx, each.block.queues[rx].counters[12]!)
    expect(flagsOfNext()).toBe(0)
  })

  test('gives a new driver nothing that was received for the one before', () => {
    const each = newRig({ packed, features: bit(VIRTIO_NET_F_MRG_RXBUF) })
    each.startBoth()
    // One waits in private memory for more buffers than there are, others in the TAP.
    each.offerBuffer(100)
    for (let seed = 1; seed <= 4; seed++) each.arrive(frameOf(1000, seed))
    each.settle()
    each.command({ kind: 'stop', direction: rx })
    each.arrive(frameOf(100, 5))
    each.command({ kind: 'discardReceived' })
    expect(each.drops).toEqual({ rx_no_driver: 5 })
    each.arrive(frameOf(100, 6))
    each.start(rx, each.block.queues[rx].counters[12]!)
    each.offerBuffer()
    each.kick(rx)
    each.settle()
    expect(allReceived(each)[0]).toBe(6)
    expect(each.counter(rx, 'packets')).toBe(1)
  })

  test('discards what is sent while disabled, with the link down or without a TAP, and receives nothing', () => {
    const each = newRig({ packed })
    each.startBoth()
    each.offerBuffer()
    const ways = [
      [
        () => each.command({ kind: 'setEnabled', direction: tx, enabled: false }),
        () => each.command({ kind: 'setEnabled', direction: tx, enabled: true }),
      ],
      [() => each.command({ kind: 'setLink', up: false }), () => each.command({ kind: 'setLink', up: true })],
    ] as const
    for (const [close, open] of ways) {
      close()
      each.send(frameOf(100, 1))
      each.kick(tx)
      each.settle()
      expect(allSent(each)).toEqual([])
      open()
      each.send(frameOf(100, 2))
      each.kick(tx)
      each.settle()
      expect(allSent(each)).toEqual([2])
    }
    each.command({ kind: 'setEnabled', direction: rx, enabled: false })
    each.arrive(frameOf(100, 3))
    each.kick(rx)
    each.settle()
    expect(allReceived(each)).toEqual([])
    each.command({ kind: 'setEnabled', direction: rx, enabled: true })
    each.settle()
    expect(allReceived(each)).toEqual([3])
    each.command({ kind: 'setTap', fd: -1 })
    each.send(frameOf(100, 4))
    each.kick(tx)
    each.settle()
    expect(each.drops).toEqual({ queue_disabled: 1, link_down: 1, tap_gone: 1 })
  })

  test('quarantines the queue whose ring is broken, and serves the other', () => {
    for (const broken of [rx, tx]) {
      const each = newRig({ packed })
      each.startBoth()
      each.settle()
      each.takeDeviceWake()
      breakRing(each.drivers[broken]!)
      each.kick(broken)
      each.arrive(frameOf(100, 1))
      each.settle()
      const { fault, state } = each.block.queues[broken]
      expect(state).toBe(QUEUE_STATE.quarantined)
      expect(fault?.number).toBe(packed ? DRIVER_FAULT.TAIL_NOT_AVAILABLE : DRIVER_FAULT.AVAIL_OVERRUN)
      expect(each.counter(broken, 'quarantines')).toBe(1)
      expect(each.takeDeviceWake()).toBeTrue()
      expect(each.block.queues[1 - broken]!.state).toBe(QUEUE_STATE.running)
      // It is not waited for any more, kicked or not.
      each.kick(broken)
      each.settle()
      expect(each.counter(broken, 'quarantines')).toBe(1)
      each.command({ kind: 'forgetMemory' })
      expect(each.block.queues[broken].state).toBe(QUEUE_STATE.quarantined)
      each.command({ kind: 'stop', direction: broken })
      expect(each.block.queues[broken].fault).toBeNull()
      each[Symbol.dispose]()
      rig = undefined
    }
  })

  test('a ring that is mapped nowhere is quarantined at its start', () => {
    const each = newRig({ packed })
    const { config, wiring } = {
      config: { ...each.config(rx), descAddr: 2 ** 40 },
      wiring: { kickFd: each.kicks[rx]!.fd, callTarget: -1, inflight: null, usedLog: -1 },
    }
    each.command({ kind: 'start', direction: rx, config, wiring })
    expect(each.block.queues[rx].fault?.number).toBe(DRIVER_FAULT.RING_UNMAPPED)
  })

  test('memory that vanishes is the fault of each queue that touches it', () => {
    const each = newRig({ packed })
    each.startBoth()
    each.settle()
    each.memory.vanished = 1
    each.send(frameOf(100, 1))
    each.kick(tx)
    each.settle()
    expect(each.block.queues[tx].fault?.number).toBe(DRIVER_FAULT.MEMORY_VANISHED)
  })

  test('masks kicks that make nothing available, and finds what came meanwhile', () => {
    const each = newRig({ packed })
    each.startBoth()
    each.settle()
    while (each.counter(tx, 'kicks') <= SPURIOUS_KICKS_MAX) {
      each.kick(tx)
      each.round()
    }
    each.send(frameOf(100, 1))
    const startMs = performance.now()
    const found: number[] = []
    while (found.length === 0 && performance.now() - startMs < HANG_MS) {
      each.round()
      found.push(...allSent(each))
    }
    expect(found).toEqual([1])
    each.send(frameOf(100, 2))
    each.kick(tx)
    each.settle()
    expect(allSent(each)).toEqual([2])
  })

  test('calls that may wait are made when their number or their time has come', () => {
    const each = newRig({ packed, size: 64 })
    each.startBoth()
    each.command({ kind: 'setCoalescing', direction: tx, packets: 4, usecs: 500_000 })
    each.settle()
    const sendOne = (seed: number): void => {
      each.send(frameOf(100, seed))
      each.kick(tx)
      each.settle()
      allSent(each)
    }
    for (let seed = 1; seed <= 3; seed++) sendOne(seed)
    expect(each.calls).toEqual([])
    sendOne(4)
    expect(each.calls).toEqual([tx])
    sendOne(5)
    // A round sleeps until the call is due.
    for (let rounds = 0; rounds < 100 && each.calls.length < 2; rounds++) each.pair.round()
    expect(each.calls).toEqual([tx, tx])
    sendOne(6)
    each.command({ kind: 'stop', direction: tx })
    expect(each.calls).toEqual([tx, tx, tx])
  })

  test('a TAP that answers with errors is released, and the device worker woken', () => {
    const each = newRig({ packed })
    each.startBoth()
    each.offerBuffer()
    each.kick(rx)
    each.settle()
    each.takeDeviceWake()
    // Reading a folder is an error that no TAP has.
    using folder = new OwnedFd(openRaw('/', constants.O_RDONLY))
    each.command({ kind: 'setTap', fd: folder.fd })
    each.settle()
    expect(each.takeDeviceWake()).toBeTrue()
    // An errno that nobody has planned for, which the device worker writes to the log.
    expect([each.block.queues[rx].tapErrno, each.counter(rx, 'tapErrors')]).toEqual([osConstants.errno.EISDIR, 1])
    each.send(frameOf(100, 1))
    each.kick(tx)
    each.settle()
    expect(each.drops).toMatchObject({ tap_gone: 1 })
  })
})
