import { VIRTIO_F_VERSION_1, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MRG_RXBUF } from '../abi/virtio.ts'
import { VIRTIO_NET_HDR, VIRTIO_NET_HDR_V1, VIRTIO_NET_HDR_V1_HASH } from '../abi/virtio-net.ts'
import { type Features, featureBit } from './features.ts'

const withNumBuffers = featureBit(VIRTIO_F_VERSION_1) | featureBit(VIRTIO_NET_F_MRG_RXBUF)

/**
 * Bytes of the virtio-net header in front of each frame, in both directions, for a driver that acknowledged `features`:
 * 20 with HASH_REPORT, whether hashes are configured or not; 12 with VERSION_1 or MRG_RXBUF; 10 for any other driver,
 * whose header has no num_buffers. VIRTIO 1.2 §5.1.6, §5.1.6.1.
 */
export const netHeaderBytes = (features: Features): number => {
  if ((features & featureBit(VIRTIO_NET_F_HASH_REPORT)) !== 0n) return VIRTIO_NET_HDR_V1_HASH.sizeBytes
  return (features & withNumBuffers) !== 0n ? VIRTIO_NET_HDR_V1.sizeBytes : VIRTIO_NET_HDR.sizeBytes
}
