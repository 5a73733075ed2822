/**
 * Back-ends that are killed, and a front-end that says of its rings where they were when they first started:
 * docs/decisions/0010.
 */

import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_OK } from '../../src/abi/virtio-net.ts'
import { POLLIN } from '../../src/sys/poller.ts'
import { noRealTaps } from '../support/network-namespace.ts'
import { PACKED_FEATURES } from '../support/packed-frontend.ts'
import { HANG_MS, TEST_MS } from '../support/patience.ts'
import { Backend } from '../support/vhost-user-backend.ts'
import { DRIVER_FEATURES, Frontend, poll, VhostUserClient } from '../support/vhost-user-client.ts'
import { command, controlRing, WITH_CONTROL_QUEUE } from '../support/vhost-user-control.ts'
import { Traffic } from '../support/vhost-user-traffic.ts'

setDefaultTimeout(TEST_MS)

/** Frames each way before each death: less than a ring, exactly one, more, and several at once. */
const FRAMES = [10, 54, 1, 63, 64, 65, 100]

describe.skipIf(noRealTaps !== null)('a killed back-end, and the base of the first start', () => {
  test.each([
    ['split', false, DRIVER_FEATURES],
    ['packed', true, PACKED_FEATURES],
  ])(
    '%s rings go on where they were left: the driver model throws for a chain that it does not have',
    async (_, packed, features) => {
      await using backend = await Backend.start()
      const traffic = new Traffic(backend)
      const options = { packed, features, memoryBytes: 1 << 24 }
      using frontend = Frontend.start(backend.socketPath, options)
      const bases = [0, 1].map(() => (packed ? 0x8000_8000 : 0))
      for (const frames of FRAMES) {
        for (let count = 0; count < frames; count++) traffic.pass(frontend)
        // Some are in the ring when it dies.
        for (let count = 0; count < 5; count++) frontend.transmit(traffic.frame(), { kick: count % 2 === 0 })
        frontend.tx.publish()
        await backend.restart()
        frontend.reconnect(backend.socketPath)
        for (const [index, ring] of frontend.rings.entries()) frontend.startRing(ring, bases[index]!)
        frontend.settle()
        for (let count = 0; count < 5; count++) frontend.used(frontend.tx)
        backend.wire.drain()
      }
      traffic.pass(frontend)
      expect(frontend.tx.model.outstanding).toBe(0)
      expect(backend.log).not.toContain('quarantine')
    },
    300_000,
  )

  test.each([
    ['split', false],
    ['packed', true],
  ])(
    'a control queue on a %s ring, whose chains have two buffers, goes on too',
    async (_, packed) => {
      await using backend = await Backend.start()
      using frontend = new Frontend(VhostUserClient.connect(backend.socketPath), { ...WITH_CONTROL_QUEUE, packed })
      frontend.negotiate()
      frontend.shareMemory()
      const bases = frontend.rings.map(({ base }) => base)
      for (const ring of frontend.rings) frontend.startRing(ring)
      const setMac = [VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, 2, 0, 0, 0, 0, 7]
      for (const commands of [3, 29, 32, 40]) {
        for (let count = 0; count < commands; count++) expect(command(frontend, setMac)).toBe(VIRTIO_NET_OK)
        await backend.restart()
        frontend.reconnect(backend.socketPath)
        for (const [index, ring] of frontend.rings.entries()) frontend.startRing(ring, bases[index]!)
        frontend.settle()
      }
      expect(command(frontend, setMac)).toBe(VIRTIO_NET_OK)
      expect(controlRing(frontend).model.outstanding).toBe(0)
    },
    300_000,
  )

  test('a packed ring left by another back-end, with an old base, is given up with a reason', async () => {
    await using backend = await Backend.start()
    const traffic = new Traffic(backend)
    using frontend = Frontend.start(backend.socketPath, {
      packed: true,
      features: PACKED_FEATURES,
      memoryBytes: 1 << 22,
    })
    for (let count = 0; count < 43; count++) traffic.pass(frontend)
    await backend.restart()
    // Another one leaves no note of where it stood, and nothing else tells of a ring whose buffers were written to.
    for (const { model } of frontend.rings) frontend.memory.bytes(model.usedAddr, 4).fill(0)
    const before = frontend.memory.hash()
    frontend.reconnect(backend.socketPath)
    frontend.startRing(frontend.rx, 0x8000_8000)
    frontend.settle()
    for (const { err } of [frontend.rx]) expect(poll(err.fd, POLLIN, HANG_MS) & POLLIN).toBe(POLLIN)
    await backend.logged(/BASE_UNKNOWN/)
    expect(frontend.memory.hash()).toBe(before)
  })
})
