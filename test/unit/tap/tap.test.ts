import { describe, expect, test } from 'bun:test'
import { closeSync, constants, openSync, readFileSync } from 'node:fs'
import { IFF_NO_PI, IFF_TAP, IFF_TUN, IFF_VNET_HDR, IFREQ, TUNSETIFF } from '../../../src/abi/tun.ts'
import { VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6 } from '../../../src/abi/virtio.ts'
import { featureBit } from '../../../src/device/features.ts'
import { native } from '../../../src/sys/native.ts'
import { withNetns } from '../../../src/sys/netns.ts'
import { NO_OFFLOADS } from '../../../src/tap/offloads.ts'
import type { TapOptions } from '../../../src/tap/tap-options.ts'
import { NetworkNamespace, noRealTaps } from '../../support/network-namespace.ts'
import { openThings } from '../../support/open-things.ts'
import { refusal } from '../../support/refusal.ts'
import { ETHTOOL_GTSO, ETHTOOL_GTXCSUM, ethtool, openScratchTap, queuesOf } from '../../support/scratch-tap.ts'

const TUNGETVNETHDRSZ = 0x800454d7
const TUNGETVNETLE = 0x800454dd
const O_CLOEXEC = 0o2000000

/** The host's own count of what the TAP has sent to it. */
type Received = { stats64: { rx: { packets: number; bytes: number } } }

/** A descriptor as somebody else would make it for --tap-fd; detached without a name. */
const makeTunFd = (ns: NetworkNamespace, name: string | null, flags: number): number =>
  withNetns(ns.name, () => {
    const fd = openSync('/dev/net/tun', constants.O_RDWR)
    if (name !== null) {
      const bytes = new Uint8Array(IFREQ.sizeBytes)
      bytes.set(new TextEncoder().encode(name))
      new DataView(bytes.buffer).setUint16(IFREQ.ifr_flags, flags, true)
      expect(native.vn_ioctl(fd, TUNSETIFF, bytes)).toBe(0)
    }
    return fd
  })

const ask = (fd: number, request: number): number => {
  const answer = new Int32Array(1)
  expect(native.vn_ioctl(fd, request, answer)).toBe(0)
  return answer[0]!
}

describe.skipIf(noRealTaps !== null)('a TAP', () => {
  test('is created, set up, and vanishes with us', () => {
    using ns = new NetworkNamespace()
    const tap = openScratchTap(ns)
    expect(tap.created).toBeTrue()
    expect(tap.name).toBe('tap0')
    expect(tap.hasVnetHdr).toBeTrue()
    expect(tap.isAttached()).toBeTrue()
    expect(tap.link()).toMatchObject({
      name: 'tap0',
      index: tap.index,
      up: true,
      carrier: true,
      mtu: 1500,
      kind: 'tun',
    })
    const [fd] = tap.fds
    expect(ask(fd!, TUNGETVNETHDRSZ)).toBe(12)
    expect(ask(fd!, TUNGETVNETLE)).toBe(1)
    const flags = Number.parseInt(/flags:\t(\d+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))![1]!, 8)
    expect(flags & constants.O_NONBLOCK).not.toBe(0)
    expect(flags & O_CLOEXEC).not.toBe(0)
    tap[Symbol.dispose]()
    expect(ns.interfaces()).toEqual(['lo'])
  })

  test('leaves the namespace of the process alone', () => {
    using ns = new NetworkNamespace()
    const before = Bun.spawnSync(['ip', 'link', 'show', 'tap0']).exitCode
    using tap = openScratchTap(ns)
    expect(ns.interfaces()).toEqual(['lo', tap.name])
    expect(Bun.spawnSync(['ip', 'link', 'show', 'tap0']).exitCode).toBe(before)
  })

  test('that exists is used as it is, and stays', () => {
    using ns = new NetworkNamespace()
    ns.ip('tuntap add tap0 mode tap')
    ns.ip('link set tap0 mtu 1400')
    const tap = openScratchTap(ns)
    expect(tap.created).toBeFalse()
    expect(tap.hasVnetHdr).toBeTrue()
    expect(tap.link()).toMatchObject({ mtu: 1400, up: true })
    tap[Symbol.dispose]()
    expect(ns.interfaces()).toEqual(['lo', 'tap0'])
  })

  test('has no vnet header on request', () => {
    using ns = new NetworkNamespace()
    using tap = openScratchTap(ns, { vnetHdr: false })
    expect(tap.hasVnetHdr).toBeFalse()
    expect(tap.supportedOffloads).toEqual(NO_OFFLOADS)
    expect(tap.setOffloads(~0n)).toEqual(NO_OFFLOADS)
    expect(ethtool(ns, 'tap0', ETHTOOL_GTXCSUM)).toBe(0)
  })

  test('has a descriptor for each queue', () => {
    using ns = new NetworkNamespace()
    using tap = openScratchTap(ns, { queues: 4 })
    expect(new Set(tap.fds).size).toBe(4)
    expect(tap.link()!.tun).toMatchObject({ isTap: true, persistent: false, multiQueue: true })
  })

  test('takes a queue out and puts it back, but never the first', () => {
    using ns = new NetworkNamespace()
    using tap = openScratchTap(ns, { queues: 3 })
    const queues = () => queuesOf(ns)
    expect(queues()).toEqual([3, 0])
    tap.setQueueAttached(2, false)
    tap.setQueueAttached(2, false)
    expect(queues()).toEqual([2, 1])
    tap.setQueueAttached(0, false)
    expect(queues()).toEqual([2, 1])
    tap.setQueueAttached(2, true)
    tap.setQueueAttached(2, true)
    expect(queues()).toEqual([3, 0])
  })

  test('has its carrier taken and given', () => {
    using ns = new NetworkNamespace()
    using tap = openScratchTap(ns)
    tap.setCarrier(false)
    expect(tap.link()).toMatchObject({ up: true, carrier: false })
    tap.setCarrier(true)
    expect(tap.link()).toMatchObject({ up: true, carrier: true })
  })

  test.each([true, false])('sends a frame of our own, vnet header %p', (vnetHdr) => {
    using ns = new NetworkNamespace()
    using tap = openScratchTap(ns, { vnetHdr })
    const received = () => (JSON.parse(ns.ip('-json -s link show tap0'))[0] as Received).stats64.rx
    const before = received()
    tap.send(new Uint8Array(60).fill(0xff, 0, 12))
    expect(received()).toEqual({ ...before, packets: before.packets + 1, bytes: before.bytes + 60 })
  })

  test('hands over what the driver takes, and nothing before or after', () => {
    using ns = new NetworkNamespace()
    ns.ip('tuntap add tap0 mode tap')
    const tap = openScratchTap(ns)
    const seen = () => [ethtool(ns, 'tap0', ETHTOOL_GTXCSUM), ethtool(ns, 'tap0', ETHTOOL_GTSO)]
    expect(tap.supportedOffloads).toMatchObject({ csum: true, tso4: true, tso6: true, ecn: true })
    expect(seen()).toEqual([0, 0])
    const csum = featureBit(VIRTIO_NET_F_GUEST_CSUM)
    const tso = featureBit(VIRTIO_NET_F_GUEST_TSO4) | featureBit(VIRTIO_NET_F_GUEST_TSO6)
    expect(tap.setOffloads(csum)).toEqual({ ...NO_OFFLOADS, csum: true })
    expect(seen()).toEqual([1, 0])
    expect(tap.setOffloads(csum | tso)).toEqual({ ...NO_OFFLOADS, csum: true, tso4: true, tso6: true })
    expect(seen()).toEqual([1, 1])
    expect(tap.setOffloads(0n)).toEqual(NO_OFFLOADS)
    expect(seen()).toEqual([0, 0])
    tap.setOffloads(csum | tso)
    tap[Symbol.dispose]()
    expect(seen()).toEqual([0, 0])
  })

  test('takes an MTU, and says which it cannot take', () => {
    using ns = new NetworkNamespace()
    for (const mtu of [68, 9000, 65521]) {
      using tap = openScratchTap(ns, { mtu })
      expect(tap.link()!.mtu).toBe(mtu)
    }
    const error = refusal(() => openScratchTap(ns, { mtu: 65522 }))
    expect(error.message).toStartWith('tap0: cannot set MTU 65522: ')
    expect(error.hint).toBe('choose 68..65521')
    expect(ns.interfaces()).toEqual(['lo'])
  })
})

describe.skipIf(noRealTaps !== null)('a TAP that does not fit leaves nothing behind and says why', () => {
  const table: [string, string[], Partial<TapOptions>, string, number][] = [
    ['busy', ['tuntap add tap0 mode tap'], {}, 'tap0: in use by another process', 1],
    ['a veth', ['link add tap0 type veth peer name peer0'], {}, 'tap0: is not a TAP (it is a veth)', 1],
    ['loopback', [], { source: { name: 'lo' } }, 'lo: is not a TAP (it is a hardware or loopback interface)', 1],
    ['a TUN', ['tuntap add tap0 mode tun'], {}, 'tap0: is a TUN (IP packets), not a TAP (Ethernet frames)', 1],
    [
      'multi_queue',
      ['tuntap add tap0 mode tap multi_queue'],
      {},
      'tap0: was created with multi_queue, and is opened with one queue',
      1,
    ],
    [
      'not multi_queue',
      ['tuntap add tap0 mode tap'],
      { queues: 2 },
      'tap0: was created without multi_queue, and is opened with 2 queues',
      1,
    ],
    ['a bad name', [], { source: { name: 'tap%d' } }, '--tap tap%d: an interface name cannot contain "%"', 2],
    [
      'no namespace',
      [],
      { netns: 'vn-no-such-ns' },
      'network namespace vn-no-such-ns: /run/netns/vn-no-such-ns does not exist',
      1,
    ],
    ['no bridge', [], { bridge: 'br0' }, 'bridge br0: no such interface', 66],
    [
      'the bridge is none',
      ['link add br0 type veth peer name peer0'],
      { bridge: 'br0' },
      'bridge br0: is not a bridge (it is a veth)',
      1,
    ],
    [
      'another bridge',
      ['link add br0 type bridge', 'link add br1 type bridge', 'tuntap add tap0 mode tap', 'link set tap0 master br1'],
      { bridge: 'br0' },
      'tap0: already belongs to br1, not to br0',
      1,
    ],
    ['the MTU', [], { mtu: 67 }, 'tap0: cannot set MTU 67: mtu less than device minimum (EINVAL)', 1],
  ]
  test.each(table)('%s', (name, preparation, options, message, exitCode) => {
    using ns = new NetworkNamespace()
    for (const words of preparation) ns.ip(words)
    using _holder = name === 'busy' ? openScratchTap(ns) : null
    const interfaces = ns.interfaces()
    const open = openThings(ns)
    const error = refusal(() => openScratchTap(ns, options))
    expect(error.message).toBe(message)
    expect(error.exitCode).toBe(exitCode as 1)
    expect(error.hint).not.toBe('')
    expect(ns.interfaces()).toEqual(interfaces)
    expect(openThings(ns)).toEqual(open)
  })
})

describe.skipIf(noRealTaps !== null)('a descriptor that is handed over', () => {
  const fits = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR

  test('is used where its interface lives, which --netns need not say', () => {
    using ns = new NetworkNamespace()
    const fd = makeTunFd(ns, 'tap7', fits)
    using tap = openScratchTap(ns, { source: { fd }, netns: null })
    expect(tap.name).toBe('tap7')
    expect(tap.created).toBeFalse()
    expect(tap.link()).toMatchObject({ name: 'tap7', up: false })
    expect(ask(fd, TUNGETVNETHDRSZ)).toBe(12)
    using monitor = tap.openLinkMonitor()
    expect(monitor.state).toMatchObject({ exists: true, name: 'tap7', up: false })
  })

  test('may have no vnet header', () => {
    using ns = new NetworkNamespace()
    using tap = openScratchTap(ns, { source: { fd: makeTunFd(ns, 'tap7', IFF_TAP | IFF_NO_PI) } })
    expect(tap.hasVnetHdr).toBeFalse()
  })

  test('cannot be opened again', () => {
    using ns = new NetworkNamespace()
    const fd = makeTunFd(ns, 'tap7', fits)
    using tap = openScratchTap(ns, { source: { fd } })
    ns.ip('link delete tap7')
    expect(tap.replaceable).toBeFalse()
    expect(() => tap.reopen()).toThrow('no name')
  })

  test('is refused when it is something else', () => {
    using ns = new NetworkNamespace()
    const refuse = (fd: number, options: Partial<TapOptions> = {}) =>
      refusal(() => openScratchTap(ns, { source: { fd }, ...options })).message
    const none = openSync('/dev/null', 'r')
    expect(refuse(none)).toBe(`--tap-fd ${none}: is not a TUN/TAP descriptor`)
    closeSync(none)
    expect(refuse(none)).toBe(`--tap-fd ${none}: is not open`)
    const detached = makeTunFd(ns, null, 0)
    expect(refuse(detached)).toBe(`--tap-fd ${detached}: is not attached to an interface`)
    closeSync(detached)
    expect(refuse(makeTunFd(ns, 'tun7', IFF_TUN | IFF_NO_PI))).toBe(
      'tun7: is a TUN (IP packets), not a TAP (Ethernet frames)',
    )
    expect(refuse(makeTunFd(ns, 'tap7', IFF_TAP | IFF_VNET_HDR))).toBe(
      'tap7: puts packet information in front of each frame (created without IFF_NO_PI)',
    )
    expect(refuse(makeTunFd(ns, 'tap7', fits), { vnetHdr: false })).toBe(
      'tap7: has a vnet header (created with IFF_VNET_HDR)',
    )
  })
})
