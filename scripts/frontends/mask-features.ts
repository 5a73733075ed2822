import { join } from 'node:path'
import { buildZigProgram } from '../lab/zig-program.ts'
import { NativeProcess } from './native-process.ts'

/** Feature bits of VIRTIO 1.2 §5.1.3 that exist only with a control queue, and that of the queue itself. */
const CONTROL_QUEUE_BITS = [2, 17, 18, 19, 20, 21, 22, 23] as const

/** All that a device without a control queue cannot offer. */
export const CONTROL_QUEUE_FEATURES = CONTROL_QUEUE_BITS.reduce((mask, bit) => mask | (1n << BigInt(bit)), 0n)

/** VIRTIO_F_RING_PACKED, VIRTIO 1.2 §6. */
const RING_PACKED = 1n << 34n

/**
 * Features that DPDK must not offer to User Mode Linux. Its driver accepts packed rings but starts them with
 * VHOST_USER_SET_VRING_BASE 0, so with both wrap counters 0, where they begin at 1 (VIRTIO 1.2 §2.8.1): such a backend
 * finds nothing in them.
 */
export const UNFIT_FOR_UML = CONTROL_QUEUE_FEATURES | RING_PACKED

/** What to put between a frontend and its backend. */
export interface MaskOptions {
  netns: string
  /** The socket for the frontend, which is made. It takes one connection. */
  listen: string
  /** The backend's socket. */
  connect: string
  /** Features that the backend is not to offer. */
  mask: bigint
}

/** Clears features that a vhost-user backend offers. Packets do not pass through it. */
export const maskFeatures = async (options: MaskOptions): Promise<NativeProcess> => {
  const program = await buildZigProgram(join(import.meta.dir, 'native/mask-features.zig'), {
    name: 'feature mask',
    flags: ['-target', 'x86_64-linux', '-OReleaseSafe', '-fstrip', '-fsingle-threaded'],
  })
  const child = new NativeProcess({
    name: 'mask-features',
    netns: options.netns,
    argv: [program, options.listen, options.connect, `0x${options.mask.toString(16)}`],
  })
  try {
    await child.line(/^ready$/)
    return child
  } catch (error) {
    await child.stop()
    throw error
  }
}
