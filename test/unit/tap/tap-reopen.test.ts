import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { HASH_TYPES } from '../../../src/abi/receive-scaling.ts'
import { VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4 } from '../../../src/abi/virtio.ts'
import { featureBit } from '../../../src/device/features.ts'
import { ReceiveScaling } from '../../../src/device/receive-scaling.ts'
import { native } from '../../../src/sys/native.ts'
import type { Tap } from '../../../src/tap/tap.ts'
import { NetworkNamespace, noRealTaps } from '../../support/network-namespace.ts'
import { openThings } from '../../support/open-things.ts'
import { PacketSocket, testFrame } from '../../support/packet-socket.ts'
import { TEST_MS } from '../../support/patience.ts'
import { refusal } from '../../support/refusal.ts'
import {
  ETHTOOL_GTSO,
  ETHTOOL_GTXCSUM,
  ethtool,
  openScratchTap,
  queuesOf,
  SCRATCH_MAC,
  shownLink,
} from '../../support/scratch-tap.ts'
import { MICROSOFT_KEY } from '../../support/toeplitz.ts'

setDefaultTimeout(TEST_MS)

const CSUM = featureBit(VIRTIO_NET_F_GUEST_CSUM)
const TSO4 = featureBit(VIRTIO_NET_F_GUEST_TSO4)

describe.skipIf(noRealTaps !== null)('a TAP that is deleted under us', () => {
  test('is known, and comes back with all that was set', () => {
    using ns = new NetworkNamespace()
    using tap = openScratchTap(ns, { mtu: 1400 })
    tap.setOffloads(CSUM)
    const { index } = tap
    ns.ip('link delete tap0')
    expect(tap.isAttached()).toBeFalse()
    expect(tap.link()).toBeNull()
    expect(tap.setOffloads(CSUM)).toMatchObject({ csum: false })
    tap.reopen()
    expect(tap.isAttached()).toBeTrue()
    expect(tap.index).not.toBe(index)
    expect(tap.link()).toMatchObject({ mtu: 1400, up: true, carrier: true })
    expect(ethtool(ns, 'tap0', ETHTOOL_GTXCSUM)).toBe(1)
    expect(shownLink(ns, 'tap0')!.address).toBe(SCRATCH_MAC)
  })

  test('cannot come back while its name is taken, and can later', () => {
    using ns = new NetworkNamespace()
    using tap = openScratchTap(ns)
    ns.ip('link delete tap0')
    ns.ip('link add tap0 type bridge')
    for (let i = 0; i < 3; i++) {
      expect(refusal(() => tap.reopen()).message).toBe('tap0: is not a TAP (it is a bridge)')
      expect(tap.fds).toEqual([])
      expect(tap.isAttached()).toBeFalse()
    }
    ns.ip('link delete tap0')
    tap.reopen()
    expect(tap.isAttached()).toBeTrue()
  })

  test('is let go of without a word', () => {
    using ns = new NetworkNamespace()
    ns.ip('tuntap add tap0 mode tap')
    const tap = openScratchTap(ns)
    ns.ip('link delete tap0')
    expect(() => tap[Symbol.dispose]()).not.toThrow()
  })

  test('is in its bridge again, which the successor does not lower', () => {
    using ns = new NetworkNamespace()
    ns.ip('link add br0 type bridge')
    ns.ip('link set br0 mtu 9000')
    using tap = openScratchTap(ns, { bridge: 'br0' })
    ns.ip('link delete tap0')
    ns.ip('link set br0 mtu 9500')
    tap.reopen()
    expect(shownLink(ns, 'tap0')).toMatchObject({ master: 'br0', mtu: 9500 })
    expect(shownLink(ns, 'br0')).toMatchObject({ mtu: 9500 })
  })

  test('has no less MTU than before, so that the driver can go on sending', () => {
    using ns = new NetworkNamespace()
    ns.ip('link add br0 type bridge')
    ns.ip('link set br0 mtu 9000')
    using tap = openScratchTap(ns, { bridge: 'br0' })
    for (const name of ['tap0', 'br0']) ns.ip(`link delete ${name}`)
    ns.ip('link add br0 type bridge')
    tap.reopen()
    expect(shownLink(ns, 'tap0')).toMatchObject({ master: 'br0', mtu: 9000 })
  })

  test('has the MAC and the MTU of the one that somebody else had made', () => {
    using ns = new NetworkNamespace()
    ns.ip('tuntap add tap0 mode tap')
    ns.ip('link set tap0 address 02:00:00:00:00:77 mtu 4000')
    using tap = openScratchTap(ns)
    expect(shownLink(ns, 'tap0')).toMatchObject({ address: '02:00:00:00:00:77', mtu: 4000 })
    ns.ip('link delete tap0')
    tap.reopen()
    expect(shownLink(ns, 'tap0')).toMatchObject({ address: '02:00:00:00:00:77', mtu: 4000 })
  })

  test('is replaced by one that somebody else has made meanwhile, whose MAC stays', () => {
    using ns = new NetworkNamespace()
    using tap = openScratchTap(ns)
    tap.setOffloads(CSUM)
    ns.ip('link delete tap0')
    ns.ip('tuntap add tap0 mode tap')
    const { address } = shownLink(ns, 'tap0')!
    tap.reopen()
    expect(shownLink(ns, 'tap0')).toMatchObject({ address })
    expect(ethtool(ns, 'tap0', ETHTOOL_GTXCSUM)).toBe(1)
    tap[Symbol.dispose]()
    expect(ns.interfaces()).toEqual(['lo', 'tap0'])
  })
})

describe.skipIf(noRealTaps !== null)('an attempt to make the TAP again that fails', () => {
  test('leaves nothing behind, no descriptor and no interface, however often', () => {
    using ns = new NetworkNamespace()
    ns.ip('link add br0 type bridge')
    using tap = openScratchTap(ns, { bridge: 'br0', queues: 2 })
    for (const name of ['tap0', 'br0']) ns.ip(`link delete ${name}`)
    refusal(() => tap.reopen())
    const open = openThings(ns)
    for (let i = 0; i < 5; i++) {
      expect(refusal(() => tap.reopen()).message).toBe('bridge br0: no such interface')
      expect(openThings(ns)).toEqual(open)
      expect(ns.interfaces()).toEqual(['lo'])
    }
  })

  test.each([1, 2, 3])('leaves the queues as they are wanted: %i failures, one of two in', (failures) => {
    using ns = new NetworkNamespace()
    ns.ip('link add br0 type bridge')
    using tap = openScratchTap(ns, { bridge: 'br0', queues: 2 })
    tap.setQueueAttached(1, false)
    expect(queuesOf(ns)).toEqual([1, 1])
    for (const name of ['tap0', 'br0']) ns.ip(`link delete ${name}`)
    for (let i = 0; i < failures; i++) refusal(() => tap.reopen())
    ns.ip('link add br0 type bridge')
    tap.reopen()
    expect(queuesOf(ns)).toEqual([1, 1])
    expect(shownLink(ns, 'tap0')).toMatchObject({ master: 'br0' })
  })
})

describe.skipIf(noRealTaps !== null)('what is set while there is no TAP holds for the next one', () => {
  /** Deletes the TAP, and lets the first attempt to make it again fail if told. */
  const lose = (ns: NetworkNamespace, tap: Tap, attempt: boolean): void => {
    ns.ip('link delete tap0')
    if (!attempt) return
    ns.ip('link add tap0 type bridge')
    refusal(() => tap.reopen())
    ns.ip('link delete tap0')
  }

  describe.each([
    ['before the first attempt', false],
    ['after one that failed', true],
  ])('%s', (_when, attempt) => {
    test('offloads', () => {
      using ns = new NetworkNamespace()
      using tap = openScratchTap(ns)
      const seen = (): number[] => [ethtool(ns, 'tap0', ETHTOOL_GTXCSUM), ethtool(ns, 'tap0', ETHTOOL_GTSO)]
      lose(ns, tap, attempt)
      tap.setOffloads(CSUM | TSO4)
      tap.reopen()
      expect(seen()).toEqual([1, 1])
      lose(ns, tap, attempt)
      tap.setOffloads(0n)
      tap.reopen()
      expect(seen()).toEqual([0, 0])
    })

    test('the carrier', () => {
      using ns = new NetworkNamespace()
      using tap = openScratchTap(ns)
      lose(ns, tap, attempt)
      tap.setCarrier(false)
      tap.reopen()
      expect(tap.link()).toMatchObject({ up: true, carrier: false })
      lose(ns, tap, attempt)
      tap.setCarrier(true)
      tap.reopen()
      expect(tap.link()).toMatchObject({ up: true, carrier: true })
    })

    test('queues', () => {
      using ns = new NetworkNamespace()
      using tap = openScratchTap(ns, { queues: 4 })
      lose(ns, tap, attempt)
      for (const queue of [1, 3]) tap.setQueueAttached(queue, false)
      tap.reopen()
      expect(queuesOf(ns)).toEqual([2, 2])
      lose(ns, tap, attempt)
      for (const queue of [1, 3]) tap.setQueueAttached(queue, true)
      tap.reopen()
      expect(queuesOf(ns)).toEqual([4, 0])
    })

    test('the MTU that somebody gave the last one', () => {
      using ns = new NetworkNamespace()
      using tap = openScratchTap(ns)
      tap.noteMtu(9000)
      lose(ns, tap, attempt)
      tap.reopen()
      expect(tap.link()).toMatchObject({ mtu: 9000 })
    })

    test('steering', () => {
      using ns = new NetworkNamespace()
      for (const which of ['all', 'default']) ns.sysctl(`net.ipv6.conf.${which}.disable_ipv6`, '1')
      using tap = openScratchTap(ns, { queues: 4 })
      if (tap.steeringErrno() !== 0) return console.warn(`not tried: bpf: errno ${tap.steeringErrno()}`)
      // All to one queue, which no frame without IP has by itself.
      const scaling = new ReceiveScaling(new SharedArrayBuffer(ReceiveScaling.byteLength))
      const steering = { indirection: [2], unclassified: 2, pairs: 4 }
      lose(ns, tap, attempt)
      tap.steer(scaling.words(scaling.write({ hashTypes: HASH_TYPES, key: MICROSOFT_KEY, steering })))
      tap.reopen()
      using wire = new PacketSocket(ns.name, 'tap0')
      for (let number = 0; number < 8; number++) wire.send(testFrame(number))
      expect(waitingIn(tap)).toEqual([0, 0, 8, 0])
    })
  })
})

/** Packets that wait in each queue. */
const waitingIn = (tap: Tap): number[] => {
  const buffer = new Uint8Array(2000)
  return tap.fds.map((fd) => {
    let packets = 0
    while (native.vn_read(fd, buffer, buffer.length) > 0) packets++
    return packets
  })
}
