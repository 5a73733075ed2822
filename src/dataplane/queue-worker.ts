import { native } from '../sys/native.ts'
import { VduseDevice } from '../transport/vduse/device-fd.ts'
import { iotlbSource } from '../transport/vduse/iotlb-source.ts'
import { QueuePair } from './queue-pair.ts'
import { QueuePairBlock } from './queue-pair-block.ts'
import type { ServeQueuePair } from './worker-messages.ts'

declare const self: Worker

self.onmessage = ({ data }: MessageEvent<ServeQueuePair>) => {
  const { vduseFd, wakeFd, deviceWakeFd, pairIndex, tapFd, tapHasVnetHdr, mtu } = data
  new QueuePair({
    block: new QueuePairBlock(data.block),
    fds: { wakeFd, deviceWakeFd },
    link: {
      memory: iotlbSource(new VduseDevice(vduseFd)),
      call: (direction) => native.vn_vduse_inject_irq(vduseFd, pairIndex * 2 + direction),
    },
    tap: { fd: tapFd, hasVnetHdr: tapHasVnetHdr },
    mtu,
  }).run()
}
