import { beforeEach, describe, expect, test } from 'bun:test'
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FAILED,
  VIRTIO_CONFIG_S_FEATURES_OK,
} from '../../../src/abi/virtio.ts'
import { ConfigSpace } from '../../../src/device/config-space.ts'
import {
  controlQueueFeatures,
  featuresByName,
  implementedFeatures,
  mandatoryFeatures,
} from '../../../src/device/features.ts'
import { netHeaderBytes } from '../../../src/device/net-header.ts'
import type { QueueEngine } from '../../../src/device/queue-engine.ts'
import { VirtioNetDevice } from '../../../src/device/virtio-net-device.ts'
import type { VirtqueueConfig, VqBase } from '../../../src/virtqueue/virtqueue-config.ts'

/** Records what the device asks for: the real engine needs workers and a TAP, and is tested end to end. */
class RecordingEngine implements QueueEngine {
  readonly calls: string[] = []
  readonly specs: VirtqueueConfig[] = []
  progress: VqBase = 0
  start(index: number, spec: VirtqueueConfig): void {
    this.calls.push(`start ${index}`)
    this.specs.push(spec)
  }
  stop(index: number): VqBase {
    this.calls.push(`stop ${index}`)
    return this.progress
  }
  base(): VqBase {
    return this.progress
  }
  forgetMemory(): void {
    this.calls.push('forget')
  }
}

const STARTING = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER
const NEGOTIATED = STARTING | VIRTIO_CONFIG_S_FEATURES_OK
const RUNNING = NEGOTIATED | VIRTIO_CONFIG_S_DRIVER_OK
const feature = (name: string): bigint => featuresByName.get(name) ?? 0n
const required = feature('version_1') | feature('access_platform')

let engine: RecordingEngine
/** What the device told of its driver. */
let told: string[]
let device: VirtioNetDevice

beforeEach(() => {
  engine = new RecordingEngine()
  told = []
  const mac = new Uint8Array([2, 0, 0, 0, 0, 1])
  device = new VirtioNetDevice({
    offeredFeatures: implementedFeatures,
    requiredFeatures: mandatoryFeatures,
    queueCount: 2,
    queueSizeMax: 256,
    config: new ConfigSpace({ mac, mtu: 1500, maxVirtqueuePairs: 1, linkUp: true }),
    engine,
    listener: {
      driverUp: (features) => told.push(`up ${features.toString(16)}, ${engine.calls.length} calls`),
      featuresUnmet: (which) => told.push(which.join(', ')),
      mtuSet: (mtu) => told.push(`MTU ${mtu}`),
      driverReset: () => told.push('reset'),
    },
  })
})

const setUpQueue = (index: number): void => {
  expect(device.setVqNum(index, 256)).toBeNull()
  expect(device.setVqAddr(index, 0x1000, 0x2000, 0x3000)).toBeNull()
  expect(device.setVqState(index, 0)).toBeNull()
  expect(device.setVqReady(index, true)).toBeNull()
}

const bringUp = (features = implementedFeatures): void => {
  expect(device.setStatus(STARTING)).toBeNull()
  expect(device.setFeatures(features)).toBeNull()
  expect(device.setStatus(NEGOTIATED)).toBeNull()
  setUpQueue(0)
  setUpQueue(1)
  expect(device.setStatus(RUNNING)).toBeNull()
  device.settle()
}

describe('the 13 control messages', () => {
  test('walk a driver from set-up through traffic to reset', () => {
    expect(device.setStatus(STARTING)).toBeNull()
    expect(device.setFeatures(required)).toBeNull()
    expect(device.getFeatures()).toBe(required)
    expect(device.setStatus(NEGOTIATED)).toBeNull()
    expect(device.getStatus()).toBe(NEGOTIATED)
    expect(device.getConfig(0, 6)).toEqual(new Uint8Array([2, 0, 0, 0, 0, 1]))
    expect(device.setConfig(0, new Uint8Array(6))).toBeNull()
    expect(device.getConfig(0, 6)).toEqual(new Uint8Array([2, 0, 0, 0, 0, 1]))
    expect(device.setVqNum(0, 128)).toBeNull()
    expect(device.setVqAddr(0, 0x1000, 0x2000, 0x3000)).toBeNull()
    expect(device.setVqState(0, 7)).toBeNull()
    expect(device.setVqReady(0, true)).toBeNull()
    expect(device.getVqReady(0)).toBe(true)
    expect(device.getVqReady(1)).toBe(false)
    expect(device.getVqState(0)).toEqual(7)
    expect(device.setStatus(RUNNING)).toBeNull()
    device.settle()
    expect(engine.specs).toEqual([
      {
        size: 128,
        descAddr: 0x1000,
        availAddr: 0x2000,
        usedAddr: 0x3000,
        base: 7,
        features: required,
      },
    ])
    engine.progress = 9
    expect(device.getVqState(0)).toEqual(9)
    expect(device.updateIotlb(0, Number.MAX_SAFE_INTEGER)).toBeNull()
    expect(device.setStatus(0)).toBeNull()
    expect(engine.calls).toEqual(['start 0', 'forget', 'stop 0', 'forget'])
  })
})

describe('status', () => {
  test('nothing runs before DRIVER_OK', () => {
    device.setStatus(STARTING)
    device.setFeatures(implementedFeatures)
    device.setStatus(NEGOTIATED)
    setUpQueue(0)
    device.settle()
    expect(engine.calls).toEqual([])
  })

  test('DRIVER_OK before FEATURES_OK is refused', () => {
    device.setStatus(STARTING)
    expect(device.setStatus(STARTING | VIRTIO_CONFIG_S_DRIVER_OK)).toContain('DRIVER_OK before FEATURES_OK')
    expect(device.getStatus()).toBe(STARTING)
  })

  test('a bit cleared without a reset is refused', () => {
    bringUp()
    expect(device.setStatus(STARTING)).toContain('without a reset')
    expect(device.getStatus()).toBe(RUNNING)
  })

  test('a reset stops the queues before it drops the memory, and everything is as new', () => {
    bringUp()
    expect(device.setStatus(0)).toBeNull()
    expect(engine.calls).toEqual(['start 0', 'start 1', 'stop 0', 'stop 1', 'forget'])
    expect([device.getStatus(), device.getFeatures(), device.getVqReady(0)]).toEqual([0, 0n, false])
    expect(device.resets).toBe(1)
  })

  test('whoever listens is told of a driver before its queues run, and of its reset', () => {
    device.setStatus(0)
    bringUp(required)
    device.setStatus(0)
    device.setStatus(0)
    expect(told).toEqual([`up ${required.toString(16)}, 1 calls`, 'reset'])
  })

  test('a second reset is normal', () => {
    bringUp()
    device.setStatus(0)
    expect(device.setStatus(0)).toBeNull()
    expect(device.resets).toBe(1)
  })

  test('the same features are accepted again after a reset, any number of times', () => {
    for (let i = 0; i < 50; i++) {
      bringUp()
      device.setStatus(0)
    }
    expect(device.resets).toBe(50)
  })

  test('FAILED stops the queues', () => {
    bringUp()
    expect(device.setStatus(RUNNING | VIRTIO_CONFIG_S_FAILED)).toBeNull()
    expect(engine.calls.slice(-2)).toEqual(['stop 0', 'stop 1'])
    device.settle()
    expect(engine.calls.slice(-2)).toEqual(['stop 0', 'stop 1'])
  })
})

describe('features', () => {
  const refusal = (features: bigint): string | null => {
    device.setStatus(STARTING)
    device.setFeatures(features)
    return device.setStatus(NEGOTIATED)
  }

  test.each([
    ['72 a bit that is not offered', required | (1n << 17n), 'not offered'],
    ['74 no VERSION_1', feature('access_platform'), 'mandatory: version_1'],
    ['no ACCESS_PLATFORM', feature('version_1'), 'mandatory: access_platform'],
  ])('%s is refused at FEATURES_OK', (_name, features, why) => {
    expect(refusal(features)).toContain(why)
    expect(device.getStatus()).toBe(STARTING)
  })

  test.each([
    ['guest_tso4', 'guest_tso4 without guest_csum', []],
    ['guest_tso6', 'guest_tso6 without guest_csum', []],
    ['guest_uso4', 'guest_uso4 without guest_csum', []],
    ['guest_uso6', 'guest_uso6 without guest_csum', []],
    ['guest_ecn', 'guest_ecn without guest_tso4 or guest_tso6', ['guest_csum']],
    ['host_tso4', 'host_tso4 without csum', []],
    ['host_tso6', 'host_tso6 without csum', []],
    ['host_uso', 'host_uso without csum', []],
    ['host_ecn', 'host_ecn without host_tso4 or host_tso6', ['csum']],
    ['speed_duplex', 'speed_duplex without status', []],
  ])('73 %s without what it requires is not used, and said', (name, said, others) => {
    const complete = others.reduce((set, other) => set | feature(other), required)
    expect(refusal(complete | feature(name))).toBeNull()
    expect(device.getFeatures()).toBe(complete)
    expect(device.chosenFeatures).toBe(complete | feature(name))
    expect(told).toEqual([said])
  })

  test('73 what builds on a feature that is not used is not used either', () => {
    expect(refusal(required | feature('guest_tso4') | feature('guest_ecn') | feature('mtu'))).toBeNull()
    expect(device.getFeatures()).toBe(required | feature('mtu'))
    expect(told).toEqual(['guest_tso4 without guest_csum, guest_ecn without guest_tso4 or guest_tso6'])
  })

  test('73 a complete set says nothing', () => {
    expect(refusal(implementedFeatures)).toBeNull()
    expect(device.getFeatures()).toBe(implementedFeatures)
    expect(told).toEqual([])
  })

  test('FEATURES_OK before any choice is refused', () => {
    device.setStatus(STARTING)
    expect(device.setStatus(NEGOTIATED)).toContain('no features')
    expect(refusal(implementedFeatures)).toBeNull()
    device.setStatus(0)
    device.setStatus(STARTING)
    expect(device.setStatus(NEGOTIATED)).toContain('no features')
  })

  test('75 a change after FEATURES_OK is refused', () => {
    bringUp()
    expect(device.setFeatures(required)).toContain('after FEATURES_OK')
    expect(device.getFeatures()).toBe(implementedFeatures)
  })
})

describe('the MTU', () => {
  const read = (): number => Buffer.from(device.getConfig(10, 2)!).readUInt16LE()

  test.each([67, 1501, 65536, Number(2n ** 64n - 1n), 0])('of %d on a card of 1500 is refused', (mtu) => {
    expect(device.setMtu(mtu)).toContain('68 to 1500')
    expect([read(), ...told]).toEqual([1500])
  })

  test('that is set is read, outlasts a reset, and is taken back', () => {
    expect(device.setMtu(1280)).toBeNull()
    bringUp()
    device.setStatus(0)
    expect([read(), device.mtu]).toEqual([1280, 1500])
    expect(device.setMtu(null)).toBeNull()
    expect(read()).toBe(1500)
    expect(told.filter((what) => what.startsWith('MTU'))).toEqual(['MTU 1280', 'MTU null'])
  })

  test('stays as it is while a queue runs', () => {
    bringUp()
    expect(device.setMtu(1400)).toContain('while a ring runs')
    expect(device.setMtu(1500)).toBeNull()
    expect(read()).toBe(1500)
  })
})

test('a driver that does not know GUEST_ANNOUNCE is not asked to announce itself', () => {
  bringUp()
  expect(device.announce()).toBeFalse()
  expect([...device.getConfig(6, 2)!]).toEqual([1, 0])
})

describe('a driver of before VERSION_1', () => {
  const mac = new Uint8Array([2, 0, 0, 0, 0, 1])
  const serve = (): VirtioNetDevice =>
    new VirtioNetDevice({
      offeredFeatures: (implementedFeatures | controlQueueFeatures) & ~feature('access_platform'),
      requiredFeatures: 0n,
      queueCount: 3,
      queueSizeMax: 256,
      config: new ConfigSpace({ mac, mtu: 1500, maxVirtqueuePairs: 1, linkUp: true }),
      engine,
      listener: {
        driverUp: () => {},
        featuresUnmet: (which) => told.push(...which),
        mtuSet: () => {},
        driverReset: () => {},
      },
    })

  test.each([
    ['nothing', 0n, 10],
    ['mac', feature('mac'), 10],
    ['mrg_rxbuf', feature('mrg_rxbuf'), 12],
    ['csum and host_tso4', feature('csum') | feature('host_tso4'), 10],
    ['version_1', feature('version_1'), 12],
  ])('is served where the transport lets it: %s', (_name, features, headerBytes) => {
    const device = serve()
    device.setStatus(STARTING)
    expect(device.setFeatures(features)).toBeNull()
    expect(device.setStatus(NEGOTIATED)).toBeNull()
    expect(device.getFeatures()).toBe(features)
    expect(netHeaderBytes(device.getFeatures())).toBe(headerBytes)
  })

  test('HASH_REPORT without a control queue keeps its headers, and RSS comes to nothing', () => {
    const device = serve()
    device.setStatus(STARTING)
    device.setFeatures(feature('version_1') | feature('hash_report') | feature('rss') | feature('mq'))
    expect(device.setStatus(NEGOTIATED)).toBeNull()
    expect(device.getFeatures()).toBe(feature('version_1') | feature('hash_report'))
    expect(netHeaderBytes(device.getFeatures())).toBe(20)
    expect(told.sort()).toEqual(['hash_report without ctrl_vq', 'mq without ctrl_vq', 'rss without ctrl_vq'])
  })
})

describe('queues', () => {
  test('one that is forgotten has stopped, and starts only once it is set up again', () => {
    bringUp()
    engine.progress = 7
    device.forgetVq(1)
    expect(engine.calls.at(-1)).toBe('stop 1')
    expect(device.setVqReady(1, true)).toContain('without size and addresses')
    device.settle()
    expect([device.isRunning(0), device.isRunning(1), device.getVqState(1)]).toEqual([true, false, 0])
    device.setVqNum(1, 64)
    device.setVqAddr(1, 0x10000, 0x20000, 0x30000)
    expect(device.setVqReady(1, true)).toBeNull()
    device.settle()
    expect(engine.specs.at(-1)).toMatchObject({ size: 64, descAddr: 0x10000, base: 0 })
    device.forgetVq(9)
  })

  test.each([
    ['0', 0],
    ['not a power of two', 100],
    ['more than offered', 512],
  ])('a size of %s is refused', (_name, size) => {
    expect(device.setVqNum(0, size)).toContain('power of two')
  })

  test.each([
    ['descriptor table', [0x1008, 0x2000, 0x3000]],
    ['avail ring', [0x1000, 0x2001, 0x3000]],
    ['used ring', [0x1000, 0x2000, 0x3002]],
  ])('100 a misaligned %s is refused', (_name, [desc, avail, used]) => {
    expect(device.setVqAddr(0, desc!, avail!, used!)).toContain('misaligned')
  })

  test('an address beyond 2^53 is refused', () => {
    expect(device.setVqAddr(0, 2 ** 53, 0x2000, 0x3000)).toContain('2^53')
  })

  test('ready without size and addresses is refused', () => {
    expect(device.setVqReady(0, true)).toContain('without size')
  })

  test('a queue that does not exist is refused everywhere', () => {
    expect(device.setVqNum(2, 256)).toContain('no queue 2')
    expect(device.setVqAddr(2, 0, 0, 0)).toContain('no queue 2')
    expect(device.setVqReady(2, true)).toContain('no queue 2')
    expect(device.setVqState(2, 0)).toContain('no queue 2')
    expect(device.getVqState(2)).toBeNull()
    expect(device.getVqReady(2)).toBe(false)
  })

  test('nothing of a running queue may change', () => {
    bringUp()
    expect(device.setVqNum(0, 128)).toContain('while it runs')
    expect(device.setVqAddr(0, 0, 0, 0)).toContain('while it runs')
    expect(device.setVqState(0, 1)).toContain('while it runs')
  })

  test('ready 0 stops a queue where it is, and ready 1 starts it there', () => {
    bringUp()
    engine.progress = 40
    expect(device.setVqReady(0, false)).toBeNull()
    expect(device.setVqReady(0, false)).toBeNull()
    expect(device.setVqReady(0, true)).toBeNull()
    device.settle()
    expect(engine.calls).toEqual(['start 0', 'start 1', 'stop 0', 'start 0'])
    expect(engine.specs.at(-1)?.base).toEqual(40)
  })

  test('a queue that becomes ready after DRIVER_OK starts then', () => {
    device.setStatus(STARTING)
    device.setFeatures(required)
    device.setStatus(RUNNING)
    device.settle()
    setUpQueue(1)
    device.settle()
    expect(engine.calls).toEqual(['start 1'])
  })

  test('a suspended device runs nothing until it is reset', () => {
    bringUp()
    device.suspend()
    device.settle()
    expect(engine.calls.slice(-2)).toEqual(['stop 0', 'stop 1'])
  })
})

describe('config space', () => {
  test('78 a read that does not lie inside is refused', () => {
    expect(device.getConfig(24, 1)).toBeNull()
    expect(device.getConfig(0, 25)).toBeNull()
    expect(device.getConfig(2 ** 32, 1)).toBeNull()
  })
})

test('an iova range that ends before it starts is refused', () => {
  expect(device.updateIotlb(5, 4)).toContain('ends before')
})
