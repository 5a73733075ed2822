import { VIRTIO_NET_CONFIG, VIRTIO_NET_S_LINK_UP } from '../abi/virtio-net.ts'

/** What a driver may learn from the configuration space. */
export type NetConfig = {
  /** Six bytes, unicast. */
  readonly mac: Uint8Array
  /** Bytes of payload, 68..65535. */
  readonly mtu: number
  readonly maxVirtqueuePairs: number
  readonly linkUp: boolean
}

/** Mb/s that the driver shows in ethtool; a TAP tells the same of itself (drivers/net/tun.c, tun_default_link_ksettings). */
const SPEED_MBPS = 10_000
/** Linux's DUPLEX_FULL (linux/ethtool.h), which the specification's 0x01 agrees with. VIRTIO 1.2 §5.1.4. */
const DUPLEX_FULL = 1

/**
 * The device's configuration space, `struct virtio_net_config` of VIRTIO 1.2 §5.1.4: read-only for the driver.
 * Fields of features that are not offered are filled all the same: a driver does not look at them.
 */
export class ConfigSpace {
  readonly bytes = new Uint8Array(VIRTIO_NET_CONFIG.sizeBytes)
  readonly #view = new DataView(this.bytes.buffer)

  constructor(config: NetConfig) {
    this.bytes.set(config.mac, VIRTIO_NET_CONFIG.mac)
    this.#view.setUint16(VIRTIO_NET_CONFIG.max_virtqueue_pairs, config.maxVirtqueuePairs, true)
    this.#view.setUint16(VIRTIO_NET_CONFIG.mtu, config.mtu, true)
    this.#view.setUint32(VIRTIO_NET_CONFIG.speed, SPEED_MBPS, true)
    this.#view.setUint8(VIRTIO_NET_CONFIG.duplex, DUPLEX_FULL)
    this.linkUp = config.linkUp
  }

  get linkUp(): boolean {
    return (this.#view.getUint16(VIRTIO_NET_CONFIG.status, true) & VIRTIO_NET_S_LINK_UP) !== 0
  }

  set linkUp(up: boolean) {
    this.#view.setUint16(VIRTIO_NET_CONFIG.status, up ? VIRTIO_NET_S_LINK_UP : 0, true)
  }

  get mtu(): number {
    return this.#view.getUint16(VIRTIO_NET_CONFIG.mtu, true)
  }

  /** `length` bytes from `offset`, or null if they do not lie wholly inside. */
  read(offset: number, length: number): Uint8Array | null {
    if (offset + length > this.bytes.length) return null
    return this.bytes.slice(offset, offset + length)
  }
}
