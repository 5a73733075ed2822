/**
 * What the host does to the TAP of a card that runs, and what becomes of it when the process dies: the running program
 * on vhost-user.
 */

import { afterEach, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { constants, release } from 'node:os'
import { join } from 'node:path'
import { until } from '../../scripts/frontends/native-process.ts'
import { VIRTIO_NET_F_MTU } from '../../src/abi/virtio.ts'
import type { DeviceView, StatsView } from '../../src/card/card.ts'
import { bit } from '../support/bits.ts'
import { makePacket } from '../support/frames.ts'
import { type NetworkNamespace, noRealTaps } from '../support/network-namespace.ts'
import { numberOf } from '../support/packet-socket.ts'
import { TEST_MS } from '../support/patience.ts'
import { queuesOf, shownLink } from '../support/scratch-tap.ts'
import { Backend, type BackendOptions } from '../support/vhost-user-backend.ts'
import { DRIVER_FEATURES, Frontend, type FrontendOptions } from '../support/vhost-user-client.ts'
import { Traffic } from '../support/vhost-user-traffic.ts'

setDefaultTimeout(TEST_MS)

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

  const stats = async (backend: Backend): Promise<StatsView> => (await backend.ask('/v1/stats')) as StatsView

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
      await backend.logged(/no such interface .*; trying again/)
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
      await backend.logged(/no such interface .*; trying again/, from)
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

  describe('whose MTU is changed', () => {
    const setMtu = async (backend: Backend, mtu: number, says: RegExp): Promise<void> => {
      const from = backend.log.length
      backend.namespace.ip(`link set tap0 mtu ${mtu}`)
      await backend.logged(says, from)
    }

    test('to a driver that was told another one nothing longer comes, and the user is told what to do', async () => {
      const backend = await start({})
      const traffic = new Traffic(backend)
      using frontend = Frontend.start(backend.socketPath, { features: DRIVER_FEATURES | bit(VIRTIO_NET_F_MTU) })
      traffic.pass(frontend)
      await setMtu(backend, 9000, /MTU of 9000 now, and the driver was told 1500.*--mtu 9000/)
      frontend.provide(8, 16_384)
      backend.wire.send(traffic.frame(9014))
      await until('the drop', async () => (await stats(backend)).drops.frame_too_long > 0)
      traffic.pass(frontend)
      expect(backend.log.match(/MTU of 9000/g)).toHaveLength(1)
      expect(await device(backend)).toMatchObject({ mtu: 1500 })
    })

    test('a driver that was told none can use it both ways, until another one comes', async () => {
      const backend = await start({})
      const traffic = new Traffic(backend)
      {
        using frontend = Frontend.start(backend.socketPath)
        traffic.pass(frontend)
        await setMtu(backend, 9000, /MTU of 9000 now: frames of that size pass/)
        const [out, into] = [traffic.frame(9014), traffic.frame(9014)]
        frontend.transmit(out)
        traffic.arrives(out)
        frontend.used(frontend.tx)
        frontend.provide(8, 16_384)
        backend.wire.send(into)
        while (numberOf(frontend.receive()) !== numberOf(into)) frontend.provide(8, 16_384)
      }
      using frontend = Frontend.start(backend.socketPath, { features: DRIVER_FEATURES | bit(VIRTIO_NET_F_MTU) })
      await backend.logged(/and the driver was told 1500/)
      frontend.transmit(traffic.frame(9014))
      frontend.used(frontend.tx)
      expect((await stats(backend)).drops.frame_too_long).toBe(1)
      traffic.pass(frontend)
    })

    test('lowered: what the driver was told still passes', async () => {
      const backend = await start({})
      const traffic = new Traffic(backend)
      using frontend = Frontend.start(backend.socketPath, { features: DRIVER_FEATURES | bit(VIRTIO_NET_F_MTU) })
      backend.namespace.ip('link set tap0 mtu 1280')
      const out = traffic.frame(1514)
      frontend.transmit(out)
      traffic.arrives(out)
      expect((await stats(backend)).drops.frame_too_long).toBe(0)
    })
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
    await backend.logged(/tap0 exists again; tap0 is a new interface, without the addresses of the deleted one/)
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

  describe('decides what is offered', () => {
    const refusing = join(import.meta.dir, '../support/refusing-offloads.ts')
    const { EINVAL, EPERM } = constants.errno
    const USO = ['guest_uso4', 'guest_uso6', 'host_uso']
    const TSO = ['guest_tso4', 'guest_tso6']
    const offered = async (options: BackendOptions): Promise<readonly string[]> =>
      (await device(await start(options))).features.offered

    /** The TAP as this program creates it, and as it finds one. */
    const origins: [string, (namespace: NetworkNamespace) => void][] = [
      ['that is created', () => {}],
      ['that was there before', (namespace) => void namespace.ip('tuntap add tap0 mode tap vnet_hdr')],
    ]

    describe.each(origins)('%s', (_origin, prepare) => {
      test('all that this kernel knows', async () => {
        const [major = 0, minor = 0] = release().split('.').map(Number)
        const knowsUso = major > 6 || (major === 6 && minor >= 2)
        const names = await offered({ prepare })
        expect(names.filter((name) => USO.includes(name))).toHaveLength(knowsUso ? USO.length : 0)
        expect(names).toEqual(expect.arrayContaining(TSO))
      })

      test('no USO in either direction where the kernel does not know it, before 6.2', async () => {
        const names = await offered({ prepare, by: [process.execPath, refusing, String(EINVAL), '0x60'] })
        expect(names.filter((name) => USO.includes(name))).toEqual([])
        expect(names).toEqual(expect.arrayContaining(TSO))
      })

      test('no GSO to receive, and no USO, where this process may not say what it takes', async () => {
        const names = await offered({ prepare, by: [process.execPath, refusing, String(EPERM), '0'] })
        expect(names.filter((name) => [...USO, ...TSO].includes(name))).toEqual([])
        expect(names).toContain('host_tso4')
      })

      test('USO to send where there is no vnet header, on any kernel: frames are cut here', async () => {
        const by = [process.execPath, refusing, String(EINVAL), '0x60']
        const names = await offered({ prepare, by, args: ['--no-vnet-hdr'] })
        expect(names).toContain('host_uso')
        expect(names.filter((name) => TSO.includes(name))).toEqual([])
      })
    })

    test('what is asked for by name and cannot be had is refused', async () => {
      const backend = start({
        by: [process.execPath, refusing, String(EINVAL), '0x60'],
        args: ['--features', '+host_uso'],
      })
      await expect(backend).rejects.toThrow(/--features \+host_uso: tap0 cannot do it/)
    })

    test('a TAP that was deleted is made again there, too', async () => {
      const backend = await start({ by: [process.execPath, refusing, String(EINVAL), '0x60'] })
      const index = await indexOf(backend)
      using frontend = Frontend.start(backend.socketPath)
      backend.namespace.ip('link delete tap0')
      await again(backend, index)
      backend.rewire()
      new Traffic(backend).pass(frontend)
    })
  })
})
