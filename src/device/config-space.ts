import { HASH_KEY_BYTES_MAX, HASH_TYPES, INDIRECTION_MAX } from '../abi/receive-scaling.ts'
import { VIRTIO_NET_CONFIG, VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP } from '../abi/virtio-net.ts'

/** Initial values of the configuration space. */
export type NetConfig = {
  /** Six bytes, unicast. */
  readonly mac: Uint8Array
  /** Bytes of payload, 68..65535. */
  readonly mtu: number
  readonly maxVirtqueuePairs: number
  readonly linkUp: boolean
}

/**
 * Mb/s, as the driver shows it in ethtool. The same value as a TAP's (drivers/net/tun.c, tun_default_link_ksettings).
 */
const SPEED_MBPS = 10_000
/** Full duplex. VIRTIO 1.2 §5.1.4; DUPLEX_FULL of linux/ethtool.h is the same. */
const DUPLEX_FULL = 1

/**
 * The device's configuration space, `struct virtio_net_config` of VIRTIO 1.2 §5.1.4: read-only for the driver. Fields
 * of features that are not offered are filled too: a driver does not read them.
 */
export class ConfigSpace {
  readonly bytes = new Uint8Array(VIRTIO_NET_CONFIG.sizeBytes)
  readonly #view = new DataView(this.bytes.buffer)

  readonly #ownMac: Uint8Array
  /** The MTU that the card was made with. Bytes. */
  readonly ownMtu: number

  constructor(config: NetConfig) {
    this.#ownMac = config.mac
    this.mac = config.mac
    this.#view.setUint16(VIRTIO_NET_CONFIG.max_virtqueue_pairs, config.maxVirtqueuePairs, true)
    this.ownMtu = config.mtu
    this.mtu = config.mtu
    this.#view.setUint32(VIRTIO_NET_CONFIG.speed, SPEED_MBPS, true)
    this.#view.setUint8(VIRTIO_NET_CONFIG.duplex, DUPLEX_FULL)
    this.#view.setUint8(VIRTIO_NET_CONFIG.rss_max_key_size, HASH_KEY_BYTES_MAX)
    this.#view.setUint16(VIRTIO_NET_CONFIG.rss_max_indirection_table_length, INDIRECTION_MAX, true)
    this.#view.setUint32(VIRTIO_NET_CONFIG.supported_hash_types, HASH_TYPES, true)
    this.linkUp = config.linkUp
  }

  /** Resets what a driver has changed: the MAC is the card's own again, and ANNOUNCE is clear. */
  reset(): void {
    this.mac = this.#ownMac
    this.announce = false
  }

  /** A copy of the six bytes. */
  get mac(): Uint8Array {
    return this.bytes.slice(VIRTIO_NET_CONFIG.mac, VIRTIO_NET_CONFIG.mac + 6)
  }

  set mac(mac: Uint8Array) {
    this.bytes.set(mac, VIRTIO_NET_CONFIG.mac)
  }

  get linkUp(): boolean {
    return this.#status(VIRTIO_NET_S_LINK_UP)
  }

  set linkUp(up: boolean) {
    this.#setStatus(VIRTIO_NET_S_LINK_UP, up)
  }

  /** VIRTIO_NET_S_ANNOUNCE: the driver is asked to announce itself, and has not acknowledged. VIRTIO 1.2 §5.1.6.5.4. */
  get announce(): boolean {
    return this.#status(VIRTIO_NET_S_ANNOUNCE)
  }

  set announce(wanted: boolean) {
    this.#setStatus(VIRTIO_NET_S_ANNOUNCE, wanted)
  }

  get mtu(): number {
    return this.#view.getUint16(VIRTIO_NET_CONFIG.mtu, true)
  }

  /** May not change while a driver runs. VIRTIO 1.2 §5.1.4.1. */
  set mtu(mtu: number) {
    this.#view.setUint16(VIRTIO_NET_CONFIG.mtu, mtu, true)
  }

  /** `length` bytes from `offset`, or null if they do not lie wholly inside. */
  read(offset: number, length: number): Uint8Array | null {
    if (offset + length > this.bytes.length) return null
    return this.bytes.slice(offset, offset + length)
  }

  #status(bit: number): boolean {
    return (this.#view.getUint16(VIRTIO_NET_CONFIG.status, true) & bit) !== 0
  }

  #setStatus(bit: number, on: boolean): void {
    const status = this.#view.getUint16(VIRTIO_NET_CONFIG.status, true)
    this.#view.setUint16(VIRTIO_NET_CONFIG.status, on ? status | bit : status & ~bit, true)
  }
}
