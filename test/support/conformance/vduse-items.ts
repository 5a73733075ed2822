/** Those of items 58 to 65 that a driver on a real kernel can see: how the control messages of VDUSE are answered. */

import { expect } from 'bun:test'
import { concat, encodeHeader } from '../frames.ts'
import type { VhostVdpaLink } from '../guest/vhost-vdpa-link.ts'
import { GuestMemory } from '../guest-memory.ts'
import { HANG_MS } from '../patience.ts'
import { poll } from '../vhost-user-client.ts'
import { type Bench, CardDriver, newFrame } from './card-driver.ts'
import type { Item } from './item.ts'

/** A bench beside which the card runs, so that it can be looked into. */
export interface VduseBench extends Bench {
  connect(memoryBytes?: number): VhostVdpaLink
  /** How often the card has this memory mapped. */
  mapsOf(memory: GuestMemory): number
}

/** Waits until the card sleeps, and nothing but a kick gets it to look into its transmit ring. */
const untilAsleep = ({ tx }: CardDriver): void => {
  const deadline = performance.now() + HANG_MS
  while (tx.driver.usedFlags !== 0) {
    if (performance.now() > deadline) throw new Error('the card does not ask for kicks')
    poll(-1, 0, 1)
  }
}

export const vduseItems: readonly Item<VduseBench>[] = [
  {
    title:
      'conformance 60: when SET_STATUS(0) is answered the memory is unmapped; kicks are heard after the next start',
    run: (bench) => {
      using driver = CardDriver.start(bench)
      for (let round = 0; round < 5; round++) {
        for (let i = 0; i < 3; i++) {
          untilAsleep(driver)
          driver.passOut()
        }
        driver.passIn()
        driver.provide()
        bench.wire.send(newFrame())
        expect(bench.mapsOf(driver.memory)).toBeGreaterThan(0)
        driver.reset()
        expect(bench.mapsOf(driver.memory)).toBe(0)
        driver.setUp()
      }
    },
  },
  {
    title: 'conformance 62: when an IOTLB update is answered the memory that has gone is unmapped',
    run: (bench) => {
      const link = bench.connect()
      using driver = new CardDriver({ ...bench, connect: () => link })
      driver.setUp()
      for (let round = 0; round < 5; round++) {
        using more = new GuestMemory(1 << 16, { start: 0x8000_0000 })
        link.addMemory(more)
        const frame = newFrame()
        const bytes = concat(encodeHeader({}), frame)
        const address = more.allocate(bytes.length)
        more.bytes(address, bytes.length).set(bytes)
        driver.tx.model.add([{ address, length: bytes.length }])
        driver.tx.publish()
        driver.arrives(frame)
        driver.used()
        expect(bench.mapsOf(more)).toBeGreaterThan(0)
        link.removeMemory(more)
        expect(bench.mapsOf(more)).toBe(0)
        driver.pass()
      }
    },
  },
  {
    title: 'conformance 63: GET_VQ_STATE tells where a split ring is, over the end of its index too',
    run: (bench) => {
      using driver = new CardDriver(bench)
      for (const start of [0, 0xfff5]) {
        driver.setUp({ start })
        for (let count = 0; count < 20; count++) {
          // It is told by one thread of the card, a little after another one has taken the chain.
          const wanted = (start + count) & 0xffff
          const deadline = performance.now() + HANG_MS
          while (driver.link.ringBase(1) !== wanted && performance.now() < deadline);
          expect(driver.link.ringBase(1)).toBe(wanted)
          driver.passOut()
        }
      }
    },
  },
  {
    title: 'conformance 64: no queue is called before DRIVER_OK, and after it for all that has waited',
    run: (bench) => {
      using driver = new CardDriver(bench)
      for (let round = 0; round < 5; round++) {
        driver.negotiate()
        driver.placeRings()
        driver.provide()
        const frame = newFrame()
        driver.transmit(frame)
        driver.expectSilence()
        driver.go()
        driver.arrives(frame)
        driver.used()
        expect(driver.isCalled(driver.tx, true)).toBeTrue()
      }
    },
  },
]
