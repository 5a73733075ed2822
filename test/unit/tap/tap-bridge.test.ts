import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { deriveTapMac } from '../../../src/base/mac.ts'
import type { Tap } from '../../../src/tap/tap.ts'
import type { TapOptions } from '../../../src/tap/tap-options.ts'
import { NetworkNamespace, noRealTaps } from '../../support/network-namespace.ts'
import { TEST_MS } from '../../support/patience.ts'
import { refusal } from '../../support/refusal.ts'
import { openScratchTap, shownLink } from '../../support/scratch-tap.ts'

setDefaultTimeout(TEST_MS)

const ports = (ns: NetworkNamespace): string[] =>
  (JSON.parse(ns.ip('-json link')) as { ifname: string; master?: string }[])
    .filter((link) => link.master !== undefined)
    .map((link) => `${link.ifname}@${link.master}`)

const macOf = (ns: NetworkNamespace, name: string): string => shownLink(ns, name)!.address
const mtuOf = (ns: NetworkNamespace, name: string): number => shownLink(ns, name)!.mtu

/** A bridge `br0`, and what somebody has set on it. */
const bridge = (ns: NetworkNamespace, settings = ''): void => {
  ns.ip('link add br0 type bridge')
  if (settings !== '') ns.ip(`link set br0 ${settings}`)
}

/** The same with a port, as a host has it to the outside. */
const bridgeWithPort = (ns: NetworkNamespace, port: string, settings = ''): void => {
  ns.ip(`link add eth0 ${port} type veth peer name outside`)
  bridge(ns, settings)
  ns.ip('link set eth0 master br0')
}

describe.skipIf(noRealTaps !== null)('a TAP in a bridge', () => {
  const openTap = (ns: NetworkNamespace, options: Partial<TapOptions> = {}): Tap =>
    openScratchTap(ns, { bridge: 'br0', ...options })

  test('joins it, and leaves it when it stays behind', () => {
    using ns = new NetworkNamespace()
    bridge(ns)
    ns.ip('tuntap add tap0 mode tap')
    const tap = openTap(ns)
    expect(ports(ns)).toEqual(['tap0@br0'])
    tap[Symbol.dispose]()
    expect(ports(ns)).toEqual([])
  })

  test('stays in one that it was in before', () => {
    using ns = new NetworkNamespace()
    bridge(ns)
    ns.ip('tuntap add tap0 mode tap')
    ns.ip('link set tap0 master br0')
    const tap = openTap(ns)
    tap[Symbol.dispose]()
    expect(ports(ns)).toEqual(['tap0@br0'])
  })

  test.each([
    ['another bridge', ['link add br1 type bridge', 'link set tap0 master br1'], {}],
    ['an MTU that cannot be', [], { mtu: 1 }],
  ])('keeps what it had when it cannot be had because of %s', (_name, preparation, options) => {
    using ns = new NetworkNamespace()
    bridgeWithPort(ns, 'mtu 9000')
    ns.ip('tuntap add tap0 mode tap')
    for (const words of preparation) ns.ip(words)
    const [before, mac] = [ports(ns), macOf(ns, 'tap0')]
    refusal(() => openTap(ns, options))
    expect(ports(ns)).toEqual(before)
    expect([mtuOf(ns, 'tap0'), mtuOf(ns, 'br0'), macOf(ns, 'tap0')]).toEqual([1500, 9000, mac])
  })

  test('keeps its MTU when there is no such bridge', () => {
    using ns = new NetworkNamespace()
    ns.ip('tuntap add tap0 mode tap')
    ns.ip('link set tap0 mtu 1400')
    expect(refusal(() => openTap(ns, { mtu: 9000 })).message).toStartWith('bridge br0: no such interface')
    using tap = openScratchTap(ns)
    expect(tap.link()).toMatchObject({ mtu: 1400 })
  })

  test('a bridge that went first is nothing to worry about', () => {
    using ns = new NetworkNamespace()
    bridge(ns)
    ns.ip('tuntap add tap0 mode tap')
    const tap = openTap(ns)
    ns.ip('link delete br0')
    tap[Symbol.dispose]()
    expect(ns.interfaces()).toEqual(['lo', 'tap0'])
  })
})

describe.skipIf(noRealTaps !== null)('the MTU of a bridge', () => {
  /** How the bridge came to its MTU, and what it is. */
  const bridges: [string, (ns: NetworkNamespace) => void, number][] = [
    ['a jumbo port', (ns) => bridgeWithPort(ns, 'mtu 9000'), 9000],
    ['a small port', (ns) => bridgeWithPort(ns, 'mtu 1280'), 1280],
    ['no ports', (ns) => bridge(ns), 1500],
    ['somebody who set it', (ns) => bridge(ns, 'mtu 4000'), 4000],
    ['somebody who set it, beside a jumbo port', (ns) => bridgeWithPort(ns, 'mtu 9000', 'mtu 4000'), 4000],
    ['the largest there is', (ns) => bridge(ns, 'mtu 65535'), 65535],
  ]

  test.each(bridges)('of %s is what a TAP takes, and stays', (_name, make, mtu) => {
    using ns = new NetworkNamespace()
    make(ns)
    expect(mtuOf(ns, 'br0')).toBe(mtu)
    using tap = openScratchTap(ns, { bridge: 'br0' })
    expect(mtuOf(ns, 'br0')).toBe(mtu)
    expect(tap.link()!.mtu).toBe(Math.min(mtu, 65521))
    expect(tap.warnings.filter((line) => line.includes('MTU'))).toEqual([])
  })

  test('is what a TAP takes that was there before, as long as it is used', () => {
    using ns = new NetworkNamespace()
    bridgeWithPort(ns, 'mtu 9000')
    ns.ip('tuntap add tap0 mode tap')
    const tap = openScratchTap(ns, { bridge: 'br0' })
    expect([mtuOf(ns, 'tap0'), mtuOf(ns, 'br0')]).toEqual([9000, 9000])
    tap[Symbol.dispose]()
    expect([mtuOf(ns, 'tap0'), mtuOf(ns, 'br0')]).toEqual([1500, 9000])
  })

  test('does not matter to a TAP that is in it already', () => {
    using ns = new NetworkNamespace()
    bridge(ns, 'mtu 9000')
    ns.ip('tuntap add tap0 mode tap')
    ns.ip('link set tap0 mtu 1400 master br0')
    using tap = openScratchTap(ns, { bridge: 'br0' })
    expect(tap.link()!.mtu).toBe(1400)
  })

  test('does not matter where another one is told, and what that lowers is said', () => {
    using ns = new NetworkNamespace()
    bridgeWithPort(ns, 'mtu 9000')
    using tap = openScratchTap(ns, { bridge: 'br0', mtu: 1400 })
    expect([tap.link()!.mtu, mtuOf(ns, 'br0')]).toEqual([1400, 1400])
    expect(tap.warnings).toEqual(['br0: its MTU went from 9000 to 1400, the MTU of tap0; to keep it leave --mtu out'])
  })
})

describe.skipIf(noRealTaps !== null)('the MAC of a bridge', () => {
  const host = '0123456789abcdef0123456789abcdef'

  test('stays with a port of any MAC but one that begins with fe or ff', () => {
    for (let start = 0; start < 8; start++) {
      using ns = new NetworkNamespace()
      bridgeWithPort(ns, `address fc:ff:ff:ff:ff:0${start}`)
      const mac = macOf(ns, 'br0')
      expect(mac).toBe(macOf(ns, 'eth0'))
      using tap = openScratchTap(ns, { bridge: 'br0', mac: deriveTapMac(host, `tap${start}`) })
      expect(macOf(ns, 'br0')).toBe(mac)
      expect(tap.warnings).toEqual([])
      tap[Symbol.dispose]()
      expect(macOf(ns, 'br0')).toBe(mac)
    }
  })

  test('stays where somebody has set it, without ports too', () => {
    using ns = new NetworkNamespace()
    bridge(ns, 'address fe:ff:ff:ff:ff:ff')
    using tap = openScratchTap(ns, { bridge: 'br0' })
    expect(macOf(ns, 'br0')).toBe('fe:ff:ff:ff:ff:ff')
    expect(tap.warnings).toEqual([])
  })

  test('without ports and not set is that of the TAP, which is said; the same at the next start', () => {
    using ns = new NetworkNamespace()
    bridge(ns)
    for (let start = 0; start < 2; start++) {
      using tap = openScratchTap(ns, { bridge: 'br0' })
      expect(macOf(ns, 'br0')).toBe(macOf(ns, 'tap0'))
      expect(tap.warnings).toEqual([
        expect.stringMatching(/^br0: its MAC went from \S+ to fe:00:00:00:00:01, the smallest/),
      ])
    }
  })
})
