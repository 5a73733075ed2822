/**
 * The control side of a VDUSE device against a kernel that the test plays: what it says is written by hand, and when it
 * answers is seen.
 */
import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import {
  VDUSE_DEV_REQUEST,
  VDUSE_DEV_RESPONSE,
  VDUSE_GET_VQ_STATE,
  VDUSE_REQ_RESULT_FAILED,
  VDUSE_REQ_RESULT_OK,
  VDUSE_SET_STATUS,
  VDUSE_SET_VQ_GROUP_ASID,
  VDUSE_SET_VQ_READY,
  VDUSE_SUSPEND,
  VDUSE_UPDATE_IOTLB,
} from '../../../../src/abi/vduse.ts'
import { ConfigSpace } from '../../../../src/device/config-space.ts'
import { featuresByName, implementedFeatures, mandatoryFeatures } from '../../../../src/device/features.ts'
import type { QueueEngine } from '../../../../src/device/queue-engine.ts'
import { VirtioNetDevice } from '../../../../src/device/virtio-net-device.ts'
import { native } from '../../../../src/sys/native.ts'
import { POLLIN, Poller } from '../../../../src/sys/poller.ts'
import { VduseDevice, type VqInfo } from '../../../../src/transport/vduse/device-fd.ts'
import { VduseTransport } from '../../../../src/transport/vduse/transport.ts'
import type { VqBase } from '../../../../src/virtqueue/virtqueue-config.ts'
import { socketPair } from '../../../support/socket-pair.ts'
import { poll } from '../../../support/vhost-user-client.ts'

const STARTING = 3
const NEGOTIATED = 11
const RUNNING = 15
const UNKNOWN_TYPE = 77
const KICK_FDS = [101, 102]

/** What the ioctls of the device node say. */
class ScriptedDevice extends VduseDevice {
  readonly kickFds: string[] = []
  /** By queue. */
  ready = [true, true]

  override vqInfo(index: number): VqInfo {
    looks++
    const ready = this.ready[index]!
    return { size: 256, descAddr: 0x1000, availAddr: 0x2000, usedAddr: 0x3000, availIndex: 7, ready }
  }

  override setKickFd(index: number, eventFd: number): void {
    this.kickFds.push(`queue ${index}: ${eventFd}`)
  }

  override driverFeatures(): bigint {
    return featuresByName.get('version_1')! | featuresByName.get('access_platform')!
  }

  override injectConfigIrq(): boolean {
    return true
  }
}

let ours: number
let theirs: number
let vduse: ScriptedDevice
let device: VirtioNetDevice
let transport: VduseTransport
let poller: Poller
/** What was done to the queues, and whether the kernel had its answer by then. */
let done: string[]
let progress: VqBase
/** Where each queue was started last. */
let bases: (VqBase | 'used')[]
let nextId: number
let nowMs: number
/** How often the kernel was asked about a queue. */
let looks = 0

const note = (what: string): void => {
  done.push(`${what} ${poll(ours, POLLIN, 0) === 0 ? 'before' : 'after'} the answer`)
}

const engine: QueueEngine = {
  start: (index, { base }) => {
    note(`start ${index}`)
    bases[index] = base
  },
  stop: (index) => {
    note(`stop ${index}`)
    return progress
  },
  base: () => progress,
  forgetMemory: () => note('unmap'),
}

beforeEach(() => {
  ;[ours, theirs] = socketPair()
  done = []
  progress = 0
  bases = []
  nextId = 1000
  vduse = new ScriptedDevice(theirs)
  device = new VirtioNetDevice({
    offeredFeatures: implementedFeatures,
    requiredFeatures: mandatoryFeatures,
    queueCount: 2,
    queueSizeMax: 256,
    config: new ConfigSpace({ mac: new Uint8Array([2, 0, 0, 0, 0, 1]), mtu: 1500, maxVirtqueuePairs: 1, linkUp: true }),
    engine,
    listener: { driverUp: () => {}, featuresUnmet: () => {}, mtuSet: () => {}, driverReset: () => {} },
  })
  nowMs = 1_000
  transport = new VduseTransport(
    vduse,
    device,
    KICK_FDS,
    () => {},
    () => nowMs,
  )
  poller = new Poller(1)
  transport.watch(poller)
})

afterEach(() => {
  transport[Symbol.dispose]()
  for (const fd of [ours, theirs]) native.vn_close(fd)
})

/** Writes a request, whose body is these words; its id. */
const send = (type: number, ...body: readonly number[]): number => {
  const request = new Uint8Array(VDUSE_DEV_REQUEST.sizeBytes)
  const view = new DataView(request.buffer)
  view.setUint32(VDUSE_DEV_REQUEST.type, type, true)
  view.setUint32(VDUSE_DEV_REQUEST.request_id, nextId, true)
  body.forEach((word, index) => {
    view.setUint32(VDUSE_DEV_REQUEST.body.padding + 4 * index, word, true)
  })
  expect(native.vn_write(ours, request, request.length)).toBe(request.length)
  return nextId++
}

/** Lets so much time pass, and the thread wake up when it is told to. */
const serveDue = (ms: number): void => {
  const untilMs = nowMs + ms
  for (;;) {
    const waitMs = transport.tick()
    if (waitMs < 0 || nowMs + waitMs > untilMs) break
    nowMs += waitMs
  }
  nowMs = untilMs
}

/** The queues that were started, in order. */
const started = (): string[] => done.filter((what) => what.startsWith('start')).map((what) => what.slice(0, 7))

const serve = (): void => {
  expect(poller.wait(1_000)).toBe(1)
  transport.serve()
}

/** All answers that there are. */
const answers = (): DataView<ArrayBuffer>[] => {
  const found: DataView<ArrayBuffer>[] = []
  while (poll(ours, POLLIN, 0) !== 0) {
    const bytes = new Uint8Array(VDUSE_DEV_RESPONSE.sizeBytes)
    expect(native.vn_read(ours, bytes, bytes.length)).toBe(bytes.length)
    found.push(new DataView(bytes.buffer))
  }
  return found
}

/** The answer to one request: true for OK. */
const ask = (type: number, ...body: readonly number[]): boolean => {
  const id = send(type, ...body)
  serve()
  const [answer, ...others] = answers()
  expect(others).toEqual([])
  expect(answer!.getUint32(VDUSE_DEV_RESPONSE.request_id, true)).toBe(id)
  return answer!.getUint32(VDUSE_DEV_RESPONSE.result, true) === VDUSE_REQ_RESULT_OK
}

const bringUp = (): void => {
  for (const status of [STARTING, NEGOTIATED, RUNNING]) expect(ask(VDUSE_SET_STATUS, status)).toBeTrue()
}

/** A request of every type, in an order in which each can be carried out, and one that nobody knows. */
const EVERY_TYPE: readonly (readonly [number, ...(readonly number[])])[] = [
  [VDUSE_SET_STATUS, STARTING],
  [VDUSE_SET_STATUS, NEGOTIATED],
  [VDUSE_SET_VQ_GROUP_ASID, 0, 0],
  [VDUSE_SET_VQ_READY, 0, 1],
  [VDUSE_SET_STATUS, RUNNING],
  [VDUSE_UPDATE_IOTLB, 0, 0, 0xffff_ffff, 0xffff_ffff],
  [VDUSE_GET_VQ_STATE, 1],
  [UNKNOWN_TYPE, 1, 2, 3],
  [VDUSE_SUSPEND],
  [VDUSE_SET_STATUS, 0],
]

describe('a request', () => {
  test('conformance 59: has exactly one answer, with its id, however many there are at once', () => {
    const ids = EVERY_TYPE.map((request) => send(...request))
    serve()
    expect(answers().map((answer) => answer.getUint32(VDUSE_DEV_RESPONSE.request_id, true))).toEqual(ids)
    expect(transport.messages).toBe(EVERY_TYPE.length)
  })

  test('120, 121: of an unknown type, or for a queue that does not exist, is answered with FAILED', () => {
    bringUp()
    expect(ask(UNKNOWN_TYPE)).toBeFalse()
    for (const index of [2, 3, 0xffff, 0xffff_ffff]) {
      expect(ask(VDUSE_GET_VQ_STATE, index)).toBeFalse()
      expect(ask(VDUSE_SET_VQ_READY, index, 1)).toBeFalse()
      expect(ask(VDUSE_SET_VQ_READY, index, 0)).toBeFalse()
    }
    expect(ask(VDUSE_SET_VQ_GROUP_ASID, 1, 0)).toBeFalse()
    expect(ask(VDUSE_SET_VQ_GROUP_ASID, 0, 1)).toBeFalse()
    expect(done).toEqual(['start 0 after the answer', 'start 1 after the answer'])
  })

  test('conformance 61: is answered with zeroes in all that is reserved or is not its own', () => {
    progress = 0xabcd
    for (const [type, ...body] of EVERY_TYPE) {
      send(type, ...body)
      serve()
      const [answer] = answers()
      const bytes = new Uint8Array(answer!.buffer)
      const { index, state } = VDUSE_DEV_RESPONSE.body.vq_state
      const stateBytes =
        type === VDUSE_GET_VQ_STATE ? [index, index + 4, state.split.avail_index, state.split.avail_index + 2] : []
      const own = (at: number): boolean =>
        at < VDUSE_DEV_RESPONSE.reserved ||
        (at >= stateBytes[0]! && at < stateBytes[1]!) ||
        (at >= stateBytes[2]! && at < stateBytes[3]!)
      expect([type, [...bytes].filter((byte, at) => !own(at) && byte !== 0)]).toEqual([type, []])
    }
  })
})

describe('SET_STATUS', () => {
  test(
    'conformance 60: 0 stops the queues, then unmaps, then is answered; the next start gives the ' +
      'kick descriptors anew',
    () => {
      bringUp()
      const kickFds = ['queue 0: 101', 'queue 1: 102']
      expect(vduse.kickFds).toEqual(kickFds)
      done = []
      expect(ask(VDUSE_SET_STATUS, 0)).toBeTrue()
      expect(done).toEqual(['stop 0 before the answer', 'stop 1 before the answer', 'unmap before the answer'])
      // It is normal to hear it again.
      expect(ask(VDUSE_SET_STATUS, 0)).toBeTrue()
      bringUp()
      expect(vduse.kickFds).toEqual([...kickFds, ...kickFds])
    },
  )

  test('conformance 64: DRIVER_OK is answered before a queue runs, and could interrupt', () => {
    bringUp()
    expect(done).toEqual(['start 0 after the answer', 'start 1 after the answer'])
  })

  test('conformance 64: a queue that is ready only after DRIVER_OK runs from then on, without a message', () => {
    vduse.ready = [false, false]
    bringUp()
    serveDue(100)
    expect(done).toEqual([])
    vduse.ready = [true, true]
    serveDue(1_000)
    expect(started()).toEqual(['start 0', 'start 1'])
    expect(bases).toEqual([7, 7])
    expect(transport.tick()).toBe(-1)
  })

  test('conformance 64: a queue that is ready late runs, however often the thread was woken, however late', () => {
    for (const lateMs of [15_000, 600_000]) {
      vduse.ready = [true, false]
      bringUp()
      expect(started()).toEqual(['start 0'])
      const wakeUps = looks
      for (let i = 0; i < 10_000; i++) transport.tick()
      // Waking up is no reason to ask the kernel again.
      expect(looks).toBe(wakeUps)
      serveDue(lateMs)
      vduse.ready = [true, true]
      serveDue(2_000)
      expect(started()).toEqual(['start 0', 'start 1'])
      expect(ask(VDUSE_SET_STATUS, 0)).toBeTrue()
      done = []
    }
  })

  test('a queue that is not ready at a takeover runs when it is, from the end of its used ring', () => {
    for (const ready of [
      [false, false],
      [true, false],
      [false, true],
    ]) {
      vduse.ready = ready
      expect(transport.adopt()).toBeTrue()
      expect(started()).toEqual([0, 1].filter((index) => ready[index]).map((index) => `start ${index}`))
      serveDue(3_000)
      vduse.ready = [true, true]
      serveDue(2_000)
      expect(started().toSorted()).toEqual(['start 0', 'start 1'])
      expect(bases).toEqual(['used', 'used'])
      expect(ask(VDUSE_SET_STATUS, 0)).toBeTrue()
      done = []
      bases = []
    }
  })

  test('nothing is looked for after a reset, a suspend, or a message that says which queue is ready', () => {
    for (const end of [() => ask(VDUSE_SET_STATUS, 0), () => ask(VDUSE_SUSPEND), () => ask(VDUSE_SET_VQ_READY, 0, 0)]) {
      vduse.ready = [true, false]
      bringUp()
      expect(transport.tick()).toBeGreaterThan(0)
      end()
      expect(transport.tick()).toBe(-1)
      ask(VDUSE_SET_STATUS, 0)
    }
  })
})

test('conformance 62: UPDATE_IOTLB unmaps, then is answered', () => {
  bringUp()
  done = []
  expect(ask(VDUSE_UPDATE_IOTLB, 0, 0, 0xffff_ffff, 0xffff_ffff)).toBeTrue()
  expect(done).toEqual(['unmap before the answer'])
})

test('conformance 63: GET_VQ_STATE tells where a split ring is, running, stopped and anew', () => {
  const stateOf = (index: number): number => {
    send(VDUSE_GET_VQ_STATE, index)
    serve()
    const [answer] = answers()
    const { vq_state } = VDUSE_DEV_RESPONSE.body
    expect(answer!.getUint32(VDUSE_DEV_RESPONSE.result, true)).not.toBe(VDUSE_REQ_RESULT_FAILED)
    expect(answer!.getUint32(vq_state.index, true)).toBe(index)
    return answer!.getUint16(vq_state.state.split.avail_index, true)
  }
  bringUp()
  for (const base of [7, 0x8000, 0xffff, 0]) {
    progress = base
    expect([stateOf(0), stateOf(1)]).toEqual([base, base])
  }
  progress = 1234
  expect(ask(VDUSE_SET_VQ_READY, 1, 0)).toBeTrue()
  progress = 4321
  expect([stateOf(0), stateOf(1)]).toEqual([4321, 1234])
  expect(ask(VDUSE_SET_STATUS, 0)).toBeTrue()
  expect(stateOf(0)).toBe(0)
})
