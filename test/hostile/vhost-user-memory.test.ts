/** Kinds of memory that front-ends bring: huge pages, parts of files, and files that are none. */
import { describe, expect, test } from 'bun:test'
import { closeSync, openSync } from 'node:fs'
import { refuseMemoryFile } from '../../src/sys/memory-file.ts'
import { POLLIN } from '../../src/sys/poller.ts'
import { HUGE_PAGE_BYTES, noHugePages } from '../support/huge-pages.ts'
import { noRealTaps } from '../support/network-namespace.ts'
import { PACKED_FEATURES } from '../support/packed-frontend.ts'
import { Backend } from '../support/vhost-user-backend.ts'
import { DRIVER_FEATURES, Frontend, poll } from '../support/vhost-user-client.ts'
import { Traffic } from '../support/vhost-user-traffic.ts'

const skipped = noRealTaps ?? noHugePages

describe.skipIf(skipped !== null)(`a front-end with huge pages${skipped === null ? '' : `: ${skipped}`}`, () => {
  const layouts = [
    { name: 'split', packed: false, features: DRIVER_FEATURES },
    { name: 'packed', packed: true, features: PACKED_FEATURES },
  ]

  /** Bytes of the file in front of the memory, and of the memory. */
  const places: readonly (readonly [number, number])[] = [
    [0, HUGE_PAGE_BYTES],
    [4096, HUGE_PAGE_BYTES],
    [0, HUGE_PAGE_BYTES - 4096],
    [HUGE_PAGE_BYTES + 8192, HUGE_PAGE_BYTES + 4096],
  ]

  test.each(layouts)(
    '$name rings are served, wherever in a page the memory begins and ends',
    async (options) => {
      await using backend = await Backend.start()
      const traffic = new Traffic(backend)
      for (const [fileOffset, memoryBytes] of places) {
        using frontend = Frontend.start(backend.socketPath, {
          ...options,
          memoryBytes,
          memory: { hugePages: true, fileOffset },
        })
        for (let count = 0; count < 50; count++) traffic.pass(frontend)
        // Another table: all is unmapped, and mapped again.
        frontend.shareMemory()
        traffic.pass(frontend)
      }
      traffic.serveNext()
    },
    120_000,
  )

  test.each(layouts)(
    '$name rings: memory that is taken away under traffic ends the connection, and nothing else',
    async (options) => {
      await using backend = await Backend.start()
      const traffic = new Traffic(backend)
      for (const left of [0, HUGE_PAGE_BYTES, 2 * HUGE_PAGE_BYTES]) {
        using frontend = Frontend.start(backend.socketPath, {
          ...options,
          // The rings lie in front of what is used; buffers come behind the first pages.
          memoryBytes: 3 * HUGE_PAGE_BYTES,
          memory: { hugePages: true },
        })
        for (let count = 0; count < 10; count++) traffic.pass(frontend)
        frontend.memory.allocate(2 * HUGE_PAGE_BYTES)
        frontend.provide(8)
        for (let count = 0; count < 20; count++) frontend.transmit(traffic.frame(1400), { kick: false })
        frontend.memory.truncate(left)
        if (left > 0) frontend.tx.publish()
        else frontend.tx.kick.signal()
        backend.wire.send(traffic.frame())
        const deadline = performance.now() + 60_000
        while ((poll(frontend.client.fd, POLLIN, 50) & POLLIN) === 0) {
          expect(performance.now()).toBeLessThan(deadline)
          frontend.tx.kick.signal()
          backend.wire.send(traffic.frame())
        }
        expect(backend.exitCode).toBeNull()
        backend.wire.drain()
        traffic.serveNext()
      }
    },
    180_000,
  )
})

test('a file whose pages may never come is refused with the file systems that are taken', () => {
  const fd = openSync('/proc/self/maps', 'r')
  try {
    expect(refuseMemoryFile(fd, 0, 4096)).toContain('it is on proc, not on one of tmpfs, hugetlbfs')
  } finally {
    closeSync(fd)
  }
})
