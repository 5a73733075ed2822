import { describe, expect, test } from 'bun:test'
import { VIRTIO_NET_F_CSUM, VIRTIO_NET_F_MTU } from '../../../src/abi/virtio.ts'
import { FrameLimit } from '../../../src/control/frame-limit.ts'
import { featureBit } from '../../../src/device/features.ts'

const KNOWS = featureBit(VIRTIO_NET_F_MTU)
const KNOWS_NOT = featureBit(VIRTIO_NET_F_CSUM)
const NO_DRIVER = 0n

const newLimit = (): { limit: FrameLimit; lines: string[] } => {
  const lines: string[] = []
  return { limit: new FrameLimit(1500, (level, text) => lines.push(`${level}: ${text}`)), lines }
}

describe('a driver that was told the MTU', () => {
  test('gets no longer frames when the TAP’s is raised, and its user is told once', () => {
    const { limit, lines } = newLimit()
    limit.update(1500, KNOWS)
    expect(lines).toEqual([])
    for (let i = 0; i < 3; i++) {
      limit.update(9000, KNOWS)
      expect(limit.mtu).toBe(1500)
    }
    expect(lines).toEqual([
      'warning: the TAP has an MTU of 9000 now, and the driver was told 1500: longer frames are ' +
        'dropped (frame_too_long); ' +
        "set the TAP's back, or start again with --mtu 9000",
    ])
  })

  test('the user is told of each other MTU, and when it comes after the TAP has changed', () => {
    const { limit, lines } = newLimit()
    limit.update(9000, NO_DRIVER)
    expect(lines).toEqual([])
    limit.update(9000, KNOWS)
    limit.update(1500, KNOWS)
    limit.update(9000, KNOWS)
    limit.update(4000, KNOWS)
    expect(lines.map((line) => /MTU of (\d+)/.exec(line)?.[1])).toEqual(['9000', '9000', '4000'])
  })

  test('may send what it was told when the TAP’s is lowered', () => {
    const { limit, lines } = newLimit()
    limit.update(1280, KNOWS)
    expect(limit.mtu).toBe(1500)
    expect(lines).toEqual([])
  })
})

describe('a driver that was not told', () => {
  test('gets what the TAP brings, and may send it', () => {
    const { limit, lines } = newLimit()
    limit.update(9000, KNOWS_NOT)
    expect(limit.mtu).toBe(9000)
    expect(lines).toEqual([
      "info: the TAP has an MTU of 9000 now: frames of that size pass if the driver's MTU is as large",
    ])
    limit.update(1280, KNOWS_NOT)
    expect(limit.mtu).toBe(1500)
  })

  test('leaves nothing of that to the next one', () => {
    const { limit } = newLimit()
    limit.update(9000, KNOWS_NOT)
    limit.update(9000, NO_DRIVER)
    expect(limit.mtu).toBe(1500)
    limit.update(9000, KNOWS)
    expect(limit.mtu).toBe(1500)
  })

  test('keeps what it has while the TAP is gone', () => {
    const { limit } = newLimit()
    limit.update(0, KNOWS_NOT)
    expect(limit.mtu).toBe(1500)
  })
})

describe('a driver whose front-end has set an MTU', () => {
  test('has that, whatever it knows and whatever the TAP brings, until it is taken back', () => {
    const { limit, lines } = newLimit()
    limit.set(1280)
    for (const features of [KNOWS, KNOWS_NOT, NO_DRIVER]) {
      for (const tapMtu of [0, 1000, 1500, 9000]) {
        limit.update(tapMtu, features)
        expect(limit.mtu).toBe(1280)
      }
    }
    expect(lines).toEqual([])
    limit.set(null)
    limit.update(1500, KNOWS)
    expect(limit.mtu).toBe(1500)
  })
})
