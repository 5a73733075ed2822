/**
 * The list of conformance tests as a driver sees them, against the running program over vhost-user, on both ring
 * layouts. The same items run over VDUSE in test/e2e/conformance.test.ts. Each item of the list, from 1 to 65, has its
 * number in the title of a test, `conformance N`:
 *
 * | items  | what             | where |
 * |--------|------------------|-------|
 * | 1..48  | device and rings | test/support/conformance/*-items.ts, run from here and over VDUSE; rings by themselves
 * in the files beside this one, received packets in test/unit/native |
 * | 49..57 | vhost-user       | test/conformance/vhost-user.test.ts, vhost-user-process.test.ts;
 * test/unit/cli/capabilities.test.ts |
 * | 58..65 | VDUSE            | test/e2e: conformance, no-attach, shutdown, vhost-bind; test/unit/transport/vduse |
 *
 * What cannot be shown, or not everywhere:
 * - 11: RING_RESET is not offered, which is what the item asserts.
 * - 16 to 20 are about split rings, 23 to 33 about packed ones; 57 about split ones, since packed ones have no used
 *   index.
 * - 23 to 33 over VDUSE: packed rings are not offered there.
 * - 46, 47 over VDUSE: kernels refuse a control queue there, and so there is one queue pair. `notOver` of an item says
 *   so.
 * - 2 over VDUSE: the status cannot have NEEDS_RESET; the item sees the link go down in its place.
 * - 30: the program offers rings of up to 1024; of 2^15 entries they are in test/conformance/packed-ring.test.ts.
 * - 47: the card asks no driver at its beginning to announce itself; one that goes on, in
 *   test/conformance/vhost-user-lifetime.test.ts.
 * - 63: of split rings only, as before.
 */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import type { Bench } from '../support/conformance/card-driver.ts'
import type { Layout } from '../support/conformance/card-link.ts'
import { applicable, numberIn } from '../support/conformance/item.ts'
import { items } from '../support/conformance/items.ts'
import { VhostUserLink } from '../support/conformance/vhost-user-link.ts'
import { noRealTaps } from '../support/network-namespace.ts'
import { PacketSocket } from '../support/packet-socket.ts'
import { TEST_MS } from '../support/patience.ts'
import { Backend } from '../support/vhost-user-backend.ts'

setDefaultTimeout(TEST_MS)

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
      test(item.title, () => item.run(benchOf(layout)))
    }
  })
})

describe('the list', () => {
  const numbersTo = (last: number): number[] => Array.from({ length: last }, (_, index) => index + 1)

  test('has every item that a driver can see, in order', () => {
    expect(items.map(({ title }) => numberIn(title))).toEqual(numbersTo(48))
  })

  test('has a test for every item', () => {
    const root = resolve(import.meta.dir, '..')
    const titles = [...new Bun.Glob('**/*{.test,-items}.ts').scanSync(root)].flatMap((file) => [
      ...readFileSync(resolve(root, file), 'utf8').matchAll(/['`]conformance (\d+)/g),
    ])
    const numbers = new Set(titles.map(([, number]) => Number(number)))
    expect([...numbers].sort((a, b) => a - b)).toEqual(numbersTo(65))
  })
})
