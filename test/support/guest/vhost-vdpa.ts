import { check, cString, libc } from './libc.ts'

// linux/vhost.h
const VHOST_GET_FEATURES = 0x8008af00
const VHOST_SET_FEATURES = 0x4008af00
const VHOST_SET_OWNER = 0xaf01
const VHOST_SET_VRING_NUM = 0x4008af10
const VHOST_SET_VRING_ADDR = 0x4028af11
const VHOST_SET_VRING_BASE = 0x4008af12
const VHOST_GET_VRING_BASE = 0xc008af12
const VHOST_SET_VRING_KICK = 0x4008af20
const VHOST_SET_VRING_CALL = 0x4008af21
const VHOST_SET_BACKEND_FEATURES = 0x4008af25
const VHOST_VDPA_GET_STATUS = 0x8001af71
const VHOST_VDPA_SET_STATUS = 0x4001af72
const VHOST_VDPA_GET_CONFIG = 0x8008af73
const VHOST_VDPA_SET_VRING_ENABLE = 0x4008af75
const VHOST_VDPA_SET_CONFIG_CALL = 0x4004af77
// linux/vhost_types.h
const VHOST_BACKEND_F_IOTLB_MSG_V2 = 1n << 1n
const VHOST_BACKEND_F_IOTLB_BATCH = 1n << 2n
const VHOST_IOTLB_MSG_V2 = 2
const VHOST_ACCESS_RW = 3
const VHOST_IOTLB_UPDATE = 2
const VHOST_IOTLB_INVALIDATE = 3
const VHOST_IOTLB_BATCH_BEGIN = 5
const VHOST_IOTLB_BATCH_END = 6

const O_RDWR = 2
const O_CLOEXEC = 0o2000000

const words = (...values: number[]): Uint32Array => new Uint32Array(values)

/** A virtqueue as its driver sets it up. Addresses are the device's. */
export type VhostRing = {
  readonly index: number
  readonly size: number
  readonly base: number
  readonly descAddr: number
  readonly availAddr: number
  readonly usedAddr: number
  readonly kickFd: number
  readonly callFd: number
}

/** Memory of this process, a shared mapping of a file, for the device at `iova`. */
export type VhostMemory = { readonly iova: number; readonly size: number; readonly address: number }

/** A /dev/vhost-vdpa-N. Whatever the kernel refuses is an exception. */
export class VhostVdpa {
  readonly fd: number

  /** Opening it resets the device. */
  constructor(path: string) {
    this.fd = check(`open ${path}`, libc.open(cString(path), O_RDWR | O_CLOEXEC))
    this.#ioctl('SET_OWNER', VHOST_SET_OWNER, null)
    const features = new BigUint64Array([VHOST_BACKEND_F_IOTLB_MSG_V2 | VHOST_BACKEND_F_IOTLB_BATCH])
    this.#ioctl('SET_BACKEND_FEATURES', VHOST_SET_BACKEND_FEATURES, features)
  }

  get status(): number {
    const status = new Uint8Array(1)
    this.#ioctl('GET_STATUS', VHOST_VDPA_GET_STATUS, status)
    return status[0]!
  }

  /** The device may leave the status as it is. */
  set status(status: number) {
    this.#ioctl('SET_STATUS', VHOST_VDPA_SET_STATUS, Uint8Array.of(status))
  }

  get offeredFeatures(): bigint {
    const features = new BigUint64Array(1)
    this.#ioctl('GET_FEATURES', VHOST_GET_FEATURES, features)
    return features[0]!
  }

  setFeatures(features: bigint): void {
    this.#ioctl('SET_FEATURES', VHOST_SET_FEATURES, new BigUint64Array([features]))
  }

  readConfig(offset: number, length: number): Uint8Array {
    const config = new Uint8Array(8 + length)
    config.set(new Uint8Array(words(offset, length).buffer))
    this.#ioctl('GET_CONFIG', VHOST_VDPA_GET_CONFIG, config)
    return config.slice(8)
  }

  /** An eventfd for configuration changes. */
  setConfigCall(fd: number): void {
    this.#ioctl('SET_CONFIG_CALL', VHOST_VDPA_SET_CONFIG_CALL, words(fd))
  }

  /** Takes memory away from the device and puts other in its place, in one step. */
  remap(gone: readonly VhostMemory[], come: readonly VhostMemory[]): void {
    this.#message(VHOST_IOTLB_BATCH_BEGIN, 0, 0, 0)
    for (const { iova, size } of gone) this.#message(VHOST_IOTLB_INVALIDATE, iova, size, 0)
    for (const { iova, size, address } of come) this.#message(VHOST_IOTLB_UPDATE, iova, size, address)
    this.#message(VHOST_IOTLB_BATCH_END, 0, 0, 0)
  }

  setUpRing(ring: VhostRing): void {
    const { index } = ring
    this.#ioctl('SET_VRING_NUM', VHOST_SET_VRING_NUM, words(index, ring.size))
    this.#ioctl('SET_VRING_BASE', VHOST_SET_VRING_BASE, words(index, ring.base))
    const addresses = [index, ring.descAddr, ring.usedAddr, ring.availAddr, 0].map(BigInt)
    this.#ioctl('SET_VRING_ADDR', VHOST_SET_VRING_ADDR, new BigUint64Array(addresses))
    this.#ioctl('SET_VRING_KICK', VHOST_SET_VRING_KICK, words(index, ring.kickFd))
    this.#ioctl('SET_VRING_CALL', VHOST_SET_VRING_CALL, words(index, ring.callFd))
  }

  enableRing(index: number): void {
    this.#ioctl('SET_VRING_ENABLE', VHOST_VDPA_SET_VRING_ENABLE, words(index, 1))
  }

  ringBase(index: number): number {
    const state = words(index, 0)
    this.#ioctl('GET_VRING_BASE', VHOST_GET_VRING_BASE, state)
    return state[1]!
  }

  [Symbol.dispose](): void {
    libc.close(this.fd)
  }

  #ioctl(name: string, request: number, argument: NodeJS.TypedArray | null): void {
    check(name, libc.ioctl(this.fd, request, argument))
  }

  #message(type: number, iova: number, size: number, address: number): void {
    const bytes = new Uint8Array(72)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, VHOST_IOTLB_MSG_V2, true)
    view.setBigUint64(8, BigInt(iova), true)
    view.setBigUint64(16, BigInt(size), true)
    view.setBigUint64(24, BigInt(address), true)
    view.setUint8(32, VHOST_ACCESS_RW)
    view.setUint8(33, type)
    check(`IOTLB message ${type}`, libc.write(this.fd, bytes, bytes.length))
  }
}
