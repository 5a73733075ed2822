import { describe, expect, test } from 'bun:test'
import { HASH_TYPES } from '../../../src/abi/receive-scaling.ts'
import { ReceiveScaling } from '../../../src/device/receive-scaling.ts'
import { native } from '../../../src/sys/native.ts'
import { Steering } from '../../../src/tap/steering.ts'
import type { Tap } from '../../../src/tap/tap.ts'
import { makePacket } from '../../support/frames.ts'
import { NetworkNamespace, noRealTaps } from '../../support/network-namespace.ts'
import { PacketSocket } from '../../support/packet-socket.ts'
import { HANG_MS } from '../../support/patience.ts'
import { openScratchTap } from '../../support/scratch-tap.ts'
import { MICROSOFT_KEY, toeplitz } from '../../support/toeplitz.ts'

const whyNot = (): string | null => {
  if (noRealTaps !== null) return noRealTaps
  const loaded = Steering.load()
  if (typeof loaded === 'number') return `bpf: errno ${loaded}`
  loaded[Symbol.dispose]()
  return null
}
const skipped = whyNot()
if (skipped !== null) console.warn(`skipped, tests with a steered TAP: ${skipped}`)

const PAIRS = 4
/** Of each pair two places, so that the hash's lowest bits do not say the pair. */
const TABLE = Array.from({ length: 2 * PAIRS }, (_, place) => place >> 1)

/** A UDP frame whose hash the table sends to a pair. */
const frameFor = (pair: number): Uint8Array => {
  const { frame, transport } = makePacket({ protocol: 'udp', version: 4, payload: new Uint8Array(20) }, true)
  const view = new DataView(frame.buffer)
  for (let port = 1; ; port++) {
    view.setUint16(transport, port)
    const hash = toeplitz(MICROSOFT_KEY, frame.slice(transport - 8, transport + 4))
    if (TABLE[hash % TABLE.length] === pair) return frame
  }
}
const frames = Array.from({ length: PAIRS }, (_, pair) => frameFor(pair))

describe.skipIf(skipped !== null)('a TAP with several queues', () => {
  const config = {
    hashTypes: HASH_TYPES,
    key: MICROSOFT_KEY,
    steering: { indirection: TABLE, unclassified: 0, pairs: PAIRS },
  }
  const scaling = new ReceiveScaling(new SharedArrayBuffer(ReceiveScaling.byteLength))
  const words = scaling.words(scaling.write(config))

  const openTap = (ns: NetworkNamespace): Tap => {
    // What the host has to say of itself would come between.
    ns.sysctl('net.ipv6.conf.all.disable_ipv6', '1')
    ns.sysctl('net.ipv6.conf.default.disable_ipv6', '1')
    return openScratchTap(ns, { queues: PAIRS })
  }

  /** In which queue the host puts the frame of each pair. */
  const queues = (ns: NetworkNamespace, tap: Tap): number[] => {
    using wire = new PacketSocket(ns.name, 'tap0')
    const buffer = new Uint8Array(2000)
    const arrived = (): number[] =>
      tap.fds.flatMap((fd, queue) => (native.vn_read(fd, buffer, buffer.length) > 0 ? [queue] : []))
    return frames.map((frame) => {
      wire.send(frame)
      const deadline = performance.now() + HANG_MS
      let came: number[] = []
      while (came.length === 0 && performance.now() < deadline) came = arrived()
      expect(came.length).toBe(1)
      return came[0]!
    })
  }

  test('gets each packet where the table says, and as the host likes before and after', () => {
    using ns = new NetworkNamespace()
    using tap = openTap(ns)
    const before = queues(ns, tap)
    expect(tap.steeringErrno()).toBe(0)
    tap.steer(words)
    expect(queues(ns, tap)).toEqual([0, 1, 2, 3])
    tap.steer(null)
    expect(queues(ns, tap)).toEqual(before)
  })

  test('keeps to that while queues leave it and come back, which gives them other numbers', () => {
    using ns = new NetworkNamespace()
    using tap = openTap(ns)
    expect(tap.steeringErrno()).toBe(0)
    tap.steer(words)
    tap.setQueueAttached(1, false)
    expect(queues(ns, tap)).toEqual([0, 0, 2, 3])
    tap.setQueueAttached(1, false)
    tap.setQueueAttached(2, false)
    expect(queues(ns, tap)).toEqual([0, 0, 0, 3])
    tap.setQueueAttached(2, true)
    tap.setQueueAttached(1, true)
    expect(queues(ns, tap)).toEqual([0, 1, 2, 3])
    tap.setQueueAttached(3, false)
    expect(queues(ns, tap)).toEqual([0, 1, 2, 0])
  })

  test('that is made anew after it was deleted is steered as before, with the queues that were in it', () => {
    using ns = new NetworkNamespace()
    using tap = openTap(ns)
    expect(tap.steeringErrno()).toBe(0)
    tap.steer(words)
    tap.setQueueAttached(2, false)
    ns.ip('link del tap0')
    tap.reopen()
    expect(queues(ns, tap)).toEqual([0, 1, 0, 3])
  })

  test('that outlives its card is steered no longer, not even if that was killed', () => {
    using ns = new NetworkNamespace()
    ns.ip('tuntap add tap0 mode tap multi_queue')
    const usual = (): number[] => {
      using tap = openTap(ns)
      return queues(ns, tap)
    }
    const before = usual()
    // All to one, which the host's own choice is not.
    const all = scaling.words(scaling.write({ ...config, steering: { ...config.steering, indirection: [2] } }))
    const tap = openTap(ns)
    expect(tap.steeringErrno()).toBe(0)
    tap.steer(all)
    expect(queues(ns, tap)).toEqual([2, 2, 2, 2])
    for (const fd of tap.fds) native.vn_close(fd)
    expect(usual()).toEqual(before)
    expect(before).not.toEqual([2, 2, 2, 2])
  })
})
