import { describe, expect, test } from 'bun:test'
import { POLLIN, Poller } from '../../../src/sys/poller.ts'
import type { LinkState, TapLinkMonitor } from '../../../src/tap/link-monitor.ts'
import { NetworkNamespace, noRealTaps } from '../../support/network-namespace.ts'
import { HANG_MS } from '../../support/patience.ts'
import { openScratchTap } from '../../support/scratch-tap.ts'

/** The state once it is as wanted, as a poll loop would learn it. */
const stateWhen = (monitor: TapLinkMonitor, isWanted: (state: LinkState) => boolean): LinkState => {
  const poller = new Poller(1)
  poller.add(monitor.fd, POLLIN)
  const deadline = performance.now() + HANG_MS
  while (!isWanted(monitor.state)) {
    const remainingMs = Math.ceil(deadline - performance.now())
    if (remainingMs <= 0) throw new Error(`never came: the last state is ${JSON.stringify(monitor.state)}`)
    if (poller.wait(remainingMs) > 0) monitor.drain()
  }
  return monitor.state
}

describe.skipIf(noRealTaps !== null)('the monitor of a TAP', () => {
  test('sees down, up, MTU and rename, and the same object when nothing happened', () => {
    using ns = new NetworkNamespace()
    using tap = openScratchTap(ns)
    using monitor = tap.openLinkMonitor()
    expect(monitor.state).toEqual({
      exists: true,
      name: 'tap0',
      index: tap.index,
      up: true,
      carrier: true,
      mtu: 1500,
      master: 0,
    })
    expect(monitor.drain()).toBe(monitor.drain())
    ns.ip('link set tap0 down')
    expect(stateWhen(monitor, (state) => !state.up)).toMatchObject({ exists: true, up: false, carrier: false })
    ns.ip('link set tap0 up')
    expect(stateWhen(monitor, (state) => state.carrier)).toMatchObject({ up: true })
    ns.ip('link set tap0 mtu 1280')
    expect(stateWhen(monitor, (state) => state.mtu === 1280)).toMatchObject({ up: true, carrier: true })
    ns.ip('link set tap0 name uplink')
    expect(stateWhen(monitor, (state) => state.name === 'uplink')).toMatchObject({ index: tap.index, up: true })
    expect(tap.link()!.name).toBe('uplink')
  })

  test('does not look at other interfaces, not even at one that takes over the name', () => {
    using ns = new NetworkNamespace()
    using tap = openScratchTap(ns)
    using monitor = tap.openLinkMonitor()
    const before = monitor.drain()
    ns.ip('link add other type bridge')
    ns.ip('link set other up')
    expect(monitor.drain()).toBe(before)
    ns.ip('link delete tap0')
    ns.ip('link add tap0 type bridge')
    ns.ip('link set tap0 up')
    expect(monitor.drain()).toMatchObject({ exists: false, up: false, carrier: false, name: 'tap0' })
  })

  test('sees deletion; another one follows the successor', () => {
    using ns = new NetworkNamespace()
    using tap = openScratchTap(ns)
    using monitor = tap.openLinkMonitor()
    ns.ip('link delete tap0')
    expect(stateWhen(monitor, (state) => !state.exists)).toMatchObject({ up: false })
    tap.reopen()
    using successor = tap.openLinkMonitor()
    expect(successor.state).toMatchObject({ exists: true, up: true, index: tap.index })
    ns.ip('link set tap0 down')
    expect(stateWhen(successor, (state) => !state.up)).toMatchObject({ exists: true })
  })

  test('a port that leaves its bridge is not deleted', () => {
    using ns = new NetworkNamespace()
    using tap = openScratchTap(ns)
    ns.ip('link add br0 type bridge')
    using monitor = tap.openLinkMonitor()
    ns.ip('link set tap0 master br0')
    ns.ip('link set tap0 nomaster')
    expect(monitor.drain()).toMatchObject({ exists: true, up: true })
  })

  test('knows the state after events were lost', () => {
    using ns = new NetworkNamespace()
    using tap = openScratchTap(ns)
    using monitor = tap.openLinkMonitor()
    // More than the socket's receive buffer holds.
    const changes = Array.from({ length: 2000 }, (_, i) => `link set dev tap0 mtu ${1000 + i}\n`).join('')
    const batch = Bun.spawnSync(['ip', '-n', ns.name, '-batch', '-'], { stdin: Buffer.from(changes) })
    expect(batch.exitCode).toBe(0)
    expect(monitor.drain()).toMatchObject({ exists: true, mtu: 2999 })
    ns.ip('link delete tap0')
    expect(stateWhen(monitor, (state) => !state.exists)).toMatchObject({ name: 'tap0' })
  })

  test('an interface in another namespace is gone from here, and followed there', () => {
    using ns = new NetworkNamespace()
    using elsewhere = new NetworkNamespace()
    // The TAP's index is taken there.
    for (let i = 0; i < 8; i++) elsewhere.ip(`link add taken${i} type bridge`)
    ns.ip('tuntap add tap0 mode tap')
    using tap = openScratchTap(ns)
    using monitor = tap.openLinkMonitor()
    ns.ip(`link set tap0 netns ${elsewhere.name}`)
    expect(stateWhen(monitor, (state) => !state.exists)).toMatchObject({ up: false })
    expect(tap.isAttached()).toBeTrue()
    expect(elsewhere.interfaces()).toContain('tap0')
    using successor = tap.openLinkMonitor()
    expect(successor.state).toMatchObject({ exists: true, index: tap.index, up: false })
    elsewhere.ip('link set tap0 up')
    expect(stateWhen(successor, (state) => state.up)).toMatchObject({ name: 'tap0', carrier: true })
  })
})
