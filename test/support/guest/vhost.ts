import { type Pointer, toArrayBuffer } from 'bun:ffi'
import { VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MAC } from '../../../src/abi/virtio.ts'
import { VRING_DESC_F_WRITE } from '../../../src/abi/virtio-ring.ts'
import { check, cString, libc } from './libc.ts'
import { answerTo } from './responder.ts'
import { type VhostMemory, VhostVdpa } from './vhost-vdpa.ts'

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
  readonly size = QUEUE_SIZE
  readonly base = 0
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

/** Sets a status that the device has to take. */
const setStatus = (device: VhostVdpa, status: number): void => {
  device.status = status
  if (device.status !== status) throw new Error(`status ${device.status}, not ${status}`)
}

/**
 * `vhost PATH MAC IPV4 MOVES`: a host behind a /dev/vhost-vdpa-N, in the place of a VM: it sets the device up, says
 * `ready`, and answers ARP, ping and UDP until it is killed. MOVES times, and each time it says `moved`, it puts other
 * memory behind the addresses of its buffers while packets come.
 */
export const serveVhost = (path = '', mac = '', ipv4 = '', moves = '0'): never => {
  const device = new VhostVdpa(path)
  for (const status of [0, 1, 1 | 2]) setStatus(device, status)
  const wanted = [VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_NET_F_MAC].reduce(
    (set, bit) => set | (1n << BigInt(bit)),
    0n,
  )
  const offered = device.offeredFeatures
  if ((offered & wanted) !== wanted) throw new Error(`the device offers only ${offered.toString(16)}`)
  device.setFeatures(wanted)
  setStatus(device, 1 | 2 | 8)

  const ringMemory = sharedMemory(RINGS_BYTES)
  let buffers = sharedMemory(BUFFERS_BYTES)
  const buffersAt = (address: number): VhostMemory => ({ iova: BUFFERS_IOVA, size: BUFFERS_BYTES, address })
  device.remap([], [{ iova: RINGS_IOVA, size: RINGS_BYTES, address: ringMemory.address }, buffersAt(buffers.address)])
  const rings = [new Ring(RX, ringMemory.bytes), new Ring(TX, ringMemory.bytes)] as const
  for (const ring of rings) device.setUpRing(ring)
  const [rx, tx] = rings
  for (let slot = 0; slot < QUEUE_SIZE; slot++) rx.post(slot, BUFFER_BYTES)
  for (const ring of rings) device.enableRing(ring.index)
  setStatus(device, 1 | 2 | 8 | 4)
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
      device.remap([buffersAt(buffers.address)], [buffersAt(fresh.address)])
      buffers = fresh
      answers = 0
      movesLeft--
      console.log('moved')
    }
  }
}
