import { expect, test } from 'bun:test'
import { VIRTIO_F_VERSION_1, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MRG_RXBUF } from '../../../src/abi/virtio.ts'
import { featureBit, implementedFeatures } from '../../../src/device/features.ts'
import { netHeaderBytes } from '../../../src/device/net-header.ts'

const deciding = [VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_HASH_REPORT]
const without = ~deciding.reduce((set, bit) => set | featureBit(bit), 0n)

test('three features decide the length of the header, and no other does', () => {
  for (const others of [0n, implementedFeatures & without, 0xffff_ffff_ffff_ffffn & without]) {
    for (const [version1, merge, hash, bytes] of [
      [false, false, false, 10],
      [true, false, false, 12],
      [false, true, false, 12],
      [true, true, false, 12],
      [false, false, true, 20],
      [true, false, true, 20],
      [false, true, true, 20],
      [true, true, true, 20],
    ] as const) {
      const features = [version1, merge, hash].reduce(
        (set, has, index) => (has ? set | featureBit(deciding[index]!) : set),
        others,
      )
      expect(netHeaderBytes(features)).toBe(bytes)
    }
  }
})
