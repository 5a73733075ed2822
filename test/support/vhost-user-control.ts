import { VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ } from '../../src/abi/virtio.ts'
import { bit } from './bits.ts'
import { DRIVER_FEATURES, type Frontend, type FrontendOptions, type FrontendRing } from './vhost-user-client.ts'

/** Options of a front-end that has one queue pair and behind it a control queue, with some commands to give. */
export const WITH_CONTROL_QUEUE: FrontendOptions = {
  rings: 3,
  features: DRIVER_FEATURES | bit(VIRTIO_NET_F_CTRL_VQ) | bit(VIRTIO_NET_F_CTRL_RX) | bit(VIRTIO_NET_F_CTRL_MAC_ADDR),
}

export const controlRing = (frontend: Frontend): FrontendRing => frontend.rings.at(-1)!

/** Adds a command to the control queue without publishing it: where its answer comes. */
export const addCommand = (frontend: Frontend, bytes: readonly number[]): { readonly answerAt: number } => {
  const { memory } = frontend
  const commandAt = memory.allocate(bytes.length)
  memory.bytes(commandAt, bytes.length).set(bytes)
  const answerAt = memory.allocate(1)
  memory.bytes(answerAt, 1).fill(0xee)
  const id = controlRing(frontend).model.add([
    { address: commandAt, length: bytes.length },
    { address: answerAt, length: 1, writable: true },
  ])
  if (id < 0) throw new Error('the control queue is full')
  return { answerAt }
}

/** Gives a command and waits for its answer: VIRTIO_NET_OK or VIRTIO_NET_ERR. */
export const command = (frontend: Frontend, bytes: readonly number[]): number => {
  const ring = controlRing(frontend)
  const { answerAt } = addCommand(frontend, bytes)
  ring.publish()
  const { length } = frontend.used(ring)
  if (length !== 1) throw new Error(`an answer of ${length} bytes`)
  return frontend.memory.bytes(answerAt, 1)[0]!
}
