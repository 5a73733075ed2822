import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import {
  IFF_DETACH_QUEUE,
  IFREQ,
  TUN_FILTER_BYTES,
  TUNSETFILTEREBPF,
  TUNSETQUEUE,
  TUNSETTXFILTER,
} from '../../../src/abi/tun.ts'
import { VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4 } from '../../../src/abi/virtio.ts'
import { featureBit } from '../../../src/device/features.ts'
import { check, native } from '../../../src/sys/native.ts'
import { Steering } from '../../../src/tap/steering.ts'
import type { Tap } from '../../../src/tap/tap.ts'
import { VNET_HDR_BYTES } from '../../../src/tap/tap-interface.ts'
import { NetworkNamespace, noRealTaps } from '../../support/network-namespace.ts'
import { numberOf, PacketSocket, testFrame } from '../../support/packet-socket.ts'
import { HANG_MS, TEST_MS } from '../../support/patience.ts'
import { refusal } from '../../support/refusal.ts'
import { ETHTOOL_GTSO, ETHTOOL_GTXCSUM, ethtool, openScratchTap, queuesOf } from '../../support/scratch-tap.ts'

setDefaultTimeout(TEST_MS)

const CSUM = featureBit(VIRTIO_NET_F_GUEST_CSUM)
const TSO4 = featureBit(VIRTIO_NET_F_GUEST_TSO4)

/** Ends a card as SIGKILL does: the kernel closes the descriptors, and nothing is taken back. */
const kill = (tap: Tap): void => {
  for (const fd of tap.fds) native.vn_close(fd)
}

/** Frames that the interface has not handed over, by the kernel's count. */
const dropped = (ns: NetworkNamespace): number =>
  (JSON.parse(ns.ip('-json -s link show tap0')) as { stats64: { tx: { dropped: number } } }[])[0]!.stats64.tx.dropped

/** Does the interface hand over a frame that the host sends, or drop it? */
const handsOver = (ns: NetworkNamespace, tap: Tap): boolean => {
  using wire = new PacketSocket(ns.name, 'tap0')
  const before = dropped(ns)
  wire.send(testFrame(7))
  const buffer = new Uint8Array(2000)
  for (const deadline = performance.now() + HANG_MS; performance.now() < deadline; ) {
    const bytes = native.vn_read(tap.fds[0]!, buffer, buffer.length)
    if (bytes > 0 && numberOf(buffer.subarray(VNET_HDR_BYTES, bytes)) === 7) return true
    if (dropped(ns) > before) return false
  }
  throw new Error('the frame is neither handed over nor dropped')
}

const setQueue = (fd: number, flag: number): void => {
  const request = new Uint8Array(IFREQ.sizeBytes)
  new DataView(request.buffer).setUint16(IFREQ.ifr_flags, flag, true)
  check('TUNSETQUEUE', native.vn_ioctl(fd, TUNSETQUEUE, request))
}

const scratchNamespace = (): NetworkNamespace => {
  const ns = new NetworkNamespace()
  // What the host has to say of itself would come between.
  ns.sysctl('net.ipv6.conf.all.disable_ipv6', '1')
  ns.sysctl('net.ipv6.conf.default.disable_ipv6', '1')
  ns.ip('tuntap add tap0 mode tap')
  return ns
}

describe.skipIf(noRealTaps !== null)('a TAP that another owner has left behind', () => {
  for (const vnetHdr of [true, false]) {
    test(`leaves no checksum open and nothing to be cut, ${vnetHdr ? 'with' : 'without'} a vnet header`, () => {
      using ns = scratchNamespace()
      const before = openScratchTap(ns)
      before.setOffloads(CSUM | TSO4)
      kill(before)
      expect(ethtool(ns, 'tap0', ETHTOOL_GTXCSUM)).toBe(1)
      using tap = openScratchTap(ns, { vnetHdr })
      const seen = (): number[] => [ethtool(ns, 'tap0', ETHTOOL_GTXCSUM), ethtool(ns, 'tap0', ETHTOOL_GTSO)]
      expect(seen()).toEqual([0, 0])
      tap.setOffloads(CSUM)
      expect(seen()).toEqual([vnetHdr ? 1 : 0, 0])
    })
  }

  test('filters no addresses', () => {
    using ns = scratchNamespace()
    const before = openScratchTap(ns)
    // One address that passes, which nobody has.
    const filter = new Uint8Array(TUN_FILTER_BYTES + 6)
    new DataView(filter.buffer).setUint16(2, 1, true)
    filter.set([2, 0, 0, 0, 0, 99], TUN_FILTER_BYTES)
    check('TUNSETTXFILTER', native.vn_ioctl(before.fds[0]!, TUNSETTXFILTER, filter))
    expect(handsOver(ns, before)).toBeFalse()
    kill(before)
    using tap = openScratchTap(ns)
    expect(handsOver(ns, tap)).toBeTrue()
  })
})

describe.skipIf(noRealTaps !== null)('a TAP of which somebody has a queue', () => {
  /** As systemd-networkd makes one with KeepCarrier=yes and MultiQueue=yes: its queue is out. */
  const keepCarrier = (ns: NetworkNamespace): Tap => {
    ns.ip('tuntap add tap0 mode tap vnet_hdr multi_queue')
    const kept = openScratchTap(ns, { queues: 2 })
    for (const fd of kept.fds) setQueue(fd, IFF_DETACH_QUEUE)
    return kept
  }

  test('is used if that is out and only keeps the carrier, and gets all packets', () => {
    using ns = new NetworkNamespace()
    using _kept = keepCarrier(ns)
    expect(queuesOf(ns)).toEqual([0, 2])
    const tap = openScratchTap(ns, { queues: 2 })
    expect(queuesOf(ns)).toEqual([2, 2])
    expect(refusal(() => openScratchTap(ns, { queues: 2 })).message).toBe('tap0: in use by another process')
    tap.setQueueAttached(1, false)
    expect(queuesOf(ns)).toEqual([1, 3])
    expect(handsOver(ns, tap)).toBeTrue()
    expect(refusal(() => openScratchTap(ns, { queues: 2 })).message).toBe('tap0: in use by another process')
    tap[Symbol.dispose]()
    expect(queuesOf(ns)).toEqual([0, 2])
  })

  test('is used with one queue if it is to persist', () => {
    using ns = new NetworkNamespace()
    using _kept = keepCarrier(ns)
    expect(refusal(() => openScratchTap(ns)).message).toStartWith('tap0: was created with multi_queue')
    using tap = openScratchTap(ns, { persist: true })
    expect(handsOver(ns, tap)).toBeTrue()
  })
})

const steering = noRealTaps === null ? Steering.load() : 0
if (noRealTaps === null && typeof steering === 'number')
  console.warn(`skipped, a TAP with a program: errno ${steering}`)

describe.skipIf(typeof steering === 'number')('a TAP whose frames a program of another owner cuts', () => {
  test('hands them over whole', () => {
    if (typeof steering === 'number') throw new Error('no program')
    using program = steering
    using ns = scratchNamespace()
    const before = openScratchTap(ns)
    // It answers with the number of a queue, which is taken for the bytes that are left: none of a frame without flow.
    check('TUNSETFILTEREBPF', native.vn_ioctl(before.fds[0]!, TUNSETFILTEREBPF, Int32Array.of(program.fd)))
    expect(handsOver(ns, before)).toBeFalse()
    kill(before)
    using tap = openScratchTap(ns)
    expect(handsOver(ns, tap)).toBeTrue()
  })
})
