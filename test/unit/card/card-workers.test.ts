import { describe, expect, test } from 'bun:test'
import { UserError } from '../../../src/base/errors.ts'
import { CardWorkers } from '../../../src/card/card-workers.ts'
import type { TransportEnd } from '../../../src/device/control-transport.ts'
import { NetworkNamespace, noRealTaps } from '../../support/network-namespace.ts'

/** No machine has it. */
const NO_CPU = 8191

describe.skipIf(noRealTaps !== null)('the threads of a card', () => {
  test('a queue worker that cannot start ends the start with its reason, and can be stopped', async () => {
    using namespace = new NetworkNamespace()
    const ends: TransportEnd[] = []
    const workers = new CardWorkers(2, { busyPollUs: null, cpus: [0, NO_CPU] }, (end) => ends.push(end))
    const { name: netns } = namespace
    const tap = await workers.openTap({
      source: { name: 'tap0' },
      queues: 2,
      vnetHdr: true,
      mtu: null,
      mac: null,
      persist: false,
      bridge: null,
      netns,
    })
    const memory = new SharedArrayBuffer(1 << 16)
    const endpoint = { kind: 'connect', path: '/nowhere', oneOff: false } as const
    const start = workers.serve(
      tap,
      { mac: '02:00:00:00:00:01', mtu: 1500, offered: 1n << 32n, queueSize: 256 },
      { device: { kind: 'vhost-user', endpoint, memory, inBand: false }, queues: { kind: 'vhost-user', memory } },
      false,
    )
    const error: unknown = await start.catch((why: unknown) => why)
    expect(error).toBeInstanceOf(UserError)
    expect((error as UserError).message).toBe(`queue-worker: SysError: CPU ${NO_CPU}: EINVAL`)
    expect(ends).toEqual([{ why: `queue-worker: SysError: CPU ${NO_CPU}: EINVAL`, failed: true }])
    await workers.stop()
  }, 60_000)
})
