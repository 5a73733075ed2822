/** What a driver and the network do to a card that runs, and how its operator and its driver see it: the running program on vhost-user. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { until } from '../../scripts/frontends/native-process.ts'
import {
  VIRTIO_NET_CTRL_MAC,
  VIRTIO_NET_CTRL_MAC_ADDR_SET,
  VIRTIO_NET_ERR,
  VIRTIO_NET_OK,
} from '../../src/abi/virtio-net.ts'
import type { DeviceView } from '../../src/dataplane/card.ts'
import { noRealTaps } from '../support/network-namespace.ts'
import { Backend } from '../support/vhost-user-backend.ts'
import { Frontend } from '../support/vhost-user-client.ts'
import { command, WITH_CONTROL_QUEUE } from '../support/vhost-user-control.ts'
import { Traffic } from '../support/vhost-user-traffic.ts'

const OWN_MAC = '02:00:5e:10:00:01'
const SET_MAC = [VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET]

describe.skipIf(noRealTaps !== null)('a card that runs', () => {
  let backend: Backend
  let traffic: Traffic

  beforeAll(async () => {
    backend = await Backend.start({ args: ['--mac', OWN_MAC] })
    traffic = new Traffic(backend)
  })

  afterAll(async () => {
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
})
