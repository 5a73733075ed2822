/** Front-ends and back-ends that die in the middle of their traffic, and whoever comes after them. */

import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { resolve } from 'node:path'
import { until } from '../../scripts/frontends/native-process.ts'
import {
  VHOST_USER_GET_INFLIGHT_FD,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_SET_INFLIGHT_FD,
} from '../../src/abi/vhost-user.ts'
import { DESC_STATE_SPLIT, inflightRegionBytes, QUEUE_REGION_SPLIT } from '../../src/abi/vhost-user-inflight.ts'
import { VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_OK } from '../../src/abi/virtio-net.ts'
import { OwnedMapping } from '../../src/sys/mapping.ts'
import { native } from '../../src/sys/native.ts'
import { connectUnix } from '../../src/sys/unix-socket.ts'
import { bit } from '../support/bits.ts'
import { noRealTaps } from '../support/network-namespace.ts'
import { TEST_MS } from '../support/patience.ts'
import { Backend, halt } from '../support/vhost-user-backend.ts'
import { Frontend, poll, VhostUserClient } from '../support/vhost-user-client.ts'
import { addCommand, command, controlRing, WITH_CONTROL_QUEUE } from '../support/vhost-user-control.ts'
import { Traffic } from '../support/vhost-user-traffic.ts'

setDefaultTimeout(TEST_MS)

const victim = resolve(import.meta.dir, '../support/vhost-user-victim.ts')

describe.skipIf(noRealTaps !== null)('vhost-user deaths', () => {
  test('a front-end killed 50 times in mid-traffic leaves nothing behind, and the next one is served', async () => {
    await using backend = await Backend.start()
    const traffic = new Traffic(backend)
    traffic.serveNext()
    await backend.logged(/front-end disconnected/)
    const idle = backend.resources()
    for (let round = 0; round < 50; round++) {
      const process = Bun.spawn([globalThis.process.execPath, victim, backend.socketPath], { stdout: 'pipe' })
      await process.stdout.getReader().read()
      for (let i = 0; i < 32; i++) backend.wire.send(traffic.frame())
      process.kill('SIGKILL')
      await process.exited
      await backend.releases(idle)
    }
    backend.wire.drain()
    traffic.serveNext()
    await backend.releases(idle)
    expect(backend.exitCode).toBeNull()
  })

  test('a front-end that stands still does not keep the card from anything', async () => {
    await using backend = await Backend.start()
    const process = Bun.spawn([globalThis.process.execPath, victim, backend.socketPath], { stdout: 'pipe' })
    await process.stdout.getReader().read()
    await halt(process)
    for (let i = 0; i < 1000; i++) backend.wire.send(new Traffic(backend).frame())
    expect(await backend.ask('/v1/device')).toMatchObject({ transport: 'vhost-user' })
    backend.signal('SIGTERM')
    expect(await backend.ended()).toBe(0)
    process.kill('SIGKILL')
    await process.exited
  })

  test('a card out of descriptors refuses what it has none for, and goes on when there are some', async () => {
    await using backend = await Backend.start()
    const traffic = new Traffic(backend)
    traffic.serveNext()
    await backend.logged(/front-end disconnected/)
    const idle = backend.resources()
    const limit = (most: number): void => {
      const { exitCode } = Bun.spawnSync(['prlimit', `--nofile=${most}:4096`, '--pid', String(backend.pid)])
      expect(exitCode).toBe(0)
    }
    const highest = Math.max(...idle.fds.map((line) => Number.parseInt(line, 10)))
    for (const spare of [0, 1, 2, 4, 6]) {
      limit(highest + 1 + spare)
      // What it says does not matter: there may be nobody to say it to.
      try {
        using frontend = Frontend.start(backend.socketPath)
        frontend.client.isClosed(200)
      } catch (error) {
        expect(error).toBeInstanceOf(Error)
      }
    }
    limit(4096)
    await until('the next one to be served', () => {
      try {
        traffic.serveNext()
        return true
      } catch {
        return false
      }
    })
    await backend.releases(idle)
  })

  test('a front-end that comes and goes without end does not fill the log', async () => {
    await using backend = await Backend.start()
    const traffic = new Traffic(backend)
    for (let connected = 0; connected < 2000; ) {
      const fd = connectUnix(backend.socketPath)
      // The backlog is full now and then.
      if (fd < 0) poll(-1, 0, 1)
      else {
        native.vn_close(fd)
        connected++
      }
    }
    let served = 0
    await until('the next ones to be served, and the log to say what it lacks', () => {
      try {
        traffic.serveNext()
        served++
      } catch {
        // Those that came before are still being seen off.
      }
      return /front-end connected \(\d+ more lines of this kind left out\)/.test(backend.log)
    })
    expect(served).toBeGreaterThan(0)
    expect(backend.log.split('\n').length).toBeLessThan(200)
  })

  test('a back-end that is killed in mid-traffic loses no chain and uses none twice', async () => {
    await using backend = await Backend.start()
    const traffic = new Traffic(backend)
    using frontend = Frontend.start(backend.socketPath)
    let sent = 0
    let used = 0
    for (let round = 0; round < 5; round++) {
      // The driver model throws for a chain that it has not given, or has been given back.
      while (sent < 40 * (round + 1)) {
        frontend.transmit(traffic.frame(), { kick: false })
        sent++
      }
      frontend.tx.publish()
      if (round % 2 === 0) frontend.used(frontend.tx)
      if (round % 2 === 0) used++
      await backend.restart()
      frontend.reconnect(backend.socketPath)
      // As QEMU does: where the used ring ends.
      for (const ring of frontend.rings) frontend.startRing(ring, ring.driver.usedIdx)
      frontend.settle()
      while (used < sent) {
        frontend.used(frontend.tx)
        used++
      }
      backend.wire.drain()
      traffic.pass(frontend)
      sent++
      used++
    }
    expect(frontend.tx.driver.outstanding).toBe(0)
  })

  const INFLIGHT = bit(VHOST_USER_PROTOCOL_F_REPLY_ACK) | bit(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)

  /** A record of chains in flight as the front-end keeps it. */
  const recordOf = (client: VhostUserClient, size: number, packed = false, queues = 2) => {
    const request = new Uint8Array(24)
    const view = new DataView(request.buffer)
    view.setUint16(16, queues, true)
    view.setUint16(18, size, true)
    const { body, fds } = client.request(VHOST_USER_GET_INFLIGHT_FD, request)
    const bytes = Number(body.getBigUint64(0, true))
    const mapping = new OwnedMapping(fds[0]!, bytes)
    const description = new Uint8Array(body.buffer.slice(0))
    const region = inflightRegionBytes(size, packed)
    const record = new DataView(mapping.buffer(0, bytes))
    return {
      hand: (to: VhostUserClient) =>
        expect(to.carriesOut(VHOST_USER_SET_INFLIGHT_FD, description, [fds[0]!])).toBeTrue(),
      /** As if a back-end had noted the end of a batch. */
      noteUsed: (ring: number, usedIdx: number) =>
        record.setUint16(ring * region + QUEUE_REGION_SPLIT.used_idx, usedIdx, true),
      usedIdx: (ring: number) => record.getUint16(ring * region + QUEUE_REGION_SPLIT.used_idx, true),
      version: (ring: number) => record.getUint16(ring * region + QUEUE_REGION_SPLIT.version, true),
      inFlight: (ring: number) =>
        Array.from({ length: size }, (_, head) => head).filter(
          (head) => record.getUint8(ring * region + QUEUE_REGION_SPLIT.desc + head * DESC_STATE_SPLIT.sizeBytes) === 1,
        ),
      /** As if a back-end had taken the head, as the n-th of all. */
      take: (ring: number, head: number, counter: number) => {
        const at = ring * region + QUEUE_REGION_SPLIT.desc + head * DESC_STATE_SPLIT.sizeBytes
        record.setUint8(at + DESC_STATE_SPLIT.inflight, 1)
        record.setBigUint64(at + DESC_STATE_SPLIT.counter, BigInt(counter), true)
      },
      [Symbol.dispose]: () => {
        mapping[Symbol.dispose]()
        native.vn_close(fds[0]!)
      },
    }
  }

  test('with a record of chains in flight the next back-end goes on where the killed one was', async () => {
    await using backend = await Backend.start()
    const traffic = new Traffic(backend)
    using frontend = new Frontend(VhostUserClient.connect(backend.socketPath), { protocolFeatures: INFLIGHT })
    frontend.negotiate()
    frontend.shareMemory()
    using record = recordOf(frontend.client, frontend.tx.driver.size)
    record.hand(frontend.client)
    for (const ring of frontend.rings) frontend.startRing(ring)
    frontend.settle()
    for (let round = 0; round < 4; round++) {
      for (let i = 0; i < 10; i++) traffic.pass(frontend)
      frontend.settle()
      for (const ring of frontend.rings) {
        await until('the record to be complete', () => record.usedIdx(ring.index) === ring.driver.usedIdx)
        expect([record.version(ring.index), record.inFlight(ring.index)]).toEqual([1, []])
      }
      await backend.restart()
      frontend.reconnect(backend.socketPath)
      record.hand(frontend.client)
      // The base is what the front-end knows at best; the record knows better.
      for (const ring of frontend.rings) frontend.startRing(ring, 0)
      frontend.settle()
      traffic.pass(frontend)
    }
  })

  test('a packed ring, which does not tell where it was left, goes on by the record', async () => {
    await using backend = await Backend.start()
    const traffic = new Traffic(backend)
    using frontend = new Frontend(VhostUserClient.connect(backend.socketPath), {
      protocolFeatures: INFLIGHT,
      packed: true,
      memoryBytes: 1 << 22,
    })
    frontend.negotiate()
    frontend.shareMemory()
    using record = recordOf(frontend.client, frontend.tx.model.size, true)
    record.hand(frontend.client)
    const [rx, tx] = [frontend.rx.base, frontend.tx.base]
    for (const ring of frontend.rings) frontend.startRing(ring)
    frontend.settle()
    for (let round = 0; round < 4; round++) {
      for (let i = 0; i < 50; i++) traffic.pass(frontend)
      // Some are in the ring when it dies.
      for (let i = 0; i < 5; i++) frontend.transmit(traffic.frame())
      await backend.restart()
      frontend.reconnect(backend.socketPath)
      record.hand(frontend.client)
      frontend.startRing(frontend.rx, rx)
      frontend.startRing(frontend.tx, tx)
      frontend.settle()
      for (let i = 0; i < 5; i++) frontend.used(frontend.tx)
      backend.wire.drain()
    }
    expect(frontend.tx.model.outstanding).toBe(0)
    expect(record.version(0)).toBe(1)
  })

  test.each([
    ['split ring, by where the used ring ends', false, false],
    ['split ring, by the record', false, true],
    ['packed ring, by the record', true, true],
  ])(
    'whoever goes on with a %s calls the driver, which may wait for a call that the dead process owes',
    async (_, packed, withRecord) => {
      await using backend = await Backend.start()
      const traffic = new Traffic(backend)
      using frontend = new Frontend(VhostUserClient.connect(backend.socketPath), { protocolFeatures: INFLIGHT, packed })
      const { tx } = frontend
      frontend.negotiate()
      frontend.shareMemory()
      using record = recordOf(frontend.client, tx.model.size, packed)
      if (withRecord) record.hand(frontend.client)
      const bases = frontend.rings.map(({ base }) => base)
      for (const ring of frontend.rings) frontend.startRing(ring)
      frontend.settle()
      // A new ring has nothing that anybody could have forgotten.
      for (const ring of frontend.rings) expect(ring.called(0)).toBeFalse()
      for (let i = 0; i < 3; i++) traffic.pass(frontend)
      await backend.restart()
      // All that was used before has been seen; one more chain is in the ring, and used without a call.
      for (const ring of frontend.rings) ring.call.drain()
      tx.model.disableCalls()
      const frame = traffic.frame()
      frontend.transmit(frame, { kick: false })
      tx.model.publish()
      frontend.reconnect(backend.socketPath)
      if (withRecord) record.hand(frontend.client)
      for (const [index, ring] of frontend.rings.entries()) {
        frontend.startRing(ring, withRecord ? bases[index]! : ring.driver.usedIdx)
      }
      for (const ring of frontend.rings) expect(ring.called()).toBeTrue()
      traffic.arrives(frame)
      frontend.usedWithoutCall(tx)
    },
  )

  test.each([
    ['split', false],
    ['packed', true],
  ])(
    'a control queue on a %s ring goes on by the record, with the command that was given meanwhile',
    async (_, packed) => {
      await using backend = await Backend.start()
      const traffic = new Traffic(backend)
      using frontend = new Frontend(VhostUserClient.connect(backend.socketPath), {
        ...WITH_CONTROL_QUEUE,
        protocolFeatures: INFLIGHT,
        packed,
      })
      const ring = controlRing(frontend)
      const setMac = (last: number): number[] => [
        VIRTIO_NET_CTRL_MAC,
        VIRTIO_NET_CTRL_MAC_ADDR_SET,
        2,
        0,
        0,
        0,
        0,
        last,
      ]
      frontend.negotiate()
      frontend.shareMemory()
      using record = recordOf(frontend.client, ring.model.size, packed, 3)
      record.hand(frontend.client)
      const bases = frontend.rings.map(({ base }) => base)
      for (const each of frontend.rings) frontend.startRing(each)
      frontend.settle()
      for (let round = 0; round < 3; round++) {
        for (let i = 0; i < 40; i++) expect(command(frontend, setMac(i))).toBe(VIRTIO_NET_OK)
        // It stands still, and dies before it takes this one.
        await backend.halt()
        const { answerAt } = addCommand(frontend, setMac(0xfe))
        ring.publish()
        await backend.restart()
        frontend.reconnect(backend.socketPath)
        record.hand(frontend.client)
        for (const [index, each] of frontend.rings.entries()) frontend.startRing(each, bases[index]!)
        expect(frontend.used(ring).length).toBe(1)
        expect(frontend.memory.bytes(answerAt, 1)[0]).toBe(VIRTIO_NET_OK)
        expect(await backend.ask('/v1/device')).toMatchObject({ mac: '02:00:00:00:00:fe' })
        traffic.pass(frontend)
      }
    },
  )

  test('chains that another back-end has left in flight are done first, in the order it took them', async () => {
    await using backend = await Backend.start()
    const traffic = new Traffic(backend)
    using frontend = new Frontend(VhostUserClient.connect(backend.socketPath), { protocolFeatures: INFLIGHT })
    frontend.negotiate()
    frontend.shareMemory()
    const { tx } = frontend
    using record = recordOf(frontend.client, tx.driver.size)
    record.hand(frontend.client)
    for (const ring of frontend.rings) frontend.startRing(ring)
    frontend.settle()
    traffic.out(frontend)
    frontend.stopRing(tx)
    // Five chains are available; somebody has taken four of them, and used the first and the third, out of order.
    const chains = Array.from({ length: 5 }, () => {
      const frame = traffic.frame()
      return { frame, head: frontend.transmit(frame, { kick: false }) }
    })
    tx.driver.publish()
    for (const { head } of [chains[2]!, chains[0]!]) {
      tx.driver.useFor(head)
      expect(tx.driver.reap()?.id).toBe(head)
    }
    await backend.restart()
    record.noteUsed(1, tx.driver.usedIdx)
    record.take(1, chains[1]!.head, 901)
    record.take(1, chains[3]!.head, 900)
    frontend.reconnect(backend.socketPath)
    record.hand(frontend.client)
    for (const ring of frontend.rings) frontend.startRing(ring, 0)
    frontend.settle()
    for (const chain of [chains[3]!, chains[1]!, chains[4]!]) {
      traffic.arrives(chain.frame)
      expect(frontend.used(tx).id).toBe(chain.head)
    }
    expect(tx.driver.outstanding).toBe(0)
    expect(record.inFlight(1)).toEqual([])
    traffic.pass(frontend)
  })
})
