import { QueuePairBlock } from '../channel/queue-pair-block.ts'
import type { ServeQueuePair } from '../channel/worker-messages.ts'
import { check, native } from '../sys/native.ts'
import { signalPeer } from '../sys/peer-signal.ts'
import { VduseDevice } from '../transport/vduse/device-fd.ts'
import { iotlbSource } from '../transport/vduse/iotlb-source.ts'
import { memoryTableSource } from '../transport/vhost-user/memory-table.ts'
import { type DriverLink, QueuePair } from './queue-pair.ts'

declare const self: Worker

const driverLink = ({ transport, pairIndex }: ServeQueuePair): DriverLink => {
  switch (transport.kind) {
    case 'vduse': {
      const { fd } = transport
      return {
        memory: iotlbSource(new VduseDevice(fd)),
        call: (direction) => {
          native.vn_vduse_inject_irq(fd, pairIndex * 2 + direction)
        },
      }
    }
    case 'vhost-user':
      return {
        memory: memoryTableSource(transport.memory),
        call: (_direction, target) => signalPeer(target),
      }
  }
}

self.onmessage = ({ data }: MessageEvent<ServeQueuePair>) => {
  const { wakeFd, deviceWakeFd, tapFd, tapHasVnetHdr, receiveFilter, receiveScaling, busyPollUs, cpu } = data
  if (cpu !== null) check(`CPU ${cpu}`, native.vn_pin_thread(cpu))
  new QueuePair({
    block: new QueuePairBlock(data.block),
    fds: { wakeFd, deviceWakeFd },
    link: driverLink(data),
    tap: { fd: tapFd, hasVnetHdr: tapHasVnetHdr },
    receiveFilter,
    receiveScaling,
    busyPollUs,
  }).run()
}
