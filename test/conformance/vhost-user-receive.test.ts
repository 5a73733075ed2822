/**
 * What firmware's drivers get, which offer buffers of 1,514 bytes and a header, and believe every length: the running
 * program on vhost-user.
 */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { until } from '../../scripts/frontends/native-process.ts'
import { VIRTIO_F_VERSION_1, VIRTIO_NET_F_MAC } from '../../src/abi/virtio.ts'
import type { StatsView } from '../../src/card/card.ts'
import { bit } from '../support/bits.ts'
import { noRealTaps } from '../support/network-namespace.ts'
import { numberOf } from '../support/packet-socket.ts'
import { Backend } from '../support/vhost-user-backend.ts'
import { Frontend } from '../support/vhost-user-client.ts'
import { Traffic } from '../support/vhost-user-traffic.ts'

const FRAME_BYTES = 1514
const VLAN_TAG_BYTES = 4
const C_TAG = [0x81, 0x00]

describe.skipIf(noRealTaps !== null)('a driver with buffers for frames of 1,514 bytes', () => {
  let backend: Backend
  let traffic: Traffic

  beforeAll(async () => {
    backend = await Backend.start()
    traffic = new Traffic(backend)
  })
  afterAll(() => backend[Symbol.asyncDispose]())

  const tooLong = async (): Promise<number> => ((await backend.ask('/v1/stats')) as StatsView).drops.rx_buffer_too_small

  /** The longest frame of a neighbour in a VLAN. */
  const longFrame = (): Uint8Array => {
    const frame = traffic.frame(FRAME_BYTES + VLAN_TAG_BYTES)
    frame.set(C_TAG, 12)
    return frame
  }

  for (const [name, features, headerBytes] of [
    ['legacy', bit(VIRTIO_NET_F_MAC), 10],
    ['of today', bit(VIRTIO_F_VERSION_1), 12],
  ] as const) {
    test.each([
      ['split', false],
      ['packed', true],
    ])(
      `${name}, %s ring: gets no buffer back for a frame that is too long, and then the next frames`,
      async (_, packed) => {
        using frontend = Frontend.start(backend.socketPath, { features, packed })
        expect(frontend.headerBytes).toBe(headerBytes)
        frontend.provide(8, headerBytes + FRAME_BYTES)
        const before = await tooLong()
        for (let round = 1; round <= 3; round++) {
          const frames = [traffic.frame(), traffic.frame(FRAME_BYTES), traffic.frame()]
          for (const frame of frames) {
            for (const next of [longFrame(), longFrame(), frame]) backend.wire.send(next)
          }
          // The namespace may have something to say of its own.
          const expected = frames.map((frame) => numberOf(frame)!)
          while (expected.length > 0) {
            const { id, length } = frontend.used(frontend.rx)
            expect(length).toBeGreaterThanOrEqual(headerBytes + 14)
            const frame = frontend.memory.bytes(frontend.rx.buffers.get(id)! + headerBytes, length - headerBytes)
            if (numberOf(frame) === expected[0]) expected.shift()
            frontend.provide(8, headerBytes + FRAME_BYTES)
          }
          await until('the drops to be counted', async () => (await tooLong()) === before + 6 * round)
        }
      },
    )
  }
})
