/** What a driver and the network do to a card that runs, and how its operator and its driver see it: the running program on vhost-user. */

import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { until } from '../../scripts/frontends/native-process.ts'
import {
  VIRTIO_NET_CTRL_MAC,
  VIRTIO_NET_CTRL_MAC_ADDR_SET,
  VIRTIO_NET_ERR,
  VIRTIO_NET_OK,
} from '../../src/abi/virtio-net.ts'
import type { DeviceView } from '../../src/dataplane/card.ts'
import { NetworkNamespace, noRealTaps } from '../support/network-namespace.ts'
import { numberOf, PacketSocket } from '../support/packet-socket.ts'
import { Backend } from '../support/vhost-user-backend.ts'
import { Frontend } from '../support/vhost-user-client.ts'
import { command, WITH_CONTROL_QUEUE } from '../support/vhost-user-control.ts'
import { Traffic } from '../support/vhost-user-traffic.ts'

const OWN_MAC = '02:00:5e:10:00:01'
const SET_MAC = [VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET]

const tapIndex = (namespace: NetworkNamespace): number =>
  (JSON.parse(namespace.ip('-json link show tap0')) as { ifindex: number }[])[0]!.ifindex

describe.skipIf(noRealTaps !== null)('a card that runs', () => {
  let backend: Backend
  let traffic: Traffic

  beforeEach(async () => {
    backend = await Backend.start({ args: ['--mac', OWN_MAC] })
    traffic = new Traffic(backend)
  })

  afterEach(async () => {
    await backend[Symbol.asyncDispose]()
  })

  const device = async (): Promise<DeviceView> => (await backend.ask('/v1/device')) as DeviceView

  /** Waits until the card is seen to be so. */
  const seen = (what: string, isSo: (view: DeviceView) => boolean): Promise<unknown> =>
    until(what, async () => isSo(await device()))

  test('shows the address that its driver has set, until the driver resets it', async () => {
    expect(await device()).toMatchObject({ mac: OWN_MAC, ownMac: OWN_MAC })
    {
      using frontend = Frontend.start(backend.socketPath, WITH_CONTROL_QUEUE)
      traffic.pass(frontend)
      expect(command(frontend, [...SET_MAC, 2, 3, 4, 5, 6, 0xfe])).toBe(VIRTIO_NET_OK)
      expect(await device()).toMatchObject({ mac: '02:03:04:05:06:fe', ownMac: OWN_MAC })
      // A multicast address is refused.
      expect(command(frontend, [...SET_MAC, 1, 3, 4, 5, 6, 7])).toBe(VIRTIO_NET_ERR)
      expect(await device()).toMatchObject({ mac: '02:03:04:05:06:fe', ownMac: OWN_MAC })
    }
    await seen('its own address', ({ mac }) => mac === OWN_MAC)
  })

  test('follows its TAP into another network namespace and back: index, link, packets', async () => {
    using elsewhere = new NetworkNamespace()
    // The TAP's index is taken there.
    for (let i = 0; i < 8; i++) elsewhere.ip(`link add taken${i} type bridge`)
    using frontend = Frontend.start(backend.socketPath)
    await seen('a link', ({ linkUp }) => linkUp)
    backend.namespace.ip(`link set tap0 netns ${elsewhere.name}`)
    // The move has taken it down.
    await seen('no link', ({ linkUp, tap }) => !linkUp && !tap.carrier)
    expect((await device()).tap.index).toBe(tapIndex(elsewhere))
    elsewhere.ip('link set tap0 up')
    await seen('a link there', ({ linkUp }) => linkUp)
    {
      using wire = new PacketSocket(elsewhere.name, 'tap0')
      const sent = traffic.frame()
      frontend.transmit(sent)
      const out = wire.receive()
      expect(out === null ? null : numberOf(out)).toBe(numberOf(sent))
    }
    elsewhere.ip('link set tap0 down')
    await seen('no link there', ({ linkUp }) => !linkUp)
    elsewhere.ip(`link set tap0 netns ${backend.namespace.name}`)
    backend.namespace.ip('link set tap0 up')
    await seen('a link here', ({ linkUp }) => linkUp)
    backend.namespace.ip('link set tap0 down')
    await seen('no link here', ({ linkUp }) => !linkUp)
    backend.namespace.ip('link set tap0 up')
    await seen('a link again', ({ linkUp }) => linkUp)
  })

  test('makes a TAP that was deleted elsewhere again where it was at first, and follows that one', async () => {
    using elsewhere = new NetworkNamespace()
    backend.namespace.ip(`link set tap0 netns ${elsewhere.name}`)
    await seen('no link', ({ linkUp }) => !linkUp)
    elsewhere.ip('link delete tap0')
    await seen('the next TAP', ({ linkUp, tap }) => linkUp && tap.index !== null)
    expect((await device()).tap.index).toBe(tapIndex(backend.namespace))
    backend.namespace.ip('link set tap0 down')
    await seen('no link of the next one', ({ linkUp }) => !linkUp)
    backend.namespace.ip('link set tap0 up')
    await seen('a link of the next one', ({ linkUp }) => linkUp)
  })
})
