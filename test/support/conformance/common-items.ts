/** Items 1 to 11: what every virtio device owes its driver. */

import { expect } from 'bun:test'
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_FAILED,
  VIRTIO_CONFIG_S_NEEDS_RESET,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_VERSION_1,
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_CTRL_MAC_ADDR,
  VIRTIO_NET_F_CTRL_RX,
  VIRTIO_NET_F_CTRL_VLAN,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_UFO,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
  VIRTIO_NET_F_HASH_REPORT,
  VIRTIO_NET_F_HOST_ECN,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_UFO,
  VIRTIO_NET_F_HOST_USO,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_NOTF_COAL,
  VIRTIO_NET_F_RSC_EXT,
  VIRTIO_NET_F_RSS,
  VIRTIO_NET_F_SPEED_DUPLEX,
  VIRTIO_NET_F_STATUS,
} from '../../../src/abi/virtio.ts'
import { VIRTIO_NET_CONFIG, VIRTIO_NET_S_LINK_UP } from '../../../src/abi/virtio-net.ts'
import { bit } from '../bits.ts'
import { type Bench, CardDriver, featuresOf, NEGOTIATED, newFrame, RUNNING, STARTING } from './card-driver.ts'
import type { Item } from './item.ts'

/** Each feature, and of what it requires one. VIRTIO 1.2 §5.1.3.1. */
const REQUIREMENTS: readonly (readonly [number, readonly number[]])[] = [
  [VIRTIO_NET_F_GUEST_TSO4, [VIRTIO_NET_F_GUEST_CSUM]],
  [VIRTIO_NET_F_GUEST_TSO6, [VIRTIO_NET_F_GUEST_CSUM]],
  [VIRTIO_NET_F_GUEST_ECN, [VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6]],
  [VIRTIO_NET_F_GUEST_UFO, [VIRTIO_NET_F_GUEST_CSUM]],
  [VIRTIO_NET_F_GUEST_USO4, [VIRTIO_NET_F_GUEST_CSUM]],
  [VIRTIO_NET_F_GUEST_USO6, [VIRTIO_NET_F_GUEST_CSUM]],
  [VIRTIO_NET_F_HOST_TSO4, [VIRTIO_NET_F_CSUM]],
  [VIRTIO_NET_F_HOST_TSO6, [VIRTIO_NET_F_CSUM]],
  [VIRTIO_NET_F_HOST_ECN, [VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6]],
  [VIRTIO_NET_F_HOST_UFO, [VIRTIO_NET_F_CSUM]],
  [VIRTIO_NET_F_HOST_USO, [VIRTIO_NET_F_CSUM]],
  [VIRTIO_NET_F_CTRL_RX, [VIRTIO_NET_F_CTRL_VQ]],
  [VIRTIO_NET_F_CTRL_VLAN, [VIRTIO_NET_F_CTRL_VQ]],
  [VIRTIO_NET_F_GUEST_ANNOUNCE, [VIRTIO_NET_F_CTRL_VQ]],
  [VIRTIO_NET_F_MQ, [VIRTIO_NET_F_CTRL_VQ]],
  [VIRTIO_NET_F_CTRL_MAC_ADDR, [VIRTIO_NET_F_CTRL_VQ]],
  [VIRTIO_NET_F_NOTF_COAL, [VIRTIO_NET_F_CTRL_VQ]],
  [VIRTIO_NET_F_RSC_EXT, [VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6]],
  [VIRTIO_NET_F_RSS, [VIRTIO_NET_F_CTRL_VQ]],
  [VIRTIO_NET_F_HASH_REPORT, [VIRTIO_NET_F_CTRL_VQ]],
]

/** Does FEATURES_OK stay, with these features? */
const accepts = ({ link }: CardDriver, features: bigint): boolean => {
  for (const status of [0, STARTING]) expect(link.setStatus(status)).toBeTrue()
  const accepted = link.setFeatures(features) && link.setStatus(NEGOTIATED)
  expect(link.getStatus()).toBe(accepted ? NEGOTIATED : STARTING)
  return accepted
}

/** What a driver finds in the configuration space. */
const wholeConfig = ({ link }: CardDriver): Uint8Array => link.readConfig(0, VIRTIO_NET_CONFIG.duplex + 1)

export const commonItems: readonly Item[] = [
  {
    title: 'conformance 1: nothing is consumed, and nobody called, before DRIVER_OK',
    run: (bench) => {
      using driver = new CardDriver(bench)
      driver.negotiate()
      driver.placeRings()
      driver.provide()
      const frame = newFrame()
      driver.transmit(frame)
      const before = driver.memory.hash()
      bench.wire.send(newFrame())
      expect(driver.link.getStatus()).toBe(NEGOTIATED)
      driver.expectSilence()
      expect(driver.memory.hash()).toBe(before)
      driver.go()
      driver.arrives(frame)
      driver.used()
      driver.passIn()
    },
  },
  {
    title: 'conformance 2: a ring that has failed is shown, then comes a configuration change; a reset heals it',
    run: (bench) => {
      const options = { features: [VIRTIO_NET_F_STATUS] }
      using driver = CardDriver.start(bench, options)
      driver.pass()
      expect(driver.config('status')).toBe(VIRTIO_NET_S_LINK_UP)
      driver.breakTransmitRing()
      expect(driver.link.configCalled(10_000)).toBeTrue()
      if (driver.link.showsNeedsReset) expect(driver.link.getStatus()).toBe(RUNNING | VIRTIO_CONFIG_S_NEEDS_RESET)
      else expect(driver.config('status')).toBe(0)
      driver.setUp(options)
      expect(driver.config('status')).toBe(VIRTIO_NET_S_LINK_UP)
      driver.pass()
    },
  },
  {
    title: 'conformance 3: no feature is offered whose requirement is not',
    run: (bench) => {
      using driver = new CardDriver(bench)
      const offered = driver.link.offeredFeatures()
      const missing = REQUIREMENTS.filter(
        ([feature, anyOf]) => (offered & bit(feature)) !== 0n && !anyOf.some((one) => (offered & bit(one)) !== 0n),
      )
      expect(missing).toEqual([])
      // The list applies to this card: there are some of both kinds.
      expect(REQUIREMENTS.filter(([feature]) => (offered & bit(feature)) !== 0n).length).toBeGreaterThan(5)
    },
  },
  {
    title:
      'conformance 4: FEATURES_OK is refused of a set that is not offered; what lacks what it requires is not used',
    run: (bench) => {
      using driver = new CardDriver(bench)
      const offered = driver.link.offeredFeatures()
      const least = featuresOf(driver.link, bench.layout)
      expect(accepts(driver, least)).toBeTrue()
      for (let number = 0; number < 64; number++) {
        // A vhost-user front-end sets bits 26 and 30 for itself.
        if ((offered & bit(number)) !== 0n || number === 26 || number === 30) continue
        expect([number, accepts(driver, least | bit(number))]).toEqual([number, false])
      }
      // VDUSE is of this time; firmware over vhost-user may be of the time before.
      expect(accepts(driver, least & ~bit(VIRTIO_F_VERSION_1))).toBe(bench.transport === 'vhost-user')
      for (const [feature, anyOf] of REQUIREMENTS) {
        // Without a control queue there are no commands, but a HASH_REPORT makes headers longer: tested where they are.
        if ((offered & bit(feature)) === 0n || feature === VIRTIO_NET_F_HASH_REPORT) continue
        driver.setUp({ features: [feature] })
        expect(anyOf.some((one) => (driver.features & bit(one)) !== 0n)).toBeFalse()
        driver.pass()
      }
      driver.setUp()
      driver.pass()
    },
  },
  {
    title: 'conformance 5: the same features are accepted again after a reset',
    run: (bench) => {
      using driver = CardDriver.start(bench)
      const features = driver.features
      for (let round = 0; round < 5; round++) {
        driver.pass()
        driver.setUp()
        expect(driver.features).toBe(features)
      }
      driver.pass()
    },
  },
  {
    title: 'conformance 6: the status is 0 after a reset, from wherever',
    run: (bench) => {
      using driver = new CardDriver(bench)
      const { link } = driver
      const failed = STARTING | VIRTIO_CONFIG_S_FAILED
      for (const path of [[], [VIRTIO_CONFIG_S_ACKNOWLEDGE], [VIRTIO_CONFIG_S_ACKNOWLEDGE, STARTING, failed]]) {
        for (const status of path) expect(link.setStatus(status)).toBeTrue()
        driver.reset()
        expect(link.getStatus()).toBe(0)
      }
      driver.negotiate()
      driver.reset()
      expect(link.getStatus()).toBe(0)
      driver.setUp()
      driver.pass()
      driver.reset()
      expect(link.getStatus()).toBe(0)
    },
  },
  {
    title: 'conformance 7: after a reset no queue is touched and nobody called, until the device is set up anew',
    run: (bench) => {
      using driver = CardDriver.start(bench)
      driver.pass()
      driver.provide()
      driver.reset()
      while (driver.rx.model.reap() !== undefined);
      for (const ring of driver.rings) ring.call.drain()
      driver.transmit(newFrame())
      const before = driver.memory.hash()
      for (let i = 0; i < 5; i++) bench.wire.send(newFrame())
      for (const ring of driver.rings) ring.kick.signal()
      driver.expectSilence()
      expect(driver.memory.hash()).toBe(before)
      driver.setUp()
      driver.pass()
    },
  },
  {
    title: 'conformance 8: every field of the configuration space can be read before FEATURES_OK',
    run: (bench) => {
      using driver = new CardDriver(bench)
      driver.reset()
      for (const status of [VIRTIO_CONFIG_S_ACKNOWLEDGE, STARTING]) expect(driver.link.setStatus(status)).toBeTrue()
      const before = wholeConfig(driver)
      const mac = before.subarray(0, 6)
      expect(mac.some((byte) => byte !== 0)).toBeTrue()
      expect(mac[0]! & 1).toBe(0)
      expect(driver.config('status')).toBe(VIRTIO_NET_S_LINK_UP)
      expect(driver.config('mtu')).toBe(1500)
      driver.setUp({ features: [VIRTIO_NET_F_STATUS, VIRTIO_NET_F_SPEED_DUPLEX] })
      expect(wholeConfig(driver)).toEqual(before)
    },
  },
  {
    title: 'conformance 9: VERSION_1 is offered',
    run: (bench) => {
      using driver = new CardDriver(bench)
      expect(driver.link.offeredFeatures() & bit(VIRTIO_F_VERSION_1)).toBe(bit(VIRTIO_F_VERSION_1))
    },
  },
  {
    title: 'conformance 10: with IN_ORDER chains are used in the order in which they were made available',
    run: (bench) => {
      using driver = CardDriver.start(bench, { features: [VIRTIO_F_IN_ORDER] })
      for (let round = 0; round < 4; round++) {
        const ids: number[] = []
        for (let i = 0; i < 30; i++) {
          // Some are no packets, and are dropped.
          ids.push(driver.transmit(i % 3 === 1 ? new Uint8Array(2) : newFrame()))
        }
        expect(ids.map(() => driver.used().id)).toEqual(ids)
      }
      bench.wire.drain()
      receivedInOrder(driver, bench)
    },
  },
  {
    title: 'conformance 11: RING_RESET is not offered: a queue is reset with the device only',
    run: (bench) => {
      using driver = new CardDriver(bench)
      const { link } = driver
      expect(link.offeredFeatures() & bit(VIRTIO_F_RING_RESET)).toBe(0n)
      // And a driver that chooses it all the same is refused, as it could not be served.
      expect(accepts(driver, featuresOf(link, bench.layout) | bit(VIRTIO_F_RING_RESET))).toBeFalse()
    },
  },
]

const receivedInOrder = (driver: CardDriver, bench: Bench): void => {
  const { model } = driver.rx
  const ids: number[] = []
  for (let i = 0; i < 20; i++) {
    const address = driver.memory.allocate(2048)
    ids.push(model.add([{ address, length: 2048, writable: true }]))
  }
  driver.rx.publish()
  for (let i = 0; i < 20; i++) bench.wire.send(newFrame())
  expect(ids.map(() => driver.used(driver.rx).id)).toEqual(ids)
}
