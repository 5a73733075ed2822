import { describe, expect, test } from 'bun:test'
import { VIRTIO_NET_CONFIG, VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP } from '../../../src/abi/virtio-net.ts'
import { ConfigSpace } from '../../../src/device/config-space.ts'

const own = new Uint8Array([2, 0, 0, 0, 0, 1])
const other = new Uint8Array([2, 9, 8, 7, 6, 5])

const newConfig = () => new ConfigSpace({ mac: own, mtu: 1500, maxVirtqueuePairs: 4, linkUp: true })
const status = (config: ConfigSpace): number =>
  new DataView(config.bytes.buffer).getUint16(VIRTIO_NET_CONFIG.status, true)

describe('the configuration space', () => {
  test('has the link and the announcement in bits of their own', () => {
    const config = newConfig()
    expect(status(config)).toBe(VIRTIO_NET_S_LINK_UP)
    config.announce = true
    expect([status(config), config.linkUp, config.announce]).toEqual([
      VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE,
      true,
      true,
    ])
    config.linkUp = false
    expect([status(config), config.linkUp, config.announce]).toEqual([VIRTIO_NET_S_ANNOUNCE, false, true])
    config.announce = false
    expect(status(config)).toBe(0)
  })

  test('shows the address that the driver has set, until it resets the device', () => {
    const config = newConfig()
    config.mac = other
    config.announce = true
    config.linkUp = false
    expect(config.read(VIRTIO_NET_CONFIG.mac, 6)).toEqual(other)
    config.reset()
    expect(config.read(VIRTIO_NET_CONFIG.mac, 6)).toEqual(own)
    expect([config.mac, config.announce, config.linkUp, config.mtu]).toEqual([own, false, false, 1500])
  })

  test('is read in whole pieces only', () => {
    const config = newConfig()
    const size = VIRTIO_NET_CONFIG.sizeBytes
    expect(config.read(0, size)).toEqual(config.bytes)
    expect(config.read(1, size)).toBeNull()
    expect(config.read(size, 1)).toBeNull()
    expect(config.read(size, 0)).toEqual(new Uint8Array())
  })
})
