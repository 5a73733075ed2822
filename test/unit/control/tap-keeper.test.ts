import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { constants, openSync } from 'node:fs'
import { IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, IFREQ, TUNSETIFF } from '../../../src/abi/tun.ts'
import { VIRTIO_NET_F_GUEST_CSUM } from '../../../src/abi/virtio.ts'
import { TapKeeper, type TapSettings } from '../../../src/control/tap-keeper.ts'
import { featureBit } from '../../../src/device/features.ts'
import { native } from '../../../src/sys/native.ts'
import { withNetns } from '../../../src/sys/netns.ts'
import { Poller } from '../../../src/sys/poller.ts'
import type { TapOptions } from '../../../src/tap/tap-options.ts'
import { NetworkNamespace, noRealTaps } from '../../support/network-namespace.ts'
import { HANG_MS, TEST_MS } from '../../support/patience.ts'
import { ETHTOOL_GTXCSUM, ethtool, openScratchTap, shownLink } from '../../support/scratch-tap.ts'

setDefaultTimeout(TEST_MS)

const NOTHING: TapSettings = { features: 0n, carrier: true, scaling: null }

/** A TAP in a namespace of its own, and the device worker's loop around its keeper. */
class Kept implements Disposable {
  readonly ns: NetworkNamespace
  readonly lines: string[] = []
  /** What the queue workers were given, one after the other. */
  readonly given: (readonly number[])[] = []
  readonly keeper: TapKeeper
  settings = NOTHING
  readonly #poller = new Poller(4)

  constructor(ns: NetworkNamespace, options: Partial<TapOptions> = {}) {
    this.ns = ns
    this.keeper = new TapKeeper(openScratchTap(ns, options), this.#poller, {
      useTap: (fds) => void this.given.push(fds),
      tapChanged: () => {},
      log: (level, text) => void this.lines.push(`${level}: ${text}`),
    })
    this.keeper.pollLink(true)
  }

  /** One turn of the loop: what has happened by now, or happens within `patienceMs`. */
  turn(patienceMs = 0): void {
    const ownMs = this.keeper.timeoutMs(performance.now())
    this.#poller.wait(ownMs < 0 ? patienceMs : Math.min(ownMs, patienceMs))
    this.keeper.checkDeletion()
    this.keeper.serve(this.settings)
    this.keeper.pollLink(true)
  }

  until(what: string, isSo: () => boolean): void {
    const deadline = performance.now() + HANG_MS
    while (!isSo()) {
      if (performance.now() > deadline) throw new Error(`never came: ${what}; said: ${this.lines.join('\n')}`)
      this.turn(1000)
    }
  }

  says(pattern: RegExp): void {
    this.until(String(pattern), () => this.lines.some((line) => pattern.test(line)))
  }

  [Symbol.dispose](): void {
    this.keeper[Symbol.dispose]()
  }
}

describe.skipIf(noRealTaps !== null)('the keeper of a TAP', () => {
  test('tells it what is wanted while it is gone, and gives the queue workers the next one', () => {
    using ns = new NetworkNamespace()
    using kept = new Kept(ns)
    ns.ip('link delete tap0')
    kept.until('the loss', () => !kept.keeper.present)
    expect(kept.keeper.linkUp).toBeFalse()
    kept.settings = { ...NOTHING, features: featureBit(VIRTIO_NET_F_GUEST_CSUM), carrier: false }
    kept.until('the next TAP', () => kept.keeper.present)
    expect(kept.keeper).toMatchObject({ linkUp: true, up: true, index: shownLink(ns, 'tap0')!.ifindex })
    expect(ethtool(ns, 'tap0', ETHTOOL_GTXCSUM)).toBe(1)
    expect(shownLink(ns, 'tap0')!.flags).not.toContain('LOWER_UP')
    expect(kept.given).toEqual([[], [expect.any(Number)]])
  })

  test('is asked nothing by a timer unless something is to be done', () => {
    using ns = new NetworkNamespace()
    using kept = new Kept(ns)
    kept.turn()
    expect(kept.keeper.timeoutMs(performance.now())).toBe(-1)
    ns.ip('link delete tap0')
    ns.ip('link add tap0 type bridge')
    kept.says(/trying again/)
    // 200 ms after the first failure, and later each time.
    expect(kept.keeper.timeoutMs(performance.now())).toBeWithin(1, 201)
    ns.ip('link delete tap0')
    kept.says(/tap0 exists again/)
    expect(kept.keeper.timeoutMs(performance.now())).toBe(-1)
  })

  test('says what the user is to do about a bridge that is missing, once', () => {
    using ns = new NetworkNamespace()
    ns.ip('link add br0 type bridge')
    using kept = new Kept(ns, { bridge: 'br0' })
    for (const name of ['tap0', 'br0']) ns.ip(`link delete ${name}`)
    kept.says(/trying again/)
    for (let i = 0; i < 3; i++) kept.turn(1000)
    expect(kept.lines.filter((line) => line.includes('trying again'))).toEqual([
      'warning: bridge br0: no such interface (ip link add br0 type bridge && ip link set br0 up); trying again',
    ])
    ns.ip('link add br0 type bridge')
    kept.says(/tap0 exists again/)
    expect(shownLink(ns, 'tap0')).toMatchObject({ master: 'br0' })
  })

  test('joins a bridge again that was deleted alone, with no less MTU than that has', () => {
    using ns = new NetworkNamespace()
    ns.ip('link add br0 type bridge')
    using kept = new Kept(ns, { bridge: 'br0' })
    ns.ip('link delete br0')
    kept.says(/its bridge was deleted/)
    expect(kept.keeper.linkUp).toBeTrue()
    ns.ip('link add eth0 mtu 9000 type veth peer name outside')
    ns.ip('link add br0 type bridge')
    ns.ip('link set eth0 master br0')
    kept.says(/is in its bridge again/)
    expect(shownLink(ns, 'tap0')).toMatchObject({ master: 'br0', mtu: 9000 })
    expect(shownLink(ns, 'br0')).toMatchObject({ mtu: 9000 })
    kept.until('the MTU', () => kept.keeper.mtu === 9000)
    expect(kept.given).toEqual([])
  })

  test('gives the next TAP the MTU that the last one was given by hand', () => {
    using ns = new NetworkNamespace()
    using kept = new Kept(ns)
    ns.ip('link set tap0 mtu 4000')
    kept.until('the MTU', () => kept.keeper.mtu === 4000)
    ns.ip('link delete tap0')
    kept.says(/tap0 exists again/)
    expect(shownLink(ns, 'tap0')).toMatchObject({ mtu: 4000 })
  })

  test('makes one that was renamed again under its first name', () => {
    using ns = new NetworkNamespace()
    using kept = new Kept(ns)
    ns.ip('link set tap0 down')
    ns.ip('link set tap0 name other0')
    ns.ip('link set other0 up')
    kept.until('the rename', () => kept.keeper.up)
    ns.ip('link delete other0')
    kept.says(/tap0 exists again/)
    expect(ns.interfaces()).toEqual(['lo', 'tap0'])
  })

  test('does not try to make one again that was handed over, and says what is to be done', () => {
    using ns = new NetworkNamespace()
    const fd = withNetns(ns.name, () => openSync('/dev/net/tun', constants.O_RDWR))
    const request = new Uint8Array(IFREQ.sizeBytes)
    request.set(new TextEncoder().encode('tap7'))
    new DataView(request.buffer).setUint16(IFREQ.ifr_flags, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, true)
    expect(native.vn_ioctl(fd, TUNSETIFF, request)).toBe(0)
    using kept = new Kept(ns, { source: { fd } })
    ns.ip('link delete tap7')
    kept.says(/tap7 was deleted: the link is down for good: start again with another --tap-fd/)
    for (let i = 0; i < 3; i++) kept.turn()
    expect(kept.keeper.timeoutMs(performance.now())).toBe(-1)
    expect(kept.keeper).toMatchObject({ present: false, linkUp: false })
    expect(kept.lines).toHaveLength(1)
  })

  test('does not mind a TAP that is deleted again and again', () => {
    using ns = new NetworkNamespace()
    using kept = new Kept(ns, { queues: 2 })
    for (let round = 1; round <= 5; round++) {
      ns.ip('link delete tap0')
      kept.until('the next TAP', () => kept.given.length === 2 * round && kept.keeper.present)
    }
    expect(ns.interfaces()).toEqual(['lo', 'tap0'])
  })
})
