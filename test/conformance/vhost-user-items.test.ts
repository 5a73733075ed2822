/**
 * The list of conformance tests as a driver sees them, against the running program over vhost-user, on both ring layouts. The same
 * items run over VDUSE in test/e2e/conformance.test.ts. Each item of the list, from 1 to 65, is found by its title, `conformance
 * N`, in one of:
 *
 * | items  | what              | where |
 * |--------|-------------------|-------|
 * | 1..48  | device and rings  | test/support/conformance/*-items.ts, run from here and over VDUSE; rings by themselves in the other files of this folder |
 * | 49..57 | vhost-user        | test/conformance/vhost-user.test.ts and vhost-user-process.test.ts |
 * | 58..65 | VDUSE             | test/e2e, test/support/conformance/vduse-items.ts, test/unit/transport/vduse |
 *
 * Not here, since it cannot be expressed: over VDUSE items 23 to 33, 46 and 47 (no packed rings and no control queue there; `notOver`
 * of the item says why), and NEEDS_RESET of item 2, in whose place the link goes down. RING_RESET (11) is not offered, which is what
 * the item then asserts. Nothing sets the ANNOUNCE bit of item 47, so that only its acknowledgement can be seen.
 */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import type { Bench } from '../support/conformance/card-driver.ts'
import type { Layout } from '../support/conformance/card-link.ts'
import { applicable, numberIn } from '../support/conformance/item.ts'
import { items } from '../support/conformance/items.ts'
import { VhostUserLink } from '../support/conformance/vhost-user-link.ts'
import { noRealTaps } from '../support/network-namespace.ts'
import { PacketSocket } from '../support/packet-socket.ts'
import { Backend } from '../support/vhost-user-backend.ts'

describe.skipIf(noRealTaps !== null)('the card over vhost-user', () => {
  let backend: Backend
  let offloads: PacketSocket

  beforeAll(async () => {
    backend = await Backend.start({ pairs: 2 })
    offloads = new PacketSocket(backend.namespace.name, 'tap0', { offloads: true })
  })

  afterAll(async () => {
    offloads[Symbol.dispose]()
    await backend[Symbol.asyncDispose]()
  })

  const benchOf = (layout: Layout): Bench => ({
    transport: 'vhost-user',
    layout,
    wire: backend.wire,
    sendOffloaded: (header, frame) => offloads.sendOffloaded(header, frame),
    setTapMtu: (mtu) => void backend.namespace.ip(`link set tap0 mtu ${mtu}`),
    connect: (memoryBytes = 1 << 22) => new VhostUserLink(backend.socketPath, memoryBytes),
  })

  describe.each(['split', 'packed'] as const)('%s rings', (layout) => {
    for (const item of applicable(items, layout, 'vhost-user')) {
      test(item.title, () => item.run(benchOf(layout)), 30_000)
    }
  })
})

test('the list is complete', () => {
  const numbers = items.map(({ title }) => numberIn(title))
  expect(numbers).toEqual(Array.from({ length: 48 }, (_, index) => index + 1))
})
