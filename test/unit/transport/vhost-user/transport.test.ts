import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  VHOST_USER_GET_FEATURES,
  VHOST_USER_GET_STATUS,
  VHOST_USER_SET_FEATURES,
} from '../../../../src/abi/vhost-user.ts'
import { DRIVER_FAULT } from '../../../../src/base/driver-faults.ts'
import { OwnedFd } from '../../../../src/sys/fd.ts'
import { check, native } from '../../../../src/sys/native.ts'
import { listenUnix } from '../../../../src/sys/unix-socket.ts'
import type { VhostUserEndpoint } from '../../../../src/transport/vhost-user/endpoint.ts'
import { VhostUserTransport } from '../../../../src/transport/vhost-user/transport.ts'
import { bit } from '../../../support/bits.ts'
import { RecordedCard, withProtocol } from '../../../support/session-fixture.ts'
import { socketPair } from '../../../support/socket-pair.ts'
import { bodyOf, VhostUserClient } from '../../../support/vhost-user-client.ts'

const DISCONNECTED = 'info: front-end disconnected'

let cleanup: DisposableStack
let card: RecordedCard
let path: string
let before: number

beforeEach(() => {
  before = readdirSync('/proc/self/fd').length
  cleanup = new DisposableStack()
  card = new RecordedCard()
  const folder = mkdtempSync(join(tmpdir(), 'vduse-net-transport-'))
  cleanup.defer(() => rmSync(folder, { recursive: true }))
  path = join(folder, 'card.sock')
})

afterEach(() => {
  cleanup[Symbol.dispose]()
  expect(readdirSync('/proc/self/fd').length).toBe(before)
})

const listen = (): OwnedFd => cleanup.use(new OwnedFd(check('listen', listenUnix(path))))

const transportOn = (endpoint: VhostUserEndpoint): VhostUserTransport => {
  const transport = cleanup.use(new VhostUserTransport({ endpoint, ...card.sessionOptions() }))
  transport.watch(card.poller)
  return transport
}

const listening = (oneOff = false): VhostUserTransport => transportOn({ kind: 'listen', fd: listen().fd, path, oneOff })

const serve = (transport: VhostUserTransport): void => {
  card.poller.wait(0)
  transport.serve()
}

const connect = (): VhostUserClient => cleanup.use(VhostUserClient.connect(path))

/** A request and its answer. */
const ask = (transport: VhostUserTransport, client: VhostUserClient, request: number): bigint => {
  client.send(request)
  serve(transport)
  return client.answer(request).body.getBigUint64(0, true)
}

/** A front-end that hangs up: closed once, whatever the clean-up does. */
const visitor = (): Disposable & { readonly client: VhostUserClient } => {
  const client = VhostUserClient.connect(path)
  return { client, [Symbol.dispose]: () => client[Symbol.dispose]() }
}

describe('a card that listens', () => {
  test('serves one front-end after the other, and counts their messages', () => {
    const transport = listening()
    for (let i = 0; i < 3; i++) {
      {
        using front = visitor()
        serve(transport)
        expect(ask(transport, front.client, VHOST_USER_GET_FEATURES)).not.toBe(0n)
      }
      serve(transport)
    }
    expect(card.log).toEqual(Array(3).fill(['info: front-end connected', DISCONNECTED]).flat())
    // The end of a session counts as one.
    expect(transport.messages).toBe(6)
    expect(transport.ended).toBeNull()
  })

  test('refuses a second front-end, and the first does not notice', () => {
    const transport = listening()
    const first = connect()
    serve(transport)
    {
      using second = visitor()
      serve(transport)
      expect(second.client.isClosed(0)).toBeTrue()
    }
    expect(ask(transport, first, VHOST_USER_GET_FEATURES)).not.toBe(0n)
    expect(card.log.at(-1)).toContain('a second front-end was refused')
  })

  test('takes a front-end that has hung up and come back at once', () => {
    const transport = listening()
    {
      using _first = visitor()
      serve(transport)
    }
    const again = connect()
    serve(transport)
    serve(transport)
    expect(ask(transport, again, VHOST_USER_GET_FEATURES)).not.toBe(0n)
  })

  test('cuts off who breaks the protocol, and says why', () => {
    const transport = listening()
    const client = connect()
    serve(transport)
    client.send(VHOST_USER_GET_STATUS, new Uint8Array(0), { flags: 2 })
    serve(transport)
    expect(client.isClosed(0)).toBeTrue()
    expect(card.log.at(-1)).toMatch(/^warning: front-end disconnected by us: /)
  })

  test('keeps who chooses features that it does not have', () => {
    const transport = listening()
    const client = connect()
    serve(transport)
    for (let i = 0; i < 3; i++) {
      client.send(VHOST_USER_SET_FEATURES, bodyOf(withProtocol(bit(38))))
      serve(transport)
      expect(ask(transport, client, VHOST_USER_GET_FEATURES)).not.toBe(0n)
    }
    expect(card.log.filter((line) => line.startsWith('warning: SET_FEATURES refused'))).toHaveLength(3)
  })

  test('cuts off who takes memory away, and keeps who breaks a ring', () => {
    const transport = listening()
    const client = connect()
    serve(transport)
    transport.queueFailed(1, DRIVER_FAULT.AVAIL_OVERRUN, 'AVAIL_OVERRUN')
    expect(ask(transport, client, VHOST_USER_GET_FEATURES)).not.toBe(0n)
    transport.queueFailed(1, DRIVER_FAULT.MEMORY_VANISHED, 'MEMORY_VANISHED: it has gone')
    expect(client.isClosed(0)).toBeTrue()
    expect(card.log.at(-1)).toContain('MEMORY_VANISHED: it has gone')
  })

  test('ends with its only front-end if it was started for one', () => {
    const transport = listening(true)
    {
      using _front = visitor()
      serve(transport)
      expect(transport.ended).toBeNull()
    }
    serve(transport)
    expect(transport.ended).toEqual({ why: 'the front-end has gone', failed: false })
  })
})

describe('a card that connects', () => {
  test('waits for a front-end to listen, longer each time, and says so once', () => {
    const transport = transportOn({ kind: 'connect', path, oneOff: false })
    // As the device worker does: it waits for as long as it is told.
    const turn = (): number => {
      const waitMs = transport.tick()
      card.poller.wait(Math.max(0, waitMs))
      return waitMs
    }
    // 200 ms, 400 ms, 800 ms: as exactly as this machine has time for it.
    const waits: number[] = []
    while (waits.length < 20 && Math.max(...waits) < 600) waits.push(turn())
    expect(waits[0]).toBeLessThan(600)
    expect(Math.max(...waits)).toBeGreaterThanOrEqual(600)
    expect(card.log).toHaveLength(1)
    const server = listen()
    let fd = -1
    for (let turns = 0; fd < 0 && turns < 100; turns++) {
      turn()
      fd = native.vn_accept(server.fd)
    }
    const client = cleanup.use(new VhostUserClient(check('accept', fd)))
    expect(ask(transport, client, VHOST_USER_GET_FEATURES)).not.toBe(0n)
  })
})

test('a card on a connection that somebody else has made ends with it', () => {
  const [ours, theirs] = socketPair()
  const transport = transportOn({ kind: 'connected', fd: ours })
  {
    using client = new VhostUserClient(theirs)
    expect(ask(transport, client, VHOST_USER_GET_FEATURES)).not.toBe(0n)
  }
  serve(transport)
  expect(transport.ended).not.toBeNull()
})
