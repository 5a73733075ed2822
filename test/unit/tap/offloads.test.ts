import { describe, expect, test } from 'bun:test'
import { TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6 } from '../../../src/abi/tun.ts'
import {
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_USO,
} from '../../../src/abi/virtio.ts'
import {
  NO_OFFLOADS,
  offloadFallbacks,
  offloadsOf,
  tunOffloadFlags,
  uselessFeatures,
} from '../../../src/tap/offloads.ts'

const features = (...bits: number[]): bigint => bits.reduce((set, bit) => set | (1n << BigInt(bit)), 0n)

describe('what a driver takes, as TUN flags', () => {
  const [csum, tso4, tso6, ecn] = [
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
  ]
  const [uso4, uso6] = [VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6]
  const table: [string, number[], number][] = [
    ['nothing', [], 0],
    ['what the device takes does not count', [VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4], 0],
    ['checksum', [csum], TUN_F_CSUM],
    ['TSO4', [csum, tso4], TUN_F_CSUM | TUN_F_TSO4],
    ['TSO6', [csum, tso6], TUN_F_CSUM | TUN_F_TSO6],
    ['TSO without checksum', [tso4, tso6, ecn, uso4, uso6], 0],
    ['ECN without TSO', [csum, ecn], TUN_F_CSUM],
    ['ECN with TSO6 only', [csum, tso6, ecn], TUN_F_CSUM | TUN_F_TSO6 | TUN_F_TSO_ECN],
    ['USO4 alone: the kernel wants both', [csum, uso4], TUN_F_CSUM],
    ['USO6 alone: the kernel wants both', [csum, uso6], TUN_F_CSUM],
    ['USO without TSO', [csum, uso4, uso6], TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6],
    [
      'everything',
      [csum, tso4, tso6, ecn, uso4, uso6],
      TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6,
    ],
  ]
  test.each(table)('%s', (_name, bits, flags) => {
    expect(tunOffloadFlags(offloadsOf(features(...bits)))).toBe(flags)
  })
})

describe('what is asked for when the kernel refuses', () => {
  test('USO goes first, segmentation next, checksums last', () => {
    const all = { csum: true, tso4: true, tso6: true, ecn: true, uso: true }
    expect(offloadFallbacks(all)).toEqual([
      all,
      { ...all, uso: false },
      { csum: true, tso4: false, tso6: false, ecn: false, uso: false },
      NO_OFFLOADS,
    ])
  })

  test('nothing is asked for twice', () => {
    const csum = { ...NO_OFFLOADS, csum: true }
    expect(offloadFallbacks(csum)).toEqual([csum, NO_OFFLOADS])
    expect(offloadFallbacks(NO_OFFLOADS)).toEqual([NO_OFFLOADS])
  })
})

describe('features that a device over the TAP does not offer', () => {
  const all = { csum: true, tso4: true, tso6: true, ecn: true, uso: true }

  test('none where the TAP takes everything', () => {
    expect(uselessFeatures(all, true)).toBe(0n)
  })

  test('USO in both directions where the kernel does not know it', () => {
    expect(uselessFeatures({ ...all, uso: false }, true)).toBe(
      features(VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_USO),
    )
  })

  test('to receive only where there is no vnet header: what the driver sends is cut here', () => {
    const useless = uselessFeatures(NO_OFFLOADS, false)
    expect(useless & features(VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_HOST_TSO4)).toBe(0n)
    expect(useless & features(VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_TSO4)).not.toBe(0n)
  })
})
