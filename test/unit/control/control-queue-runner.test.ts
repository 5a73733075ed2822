import { describe, expect, test } from 'bun:test'
import { VIRTIO_F_RING_PACKED, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ } from '../../../src/abi/virtio.ts'
import { VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_OK } from '../../../src/abi/virtio-net.ts'
import { ControlQueueRunner } from '../../../src/control/control-queue-runner.ts'
import { MASK_MS, SPURIOUS_KICKS_MAX } from '../../../src/dataplane/spurious-kicks.ts'
import { ReceiveFilter } from '../../../src/device/receive-filter.ts'
import { EventFd } from '../../../src/sys/eventfd.ts'
import { ownTarget } from '../../../src/sys/peer-signal.ts'
import { POLLIN, Poller } from '../../../src/sys/poller.ts'
import { bit } from '../../support/bits.ts'
import { RecordingEffects } from '../../support/control-fixture.ts'
import { SplitDriver } from '../../support/driver-model.ts'
import { TestMemory } from '../../support/memory.ts'
import { PackedDriver } from '../../support/packed-driver.ts'

const FEATURES = bit(VIRTIO_NET_F_CTRL_VQ) | bit(VIRTIO_NET_F_CTRL_RX)

/** A control queue of a driver that can kick, served as the device thread does. */
const newRunner = (packed: boolean) => {
  const memory = new TestMemory(1 << 16)
  const driver = packed ? new PackedDriver(memory, { size: 16 }) : new SplitDriver(memory, { size: 16 })
  const { descAddr, availAddr, usedAddr } = driver
  const faults: string[] = []
  const poller = new Poller(1)
  const runner = new ControlQueueRunner({
    memory: { resolve: () => memory.region() },
    pairsMax: 1,
    filter: new ReceiveFilter(),
    effects: new RecordingEffects(),
    poller,
    failed: ({ message }) => faults.push(message),
  })
  const kick = new EventFd()
  const call = new EventFd()
  const features = FEATURES | (packed ? bit(VIRTIO_F_RING_PACKED) : 0n)
  const base = driver instanceof PackedDriver ? driver.base : 0
  const wiring = { kickFd: kick.fd, callTarget: ownTarget(call.fd), inflight: null, usedLog: -1 }
  runner.start({ size: 16, descAddr, availAddr, usedAddr, base, features }, wiring)
  /** One round of the thread's loop, that waits no longer than it must: slots that were ready. */
  const round = (timeoutMs = 0): number => {
    const ready = poller.wait(timeoutMs)
    runner.serve()
    return ready
  }
  /** Makes a command available; its answer once there is one. */
  const give = (): (() => number | undefined) => {
    const command = memory.allocate(3)
    for (const [at, byte] of [VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, 1].entries()) {
      memory.dataView(command, 3).setUint8(at, byte)
    }
    const answer = memory.allocate(1)
    const id = driver.add([
      { address: command, length: 3 },
      { address: answer, length: 1, writable: true },
    ])
    driver.publish()
    return () => (driver.reap()?.id === id ? memory.dataView(answer, 1).getUint8(0) : undefined)
  }
  /** Has the driver been called since this was last asked? */
  const called = (): boolean => {
    const calls = new Poller(1)
    calls.add(call.fd, POLLIN)
    const ready = calls.wait(0) === 1
    call.drain()
    return ready
  }
  return { runner, driver, kick, round, give, called, faults }
}

describe.each([
  ['split', false],
  ['packed', true],
] as const)('kicks of a control queue on a %s ring', (_, packed) => {
  test('each is answered by looking, and the thread sleeps in between', () => {
    const { runner, kick, round, give, faults } = newRunner(packed)
    expect(runner.timeoutMs(0)).toBe(0)
    round()
    for (let i = 0; i < 2 * SPURIOUS_KICKS_MAX; i++) {
      expect(runner.timeoutMs(performance.now())).toBe(-1)
      const answer = give()
      kick.signal()
      expect(round()).toBe(1)
      expect(answer()).toBe(VIRTIO_NET_OK)
    }
    expect(faults).toEqual([])
  })

  test('a storm of spurious kicks is masked, and a command in it is found', () => {
    const { runner, kick, round, give, faults } = newRunner(packed)
    round()
    let kicks = 0
    do {
      kick.signal()
      kicks++
    } while (round() === 1 && kicks < 10 * SPURIOUS_KICKS_MAX)
    // The last one was masked.
    expect(kicks).toBe(SPURIOUS_KICKS_MAX + 2)
    const answer = give()
    kick.signal()
    expect(runner.timeoutMs(performance.now())).toBeLessThanOrEqual(MASK_MS)
    let answered = answer()
    for (let rounds = 0; answered === undefined && rounds < 10; rounds++) {
      round(runner.timeoutMs(performance.now()))
      answered = answer()
    }
    expect(answered).toBe(VIRTIO_NET_OK)
    // Kicks are polled again.
    round()
    expect(runner.timeoutMs(performance.now())).toBe(-1)
    const next = give()
    kick.signal()
    expect(round()).toBe(1)
    expect(next()).toBe(VIRTIO_NET_OK)
    expect(faults).toEqual([])
  })
})

test.each([
  ['split', false],
  ['packed', true],
] as const)('a driver that sleeps until its command on a %s ring is answered is called', (_, packed) => {
  const { driver, kick, round, give, called } = newRunner(packed)
  round()
  for (const wanted of [true, false, true, true]) {
    if (wanted) driver.enableCalls()
    else driver.disableCalls()
    const answer = give()
    kick.signal()
    round()
    expect(called()).toBe(wanted)
    expect(answer()).toBe(VIRTIO_NET_OK)
  }
})
