/** What the host does to the TAP of a card that runs, and what becomes of it when the process dies: the running program on vhost-user. */
import { afterEach, describe, expect, test } from 'bun:test'
import { until } from '../../scripts/frontends/native-process.ts'
import type { DeviceView } from '../../src/card/card.ts'
import { makePacket } from '../support/frames.ts'
import { type NetworkNamespace, noRealTaps } from '../support/network-namespace.ts'
import { queuesOf, shownLink } from '../support/scratch-tap.ts'
import { Backend, type BackendOptions } from '../support/vhost-user-backend.ts'
import { Frontend, type FrontendOptions } from '../support/vhost-user-client.ts'
import { Traffic } from '../support/vhost-user-traffic.ts'

const FLOWS = 40
const BRIDGE = ['--bridge', 'br0']

const makeBridge = (namespace: NetworkNamespace, settings = 'up'): void => {
  namespace.ip('link add br0 type bridge')
  namespace.ip(`link set br0 ${settings}`)
}

/** A UDP frame of one of many flows. */
const flowFrame = (flow: number): Uint8Array => {
  const { frame, transport } = makePacket({ protocol: 'udp', version: 4, payload: new Uint8Array(20) }, true)
  new DataView(frame.buffer).setUint16(transport, 10_000 + flow)
  return frame
}

describe.skipIf(noRealTaps !== null)('the TAP of a card that runs', () => {
  const opened: AsyncDisposable[] = []

  afterEach(async () => {
    for (const one of opened.splice(0)) await one[Symbol.asyncDispose]()
  })

  const start = async (options: BackendOptions): Promise<Backend> => {
    const backend = await Backend.start({
      ...options,
      prepare: (namespace) => {
        for (const which of ['all', 'default']) namespace.sysctl(`net.ipv6.conf.${which}.disable_ipv6`, '1')
        options.prepare?.(namespace)
      },
    })
    opened.push(backend)
    return backend
  }

  const device = async (backend: Backend): Promise<DeviceView> => (await backend.ask('/v1/device')) as DeviceView

  /** Waits until there is another TAP than that of `index`, and the driver is told of a link. */
  const again = (backend: Backend, index: number): Promise<unknown> =>
    until('the next TAP', async () => {
      const { tap, linkUp } = await device(backend)
      return linkUp && tap.index !== null && tap.index !== index
    })

  const indexOf = async (backend: Backend): Promise<number> => (await device(backend)).tap.index!

  /** How many of many flows reach the front-end's first pair. */
  const flowsThatArrive = (backend: Backend, frontend: Frontend): number => {
    backend.rewire()
    frontend.provide(FLOWS + 8)
    const sent = Array.from({ length: FLOWS }, (_, flow) => flowFrame(flow))
    for (const frame of sent) backend.wire.send(frame)
    const missing = new Set(sent.map((frame) => frame.toHex()))
    try {
      while (missing.size > 0) missing.delete(frontend.receive().toHex())
    } catch {
      // No more come.
    }
    return FLOWS - missing.size
  }

  test.each([
    ['it vanishes', false],
    ['it vanishes with its bridge', true],
  ])('%s: all flows reach the pair that is in use, before and after', async (_what, withBridge) => {
    const backend = await start({ pairs: 2, args: BRIDGE, prepare: makeBridge })
    using frontend = Frontend.start(backend.socketPath)
    expect(flowsThatArrive(backend, frontend)).toBe(FLOWS)
    const index = await indexOf(backend)
    backend.namespace.ip('link delete tap0')
    if (withBridge) {
      backend.namespace.ip('link delete br0')
      await backend.logged(/no such interface; trying again/)
      makeBridge(backend.namespace)
    }
    await again(backend, index)
    expect(shownLink(backend.namespace, 'tap0')).toMatchObject({ master: 'br0' })
    expect(queuesOf(backend.namespace)).toEqual([1, 1])
    expect(flowsThatArrive(backend, frontend)).toBe(FLOWS)
  })

  test('gets the queues that the front-end uses by the time it is there again', async () => {
    const backend = await start({ pairs: 2, args: BRIDGE, prepare: makeBridge })
    for (const [rings, queues] of [
      [4, [2, 0]],
      [2, [1, 1]],
    ] as const) {
      const index = await indexOf(backend)
      const from = backend.log.length
      for (const name of ['tap0', 'br0']) backend.namespace.ip(`link delete ${name}`)
      await backend.logged(/no such interface; trying again/, from)
      {
        using frontend = Frontend.start(backend.socketPath, { rings })
        makeBridge(backend.namespace)
        await again(backend, index)
        expect(queuesOf(backend.namespace)).toEqual([...queues])
        backend.rewire()
        new Traffic(backend).pass(frontend)
      }
    }
  })

  test('is put back into its bridge when only that was deleted and made again', async () => {
    const backend = await start({ args: BRIDGE, prepare: makeBridge })
    const index = await indexOf(backend)
    backend.namespace.ip('link delete br0')
    await backend.logged(/its bridge was deleted/)
    expect(await device(backend)).toMatchObject({ linkUp: true, tap: { index } })
    makeBridge(backend.namespace)
    await backend.logged(/is in its bridge again/)
    expect(shownLink(backend.namespace, 'tap0')).toMatchObject({ master: 'br0', ifindex: index })
  })

  test('stays out of a bridge that its administrator has taken it out of', async () => {
    const backend = await start({ args: BRIDGE, prepare: makeBridge })
    backend.namespace.ip('link set tap0 nomaster')
    backend.namespace.ip('link set tap0 down')
    // What comes later has been seen, so that what came before has been, too.
    await backend.logged(/tap0 is down/)
    expect(backend.log).not.toContain('bridge')
    expect(shownLink(backend.namespace, 'tap0')!.master).toBeUndefined()
  })

  test('has the MTU of its bridge, and so has the card', async () => {
    const backend = await start({ args: BRIDGE, prepare: (namespace) => makeBridge(namespace, 'mtu 9000 up') })
    expect(shownLink(backend.namespace, 'br0')).toMatchObject({ mtu: 9000 })
    expect(await device(backend)).toMatchObject({ mtu: 9000 })
  })

  test('has the same MAC after kill -9 and a restart, and after it was deleted', async () => {
    const backend = await start({})
    const { address, ifindex } = shownLink(backend.namespace, 'tap0')!
    expect(address).toStartWith('fe:')
    expect(backend.log).toContain('created tap0: it vanishes when this process ends')
    await backend.restart()
    expect(shownLink(backend.namespace, 'tap0')).toMatchObject({ address })
    const index = await indexOf(backend)
    expect(index).not.toBe(ifindex)
    backend.namespace.ip('link delete tap0')
    await again(backend, index)
    expect(shownLink(backend.namespace, 'tap0')).toMatchObject({ address })
    expect(backend.log).toContain('tap0 is there again; the addresses that the one before had are gone')
  })

  test.each([
    ['one queue', 1, { rings: 2 }],
    ['several queues', 2, { rings: 4 }],
  ] as [string, number, FrontendOptions][])(
    'stays as it is after kill -9 and a restart with --tap-persist: %s',
    async (_name, pairs, options) => {
      const backend = await start({ pairs, args: ['--tap-persist'] })
      const traffic = new Traffic(backend)
      backend.namespace.ip('address add 10.9.0.1/24 dev tap0')
      const before = shownLink(backend.namespace, 'tap0')!
      expect(before.linkinfo!.info_data).toMatchObject({ persist: true })
      traffic.serveNext(options)
      await backend.restart()
      expect(shownLink(backend.namespace, 'tap0')).toMatchObject({ address: before.address, ifindex: before.ifindex })
      expect(backend.namespace.ip('-4 -o address show tap0')).toContain('10.9.0.1/24')
      traffic.serveNext(options)
      backend.signal('SIGTERM')
      expect(await backend.ended()).toBe(0)
      expect(backend.namespace.ip('-4 -o address show tap0')).toContain('10.9.0.1/24')
    },
  )
})
