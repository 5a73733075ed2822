import { type Pointer, toArrayBuffer } from 'bun:ffi'
import { VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MAC } from '../../../src/abi/virtio.ts'
import { VRING_DESC_F_WRITE } from '../../../src/abi/virtio-ring.ts'
import { check, cString, libc } from './libc.ts'
import { answerTo } from './responder.ts'

// linux/vhost.h
const VHOST_GET_FEATURES = 0x8008af00
const VHOST_SET_FEATURES = 0x4008af00
const VHOST_SET_OWNER = 0xaf01
const VHOST_SET_VRING_NUM = 0x4008af10
const VHOST_SET_VRING_ADDR = 0x4028af11
const VHOST_SET_VRING_BASE = 0x4008af12
const VHOST_SET_VRING_KICK = 0x4008af20
const VHOST_SET_VRING_CALL = 0x4008af21
const VHOST_SET_BACKEND_FEATURES = 0x4008af25
const VHOST_VDPA_GET_STATUS = 0x8001af71
const VHOST_VDPA_SET_STATUS = 0x4001af72
const VHOST_VDPA_SET_VRING_ENABLE = 0x4008af75
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
const EFD_NONBLOCK = 0o4000
const PROT_READ_WRITE = 3
const MAP_SHARED = 1
const POLLIN = 1

const QUEUE_SIZE = 64
const RX = 0
const TX = 1
const VIRTIO_NET_HDR_BYTES = 12
const BUFFER_BYTES = 2048
/** Device addresses: the rings, which stay, and the buffers, which move. */
const RINGS_IOVA = 0x1_0000
const RINGS_BYTES = 0x1_0000
const BUFFERS_IOVA = 0x100_0000
const BUFFERS_BYTES = 2 * QUEUE_SIZE * BUFFER_BYTES
/** The buffers move after so many answers. */
const MOVE_EVERY = 40

/** Memory that can be shared with a device: the mapping of a new memfd. */
const sharedMemory = (size: number): { address: number; bytes: Uint8Array } => {
  const fd = check('memfd_create', libc.memfd_create(cString('vhost'), 0))
  check('ftruncate', libc.ftruncate(fd, size))
  const address = libc.mmap(null, size, PROT_READ_WRITE, MAP_SHARED, fd, 0) as Pointer
  libc.close(fd)
  return { address, bytes: new Uint8Array(toArrayBuffer(address, 0, size)) }
}

/** A split ring whose descriptor i is buffer i, for ever. VIRTIO 1.2 §2.7. */
class Ring {
  readonly index: number
  readonly kickFd = check('eventfd', libc.eventfd(0, EFD_NONBLOCK))
  readonly callFd = check('eventfd', libc.eventfd(0, EFD_NONBLOCK))
  readonly descAddr: number
  readonly availAddr: number
  readonly usedAddr: number
  readonly #view: DataView
  #usedSeen = 0

  constructor(index: number, rings: Uint8Array) {
    this.index = index
    const at = index * (RINGS_BYTES / 2)
    this.#view = new DataView(rings.buffer, rings.byteOffset + at, RINGS_BYTES / 2)
    this.descAddr = RINGS_IOVA + at
    this.availAddr = this.descAddr + 0x1000
    this.usedAddr = this.descAddr + 0x2000
    for (let slot = 0; slot < QUEUE_SIZE; slot++) {
      this.#view.setBigUint64(slot * 16, BigInt(BUFFERS_IOVA + this.bufferAt(slot)), true)
      this.#view.setUint32(slot * 16 + 8, BUFFER_BYTES, true)
      this.#view.setUint16(slot * 16 + 12, index === RX ? VRING_DESC_F_WRITE : 0, true)
    }
  }

  /** Where buffer `slot` begins. */
  bufferAt(slot: number): number {
    return (this.index * QUEUE_SIZE + slot) * BUFFER_BYTES
  }

  /** Makes buffer `slot` available, of `length` bytes. */
  post(slot: number, length: number): void {
    const next = this.#view.getUint16(0x1002, true)
    this.#view.setUint32(slot * 16 + 8, length, true)
    this.#view.setUint16(0x1004 + (next % QUEUE_SIZE) * 2, slot, true)
    this.#view.setUint16(0x1002, (next + 1) & 0xffff, true)
  }

  kick(): void {
    libc.write(this.kickFd, new BigUint64Array([1n]), 8)
  }

  /** The next buffer that the device has used, and how many bytes it has written; null if there is none. */
  used(): { slot: number; length: number } | null {
    if (this.#view.getUint16(0x2002, true) === this.#usedSeen) return null
    const element = 0x2004 + (this.#usedSeen % QUEUE_SIZE) * 8
    this.#usedSeen = (this.#usedSeen + 1) & 0xffff
    return { slot: this.#view.getUint32(element, true), length: this.#view.getUint32(element + 4, true) }
  }
}

const words = (...values: number[]): Uint32Array => new Uint32Array(values)

/**
 * `vhost PATH MAC IPV4 MOVES`: a host behind a /dev/vhost-vdpa-N, in the place of a VM: it sets the device up, says `ready`, and
 * answers ARP, ping and UDP until it is killed. MOVES times, and each time it says `moved`, it puts other memory behind
 * the addresses of its buffers while packets come.
 */
export const serveVhost = (path = '', mac = '', ipv4 = '', moves = '0'): never => {
  const fd = check(`open ${path}`, libc.open(cString(path), O_RDWR | O_CLOEXEC))
  const ioctl = (name: string, request: number, argument: NodeJS.TypedArray | null): void => {
    check(name, libc.ioctl(fd, request, argument))
  }
  const message = (type: number, iova: number, size: number, address: number): void => {
    const bytes = new Uint8Array(72)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, VHOST_IOTLB_MSG_V2, true)
    view.setBigUint64(8, BigInt(iova), true)
    view.setBigUint64(16, BigInt(size), true)
    view.setBigUint64(24, BigInt(address), true)
    view.setUint8(32, VHOST_ACCESS_RW)
    view.setUint8(33, type)
    check(`IOTLB message ${type}`, libc.write(fd, bytes, bytes.length))
  }
  const setStatus = (status: number): void => {
    ioctl('SET_STATUS', VHOST_VDPA_SET_STATUS, Uint8Array.of(status))
    const now = new Uint8Array(1)
    ioctl('GET_STATUS', VHOST_VDPA_GET_STATUS, now)
    if (now[0] !== status) throw new Error(`status ${now[0]}, not ${status}`)
  }

  ioctl('SET_OWNER', VHOST_SET_OWNER, null)
  ioctl(
    'SET_BACKEND_FEATURES',
    VHOST_SET_BACKEND_FEATURES,
    new BigUint64Array([VHOST_BACKEND_F_IOTLB_MSG_V2 | VHOST_BACKEND_F_IOTLB_BATCH]),
  )
  setStatus(0)
  setStatus(1)
  setStatus(1 | 2)
  const features = new BigUint64Array(1)
  ioctl('GET_FEATURES', VHOST_GET_FEATURES, features)
  const wanted = [VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_NET_F_MAC].reduce(
    (set, bit) => set | (1n << BigInt(bit)),
    0n,
  )
  if ((features[0]! & wanted) !== wanted) throw new Error(`the device offers only ${features[0]!.toString(16)}`)
  ioctl('SET_FEATURES', VHOST_SET_FEATURES, new BigUint64Array([wanted]))
  setStatus(1 | 2 | 8)

  const ringMemory = sharedMemory(RINGS_BYTES)
  let buffers = sharedMemory(BUFFERS_BYTES)
  message(VHOST_IOTLB_BATCH_BEGIN, 0, 0, 0)
  message(VHOST_IOTLB_UPDATE, RINGS_IOVA, RINGS_BYTES, ringMemory.address)
  message(VHOST_IOTLB_UPDATE, BUFFERS_IOVA, BUFFERS_BYTES, buffers.address)
  message(VHOST_IOTLB_BATCH_END, 0, 0, 0)
  const rings = [new Ring(RX, ringMemory.bytes), new Ring(TX, ringMemory.bytes)] as const
  for (const ring of rings) {
    ioctl('SET_VRING_NUM', VHOST_SET_VRING_NUM, words(ring.index, QUEUE_SIZE))
    ioctl('SET_VRING_BASE', VHOST_SET_VRING_BASE, words(ring.index, 0))
    const address = new BigUint64Array([
      BigInt(ring.index),
      BigInt(ring.descAddr),
      BigInt(ring.usedAddr),
      BigInt(ring.availAddr),
      0n,
    ])
    ioctl('SET_VRING_ADDR', VHOST_SET_VRING_ADDR, address)
    ioctl('SET_VRING_KICK', VHOST_SET_VRING_KICK, words(ring.index, ring.kickFd))
    ioctl('SET_VRING_CALL', VHOST_SET_VRING_CALL, words(ring.index, ring.callFd))
  }
  const [rx, tx] = rings
  for (let slot = 0; slot < QUEUE_SIZE; slot++) rx.post(slot, BUFFER_BYTES)
  for (const ring of rings) ioctl('SET_VRING_ENABLE', VHOST_VDPA_SET_VRING_ENABLE, words(ring.index, 1))
  setStatus(1 | 2 | 8 | 4)
  rx.kick()
  console.log('ready')

  const ourMac = Uint8Array.from(mac.split(':').map((octet) => Number.parseInt(octet, 16)))
  const ourAddress = Uint8Array.from(ipv4.split('.').map(Number))
  const freeTx = Array.from({ length: QUEUE_SIZE }, (_, slot) => slot)
  const polled = new Int32Array([rx.callFd, POLLIN, tx.callFd, POLLIN])
  const counter = new BigUint64Array(1)
  let movesLeft = Number(moves)
  let answers = 0
  for (;;) {
    libc.poll(polled, 2, 1000)
    for (const ring of rings) libc.read(ring.callFd, counter, 8)
    for (let sent = tx.used(); sent !== null; sent = tx.used()) freeTx.push(sent.slot)
    for (let got = rx.used(); got !== null; got = rx.used()) {
      const at = rx.bufferAt(got.slot)
      const answer = answerTo(buffers.bytes.subarray(at + VIRTIO_NET_HDR_BYTES, at + got.length), ourMac, ourAddress)
      const slot = answer === null ? undefined : freeTx.pop()
      if (answer !== null && slot !== undefined) {
        const to = tx.bufferAt(slot)
        buffers.bytes.fill(0, to, to + VIRTIO_NET_HDR_BYTES)
        buffers.bytes.set(answer, to + VIRTIO_NET_HDR_BYTES)
        tx.post(slot, VIRTIO_NET_HDR_BYTES + answer.length)
        tx.kick()
        answers++
      }
      // What a former packet has left must not pass for a new one.
      buffers.bytes.fill(0, at, at + BUFFER_BYTES)
      rx.post(got.slot, BUFFER_BYTES)
      rx.kick()
    }
    if (movesLeft > 0 && answers >= MOVE_EVERY) {
      const fresh = sharedMemory(BUFFERS_BYTES)
      // What waits to be sent goes along; what was received into the old memory in this moment is lost, as it may be.
      fresh.bytes.set(buffers.bytes.subarray(tx.bufferAt(0)), tx.bufferAt(0))
      message(VHOST_IOTLB_BATCH_BEGIN, 0, 0, 0)
      message(VHOST_IOTLB_INVALIDATE, BUFFERS_IOVA, BUFFERS_BYTES, 0)
      message(VHOST_IOTLB_UPDATE, BUFFERS_IOVA, BUFFERS_BYTES, fresh.address)
      message(VHOST_IOTLB_BATCH_END, 0, 0, 0)
      buffers = fresh
      answers = 0
      movesLeft--
      console.log('moved')
    }
  }
}
