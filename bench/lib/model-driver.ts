/**
 * A driver without a kernel, for loads that no other frontend makes: GSO frames that fill a ring.
 *
 *   model-driver.ts SOCKET tx KIND BYTES SEGMENT    sends the same frame for ever, from 256 buffers in turn
 *   model-driver.ts SOCKET rx                       takes frames of any size and gives the buffers back
 *
 * KIND is tcp or udp, BYTES the frame's length, SEGMENT the payload of one of the packets that it stands for, 0 if it
 * is one already. It says `ready` when it has begun.
 */

import {
  VIRTIO_F_VERSION_1,
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_USO,
  VIRTIO_NET_F_MRG_RXBUF,
} from '../../src/abi/virtio.ts'
import { bit } from '../../test/support/bits.ts'
import { concat, encodeHeader, gsoHeader, makePacket, noise, type PacketShape } from '../../test/support/frames.ts'
import { Frontend } from '../../test/support/vhost-user-client.ts'

const RING_SIZE = 256

/** Room for the largest frame and its header. */
const BUFFER_BYTES = 65_562

const FEATURES = [
  VIRTIO_F_VERSION_1,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_USO,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
]

const [socket = '', direction = '', kind = '', bytes = '', segment = ''] = process.argv.slice(2)

using frontend = Frontend.start(socket, {
  features: FEATURES.reduce((mask, feature) => mask | bit(feature), 0n),
  memoryBytes: 32 << 20,
  ringSize: RING_SIZE,
})
const ring = direction === 'tx' ? frontend.tx : frontend.rx
const { driver } = ring

const frameOf = (protocol: 'tcp' | 'udp', lengthBytes: number, segmentBytes: number): Uint8Array => {
  const headers = protocol === 'tcp' ? 54 : 42
  const shape: PacketShape = { protocol, version: 4, payload: noise(lengthBytes - headers) }
  const packet = makePacket(shape, segmentBytes === 0)
  return concat(encodeHeader(segmentBytes === 0 ? {} : gsoHeader(shape, packet, segmentBytes)), packet.frame)
}

const frame = direction === 'tx' ? frameOf(kind as 'tcp' | 'udp', Number(bytes), Number(segment)) : null
const buffers = Array.from({ length: RING_SIZE }, () => frontend.memory.allocate(BUFFER_BYTES))
if (frame !== null) for (const buffer of buffers) frontend.memory.bytes(buffer, frame.length).set(frame)

/** Gives the device a buffer, with a frame to send or for one to receive. */
const chains = new Map<number, number>()
const offer = (address: number): void => {
  const length = frame?.length ?? BUFFER_BYTES
  chains.set(driver.add([{ address, length, writable: direction === 'rx' }]), address)
}

for (let i = 0; i < RING_SIZE; i++) offer(buffers[i]!)
// A sender polls, as DPDK does; a receiver leaves its processor to those who send to it.
const polls = direction === 'tx'
if (polls) driver.disableCalls()
ring.publish()
process.stdout.write('ready\n')

for (;;) {
  let reaped = 0
  for (let chain = driver.reap(); chain !== undefined; chain = driver.reap()) {
    offer(chains.get(chain.id)!)
    reaped++
  }
  if (reaped > 0) {
    driver.publish()
    if (driver.needsKick()) ring.kick.signal()
  } else if (!polls) ring.called(100)
}
