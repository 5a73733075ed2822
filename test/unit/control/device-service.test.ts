/**
 * The device service in this thread, with queue workers in theirs: what a driver, the operator and the TAP do to it.
 */

import { afterEach, describe, expect, test } from 'bun:test'
import { DROP } from '../../../src/abi/drop-reason.ts'
import {
  VIRTIO_F_VERSION_1,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_STATUS,
} from '../../../src/abi/virtio.ts'
import { DRIVER_FAULT } from '../../../src/base/driver-faults.ts'
import { bit } from '../../support/bits.ts'
import { DeviceServiceRig, type ServiceRigOptions } from '../../support/device-service-rig.ts'
import { frameOf } from '../../support/queue-pair-rig.ts'

const PLAIN = bit(VIRTIO_F_VERSION_1) | bit(VIRTIO_NET_F_STATUS)
const WITH_PAIRS = PLAIN | bit(VIRTIO_NET_F_CTRL_VQ) | bit(VIRTIO_NET_F_MQ)
const RUNNING = 15

let rig: DeviceServiceRig | undefined
afterEach(async () => {
  await rig?.[Symbol.asyncDispose]()
  rig = undefined
})

const start = async (
  options: ServiceRigOptions,
  prepare?: (each: DeviceServiceRig) => void,
): Promise<DeviceServiceRig> => {
  rig = await DeviceServiceRig.start(options, prepare)
  return rig
}

const drops = (each: DeviceServiceRig, reason: keyof typeof DROP): number =>
  each.pairBlocks.reduce((sum, block) => sum + block.drops[DROP[reason]]!, 0)

/** One frame from the driver to the host. */
const carries = (each: DeviceServiceRig, queue = 1): void => {
  const frame = frameOf(100, queue)
  each.send(queue, frame)
  let out: Uint8Array | null = null
  each.until('a frame', () => {
    out = each.sent(queue >> 1)
    return out !== null
  })
  expect(out!).toEqual(frame)
}

describe('a driver', () => {
  test('is served from DRIVER_OK to its reset, and the next one after it', async () => {
    const each = await start({ offered: PLAIN })
    expect(each.posted).toContainEqual({ kind: 'serving' })
    for (let driver = 0; driver < 3; driver++) {
      each.bringUp(PLAIN)
      expect(each.block.status).toBe(RUNNING)
      expect(each.block.features).toBe(PLAIN)
      carries(each)
      each.offerBuffer(0)
      each.arrive(frameOf(100, 9))
      each.until('a packet', () => each.drivers[0]!.reap() !== undefined)
      each.reset()
      expect([each.block.status, each.block.resets]).toEqual([0, driver + 1])
    }
  })

  test('gets nothing that was received for another one, a paused guest what came meanwhile', async () => {
    const each = await start({ offered: PLAIN })
    each.bringUp(PLAIN)
    // It has no buffers.
    for (let frames = 0; frames < 3; frames++) each.arrive(frameOf(100, 1))
    each.reset()
    each.arrive(frameOf(100, 2))
    each.bringUp(PLAIN)
    expect(drops(each, 'rx_no_driver')).toBe(4)
    each.arrive(frameOf(100, 3))
    each.act(() => each.device.renew())
    each.bringUp(PLAIN)
    each.offerBuffer(0)
    each.until('the packet of before', () => each.drivers[0]!.reap() !== undefined)
    expect(drops(each, 'rx_no_driver')).toBe(4)
  })

  test('that is taken over gets what came meanwhile', async () => {
    const each = await start({ offered: PLAIN, adopt: true }, (before) => {
      before.arrive(frameOf(100, 1))
      before.transport.adopts = () => {
        before.device.adopt(RUNNING, PLAIN)
        before.setUpQueues([0, 1])
        before.device.settle()
      }
    })
    expect(each.log.join()).toContain('took over a running driver')
    expect(each.transport.told).toContain('config changed')
    each.offerBuffer(0)
    each.until('a packet', () => each.drivers[0]!.reap() !== undefined)
    expect(drops(each, 'rx_no_driver')).toBe(0)
    carries(each)
  })

  test('that breaks a ring is told of it, and served again after a reset', async () => {
    const each = await start({ offered: PLAIN })
    each.bringUp(PLAIN)
    each.drivers[1]!.availIdx = 1000
    each.kick(1)
    each.until('the quarantine', () => each.transport.told.some((what) => what.startsWith('queue 1')))
    expect(each.transport.told).toContain(`queue 1 failed: ${DRIVER_FAULT.AVAIL_OVERRUN}`)
    expect(each.log.join()).toContain('queue 1 quarantined until the driver resets the device: AVAIL_OVERRUN')
    expect(each.block.linkUp).toBe(false)
    each.reset()
    each.until('the link', () => each.block.linkUp)
    each.bringUp(PLAIN)
    carries(each)
  })
})

describe('pairs in use', () => {
  const start2 = (): Promise<DeviceServiceRig> => start({ offered: WITH_PAIRS, pairs: 2 })
  const all = [0, 1, 2, 3, 4]

  test('are one of a driver that can ask for more, until it does', async () => {
    const each = await start2()
    each.bringUp(WITH_PAIRS, all)
    each.send(3, frameOf(100))
    each.until('the drop', () => drops(each, 'queue_disabled') === 1)
    each.queues.setActivePairs(2)
    carries(each, 3)
  })

  test('are those of this driver, not of the one before', async () => {
    const each = await start2()
    each.bringUp(WITH_PAIRS, all)
    each.reset()
    // Without a control queue there is nobody to ask for a second pair.
    each.bringUp(PLAIN, [0, 1, 2, 3])
    carries(each, 3)
    expect(drops(each, 'queue_disabled')).toBe(0)
    each.reset()
    each.bringUp(WITH_PAIRS, all)
    each.send(3, frameOf(100))
    each.until('the drop', () => drops(each, 'queue_disabled') === 1)
  })

  test('stay as they are when one ring is started anew', async () => {
    const each = await start2()
    each.bringUp(WITH_PAIRS, all)
    each.queues.setActivePairs(2)
    for (const index of [0, 1, 2]) {
      each.act(
        () => each.device.setVqReady(index, false),
        () => each.device.setVqReady(index, true),
        () => each.device.settle(),
      )
      carries(each, 3)
    }
    expect(drops(each, 'queue_disabled')).toBe(0)
  })
})

test('the operator switches the link, and the driver is told', async () => {
  const each = await start({ offered: PLAIN })
  each.bringUp(PLAIN)
  for (const up of [false, true]) {
    each.transport.told.length = 0
    const sequence = each.block.requestLinkUp(up)
    each.wake()
    each.until('the request', () => each.block.requestDone === sequence)
    expect(each.block.linkUp).toBe(up)
    expect(each.transport.told).toEqual(['config changed'])
    expect(each.tapped).toContain(`carrier ${up}`)
  }
  expect(each.posted.filter(({ kind }) => kind === 'request-done')).toHaveLength(2)
})

test('the TAP is told of the driver only after DRIVER_OK was answered', async () => {
  const each = await start({ offered: PLAIN })
  each.tapped.length = 0
  each.act(
    () => each.device.setStatus(3),
    () => each.device.setFeatures(PLAIN),
    () => each.device.setStatus(11),
  )
  each.round()
  expect(each.tapped).toEqual([])
  each.act(() => each.device.setStatus(RUNNING))
  expect(each.tapped).toContain(`offloads ${PLAIN.toString(16)}`)
})

test('a TAP that answers as none does is in the log', async () => {
  const each = await start({ offered: PLAIN })
  each.pairBlocks[0]!.queues[1].noteTapError(1)
  each.wake()
  each.until('the line', () =>
    each.log.some((line) => line.includes('queue 1, write of the TAP: EPERM, 1 times so far')),
  )
})

test('it ends when main requests it, and when its transport has ended', async () => {
  const each = await start({ offered: PLAIN })
  each.transport.ended = { why: 'it has gone', failed: false }
  expect(each.service.round(0)).toBe(false)
  expect(each.posted.at(-1)).toEqual({ kind: 'ended', end: { why: 'it has gone', failed: false } })
  each.transport.ended = null
  expect(each.service.round(0)).toBe(true)
  each.block.requestStop()
  expect(each.service.round(0)).toBe(false)
})
