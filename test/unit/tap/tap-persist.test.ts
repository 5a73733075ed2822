import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { VIRTIO_NET_F_GUEST_CSUM } from '../../../src/abi/virtio.ts'
import { featureBit } from '../../../src/device/features.ts'
import type { Tap } from '../../../src/tap/tap.ts'
import type { TapOptions } from '../../../src/tap/tap-options.ts'
import { NetworkNamespace, noRealTaps } from '../../support/network-namespace.ts'
import { TEST_MS } from '../../support/patience.ts'
import { refusal } from '../../support/refusal.ts'
import {
  ETHTOOL_GTXCSUM,
  ethtool,
  openScratchTap,
  queuesOf,
  SCRATCH_MAC,
  shownLink,
} from '../../support/scratch-tap.ts'

setDefaultTimeout(TEST_MS)

const CSUM = featureBit(VIRTIO_NET_F_GUEST_CSUM)

/** As a start that comes to its end leaves it. */
const openTap = (ns: NetworkNamespace, options: Partial<TapOptions> = {}): Tap => {
  const tap = openScratchTap(ns, { persist: true, ...options })
  tap.keep()
  return tap
}

const addressesOf = (ns: NetworkNamespace): string[] =>
  (JSON.parse(ns.ip('-json -4 address show tap0')) as { addr_info?: { local: string }[] }[]).flatMap(
    ({ addr_info = [] }) => addr_info.map(({ local }) => local),
  )

describe.skipIf(noRealTaps !== null)('a TAP that is to persist', () => {
  test('stays with its addresses, its MTU and its bridge, and is used again', () => {
    using ns = new NetworkNamespace()
    ns.ip('link add br0 type bridge')
    ns.ip('link set br0 mtu 4000')
    const first = openTap(ns, { bridge: 'br0' })
    expect(first.created).toBeTrue()
    ns.ip('address add 10.9.0.1/24 dev tap0')
    first.setOffloads(CSUM)
    const shown = shownLink(ns, 'tap0')!
    first[Symbol.dispose]()
    // Without a carrier, since nobody reads it, and with all checksums done.
    expect(shownLink(ns, 'tap0')).toMatchObject({
      ifindex: shown.ifindex,
      master: 'br0',
      mtu: 4000,
      address: SCRATCH_MAC,
    })
    expect(shownLink(ns, 'tap0')!.flags).not.toContain('LOWER_UP')
    expect(ethtool(ns, 'tap0', ETHTOOL_GTXCSUM)).toBe(0)
    using second = openTap(ns, { bridge: 'br0' })
    expect(second.created).toBeFalse()
    expect(second.index).toBe(shown.ifindex)
    expect(second.link()).toMatchObject({ up: true, carrier: true, mtu: 4000 })
    expect(addressesOf(ns)).toEqual(['10.9.0.1'])
    second.setOffloads(CSUM)
    expect(ethtool(ns, 'tap0', ETHTOOL_GTXCSUM)).toBe(1)
  })

  test('stays as often as it is used, and leaves its bridge at no end', () => {
    using ns = new NetworkNamespace()
    ns.ip('link add br0 type bridge')
    for (let start = 0; start < 3; start++) openTap(ns, { bridge: 'br0' })[Symbol.dispose]()
    expect(shownLink(ns, 'tap0')).toMatchObject({ master: 'br0' })
  })

  test.each([
    [1, 4],
    [4, 1],
    [4, 8],
    [2, 2],
  ])('is opened with %i queues, then with %i', (before, after) => {
    using ns = new NetworkNamespace()
    openTap(ns, { queues: before })[Symbol.dispose]()
    using tap = openTap(ns, { queues: after })
    expect(tap.fds).toHaveLength(after)
    expect(queuesOf(ns)).toEqual([after, 0])
  })

  test('takes other options at the next start: header, MTU, bridge', () => {
    using ns = new NetworkNamespace()
    ns.ip('link add br0 type bridge')
    openTap(ns)[Symbol.dispose]()
    using tap = openTap(ns, { vnetHdr: false, mtu: 2000, bridge: 'br0' })
    expect(tap.hasVnetHdr).toBeFalse()
    expect(shownLink(ns, 'tap0')).toMatchObject({ mtu: 2000, master: 'br0' })
  })

  test('does not move to another bridge by itself', () => {
    using ns = new NetworkNamespace()
    for (const name of ['br0', 'br1']) ns.ip(`link add ${name} type bridge`)
    openTap(ns, { bridge: 'br0' })[Symbol.dispose]()
    const error = refusal(() => openTap(ns, { bridge: 'br1' }))
    expect(error.message).toBe('tap0: already belongs to br0, not to br1')
    expect(error.hint).toStartWith('ip link set tap0 nomaster')
  })

  test('stays if the next start is not told to keep it: it is nobody else’s to delete', () => {
    using ns = new NetworkNamespace()
    openTap(ns)[Symbol.dispose]()
    for (const queues of [1, 2]) openTap(ns, { persist: false, queues })[Symbol.dispose]()
    expect(ns.interfaces()).toEqual(['lo', 'tap0'])
  })

  test('is not left behind by a start that fails', () => {
    using ns = new NetworkNamespace()
    refusal(() => openTap(ns, { mtu: 67 }))
    expect(ns.interfaces()).toEqual(['lo'])
    // It comes to an end before anything is served.
    openScratchTap(ns, { persist: true })[Symbol.dispose]()
    expect(ns.interfaces()).toEqual(['lo'])
  })

  test('has the MAC that its user gave it since', () => {
    using ns = new NetworkNamespace()
    openTap(ns)[Symbol.dispose]()
    ns.ip('link set tap0 address 02:00:00:00:00:77')
    using tap = openTap(ns)
    expect(shownLink(ns, tap.name)).toMatchObject({ address: '02:00:00:00:00:77' })
  })

  test('persists again after it was deleted under us', () => {
    using ns = new NetworkNamespace()
    const tap = openTap(ns, { queues: 2 })
    ns.ip('link delete tap0')
    tap.reopen()
    tap[Symbol.dispose]()
    expect(shownLink(ns, 'tap0')).toMatchObject({ address: SCRATCH_MAC })
  })
})

describe.skipIf(noRealTaps !== null)('a TAP of several queues that somebody else has made', () => {
  test.each([
    [1, true],
    [2, true],
    [2, false],
  ])('is opened with %i queues, --tap-persist %p, and stays', (queues, persist) => {
    using ns = new NetworkNamespace()
    ns.ip('tuntap add tap0 mode tap multi_queue')
    const tap = openTap(ns, { persist, queues })
    expect(queuesOf(ns)).toEqual([queues, 0])
    tap[Symbol.dispose]()
    expect(ns.interfaces()).toEqual(['lo', 'tap0'])
  })

  test('that has one queue each time it is used is opened with it, too', () => {
    using ns = new NetworkNamespace()
    ns.ip('tuntap add tap0 mode tap')
    for (const persist of [true, false]) {
      const tap = openTap(ns, { persist })
      expect(shownLink(ns, 'tap0')!.linkinfo!.info_data!.multi_queue).toBeFalse()
      tap[Symbol.dispose]()
    }
    expect(refusal(() => openTap(ns, { queues: 2 })).message).toContain('was created without multi_queue')
  })

  test.each([1, 2])('is not opened with %i while somebody reads it, also from one queue of two', (queues) => {
    using ns = new NetworkNamespace()
    using holder = openTap(ns, { persist: false, queues: 2 })
    const refused = (): string => refusal(() => openTap(ns, { queues })).message
    expect(refused()).toBe('tap0: in use by another process')
    holder.setQueueAttached(1, false)
    expect(refused()).toBe('tap0: in use by another process')
    expect(queuesOf(ns)).toEqual([1, 1])
  })
})

describe.skipIf(noRealTaps !== null)('the MAC of a TAP', () => {
  test('that is created is the same each time, and that of another one is left alone', () => {
    using ns = new NetworkNamespace()
    for (let start = 0; start < 3; start++) {
      using tap = openScratchTap(ns)
      expect(shownLink(ns, tap.name)!.address).toBe(SCRATCH_MAC)
    }
    ns.ip('tuntap add tap1 mode tap')
    const { address } = shownLink(ns, 'tap1')!
    using tap = openScratchTap(ns, { source: { name: 'tap1' } })
    expect(shownLink(ns, tap.name)!.address).toBe(address)
  })

  test('is the kernel’s to choose where none is given', () => {
    using ns = new NetworkNamespace()
    using tap = openScratchTap(ns, { mac: null })
    expect(shownLink(ns, tap.name)!.address).not.toBe(SCRATCH_MAC)
  })
})
